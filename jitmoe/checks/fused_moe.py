# SPDX-License-Identifier: MIT
"""The self-check of ``fused_moe``: random tensors with every kind of routing, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problem import Layout, MoEProblem
from jitmoe.selfcheck import judge_floats
from jitmoe.tensors import torch_dtypes

SEED = 20260101


def judge(problem: MoEProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "")."""
    import torch

    from jitmoe import reference

    w1, w2 = inputs["w1"], inputs["w2"]
    expected = reference.fused_moe(
        inputs["hidden_states"],
        w1.mT if problem.w1_layout is Layout.KN else w1,
        w2.mT if problem.w2_layout is Layout.KN else w2,
        inputs["topk_weights"],
        inputs["topk_ids"],
        activation=problem.activation,
        expert_map=inputs.get("expert_map"),
        compute_dtype=torch.float64,
    )
    return judge_floats(results["out"], expected, problem.dtype)


def inputs(problem: MoEProblem) -> dict[str, Any]:
    """Returns host tensors in the problem's dtypes and storage order, with every kind of routing case in them."""
    import torch

    dtypes = torch_dtypes()
    m, h, i = problem.num_tokens, problem.hidden_size, problem.intermediate_size
    e, k = problem.num_experts, problem.top_k
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, scale: float, layout: Layout = Layout.NK) -> Any:
        values = torch.randn(*shape, generator=generator) * scale
        stored = values.mT if layout is Layout.KN else values
        return stored.to(dtypes[problem.dtype]).contiguous()

    ids = torch.randint(0, e, (m, k), generator=generator)
    ids[0, 0] = e + 3  # another rank's expert
    if m > 2:
        ids[1] = -1  # a token without any expert
        ids[2] = ids[2, 0]  # the same expert in every slot
    tensors = {
        "hidden_states": normal(m, h, scale=1.0),
        "w1": normal(e, 2 * i, h, scale=h**-0.5, layout=problem.w1_layout),
        "w2": normal(e, h, i, scale=i**-0.5, layout=problem.w2_layout),
        "topk_weights": torch.rand(m, k, generator=generator).to(dtypes[problem.topk_weights_dtype]),
        "topk_ids": ids.to(dtypes[problem.topk_ids_dtype]),
        "out": torch.full((m, h), float("nan"), dtype=dtypes[problem.dtype]),
    }
    if problem.num_global_experts is not None:
        permutation = torch.randperm(e, generator=generator).to(torch.int32)
        permutation[0] = -1
        tensors["expert_map"] = permutation
    return tensors

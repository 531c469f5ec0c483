# SPDX-License-Identifier: MIT
"""The self-check of ``grouped_gemm_moe``: random tensors with every kind of routing, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.fused_moe import Layout
from jitmoe.problems.grouped_gemm import GroupedGemmProblem
from jitmoe.selfcheck import judge_floats
from jitmoe.tensors import torch_dtypes

SEED = 20260102


def judge(problem: GroupedGemmProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "")."""
    import torch

    from jitmoe import reference

    expected = reference.weighted_products(
        inputs["A"],
        inputs["B"],
        inputs.get("C"),
        inputs["topk_weights"],
        inputs["topk_indices"],
        trans_b=problem.layout is Layout.NK,
        compute_dtype=torch.float64,
    )
    return judge_floats(results["D"], expected, problem.dtype)


def inputs(problem: GroupedGemmProblem) -> dict[str, Any]:
    """Returns host tensors in the problem's dtypes and storage order, with every kind of routing case in them."""
    import torch

    dtypes = torch_dtypes()
    m, n, k, e = problem.num_tokens, problem.n, problem.k, problem.num_experts
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, scale: float) -> Any:
        return torch.randn(*shape, generator=generator) * scale

    ids = torch.randint(0, e, (m, problem.top_k), generator=generator)
    ids[0, 0] = e + 3  # no expert
    if m > 2:
        ids[1] = -1  # a row without any expert
        ids[2] = ids[2, 0]  # the same expert in every slot
    shape = (e, n, k) if problem.layout is Layout.NK else (e, k, n)
    tensors = {
        "A": normal(m, k, scale=1.0).to(dtypes[problem.dtype]),
        "B": normal(*shape, scale=k**-0.5).to(dtypes[problem.dtype]),
        "D": torch.full((m, n), float("nan"), dtype=dtypes[problem.dtype]),
        "topk_weights": torch.rand(m, problem.top_k, generator=generator).to(dtypes[problem.topk_weights_dtype]),
        "topk_indices": ids.to(dtypes[problem.topk_ids_dtype]),
    }
    if problem.bias_dtype is not None:
        tensors["C"] = normal(e, n, scale=0.5).to(dtypes[problem.bias_dtype])
    return tensors

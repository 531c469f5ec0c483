# SPDX-License-Identifier: MIT
"""The self-check of given routing: bit for bit ids, weights within a rounding of float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routed import AdjustRoutingProblem
from jitmoe.tensors import torch_dtypes

SEED = 20260102
TOLERANCE = 1e-6  # relative, of fp32 sums of a few weights


def inputs(problem: AdjustRoutingProblem) -> dict[str, Any]:
    """Returns random weights and ids, some out of range, and poisoned outputs."""
    import torch

    dtypes = torch_dtypes()
    generator = torch.Generator().manual_seed(SEED)
    m, k, slots = problem.num_tokens, problem.top_k, problem.num_slots
    ids = torch.randint(-2, 50, (m, k), generator=generator)
    if problem.ids_dtype is DType.INT64:
        ids[0, 0] = 2**40
    tensors = {
        "topk_weights": (torch.rand(m, k, generator=generator) + 0.1).to(dtypes[problem.weights_dtype]),
        "topk_ids": ids.to(dtypes[problem.ids_dtype]),
        "weights": torch.full((m, slots), float("nan")),
        "ids": torch.full((m, slots), -99, dtype=torch.int32),
    }
    if problem.shared_dtype is not None:
        shared = torch.rand(m, problem.num_shared_experts, generator=generator)
        tensors["shared_weights"] = shared.to(dtypes[problem.shared_dtype])
    return tensors


def judge(problem: AdjustRoutingProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (largest relative error of the weights, what is wrong or "")."""
    from jitmoe import reference

    weights, ids = reference.adjust_routing(
        inputs["topk_weights"].double(),
        inputs["topk_ids"],
        renormalize=problem.renormalize,
        num_shared_experts=problem.num_shared_experts,
        first_shared_expert=problem.first_shared_expert,
        shared_weights=inputs.get("shared_weights"),
    )
    if not bool((results["ids"] == ids).all()):
        return float("inf"), f"{int((results['ids'] != ids).sum())} of {ids.numel()} ids are wrong"
    error = float(((results["weights"].double() - weights).abs() / weights.abs()).nan_to_num(float("inf")).max())
    return error, "" if error <= TOLERANCE else f"a weight is off by {error:.1e} of itself"

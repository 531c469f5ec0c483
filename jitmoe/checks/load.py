# SPDX-License-Identifier: MIT
"""The self-check of load statistics: the reference's counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.sorting import LoadProblem
from jitmoe.tensors import torch_dtypes

SEED = 20260101


def inputs(problem: LoadProblem) -> dict[str, Any]:
    """Returns host tensors: ids with experts of other ranks among them."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(-1, problem.num_experts + 2, (problem.num_tokens, problem.top_k), generator=generator)
    return {
        "topk_ids": ids.to(torch_dtypes()[problem.ids_dtype]),
        "counts": torch.full((problem.num_experts,), -7, dtype=torch.int32),
        "imbalance": torch.full((1,), float("nan")),
    }


def judge(problem: LoadProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (relative error of the ratio, what is wrong or "")."""
    import torch

    from jitmoe import reference

    counts, imbalance = reference.expert_load(inputs["topk_ids"], problem.num_experts)
    if not torch.equal(results["counts"], counts):
        return float("inf"), "counts differ from the reference"
    error = float((results["imbalance"] - imbalance).abs() / imbalance.clamp_min(1e-30))
    return error, "" if error < 1e-5 else f"the largest over the mean load is {float(results['imbalance']):.6g}"

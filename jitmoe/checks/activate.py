# SPDX-License-Identifier: MIT
"""The self-check of ``activate``: numbers of every size against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import GateUp
from jitmoe.selfcheck import judge_floats
from jitmoe.tensors import torch_dtypes

SEED = 20260101


def inputs(problem: ActivateProblem) -> dict[str, Any]:
    """Returns host tensors."""
    import torch

    dtype = torch_dtypes()[problem.dtype]
    generator = torch.Generator().manual_seed(SEED)
    rows, columns = problem.num_rows, problem.num_columns

    def normal(width: int) -> Any:
        return (3 * torch.randn(rows, width, generator=generator)).to(dtype)

    tensors = {"gate": normal(problem.gate_up.rows(columns))}
    if problem.gate_up is GateUp.SEPARATE:
        tensors["up"] = normal(columns)
    tensors["out"] = torch.full((rows, columns), float("nan"), dtype=dtype)
    return tensors


def judge(problem: ActivateProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "")."""
    from jitmoe import reference

    up = inputs.get("up")
    expected = reference.activate(
        inputs["gate"].double(),
        None if up is None else up.double(),
        problem.activation,
        layout=problem.gate_up,
        alpha=problem.alpha,
        limit=problem.limit,
    )
    return judge_floats(results["out"], expected, problem.dtype)

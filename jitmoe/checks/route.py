# SPDX-License-Identifier: MIT
"""The self-check of ``route``: well separated, tied and extreme logits, against the float32 reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.routing import RoutingProblem, Scoring
from jitmoe.tensors import torch_dtypes

SEED = 20260101
TOLERANCE = 1e-5  # relative, of a weight: some 100 ulp of float32
SMALL = 1e-30  # weights below count as this large


def inputs(problem: RoutingProblem) -> dict[str, Any]:
    """Returns host tensors: logits are distinct multiples of 1/64 in most rows, small whole numbers or -inf in some."""
    import torch

    dtypes = torch_dtypes()
    m, e = problem.num_tokens, problem.num_experts
    generator = torch.Generator().manual_seed(SEED)
    # At most 8 bits each, so that every dtype holds them exactly; beyond 256 experts some are equal.
    steps = torch.stack([torch.randperm(e, generator=generator) for _ in range(m)]) % 256
    logits = (steps - 128).float() / 64
    if m > 3:
        logits[1] = torch.randint(0, 3, (e,), generator=generator).float()  # ties
        logits[2] = 16.0 * logits[2]  # sigmoids that round to 1; no score is a denormal, which a GPU may flush
        logits[3, torch.rand(e, generator=generator) < 0.5] = float("-inf")
    if problem.routing.scoring is Scoring.NONE:
        logits = logits.abs()  # weights, not logits
    tensors = {
        "router_logits": logits.to(dtypes[problem.dtype]),
        "topk_weights": torch.full((m, problem.routing.num_slots), float("nan")),
        "topk_ids": torch.full((m, problem.routing.num_slots), -7, dtype=dtypes[problem.ids_dtype]),
    }
    if problem.bias_dtype is not None:
        bias = (torch.randperm(e, generator=generator) % 16).float() / 8
        tensors["correction_bias"] = bias.to(dtypes[problem.bias_dtype])
    return tensors


def judge(problem: RoutingProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (largest relative error of a weight, what is wrong or "")."""
    import torch

    from jitmoe import reference

    weights, ids = reference.route(
        inputs["router_logits"],
        problem.routing,
        correction_bias=inputs.get("correction_bias"),
        ids_dtype=inputs["topk_ids"].dtype,
    )
    wrong_rows = int((results["topk_ids"] != ids).any(dim=1).sum())
    if wrong_rows:
        return float("inf"), f"experts of {wrong_rows} of {ids.shape[0]} tokens are wrong"
    found = results["topk_weights"]
    if not torch.equal(found.isnan(), weights.isnan()):
        return float("inf"), f"{int(found.isnan().sum())} weights are NaN instead of {int(weights.isnan().sum())}"
    error = ((found - weights).abs() / weights.abs().clamp_min(SMALL)).nan_to_num(0.0)
    largest = float(error.max()) if error.numel() else 0.0
    return largest, f"a weight's relative error {largest:.2e} exceeds {TOLERANCE:.0e}" if largest > TOLERANCE else ""

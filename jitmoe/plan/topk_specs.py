# SPDX-License-Identifier: MIT
"""What the top-k kernels of all devices have in common: their constants and arguments, from a ``RoutingProblem``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routing import GroupScore, RoutingProblem, Scoring

TOPK_ARGUMENTS = """in router_logits, in correction_bias, out topk_weights, out topk_ids, int32 num_tokens,
    int32 num_shared_experts, int32 capacity, int64 logits_row_stride, int64 weights_row_stride, int64 ids_row_stride,
    float32 temperature, float32 renormalize_epsilon, float32 renormalize_min, float32 jitter_eps,
    float32 scaling_factor, float32 shared_expert_weight"""


@dataclass(frozen=True, kw_only=True)  # no slots: it is mixed into spec classes of devices
class TopKConstants:
    """Sizes of the router (not of the call), and which of its steps there are."""

    dtype: DType
    has_bias: bool
    bias_dtype: DType  # fp32 without a bias
    ids_dtype: DType
    num_experts: int
    top_k: int
    scoring: Scoring
    topk_before_scoring: bool
    num_groups: int
    topk_groups: int
    group_score: GroupScore  # max if there is one group
    renormalize: bool
    has_temperature: bool


def topk_constants(problem: RoutingProblem) -> dict[str, Any]:
    """Returns the fields of the spec for ``problem``; what makes no difference has one value."""
    routing = problem.routing
    has_groups = routing.topk_groups < routing.num_groups
    return {
        "dtype": problem.dtype,
        "has_bias": problem.bias_dtype is not None,
        "bias_dtype": problem.bias_dtype or DType.FP32,
        "ids_dtype": problem.ids_dtype,
        "num_experts": problem.num_experts,
        "top_k": routing.top_k,
        "scoring": routing.scoring,
        "topk_before_scoring": routing.chooses_by_logits and routing.scoring is not Scoring.NONE,
        "num_groups": routing.num_groups if has_groups else 1,
        "topk_groups": routing.topk_groups if has_groups else 1,
        "group_score": routing.group_score if has_groups else GroupScore.MAX,
        "renormalize": routing.renormalize,
        "has_temperature": routing.temperature != 1.0,
    }


def topk_scalars(problem: RoutingProblem) -> dict[str, int | float]:
    """Returns the numbers of a launch."""
    routing = problem.routing
    return {
        "num_tokens": problem.num_tokens,
        "num_shared_experts": routing.num_shared_experts,
        "capacity": problem.capacity or 0,
        "logits_row_stride": problem.logits_row_stride,
        "weights_row_stride": problem.weights_row_stride,
        "ids_row_stride": problem.ids_row_stride,
        "temperature": routing.temperature,
        "renormalize_epsilon": routing.renormalize_epsilon,
        "renormalize_min": routing.renormalize_min,
        "jitter_eps": routing.jitter_eps,
        "scaling_factor": routing.scaling_factor,
        "shared_expert_weight": routing.shared_expert_weight,
    }

# SPDX-License-Identifier: MIT
"""What the sorting kernels of all devices have in common: their constants and arguments, from a ``SortProblem``."""

from __future__ import annotations

from typing import Any

from jitmoe.problems.fused_moe import DType
from jitmoe.problems.sorting import SortProblem

SORT_ARGUMENTS = """in topk_ids, in expert_map, in topk_weights, out sorted_token_ids, out expert_ids,
    out num_tokens_post_pad, out sorted_weights, out output, {workspace}, int32 num_tokens, int32 top_k,
    int32 num_experts, int32 num_global_experts, int32 block_size, int32 num_sorted, int32 num_blocks,
    int32 num_ranges, int64 topk_ids_row_stride, int64 topk_weights_row_stride, int64 zeroed_bytes"""


def ids_constants(problem: SortProblem) -> dict[str, Any]:
    """Returns the fields of specs that read ids."""
    return {"ids_dtype": problem.ids_dtype, "has_expert_map": problem.num_global_experts is not None}


def weights_constants(problem: SortProblem) -> dict[str, Any]:
    """Returns the fields of specs that move weights along."""
    return {"has_weights": problem.weights_dtype is not None, "weights_dtype": problem.weights_dtype or DType.FP32}


def sort_scalars(problem: SortProblem, num_ranges: int) -> dict[str, int]:
    """Returns the numbers of a launch."""
    return {
        "num_tokens": problem.num_tokens,
        "top_k": problem.top_k,
        "num_experts": problem.num_experts,
        "num_global_experts": problem.num_global_experts or 0,
        "block_size": problem.block_size,
        "num_sorted": problem.num_sorted,
        "num_blocks": problem.num_blocks,
        "num_ranges": num_ranges,
        "topk_ids_row_stride": problem.ids_row_stride,
        "topk_weights_row_stride": problem.weights_row_stride,
        "zeroed_bytes": problem.zeroed_bytes,
    }

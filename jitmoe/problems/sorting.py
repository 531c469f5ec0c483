# SPDX-License-Identifier: MIT
"""Problem values of the ops on the experts that tokens have got: sorting by expert, and load statistics."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jitmoe.device import DeviceKind
from jitmoe.operation import Operation
from jitmoe.problems.fused_moe import DType

SORT = Operation(
    name="moe_sorting",
    tensors=(
        *("topk_ids", "expert_map", "topk_weights", "sorted_token_ids", "expert_ids", "num_tokens_post_pad"),
        *("sorted_weights", "output"),
    ),
    outputs=("sorted_token_ids", "expert_ids", "num_tokens_post_pad", "sorted_weights", "output"),
    planners={
        DeviceKind.CPU: "jitmoe.plan.sorting_cpu",
        DeviceKind.GPU: "jitmoe.plan.sorting_xe",
        DeviceKind.XE_EMULATED: "jitmoe.plan.sorting_xe",
    },
    check="jitmoe.checks.sorting",
)
LOAD = Operation(
    name="expert_load",
    tensors=("topk_ids", "counts", "imbalance"),
    outputs=("counts", "imbalance"),
    planners={
        DeviceKind.CPU: "jitmoe.plan.load_cpu",
        DeviceKind.GPU: "jitmoe.plan.load_xe",
        DeviceKind.XE_EMULATED: "jitmoe.plan.load_xe",
    },
    check="jitmoe.checks.load",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SortProblem:
    """One call that sorts (token, slot) pairs by expert: ``moe_align_block_size`` or ``moe_sorting``."""

    OPERATION: ClassVar[Operation] = SORT

    num_tokens: int  # M
    top_k: int  # k
    num_experts: int  # E, experts whose weights are here
    num_global_experts: int | None  # length of expert_map; None without a map
    block_size: int  # an expert's pairs are padded to a multiple of it
    ids_dtype: DType
    ids_row_stride: int
    num_sorted: int  # length of sorted_token_ids
    num_blocks: int  # length of expert_ids
    weights_dtype: DType | None = None  # of topk_weights, which moe_sorting sorts along; None without
    weights_row_stride: int = 0
    zeroed_bytes: int = 0  # of the output buffer that moe_sorting clears

    @property
    def num_pairs(self) -> int:
        """M * k, also the number that marks a padding slot. A pair's index is token * k + slot."""
        return self.num_tokens * self.top_k

    @property
    def is_empty(self) -> bool:
        return False  # without tokens there is still padding to be written

    def resized(self, *, num_tokens: int, num_experts: int, block_size: int) -> SortProblem:
        """Returns the same kind of problem with other sizes, densely packed tensors and buffers that are too long."""
        longest = max_padded_pairs(num_tokens * self.top_k, num_experts, block_size)
        return dataclasses.replace(
            self,
            num_tokens=num_tokens,
            num_experts=num_experts,
            num_global_experts=None if self.num_global_experts is None else num_experts,
            block_size=block_size,
            ids_row_stride=self.top_k,
            num_sorted=longest + 3,
            num_blocks=longest // block_size + 2,
            weights_row_stride=0 if self.weights_dtype is None else self.top_k,
            zeroed_bytes=min(self.zeroed_bytes, 1 + 4 * num_tokens),
        )

    def __str__(self) -> str:
        op = "moe_align_block_size" if self.weights_dtype is None else "moe_sorting"
        return f"{op}(M={self.num_tokens} k={self.top_k} E={self.num_experts} block={self.block_size})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProblem:
    """One ``expert_load`` call."""

    OPERATION: ClassVar[Operation] = LOAD

    num_tokens: int
    top_k: int
    num_experts: int
    ids_dtype: DType
    ids_row_stride: int

    @property
    def num_pairs(self) -> int:
        return self.num_tokens * self.top_k

    @property
    def is_empty(self) -> bool:
        return False  # without tokens there are still zeros to be written

    def __str__(self) -> str:
        return f"expert_load(M={self.num_tokens} k={self.top_k} E={self.num_experts})"


class ExpertLoad(NamedTuple):
    """How the (token, slot) pairs spread over the experts: what ``expert_load`` returns."""

    counts: Any  # int32 [E], pairs of each expert
    imbalance: Any  # float32 [1], largest / mean of the counts; 0 without pairs, 1 if all are equal


def max_padded_pairs(num_pairs: int, num_experts: int, block_size: int) -> int:
    """Returns how many places sorted pairs can take at most when every expert's are padded to ``block_size``.

    A multiple of ``block_size``: at most min(E, pairs) experts have pairs, and each adds at most block_size - 1.
    """
    bound = num_pairs + min(num_experts, num_pairs) * (block_size - 1)
    return bound // block_size * block_size

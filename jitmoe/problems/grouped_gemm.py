# SPDX-License-Identifier: MIT
"""What is asked of ``grouped_gemm_moe``: a frozen value, and how it is the second half of a ``fused_moe`` call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import DeviceKind
from jitmoe.operation import Operation
from jitmoe.problems.fused_moe import Activation, DType, Layout, MoEProblem
from jitmoe.rounding import align_up

GROUPED_GEMM = Operation(
    name="grouped_gemm_moe",
    tensors=("A", "B", "C", "D", "topk_weights", "topk_indices"),
    outputs=("D",),
    planners={
        DeviceKind.CPU: "jitmoe.plan.cpu_grouped_gemm",
        DeviceKind.GPU: "jitmoe.plan.xe_grouped_gemm",
        DeviceKind.XE_EMULATED: "jitmoe.plan.xe_grouped_gemm",
    },
    check="jitmoe.checks.grouped_gemm",
)

# What the kernels of fused_moe's second half call these tensors. Nothing maps experts here.
ALIASES: dict[str, str | None] = {
    "hidden_states": "A",
    "w2": "B",
    "w2_bias": "C",
    "out": "D",
    "topk_ids": "topk_indices",
    "expert_map": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemmProblem:
    """One ``grouped_gemm_moe`` call: D[t] = sum_j weight[t, j] * (A[t] B_e^T + C_e). Strides are in elements."""

    OPERATION: ClassVar[Operation] = GROUPED_GEMM

    num_tokens: int  # M
    n: int
    k: int
    num_experts: int  # E
    top_k: int
    dtype: DType  # of A, B and D
    topk_ids_dtype: DType
    topk_weights_dtype: DType
    layout: Layout  # of B
    a_row_stride: int
    d_row_stride: int
    b_expert_stride: int
    b_stride: int  # between rows (NK) or columns (KN) of one expert's matrix
    topk_ids_row_stride: int
    topk_weights_row_stride: int
    bias_dtype: DType | None = None  # of C, [E, N], dense; None without
    base_alignment: int = 1  # bytes, a power of two <= 64 that divides every tensor's address; CPU: not looked at

    @property
    def is_empty(self) -> bool:
        return self.num_tokens == 0

    @property
    def num_pairs(self) -> int:
        """(token, expert) pairs: M * top_k. A pair's index is token * top_k + slot."""
        return self.num_tokens * self.top_k

    def second_half(self) -> MoEProblem:
        """Returns a ``fused_moe`` call whose second GEMM is this one: H = N and I = K.

        Its w1 exists in name only. It is stored the other way round than B, so that the dimension that decides how B
        can be read, K or N, decides the same for w1.
        """
        layout = Layout.KN if self.layout is Layout.NK else Layout.NK
        stride = align_up(2 * self.k if layout is Layout.KN else self.n, 32)
        return MoEProblem(
            num_tokens=self.num_tokens,
            hidden_size=self.n,
            intermediate_size=self.k,
            num_experts=self.num_experts,
            top_k=self.top_k,
            dtype=self.dtype,
            activation=Activation.SILU,
            topk_ids_dtype=self.topk_ids_dtype,
            topk_weights_dtype=self.topk_weights_dtype,
            w1_layout=layout,
            w2_layout=self.layout,
            num_global_experts=None,
            x_row_stride=align_up(self.n, 32),
            out_row_stride=self.d_row_stride,
            w1_expert_stride=stride * (self.n if layout is Layout.KN else 2 * self.k),
            w1_stride=stride,
            w2_expert_stride=self.b_expert_stride,
            w2_stride=self.b_stride,
            topk_ids_row_stride=self.topk_ids_row_stride,
            topk_weights_row_stride=self.topk_weights_row_stride,
            base_alignment=self.base_alignment,
            w2_bias_dtype=self.bias_dtype,
        )

    def resized(self, *, num_tokens: int, n: int, k: int, num_experts: int, top_k: int) -> GroupedGemmProblem:
        """Returns the same kind of problem with other sizes and densely packed tensors."""
        return dataclasses.replace(
            self,
            num_tokens=num_tokens,
            n=n,
            k=k,
            num_experts=num_experts,
            top_k=top_k,
            a_row_stride=k,
            d_row_stride=n,
            b_expert_stride=n * k,
            b_stride=k if self.layout is Layout.NK else n,
            topk_ids_row_stride=top_k,
            topk_weights_row_stride=top_k,
        )

    def __str__(self) -> str:
        return (
            f"grouped_gemm_moe(M={self.num_tokens} N={self.n} K={self.k} E={self.num_experts} k={self.top_k} "
            f"{self.dtype.value} B:{self.layout.value}{' bias' if self.bias_dtype is not None else ''})"
        )

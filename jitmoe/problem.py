# SPDX-License-Identifier: MIT
"""What is asked: the shapes, dtypes, layouts and options of one call, as a frozen value without tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from jitmoe.device import DeviceKind
from jitmoe.operation import Operation


class DType(str, Enum):
    """Element types by the short names used in specs, kernels and the CLI."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    INT32 = "int32"
    INT64 = "int64"

    @property
    def num_bytes(self) -> int:
        return _NUM_BYTES[self]


_NUM_BYTES = {DType.BF16: 2, DType.FP16: 2, DType.FP32: 4, DType.FP64: 8, DType.INT32: 4, DType.INT64: 8}

COMPUTE_DTYPES = (DType.BF16, DType.FP16, DType.FP32)
WEIGHT_DTYPES = (DType.BF16, DType.FP16, DType.FP32, DType.FP64)  # of the routing weights
INDEX_DTYPES = (DType.INT32, DType.INT64)


class Layout(str, Enum):
    """Which of a weight matrix' two dimensions has unit stride. GEMM letters: y[n] = sum over k of x[k] * w[n][k]."""

    NK = "nk"  # [E, N, K] storage: k is contiguous (checkpoint layout)
    KN = "kn"  # [E, K, N] storage seen through a transposed view: n is contiguous


class Activation(str, Enum):
    """The function between the two GEMMs, applied as act(gate) * up."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


FUSED_MOE = Operation(
    name="fused_moe",
    tensors=("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "expert_map", "out"),
    outputs=("out",),
    planners={
        DeviceKind.CPU: "jitmoe.plan.cpu",
        DeviceKind.GPU: "jitmoe.plan.xe",
        DeviceKind.XE_EMULATED: "jitmoe.plan.xe",
    },
    check="jitmoe.checks.fused_moe",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEProblem:
    """One ``fused_moe`` call. Strides are in elements; sizes use the letters M, H, I, E, k of the docs."""

    OPERATION: ClassVar[Operation] = FUSED_MOE

    num_tokens: int  # M
    hidden_size: int  # H
    intermediate_size: int  # I, of one expert
    num_experts: int  # E, experts whose weights are here
    top_k: int  # k
    dtype: DType  # of hidden states, weights and output
    activation: Activation
    topk_ids_dtype: DType
    topk_weights_dtype: DType
    w1_layout: Layout
    w2_layout: Layout
    num_global_experts: int | None  # length of expert_map; None without a map
    x_row_stride: int
    out_row_stride: int
    w1_expert_stride: int
    w1_stride: int  # between rows (NK) or columns (KN) of one expert's matrix: the stride that is not 1
    w2_expert_stride: int
    w2_stride: int
    topk_ids_row_stride: int
    topk_weights_row_stride: int
    base_alignment: int = 1  # bytes, a power of two <= 64 that divides every tensor's address; CPU: not looked at

    @property
    def is_empty(self) -> bool:
        return self.num_tokens == 0

    @property
    def num_pairs(self) -> int:
        """(token, expert) pairs: M * k. A pair's index is token * k + slot."""
        return self.num_tokens * self.top_k

    def resized(
        self, *, num_tokens: int, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int
    ) -> MoEProblem:
        """Returns the same kind of problem with other sizes and densely packed tensors."""
        w1_n, w2_n = 2 * intermediate_size, hidden_size
        return dataclasses.replace(
            self,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=num_experts,
            top_k=top_k,
            num_global_experts=None if self.num_global_experts is None else num_experts,
            x_row_stride=hidden_size,
            out_row_stride=hidden_size,
            w1_expert_stride=w1_n * hidden_size,
            w1_stride=hidden_size if self.w1_layout is Layout.NK else w1_n,
            w2_expert_stride=w2_n * intermediate_size,
            w2_stride=intermediate_size if self.w2_layout is Layout.NK else w2_n,
            topk_ids_row_stride=top_k,
            topk_weights_row_stride=top_k,
        )

    def __str__(self) -> str:
        return (
            f"fused_moe(M={self.num_tokens} H={self.hidden_size} I={self.intermediate_size} E={self.num_experts} "
            f"k={self.top_k} {self.dtype.value} {self.activation.value} w1:{self.w1_layout.value} "
            f"w2:{self.w2_layout.value})"
        )

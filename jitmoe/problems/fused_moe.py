# SPDX-License-Identifier: MIT
"""What is asked: the shapes, dtypes, layouts and options of one call, as a frozen value without tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from jitmoe.device import DeviceKind
from jitmoe.errors import ArgumentError
from jitmoe.operation import Operation

if TYPE_CHECKING:
    from jitmoe.problems.formats import InputQuant, WeightQuant


class DType(str, Enum):
    """Element types by the short names used in specs, kernels and the CLI."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    INT32 = "int32"
    INT64 = "int64"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    E4M3 = "e4m3"  # OCP FP8; torch.float8_e4m3fn
    E5M2 = "e5m2"  # OCP FP8; torch.float8_e5m2
    E8M0 = "e8m0"  # scales: a byte b means 2^(b - 127); torch.float8_e8m0fnu or uint8

    @property
    def num_bytes(self) -> int:
        return _NUM_BYTES[self]

    @property
    def torch_name(self) -> str:
        return _TORCH_NAMES[self]


_NUM_BYTES = {
    DType.BF16: 2,
    DType.FP16: 2,
    DType.FP32: 4,
    DType.FP64: 8,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.INT16: 2,
} | dict.fromkeys((DType.INT8, DType.UINT8, DType.E4M3, DType.E5M2, DType.E8M0), 1)

_TORCH_NAMES = {
    DType.BF16: "bfloat16",
    DType.FP16: "float16",
    DType.FP32: "float32",
    DType.FP64: "float64",
    DType.INT32: "int32",
    DType.INT64: "int64",
    DType.INT16: "int16",
    DType.INT8: "int8",
    DType.UINT8: "uint8",
    DType.E4M3: "float8_e4m3fn",
    DType.E5M2: "float8_e5m2",
    DType.E8M0: "float8_e8m0fnu",
}
BY_TORCH_NAME = {f"torch.{name}": dtype for dtype, name in _TORCH_NAMES.items()}
_BY_NAME = {str(dtype.value): dtype for dtype in DType} | BY_TORCH_NAME


def check_dtype_name(name: str, value: object, allowed: tuple[DType, ...]) -> DType:
    """Returns the dtype of a name like "bf16" or of a torch dtype, if it is one of those allowed."""
    dtype = value if isinstance(value, DType) else _BY_NAME.get(str(value))
    if dtype is None or dtype not in allowed:
        names = ", ".join(known.value for known in allowed)
        raise ArgumentError(argument=name, got=repr(value), expected=f"{names} or a torch dtype of these")
    return dtype


COMPUTE_DTYPES = (DType.BF16, DType.FP16, DType.FP32)
WEIGHT_DTYPES = (DType.BF16, DType.FP16, DType.FP32, DType.FP64)  # of the routing weights
INDEX_DTYPES = (DType.INT32, DType.INT64)


class Layout(str, Enum):
    """Which of a weight matrix' two dimensions has unit stride. GEMM letters: y[n] = sum over k of x[k] * w[n][k]."""

    NK = "nk"  # [E, N, K] storage: k is contiguous (checkpoint layout)
    KN = "kn"  # [E, K, N] storage seen through a transposed view: n is contiguous


class Activation(str, Enum):
    """The function between the two GEMMs: act(gate) * up, or act(x) where w1 has no gate half."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SWIGLU_OAI = "swiglu_oai"  # gate * sigmoid(alpha * gate) * (up + 1), clamped (gpt-oss)
    RELU2 = "relu2"  # max(x, 0)^2


SWIGLU_ALPHA = 1.702  # of SWIGLU_OAI in gpt-oss


class GateUp(str, Enum):
    """Where the gate rows g and the up rows u of w1 are."""

    CONCATENATED = "concatenated"  # [E, 2I, H]: g0 g1 ... u0 u1 ...
    INTERLEAVED = "interleaved"  # [E, 2I, H]: g0 u0 g1 u1 ... (gpt-oss)
    SEPARATE = "separate"  # two tensors [E, I, H] with equal strides: w1 and w1_up
    UNGATED = "ungated"  # [E, I, H], no up rows

    def rows(self, intermediate_size: int) -> int:
        """Returns the rows of one expert's matrix in w1."""
        one = self in (GateUp.SEPARATE, GateUp.UNGATED)
        return intermediate_size if one else 2 * intermediate_size


FUSED_MOE = Operation(
    name="fused_moe",
    tensors=(
        *("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "expert_map", "out"),
        *("w1_up", "w1_bias", "w2_bias", "a1_scale", "a2_scale"),
        *("w1_scale", "w1_zero_point", "w1_k_order", "w2_scale", "w2_zero_point"),
    ),
    outputs=("out",),
    planners={
        DeviceKind.CPU: "jitmoe.plan.cpu",
        DeviceKind.GPU: "jitmoe.plan.gpu",
        DeviceKind.XE_EMULATED: "jitmoe.plan.gpu",
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
    gate_up: GateUp = GateUp.CONCATENATED
    swiglu_alpha: float = SWIGLU_ALPHA  # of SWIGLU_OAI
    # gate = min(gate, limit), up = clamp(up, -limit, limit) before the activation (no gate: x = min(x, limit))
    swiglu_limit: float | None = None
    w1_bias_dtype: DType | None = None  # [E, rows of w1], dense, ordered like w1's rows; None: no bias
    w2_bias_dtype: DType | None = None  # [E, H], dense
    router_weight_on_input: bool = False  # x is multiplied by the routing weight instead of the result (Llama 4)
    # Quantized weights: w1_stride and w2_stride then count bytes of code rows; the layout is NK.
    w1_quant: WeightQuant | None = None
    w2_quant: WeightQuant | None = None
    input_quant: InputQuant | None = None  # of both GEMMs' inputs
    input_block_k: int = 0  # elements of K that share an input scale; 0: one scale per row
    a1_scale_stride: int | None = None  # given scales: 0 one for all, 1 one per expert; None: absmax of each row
    a2_scale_stride: int | None = None

    @property
    def w1_rows(self) -> int:
        """Rows of one expert's first matrix (of each of the two, if separate)."""
        return self.gate_up.rows(self.intermediate_size)

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
        w1_n, w2_n = self.gate_up.rows(intermediate_size), hidden_size

        def stride(n: int, k: int, layout: Layout, quant: WeightQuant | None) -> int:
            if quant is not None:
                return quant.format.row_bytes(k)
            return k if layout is Layout.NK else n

        w1_stride = stride(w1_n, hidden_size, self.w1_layout, self.w1_quant)
        w2_stride = stride(w2_n, intermediate_size, self.w2_layout, self.w2_quant)
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
            w1_expert_stride=w1_stride * (w1_n if self.w1_layout is Layout.NK else hidden_size),
            w1_stride=w1_stride,
            w2_expert_stride=w2_stride * (w2_n if self.w2_layout is Layout.NK else intermediate_size),
            w2_stride=w2_stride,
            w1_quant=None if self.w1_quant is None else self.w1_quant.format.dense(w1_n, hidden_size),
            w2_quant=None if self.w2_quant is None else self.w2_quant.format.dense(w2_n, intermediate_size),
            topk_ids_row_stride=top_k,
            topk_weights_row_stride=top_k,
        )

    def __str__(self) -> str:
        text = (
            f"fused_moe(M={self.num_tokens} H={self.hidden_size} I={self.intermediate_size} E={self.num_experts} "
            f"k={self.top_k} {self.dtype.value} {self.activation.value} w1:{self.w1_layout.value} "
            f"w2:{self.w2_layout.value}"
        )
        if self.gate_up is not GateUp.CONCATENATED:
            text += f" {self.gate_up.value}"
        if self.swiglu_limit is not None:
            text += f" limit={self.swiglu_limit:g}"
        for name, quant in (("w1", self.w1_quant), ("w2", self.w2_quant)):
            if quant is not None:
                text += f" {name}:{quant.format}"
        if self.input_quant is not None:
            text += f" inputs:{self.input_quant.value}"
        flags = {
            "w1-bias": self.w1_bias_dtype is not None,
            "w2-bias": self.w2_bias_dtype is not None,
            "weight-on-input": self.router_weight_on_input,
        }
        return "".join([text, *(f" {name}" for name, is_set in flags.items() if is_set), ")"])

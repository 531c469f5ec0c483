# SPDX-License-Identifier: MIT
"""The kernel families of the Xe implementation. Fields are the ``Config`` constants of the headers they name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from jitmoe.problems.formats import Encoding, InputQuant
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout
from jitmoe.spec import Argument, KernelSpec, arguments

# Registers of fp32 accumulators from which a kernel needs 256-GRF mode, by sub-group size. From the spills that ocloc
# reports (docs/isa-report.md): operands, addresses and prefetch descriptors take the rest. At 8 every operand takes
# twice as many registers, which have 32 bytes there. Adding up K slices needs a second accumulator beside the first;
# the mode costs those kernels no occupancy, SLM holds no more of their work-groups anyway.
LARGE_GRF_ACCUMULATORS = {16: 128, 8: 64}
LARGE_GRF_SLICED_ACCUMULATORS = {16: 64, 8: 64}

# Of scheduler/tickets.hpp.
TICKETS_LOCAL_BYTES = 64
TICKETS_COUNTER_BYTES = 3 * 64

ROUTE_ARGUMENTS = arguments(
    """in topk_ids, in expert_map, out route_table, out expert_offsets, out sorted_pairs, out blocks,
    out num_blocks, int32 num_tokens, int32 top_k, int32 num_experts, int32 num_global_experts,
    int64 topk_ids_row_stride, int32 block_rows, int32 num_ranges"""
)


class XeWeights(str, Enum):
    """How a kernel reads weights; mirrors ``jitmoe::XeWeights`` in arch/choices.hpp, which says what each needs."""

    BLOCK2D = "block2d"
    ROW = "row"
    ELEMENT = "element"


class XeTokens(str, Enum):
    """How a kernel reads token rows; mirrors ``jitmoe::XeTokens`` in arch/choices.hpp."""

    GATHER = "gather"
    PACKED = "packed"
    BLOCK2D = "block2d"


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSpec(KernelSpec):
    """Base of the families."""

    simd: int  # sub-group size: 16; 8 on dg2

    @property
    def SUB_GROUP_SIZE(self) -> int:  # type: ignore[override]  # here it is a constant of the Config as well
        return self.simd


@dataclass(frozen=True, slots=True, kw_only=True)
class XeRoute(XeSpec):
    """Grouping of the pairs by expert in one work-group."""

    KERNEL: ClassVar[str] = "xe_route"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = ROUTE_ARGUMENTS
    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class XeRouteCount(XeRoute):
    """Grouping over several work-groups, step 1: pairs per range and expert."""

    KERNEL: ClassVar[str] = "xe_route_count"


@dataclass(frozen=True, slots=True, kw_only=True)
class XeRouteScan(XeSpec):
    """Grouping over several work-groups, step 2: offsets and row blocks."""

    KERNEL: ClassVar[str] = "xe_route_scan"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = ROUTE_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeRoutePlace(XeRoute):
    """Grouping over several work-groups, step 3: the sorted pairs."""

    KERNEL: ClassVar[str] = "xe_route_place"


@dataclass(frozen=True, slots=True, kw_only=True)
class XePack(XeSpec):
    """Token rows copied in sorted order, K padded with zeros."""

    KERNEL: ClassVar[str] = "xe_pack"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in hidden_states, in sorted_pairs, in expert_offsets, out packed_x, int32 hidden_size, int32 top_k,
        int32 num_experts, int32 packed_pitch, int64 x_row_stride"""
    )
    wide: bool  # 16 B loads: row stride and H multiples of 8, base a multiple of 16 B


@dataclass(frozen=True, slots=True, kw_only=True)
class XeQuantize(XeSpec):
    """Input rows of a GEMM with quantized weights: gathered or as they are, scaled, rounded, in the kernels' order."""

    KERNEL: ClassVar[str] = "xe_quantize"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in source, in sorted_pairs, in expert_offsets, in order, in given, out packed, out scale, int32 k,
        int32 top_k, int32 num_experts, int32 packed_pitch, int32 given_stride, int64 source_stride"""
    )
    dtype: DType
    to: DType  # int8 for integer dpas, fp16 for dpas of converted codes, fp32 for the vector kernels
    gathered: bool  # through the routing table
    permuted: bool  # even k of each 32 before odd ones, as 4-bit codes are converted
    has_k_order: bool
    has_scale: bool  # given instead of found
    has_input_quant: bool
    input_quant: InputQuant  # int8 without
    block_k: int  # elements that share a scale; 0: the row


@dataclass(frozen=True, slots=True, kw_only=True)
class XeGemm(XeSpec):
    """What both grouped GEMMs have: operands and the tile."""

    emulated: bool  # portable intrinsics, for the CPU device
    dtype: DType
    layout: Layout
    weights: XeWeights
    tokens: XeTokens
    tile_rows: int  # tokens per sub-group
    tile_columns: int  # weight columns per sub-group, twice
    sub_groups_m: int
    sub_groups_n: int
    k_slices: int
    prefetch_steps: int  # K steps of 32
    split_barrier: bool

    @property
    def accumulator_registers(self) -> int:
        """Registers of fp32 accumulators per hardware thread; a register holds one dword per lane."""
        return self.tile_rows * 2 * self.tile_columns // self.simd

    @property
    def large_grf(self) -> bool:
        limits = LARGE_GRF_SLICED_ACCUMULATORS if self.k_slices > 1 else LARGE_GRF_ACCUMULATORS
        return self.accumulator_registers >= limits[self.simd]

    @property
    def block_rows(self) -> int:
        return self.sub_groups_m * self.tile_rows

    @property
    def local_size(self) -> int:
        """Work-items of a work-group."""
        return self.sub_groups_m * self.sub_groups_n * self.k_slices * self.simd

    @property
    def local_mem_bytes(self) -> int:
        """SLM of a work-group: the accumulators of K slices 1, 2, ..."""
        tile_bytes = self.tile_rows * 2 * self.tile_columns * 4
        return (self.k_slices - 1) * self.sub_groups_m * self.sub_groups_n * tile_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class XeVector(XeSpec):
    """What both grouped GEMMs without dpas have."""

    dtype: DType
    layout: Layout
    tile_rows: int  # tokens per work-item
    sub_groups: int  # per work-group, side by side along the columns
    wide: bool  # 16 B loads along K: nk, every row 4 B aligned

    @property
    def local_size(self) -> int:
        return self.sub_groups * self.simd


# No slots: the next ones are mixed into classes that have slots of their own.


@dataclass(frozen=True, kw_only=True)
class EpilogueConstants:
    """What both GEMMs do with their sums."""

    has_bias: bool
    bias_dtype: DType  # fp32 without a bias
    topk_weights_dtype: DType  # fp32 in the GEMM that does not apply the routing weight


@dataclass(frozen=True, kw_only=True)
class GateUpConstants(EpilogueConstants):
    """What the first GEMM does with its sums."""

    activation: Activation
    gate_up: GateUp
    has_limit: bool
    router_weight_on_input: bool


@dataclass(frozen=True, kw_only=True)
class DownConstants(EpilogueConstants):
    """What the second GEMM does with its sums."""

    weighted: bool  # by the routing weight; False where the first GEMM has applied it


@dataclass(frozen=True, kw_only=True)
class QuantConstants:
    """How weights and inputs are quantized."""

    encoding: Encoding
    scale_dtype: DType
    has_zero_point: bool
    block_k: int  # of the weights' scales; 0: all of K
    x_block_k: int  # of the inputs' scales


@dataclass(frozen=True, kw_only=True)
class QuantGateUpConstants(QuantConstants):
    """What the first GEMM with quantized weights has besides."""

    fp32_inter: bool  # results stay fp32, as the second GEMM quantizes its inputs


@dataclass(frozen=True, kw_only=True)
class XeQuantGemm(QuantConstants, XeGemm):
    """What both grouped GEMMs with quantized weights have."""

    int8_dpas: bool  # integers on both sides, else codes become fp16

    @property
    def large_grf(self) -> bool:
        """Codes, converted codes, scales and zero points come on top of what a GEMM of 16-bit weights keeps."""
        return not self.int8_dpas or self.accumulator_registers >= LARGE_GRF_SLICED_ACCUMULATORS[self.simd]


GATE_UP_ARGUMENTS = arguments(
    """in hidden_states, in packed_x, in w1, in w1_up, in w1_bias, in topk_weights, in sorted_pairs, in blocks,
    in num_blocks, out inter, int32 hidden_size, int32 intermediate_size, int32 top_k, int32 inter_pitch,
    int64 x_stride, int64 w_expert_stride, int64 w_stride, int64 topk_weights_row_stride, float32 swiglu_alpha,
    float32 swiglu_limit"""
)
DOWN_ARGUMENTS = arguments(
    """in inter, in w2, in w2_bias, in topk_weights, in sorted_pairs, in blocks, in num_blocks, out partial,
    int32 hidden_size, int32 intermediate_size, int32 top_k, int32 first_column, int32 num_columns,
    int32 partial_pitch, int64 inter_pitch, int64 w_expert_stride, int64 w_stride, int64 topk_weights_row_stride"""
)
QUANT_ARGUMENTS = arguments(
    """in w_scale, in w_zero_point, in x_scale, int32 block_n, int32 x_blocks, int64 scale_expert_stride,
    int64 scale_n_stride, int64 scale_k_stride, int64 zero_expert_stride, int64 zero_n_stride, int64 zero_k_stride"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class XeGateUp(GateUpConstants, XeGemm):
    """First grouped GEMM with the activation."""

    KERNEL: ClassVar[str] = "xe_gate_up"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = GATE_UP_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeDown(DownConstants, XeGemm):
    """Second grouped GEMM with the routing weight."""

    KERNEL: ClassVar[str] = "xe_down"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = DOWN_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeQuantGateUp(QuantGateUpConstants, XeQuantGemm, XeGateUp):
    """First grouped GEMM with quantized weights."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = GATE_UP_ARGUMENTS + QUANT_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeQuantDown(XeQuantGemm, XeDown):
    """Second grouped GEMM with quantized weights."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = DOWN_ARGUMENTS + QUANT_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeVectorGateUp(GateUpConstants, XeVector):
    """First grouped GEMM for GPUs without dpas, and for fp32."""

    KERNEL: ClassVar[str] = "xe_vector_gate_up"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = GATE_UP_ARGUMENTS

    emulated: bool  # as of XeGemm


@dataclass(frozen=True, slots=True, kw_only=True)
class XeVectorDown(DownConstants, XeVector):
    """Second grouped GEMM for GPUs without dpas, and for fp32."""

    KERNEL: ClassVar[str] = "xe_vector_down"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = DOWN_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeQuantVectorGateUp(QuantGateUpConstants, XeVectorGateUp):
    """First grouped GEMM with quantized weights for GPUs without dpas, fp32, and blocks that dpas kernels lack."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = GATE_UP_ARGUMENTS + QUANT_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeQuantVectorDown(QuantConstants, XeVectorDown):
    """Second grouped GEMM of the same kind."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = DOWN_ARGUMENTS + QUANT_ARGUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class XeCombine(XeSpec):
    """Sum over a token's experts."""

    KERNEL: ClassVar[str] = "xe_combine"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in topk_ids, in expert_map, in partial, out out, int32 num_tokens, int32 top_k, int32 num_experts,
        int32 num_global_experts, int32 first_column, int32 num_columns, int32 partial_pitch,
        int64 topk_ids_row_stride, int64 out_row_stride"""
    )
    emulated: bool
    dtype: DType
    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSingle(XeSpec):
    """A whole call in one launch."""

    KERNEL: ClassVar[str] = "xe_single"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in hidden_states, in w1, in w1_up, in w1_bias, in w2, in w2_bias, in topk_weights, in topk_ids,
        in expert_map, out out, out route_table, out expert_offsets, out sorted_pairs, out blocks,
        out num_blocks, out packed_x, out inter, out partial, out counters, int32 num_tokens,
        int32 hidden_size, int32 intermediate_size, int32 num_experts, int32 num_global_experts, int32 top_k,
        int32 num_ranges, int32 packed_pitch, int32 inter_pitch, int32 partial_pitch, int32 max_polls,
        int64 x_row_stride, int64 w1_expert_stride, int64 w1_stride, int64 w2_expert_stride, int64 w2_stride,
        int64 topk_weights_row_stride, int64 topk_ids_row_stride, int64 out_row_stride, float32 swiglu_alpha,
        float32 swiglu_limit"""
    )
    # The kernels whose work it does. Both GEMMs have the same tile.
    route: XeRoute
    pack: XePack | None
    gate_up: XeGateUp
    down: XeDown
    combine: XeCombine

    @property
    def large_grf(self) -> bool:
        """The steps share one register file: 384 B of the middle tile spilled on pvc in the mode of its GEMMs."""
        return self.gate_up.accumulator_registers >= LARGE_GRF_SLICED_ACCUMULATORS[self.simd]

    @property
    def local_size(self) -> int:
        """Work-items of a work-group."""
        return self.gate_up.local_size

    @property
    def local_mem_bytes(self) -> int:
        """SLM of a work-group: the GEMMs' and the tickets'."""
        return max(self.gate_up.local_mem_bytes, self.down.local_mem_bytes) + TICKETS_LOCAL_BYTES

# SPDX-License-Identifier: MIT
"""The kernel families for CPU devices: fields that become ``Config`` constants, and arguments in the kernels' order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import CpuIsa
from jitmoe.problems.formats import Encoding
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout
from jitmoe.spec import Argument, KernelSpec, arguments

_ROUTING = "int32 num_tokens, int32 top_k, int32 num_experts, int32 num_global_experts,"
_ROWS = (
    _ROUTING + "int32 size, int32 num_items, int64 from_stride, int64 rows_stride, int64 given_stride,"
    "int64 topk_ids_row_stride"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSerialSpec(KernelSpec):
    """Stable counting sort of the (token, slot) pairs by expert."""

    KERNEL: ClassVar[str] = "route_serial"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in topk_ids, in expert_map, out cursors, out sorted_pairs, out groups,"
        + _ROUTING
        + "int64 topk_ids_row_stride"
    )

    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRowsSpec(KernelSpec):
    """Gathers or quantizes the first GEMM's input rows; the subclass does it for the second one."""

    KERNEL: ClassVar[str] = "cpu_rows"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in hidden_states, in w1_k_order, in a1_scale, in topk_ids, in expert_map, in sorted_pairs, in groups,"
        "out x_rows, out x_scale, out x_correction," + _ROWS
    )

    isa: CpuIsa
    from_dtype: DType
    to_dtype: DType
    is_quantized: bool
    kind: DType  # numbers that inputs are rounded to; looked at if is_quantized, like the next three
    is_given: bool  # the scales; else from absmax
    input_block_k: int
    block_k: int
    has_order: bool
    by_slot: bool  # one row per pair instead of one per token
    from_slots: bool  # of the intermediate
    few_pairs: bool
    ids_dtype: DType  # looked at if few_pairs, like has_expert_map
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInterRowsSpec(CpuRowsSpec):
    """Quantizes the intermediate."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in inter, in a2_scale, in topk_ids, in expert_map, in sorted_pairs, in groups,"
        "out y_rows, out y_scale, out y_correction," + _ROWS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTilesSpec(KernelSpec):
    """Quantizes the intermediate where the second GEMM multiplies tiles."""

    KERNEL: ClassVar[str] = "cpu_tiles"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in inter, in a2_scale, in groups, out y_rows, out y_scale, int32 size, int32 num_items, int64 given_stride"
    )

    kind: DType  # numbers that inputs are rounded to
    to_dtype: DType
    is_given: bool  # the scales; else from absmax
    input_block_k: int
    block_k: int  # the tiles are followed by a scale for each; 0: they are not


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGemmSpec(KernelSpec):
    """What both GEMMs' kernels have: how weights and inputs are read and scaled (``cpu/scales.hpp``)."""

    isa: CpuIsa
    dtype: DType  # of the caller's tensors
    x_dtype: DType  # of the GEMM's input rows: decides how it multiplies
    x_prepared: bool  # rows made by cpu_rows, or tiles made by cpu_tiles
    x_scaled: bool  # and quantized
    quantized: bool  # the weights; the next five are looked at if they are
    encoding: Encoding
    scale_dtype: DType
    has_zero_point: bool
    block_k: int  # elements of K whose sums are scaled together; 0: all
    scale_block_k: int  # elements of K that share a weight scale; 0: all
    input_block_k: int  # elements of K that share an input scale; 0: all
    chunk_rows: bool  # few tokens are multiplied chunk by chunk (``cpu/chunk_rows.hpp``)
    weight_on_input: bool
    weights_dtype: DType  # looked at by the GEMM that multiplies by the routing weight
    has_bias: bool
    bias_dtype: DType  # looked at if has_bias
    few_pairs: bool  # at most FEW_PAIRS: finds the routing itself, and needs no code for many tokens per expert
    ids_dtype: DType  # looked at if few_pairs, like has_expert_map
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFirstGemmSpec(CpuGemmSpec):
    """What the kernels of the first GEMM have in common."""

    w1_layout: Layout
    activation: Activation
    gate_up: GateUp
    x_by_slot: bool  # prepared rows differ by expert: one per pair instead of one per token
    inter_is_fp32: bool  # as the second GEMM's inputs are made from it


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSecondGemmSpec(CpuGemmSpec):
    """What the kernels of the second GEMM have in common."""

    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in inter, in w2, in w2_bias, in topk_weights, in topk_ids, in expert_map, in sorted_pairs, in groups,"
        "out sums, out out," + _ROUTING + "int32 hidden_size, int32 intermediate_size, int32 h_block,"
        "int64 w2_expert_stride, int64 w2_stride, int64 topk_ids_row_stride, int64 topk_weights_row_stride,"
        "int64 out_row_stride"
    )

    w2_layout: Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGateUpSpec(CpuFirstGemmSpec):
    """First GEMM and activation."""

    KERNEL: ClassVar[str] = "cpu_gate_up"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in hidden_states, in w1, in w1_up, in w1_bias, in topk_weights, in topk_ids, in expert_map,"
        "in sorted_pairs, in groups, out inter,"
        + _ROUTING
        + "int32 hidden_size, int32 intermediate_size, int32 n_block, int32 num_ranges,"
        "int64 x_row_stride, int64 w1_expert_stride, int64 w1_stride, int64 topk_ids_row_stride,"
        "int64 topk_weights_row_stride, float32 swiglu_alpha, float32 swiglu_limit"
    )

    inter_dtype: DType
    w2_layout: Layout  # decides how the intermediate is laid out


def _scale_arguments(w: str) -> tuple[Argument, ...]:
    return arguments(
        f"in {w}_scale, in {w}_zero_point,"
        f"int64 {w}_scale_expert_stride, int64 {w}_scale_n_stride, int64 {w}_scale_k_stride,"
        f"int64 {w}_zero_expert_stride, int64 {w}_zero_n_stride, int64 {w}_zero_k_stride, int32 {w}_block_n"
    )


def _row_arguments(x: str) -> tuple[Argument, ...]:
    return arguments(f"in {x}_rows, in {x}_scale, in {x}_correction, int64 {x}_rows_stride")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuantGateUpSpec(CpuGateUpSpec):
    """The same with quantized weights or prepared rows; a class of its own as each argument costs time per launch."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = CpuGateUpSpec.ARGUMENTS + _scale_arguments("w1") + _row_arguments("x")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDownSpec(CpuSecondGemmSpec):
    """Second GEMM, routing weights and the sum over experts."""

    KERNEL: ClassVar[str] = "cpu_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuantDownSpec(CpuDownSpec):
    """The same with quantized weights or prepared rows."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = CpuDownSpec.ARGUMENTS + _scale_arguments("w2") + _row_arguments("y")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGateUpAmxSpec(CpuFirstGemmSpec):
    """First GEMM and activation with AMX tiles."""

    KERNEL: ClassVar[str] = "cpu_gate_up_amx"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in hidden_states, in w1, in w1_up, in w1_bias, in topk_weights, in topk_ids, in expert_map,"
        "in sorted_pairs, in groups, out panels, out inter,"
        + _ROUTING
        + "int32 hidden_size, int32 intermediate_size, int32 num_items, int32 block_tokens,"
        "int64 x_row_stride, int64 w1_expert_stride, int64 w1_stride, int64 topk_ids_row_stride,"
        "int64 topk_weights_row_stride, float32 swiglu_alpha, float32 swiglu_limit"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuantGateUpAmxSpec(CpuGateUpAmxSpec):
    """The same with quantized weights; prepared rows are bf16, int8 or int16."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = (
        CpuGateUpAmxSpec.ARGUMENTS + _scale_arguments("w1") + _row_arguments("x")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDownAmxSpec(CpuSecondGemmSpec):
    """Second GEMM, routing weights and the sum over experts with AMX tiles."""

    KERNEL: ClassVar[str] = "cpu_down_amx"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPackSpec(KernelSpec):
    """The caller's rows where gate_up would have left the intermediate: down alone is a grouped GEMM."""

    KERNEL: ClassVar[str] = "cpu_pack"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in hidden_states, in topk_ids, in expert_map, in sorted_pairs, in groups, out inter,"
        + _ROUTING
        + "int32 intermediate_size, int32 range_units, int32 num_ranges, int64 x_row_stride, int64 topk_ids_row_stride"
    )

    isa: CpuIsa
    dtype: DType
    w2_layout: Layout  # decides how the intermediate is laid out
    tiles: bool  # token tiles for AMX
    few_pairs: bool
    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuantDownAmxSpec(CpuDownAmxSpec):
    """The same with quantized weights; prepared tiles are bf16, int8 or int16."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = CpuDownAmxSpec.ARGUMENTS + _scale_arguments("w2") + _row_arguments("y")


_SINGLE = (
    "in hidden_states, in w1, in w1_up, in w1_bias, in w2, in w2_bias, in topk_weights, in topk_ids, in expert_map,"
    "out inter, out sums, out out, out counters,"
    + _ROUTING
    + "int32 hidden_size, int32 intermediate_size, int32 n_block, int32 num_ranges, int32 h_block,"
    "int32 num_items, int64 x_row_stride, int64 w1_expert_stride, int64 w1_stride, int64 w2_expert_stride,"
    "int64 w2_stride, int64 topk_ids_row_stride, int64 topk_weights_row_stride, int64 out_row_stride,"
    "float32 swiglu_alpha, float32 swiglu_limit"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSingleSpec(KernelSpec):
    """Both GEMMs in one launch."""

    KERNEL: ClassVar[str] = "cpu_single"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(_SINGLE)

    gate_up: CpuGateUpSpec
    down: CpuDownSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuantSingleSpec(CpuSingleSpec):
    """The same with quantized weights."""

    ARGUMENTS: ClassVar[tuple[Argument, ...]] = (
        CpuSingleSpec.ARGUMENTS + _scale_arguments("w1") + _scale_arguments("w2")
    )

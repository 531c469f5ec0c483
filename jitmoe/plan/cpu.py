# SPDX-License-Identifier: MIT
"""The plan for CPU devices: route, gate_up, down; three launches, any shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import CpuIsa, Device
from jitmoe.plan.launch import Buffer, Launch, Plan
from jitmoe.problem import Activation, DType, Layout, MoEProblem
from jitmoe.spec import Argument, KernelSpec, arguments

BLOCK_TOKENS = 96  # kMaxBlockTokens in cpu/tiles.hpp
PANEL_UNITS = 256  # kPanelUnits in cpu/tiles.hpp
INTER_GRANULE = 32  # kInterGranule in cpu/block.hpp: elements
MAX_GATE_UP_ROWS = 192  # kMaxRows in kernel/cpu_gate_up.hpp
MAX_DOWN_COLUMNS = 256  # kMaxColumns in kernel/cpu_down.hpp
UNIT_BYTES = 4  # a pair of bf16 or one float
LINE_UNITS = 16  # a cache line
SET_BYTES = 1024  # rows that are multiples of this apart would share few sets of the L1 cache
RANGE_STEP = 32  # columns of the widest panel
# Work-items per core. Many tokens: each range packs the tokens again, so ranges are large; those of `down` are equal.
# Few tokens: weights are streamed, and small ranges end at the same time on all cores.
GATE_UP_ITEMS_PER_CORE, DOWN_ITEMS_PER_CORE, STREAMING_ITEMS_PER_CORE = 8, 4, 32
ROWS_FORM_TOKENS = 8  # kRowsFormTokens in cpu/tiles.hpp


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSerialSpec(KernelSpec):
    """Stable counting sort of the (token, slot) pairs by expert."""

    KERNEL: ClassVar[str] = "route_serial"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in topk_ids, in expert_map, out expert_offsets, out sorted_pairs, out blocks, out num_blocks,"
        "int32 num_tokens, int32 top_k, int32 num_experts, int32 num_global_experts, int64 topk_ids_row_stride,"
        "int32 block_rows, int32 slot_granule"
    )

    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGateUpSpec(KernelSpec):
    """First GEMM and activation."""

    KERNEL: ClassVar[str] = "cpu_gate_up"
    DIMENSIONS: ClassVar[int] = 2
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in hidden_states, in w1, in sorted_pairs, in blocks, in num_blocks, out inter,"
        "int32 top_k, int32 hidden_size, int32 intermediate_size, int32 n_block, int32 inter_stride,"
        "int64 x_row_stride, int64 w1_expert_stride, int64 w1_stride"
    )

    isa: CpuIsa
    dtype: DType
    w1_layout: Layout
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDownSpec(KernelSpec):
    """Second GEMM, routing weights and the sum over experts."""

    KERNEL: ClassVar[str] = "cpu_down"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        "in inter, in w2, in topk_weights, in sorted_pairs, in blocks, in num_blocks, out sums, out out,"
        "int32 num_tokens, int32 top_k, int32 hidden_size, int32 intermediate_size, int32 h_block, int32 inter_stride,"
        "int64 w2_expert_stride, int64 w2_stride, int64 topk_weights_row_stride, int64 out_row_stride"
    )

    isa: CpuIsa
    dtype: DType
    w2_layout: Layout
    weights_dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuChoice:
    """Kernels and range sizes for one problem on one CPU."""

    route: RouteSerialSpec
    gate_up: CpuGateUpSpec
    down: CpuDownSpec
    gate_up_rows: int
    down_columns: int
    decisions: tuple[str, ...]


def choose(problem: MoEProblem, device: Device) -> CpuChoice:
    """Returns kernels for the device's instruction set, and ranges that keep all cores busy."""
    isa = device.cpu_isa if device.cpu_isa is not None else CpuIsa.GENERIC
    if isa is CpuIsa.AMX_BF16:
        isa = CpuIsa.AVX512_BF16
    cores = max(1, device.num_compute_units)
    blocks = max(1, min(problem.num_experts, problem.num_pairs))
    is_streaming = problem.num_pairs <= ROWS_FORM_TOKENS * blocks
    gate_up_items = cores * (STREAMING_ITEMS_PER_CORE if is_streaming else GATE_UP_ITEMS_PER_CORE)
    down_items = cores * (STREAMING_ITEMS_PER_CORE if is_streaming else DOWN_ITEMS_PER_CORE)
    gate_up_rows = _range_size(problem.intermediate_size, max(1, gate_up_items // blocks), MAX_GATE_UP_ROWS)
    down_columns = _range_size(problem.hidden_size, down_items, MAX_DOWN_COLUMNS)
    return CpuChoice(
        route=RouteSerialSpec(ids_dtype=problem.topk_ids_dtype, has_expert_map=problem.num_global_experts is not None),
        gate_up=CpuGateUpSpec(
            isa=isa,
            dtype=problem.dtype,
            w1_layout=problem.w1_layout,
            activation=problem.activation,
        ),
        down=CpuDownSpec(
            isa=isa,
            dtype=problem.dtype,
            w2_layout=problem.w2_layout,
            weights_dtype=problem.topk_weights_dtype,
        ),
        gate_up_rows=gate_up_rows,
        down_columns=down_columns,
        decisions=(
            f"instruction set {isa.value}, {device.num_compute_units} compute units",
            f"gate_up: ranges of {gate_up_rows} of {problem.intermediate_size} rows for up to {blocks} active experts",
            f"down: ranges of {down_columns} of {problem.hidden_size} columns",
        ),
    )


def _range_size(size: int, wanted_ranges: int, maximum: int) -> int:
    """Returns the range length, a multiple of whole panels, that gives about ``wanted_ranges`` ranges of ``size``."""
    length = -(-size // wanted_ranges)
    return min(maximum, -(-length // RANGE_STEP) * RANGE_STEP)


def max_blocks(problem: MoEProblem) -> int:
    """Returns how many blocks the routing table can have: every expert may end with a partial one."""
    return min(problem.num_experts, problem.num_pairs) + problem.num_pairs // BLOCK_TOKENS


def _inter_stride(problem: MoEProblem, choice: CpuChoice) -> int:
    """Returns the units between two rows of the intermediate."""
    elements = -(-problem.intermediate_size // INTER_GRANULE) * INTER_GRANULE
    is_pairs = choice.gate_up.dtype is DType.BF16 and choice.gate_up.isa is CpuIsa.AVX512_BF16
    units = elements // 2 if is_pairs else elements
    return units + LINE_UNITS if units % (SET_BYTES // UNIT_BYTES) == 0 else units


def launches(problem: MoEProblem, device: Device, choice: CpuChoice) -> Plan:
    """Returns the three launches."""
    blocks = max_blocks(problem)
    inter_stride = _inter_stride(problem, choice)
    gate_up_ranges = -(-problem.intermediate_size // choice.gate_up_rows)
    down_ranges = -(-problem.hidden_size // choice.down_columns)
    return Plan(
        launches=(
            Launch(
                spec=choice.route,
                global_size=(1,),
                local_size=(1,),
                scalars={
                    "num_tokens": problem.num_tokens,
                    "top_k": problem.top_k,
                    "num_experts": problem.num_experts,
                    "num_global_experts": problem.num_global_experts or 0,
                    "topk_ids_row_stride": problem.topk_ids_row_stride,
                    "block_rows": BLOCK_TOKENS,
                    "slot_granule": 1,
                },
            ),
            Launch(
                spec=choice.gate_up,
                global_size=(blocks, gate_up_ranges),
                local_size=(1, 1),
                scalars={
                    "top_k": problem.top_k,
                    "hidden_size": problem.hidden_size,
                    "intermediate_size": problem.intermediate_size,
                    "n_block": choice.gate_up_rows,
                    "inter_stride": inter_stride,
                    "x_row_stride": problem.x_row_stride,
                    "w1_expert_stride": problem.w1_expert_stride,
                    "w1_stride": problem.w1_stride,
                },
            ),
            Launch(
                spec=choice.down,
                global_size=(down_ranges,),
                local_size=(1,),
                scalars={
                    "num_tokens": problem.num_tokens,
                    "top_k": problem.top_k,
                    "hidden_size": problem.hidden_size,
                    "intermediate_size": problem.intermediate_size,
                    "h_block": choice.down_columns,
                    "inter_stride": inter_stride,
                    "w2_expert_stride": problem.w2_expert_stride,
                    "w2_stride": problem.w2_stride,
                    "topk_weights_row_stride": problem.topk_weights_row_stride,
                    "out_row_stride": problem.out_row_stride,
                },
            ),
        ),
        buffers=(
            Buffer("expert_offsets", 4 * (problem.num_experts + 1)),
            Buffer("sorted_pairs", 4 * problem.num_pairs),
            Buffer("blocks", 16 * blocks),
            Buffer("num_blocks", 4),
            Buffer("inter", UNIT_BYTES * problem.num_pairs * inter_stride),
            Buffer("sums", 4 * problem.num_tokens * down_ranges * choice.down_columns),
        ),
        decisions=choice.decisions,
    )


def check_problem(problem: MoEProblem, choice: CpuChoice) -> MoEProblem:
    """Returns a problem with experts in both forms, tiles of most sizes, several K blocks, tails in every dimension."""
    return problem.resized(
        num_tokens=60,
        hidden_size=max(choice.down_columns + 83, 2 * PANEL_UNITS + 37),
        intermediate_size=choice.gate_up_rows + 37,
        num_experts=11,
        top_k=2,
    )

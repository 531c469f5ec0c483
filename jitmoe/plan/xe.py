# SPDX-License-Identifier: MIT
"""The plan for Intel GPUs: operand classes, tiles, grids and workspace from (problem, device), with reasons.

A call is: route (pairs grouped by expert on the device), pack if the token rows cannot be gathered, gate_up, then per
chunk of output columns down and combine; or all of it in one launch (plan/xe_single.py). The host never learns how many
tokens an expert has: grids are fixed by the device, and the kernels walk over row blocks that route has counted
(scheduler/block_walk.hpp).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jitmoe.device import Device, DeviceKind
from jitmoe.errors import UnsupportedProblemError
from jitmoe.plan import tuned, xe_single
from jitmoe.plan.architectures import XeArchitecture, architecture, resident_groups
from jitmoe.plan.launch import Buffer, Plan
from jitmoe.plan.tuned import TunedConfig
from jitmoe.plan.xe_ranges import MAX_ONE_GROUP_PAIRS, ROUTE_LOCAL_SIZE, launch, range_count, range_launches
from jitmoe.plan.xe_specs import (
    TICKETS_COUNTER_BYTES,
    XeCombine,
    XeDown,
    XeGateUp,
    XeGemm,
    XePack,
    XeQuantDown,
    XeQuantGateUp,
    XeQuantGemm,
    XeQuantize,
    XeQuantVectorDown,
    XeQuantVectorGateUp,
    XeRoute,
    XeRouteCount,
    XeRoutePlace,
    XeRouteScan,
    XeSingle,
    XeSpec,
    XeTokens,
    XeVectorDown,
    XeVectorGateUp,
    XeWeights,
)
from jitmoe.problems.formats import WHOLE, Encoding, InputQuant, WeightQuant
from jitmoe.problems.fused_moe import DType, GateUp, Layout, MoEProblem
from jitmoe.rounding import align_up, ceil_div

IMPL = "xe"
DPAS_DTYPES = (DType.BF16, DType.FP16)
K_STEP = 32  # elements; packed rows and the first GEMM's results are padded to it
QUANT_K_STEP = 64  # the same for the inputs of quantized weights

PARTIAL_BYTES = 256 << 20  # bound of the fp32 rows between down and combine; wider outputs go in column chunks
COLUMN_CHUNK = 256  # chunks are multiples of this many columns: whole tiles of every configuration
MAX_TILES = 2**31 - 1  # tile ids are 32-bit in kernels
SURFACE_LIMIT = 1 << 24  # bytes of a 2D surface's width and pitch, and its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A work-group tile of the grouped GEMMs; see XeGemm for the fields."""

    name: str
    tile_rows: int
    tile_columns: int
    sub_groups_m: int
    sub_groups_n: int
    k_slices: int = 1
    prefetch_steps: int = 3  # 3 x 64 B per row ahead: XE measurements used 3; unmeasured on hardware
    split_barrier: bool = False

    @property
    def block_rows(self) -> int:
        return self.sub_groups_m * self.tile_rows

    @property
    def block_columns(self) -> int:
        """Columns of the gate half per work-group."""
        return self.sub_groups_n * self.tile_columns


# Decode: one sub-group wide, K in 8 slices, so that few tokens still make many sub-groups that stream weights.
# Middle: up to 32 rows per expert in one pass over the weights, accumulators for the 128-GRF mode.
# Prefill: 32x(32+32) per sub-group, 256-GRF mode, sub-groups kept in step by the split barrier.
_BLOCK_TILES = (
    Tile(name="decode", tile_rows=16, tile_columns=32, sub_groups_m=1, sub_groups_n=1, k_slices=8),
    Tile(name="middle", tile_rows=16, tile_columns=32, sub_groups_m=2, sub_groups_n=4),
    Tile(name="prefill", tile_rows=32, tile_columns=32, sub_groups_m=4, sub_groups_n=4, split_barrier=True),
)
# Weights that need masked 16-bit loads keep more values alive: smaller tiles, no prefetch of weights.
_ELEMENT_TILES = (
    Tile(name="decode", tile_rows=16, tile_columns=16, sub_groups_m=1, sub_groups_n=1, k_slices=8),
    Tile(name="middle", tile_rows=16, tile_columns=16, sub_groups_m=2, sub_groups_n=4),
    Tile(name="prefill", tile_rows=32, tile_columns=32, sub_groups_m=4, sub_groups_n=4),
)
# The same for codes, whose conversion needs registers, too.
_ELEMENT_CODE_TILES = (
    *_ELEMENT_TILES[:2],
    Tile(name="prefill", tile_rows=32, tile_columns=16, sub_groups_m=4, sub_groups_n=4),
)
_SIMD8_TILES = (
    Tile(name="decode", tile_rows=8, tile_columns=16, sub_groups_m=1, sub_groups_n=1, k_slices=8, prefetch_steps=0),
    Tile(name="middle", tile_rows=16, tile_columns=16, sub_groups_m=2, sub_groups_n=4, prefetch_steps=0),
    Tile(name="prefill", tile_rows=16, tile_columns=32, sub_groups_m=4, sub_groups_n=4, prefetch_steps=0),
)
_SIMD8_CODE_TILES = (
    *_SIMD8_TILES[:2],
    Tile(name="prefill", tile_rows=16, tile_columns=16, sub_groups_m=4, sub_groups_n=4, prefetch_steps=0),
)
# Mean rows per active expert up to which a tile is chosen; a larger mean takes the last one. The decode tile reads
# weights once for up to block_rows rows; half of that leaves room for uneven routing before a second pass.
_MAX_MEAN_ROWS = {"decode": 0.5, "middle": 1.0}  # of the tile's block_rows

VECTOR_TILE_ROWS = 8
VECTOR_SUB_GROUPS = 4
VECTOR_SIMD = 16  # every GPU of the table has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The grouped GEMMs of one implementation. What surrounds them is the same for all."""

    impl: str
    gate_up: type[XeGateUp]
    down: type[XeDown]
    gathers: bool  # whether gate_up can read token rows through the routing table


XE = Family(impl=IMPL, gate_up=XeGateUp, down=XeDown, gathers=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class XeChoice:
    """The kernels of one call and why they were chosen."""

    route: tuple[XeSpec, ...]  # one kernel, or three for many pairs
    pack: XePack | XeQuantize | None
    gate_up: XeGateUp | XeVectorGateUp
    down: XeDown | XeVectorDown
    combine: XeCombine
    reasons: tuple[str, ...]
    quantize_inter: XeQuantize | None = None
    single: XeSingle | None = None  # in the place of all others

    @property
    def block_rows(self) -> int:
        """Rows of a row block: what one work-group takes."""
        if isinstance(self.gate_up, XeGateUp):
            return self.gate_up.block_rows
        return self.gate_up.tile_rows


def quant_of(problem: MoEProblem, name: str) -> WeightQuant | None:
    """Returns how ``w1`` or ``w2`` is quantized."""
    return problem.w1_quant if name == "w1" else problem.w2_quant


def _k_of(problem: MoEProblem, name: str) -> int:
    return problem.hidden_size if name == "w1" else problem.intermediate_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """One of the two weight tensors as the main loops see it."""

    name: str
    layout: Layout
    columns: int  # N of one expert's matrix
    k: int
    k_bytes: int  # of K elements, packed
    stride: int  # bytes
    expert_stride: int  # bytes
    quantized: bool
    half: int  # column where the second block of a sub-group starts, 0 if next to the first
    alternating_rows: bool  # nk: gate and up rows are read as two matrices with twice the stride

    @classmethod
    def of(cls, problem: MoEProblem, name: str) -> _Matrix:
        quant, k = quant_of(problem, name), _k_of(problem, name)
        size = 2 if quant is None else 1
        common: dict[str, Any] = {
            "name": name,
            "k": k,
            "k_bytes": 2 * k if quant is None else quant.format.row_bytes(k),
            "quantized": quant is not None,
        }
        if name == "w2":
            return cls(
                **common,
                layout=problem.w2_layout,
                columns=problem.hidden_size,
                stride=problem.w2_stride * size,
                expert_stride=problem.w2_expert_stride * size,
                half=0,
                alternating_rows=False,
            )
        return cls(
            **common,
            layout=problem.w1_layout,
            columns=problem.w1_rows,
            stride=problem.w1_stride * size,
            expert_stride=problem.w1_expert_stride * size,
            half=problem.intermediate_size if problem.gate_up is GateUp.CONCATENATED else 0,
            alternating_rows=problem.gate_up is GateUp.INTERLEAVED and problem.w1_layout is Layout.NK,
        )


def block2d_objections(problem: MoEProblem, arch: XeArchitecture, matrix: _Matrix) -> list[str]:
    """Returns why 2D block loads cannot read a weight tensor; none if they can."""
    width, height = (matrix.k_bytes, matrix.columns) if matrix.layout is Layout.NK else (2 * matrix.columns, matrix.k)
    objections = []
    if not arch.has_block2d:
        objections.append(f"{arch.name} has no 2D block loads")
    if problem.base_alignment % 64:
        objections.append(f"addresses are multiples of {problem.base_alignment} B, not of 64 B")
    if matrix.expert_stride % 64 and problem.num_experts > 1:
        objections.append(f"experts are {matrix.expert_stride} B apart, not a multiple of 64 B")
    if matrix.stride % 16:
        objections.append(f"the row pitch is {matrix.stride} B, not a multiple of 16 B")
    if width % 4 or width < 64:
        objections.append(f"rows are {width} B wide, not a multiple of 4 B and at least 64 B")
    if matrix.layout is Layout.KN and matrix.half % 2:
        objections.append(f"the up half starts at column {matrix.half}, which is not 4 B aligned")
    if max(width, matrix.stride * (2 if matrix.alternating_rows else 1), height) > SURFACE_LIMIT:
        objections.append(f"{height} x {width} B exceeds a surface's 2^24")
    return objections


def weights_class(problem: MoEProblem, arch: XeArchitecture, which: str) -> tuple[XeWeights, str]:
    """Returns how the kernels read ``w1`` or ``w2`` and why."""
    matrix = _Matrix.of(problem, which)
    objections = block2d_objections(problem, arch, matrix)
    if not objections:
        return XeWeights.BLOCK2D, f"{which}: 2D block loads"
    if arch.simd == 8 and matrix.layout is Layout.NK:
        step = 32 if matrix.quantized else 64  # bytes that a lane reads per K step
        aligned = matrix.stride % 4 == 0 and matrix.expert_stride % 4 == 0 and problem.base_alignment % 4 == 0
        if matrix.k_bytes % step == 0 and aligned:
            return XeWeights.ROW, f"{which}: row loads ({objections[0]})"
        objections.append(f"row loads need rows of {matrix.k_bytes} B to be a multiple of {step} B and 4 B aligned")
    loads = "8-bit" if matrix.quantized else "16-bit"
    return XeWeights.ELEMENT, f"{which}: {loads} loads ({'; '.join(objections)})"


def quant_objections(problem: MoEProblem) -> list[str]:
    """Returns why dpas kernels cannot apply the scales of quantized weights; none if they can."""
    objections = []
    for name in ("w1", "w2"):
        quant = quant_of(problem, name)
        if quant is None:
            continue
        for what, block in (("scales", quant.format.block_k), ("input scales", problem.input_block_k)):
            step = 32 if quant.format.bits == 8 or block == 32 else QUANT_K_STEP
            if block % step:
                objections.append(f"{name}: {what} for {block} of K each, not a multiple of {step}")
    return objections


def quant_fields(problem: MoEProblem, name: str, weights: XeWeights | None) -> dict[str, Any]:
    """Returns the fields of kernels with quantized weights; ``weights`` is None for the vector kernels."""
    quant = quant_of(problem, name)
    assert quant is not None
    form = quant.format
    fields: dict[str, Any] = {
        "encoding": form.encoding,
        "scale_dtype": form.scale_dtype,
        "has_zero_point": form.has_zero_point,
        "block_k": form.block_k,
        "x_block_k": problem.input_block_k,
    }
    if name == "w1":
        fields["fp32_inter"] = problem.input_quant is not None
    if weights is not None:
        whole = form.block_k == problem.input_block_k == WHOLE
        integers = form.encoding is Encoding.INT8 and problem.input_quant is InputQuant.INT8
        fields["int8_dpas"] = integers and whole and weights is XeWeights.BLOCK2D
    return fields


def quantize_kernel(problem: MoEProblem, name: str, simd: int, gemm: XeSpec) -> XeQuantize | None:
    """Returns the kernel that makes the inputs of ``gemm``, None if its weights are not quantized."""
    quant = quant_of(problem, name)
    if quant is None:
        return None
    stride = problem.a1_scale_stride if name == "w1" else problem.a2_scale_stride
    to = DType.FP16 if isinstance(gemm, XeGemm) else DType.FP32
    if isinstance(gemm, XeQuantGemm) and gemm.int8_dpas:
        to = DType.INT8
    is_rounded = problem.input_quant is not None
    return XeQuantize(
        simd=simd,
        dtype=DType.FP32 if is_rounded and name == "w2" else problem.dtype,
        to=to,
        gathered=name == "w1",
        permuted=isinstance(gemm, XeGemm) and quant.format.bits == 4,
        has_k_order=name == "w1" and quant.format.has_k_order,
        has_scale=is_rounded and stride is not None,
        has_input_quant=is_rounded,
        input_quant=problem.input_quant or InputQuant.INT8,
        block_k=problem.input_block_k if is_rounded else WHOLE,
    )


def tokens_class(problem: MoEProblem, arch: XeArchitecture, gathers: bool = True) -> tuple[XeTokens, str]:
    """Returns how gate_up reads token rows and why."""
    objections = [] if gathers else ["these kernels take packed tokens"]
    if problem.w1_layout is Layout.KN:
        objections.append("[K][N] weights take packed tokens")
    if problem.hidden_size % K_STEP:
        objections.append(f"H={problem.hidden_size} is no multiple of {K_STEP}")
    if problem.x_row_stride % 2 or problem.base_alignment % 4:
        objections.append("rows are not 4 B aligned")
    if not objections:
        return XeTokens.GATHER, "tokens: gathered by the main loop"
    packed = XeTokens.BLOCK2D if arch.has_block2d else XeTokens.PACKED
    return packed, f"tokens: packed first ({'; '.join(objections)})"


def tile_objections(spec: XeGemm, device: Device, arch: XeArchitecture) -> list[str]:
    """Returns the limits of the device that a kernel breaks, with numbers."""
    objections = []
    sub_groups = spec.local_size // spec.simd
    if spec.local_size > device.max_work_group_size:
        objections.append(f"{spec.local_size} work-items exceed the device's {device.max_work_group_size}")
    if sub_groups > arch.max_sub_groups(spec.large_grf):
        mode = 256 if spec.large_grf else 128
        objections.append(
            f"{sub_groups} sub-groups exceed the {arch.max_sub_groups(spec.large_grf)} of {mode}-GRF mode"
        )
    if spec.local_mem_bytes > device.local_mem_bytes:
        objections.append(f"{spec.local_mem_bytes} B of SLM exceed the device's {device.local_mem_bytes}")
    if spec.accumulator_registers > 160:
        objections.append(f"{spec.accumulator_registers} accumulator registers leave too few of 256 for operands")
    return objections


def tiles(arch: XeArchitecture, weights: Sequence[XeWeights], quantized: bool = False) -> tuple[Tile, ...]:
    """Returns the tile configurations for the weight classes of both GEMMs, fewest rows first."""
    if arch.simd == 8:
        return _SIMD8_CODE_TILES if quantized else _SIMD8_TILES
    if XeWeights.ELEMENT not in weights:
        return _BLOCK_TILES
    return _ELEMENT_CODE_TILES if quantized else _ELEMENT_TILES


def preferred_tile(problem: MoEProblem, candidates: Sequence[Tile]) -> tuple[Tile, str]:
    """Returns the heuristic's tile and its reason, from the mean number of rows per expert that gets any."""
    active = max(1, min(problem.num_experts, problem.num_pairs))
    mean = problem.num_pairs / active
    for tile in candidates:
        share = _MAX_MEAN_ROWS.get(tile.name)
        if share is not None and mean <= share * tile.block_rows:
            break
    return tile, f"tile {tile.name}: mean {mean:.1f} rows per active expert, blocks of {tile.block_rows}"


def tuned_tile(config: TunedConfig, candidates: Sequence[Tile]) -> Tile | None:
    """Returns the tile that a tuned row asks for, or None if this plan has no such tile."""
    asked = (config.block_rows, config.block_columns, config.k_slices)
    return next((t for t in candidates if (t.block_rows, t.block_columns, t.k_slices) == asked), None)


def choose(
    problem: MoEProblem, device: Device, configs: Sequence[TunedConfig] | None = None, family: Family = XE
) -> XeChoice:
    """Returns the kernels for ``problem`` on ``device``.

    Args:
        configs: tuned rows that override the heuristic; None: those of JITMOE_TUNED_CONFIG.
        family: whose dpas kernels to use where dpas kernels are used.

    Raises:
        UnsupportedProblemError: sizes beyond the kernels' 32-bit counters.
    """
    arch = architecture(device.arch)
    reasons = [f"{arch.name}: sub-groups of {arch.simd}{', ' + arch.note if arch.note else ''}"]
    _check_sizes(problem)
    emulated = device.kind is DeviceKind.XE_EMULATED
    if emulated:
        reasons.append("emulated: portable intrinsics on the CPU device")

    gate_up: XeGateUp | XeVectorGateUp
    down: XeDown | XeVectorDown
    pack: XePack | XeQuantize | None = None
    no_scales = quant_objections(problem)
    row: TunedConfig | None = None
    if not arch.has_dpas or problem.dtype not in DPAS_DTYPES or no_scales:
        why = f"{problem.dtype.value} has no exact dpas" if arch.has_dpas else f"{arch.name} has no dpas"
        reasons.append(f"vector kernels: {'; '.join(no_scales) or why}")
        gate_up, down = _vector_kernels(problem, emulated)
    else:
        gate_up, down, row, more = _dpas_kernels(problem, device, arch, emulated, configs, family)
        reasons += more
        if gate_up.tokens is not XeTokens.GATHER:
            wide = problem.x_row_stride % 8 == 0 and problem.hidden_size % 8 == 0 and problem.base_alignment % 16 == 0
            pack = XePack(simd=arch.simd, wide=wide)

    quantize_x = quantize_kernel(problem, "w1", arch.simd, gate_up)
    quantize_inter = quantize_kernel(problem, "w2", arch.simd, down)
    if quantize_x is not None:
        pack = quantize_x
        reasons.append(f"inputs of w1: gathered, {_words(quantize_x)}")
    if quantize_inter is not None:
        reasons.append(f"inputs of w2: {_words(quantize_inter)}")

    ids: dict[str, Any] = {
        "ids_dtype": problem.topk_ids_dtype,
        "has_expert_map": problem.num_global_experts is not None,
    }
    route: tuple[XeSpec, ...]
    if problem.num_pairs <= MAX_ONE_GROUP_PAIRS:
        route = (XeRoute(simd=arch.simd, **ids),)
        reasons.append(f"route: one work-group for {problem.num_pairs} pairs")
    else:
        route = (
            XeRouteCount(simd=arch.simd, **ids),
            XeRouteScan(simd=arch.simd),
            XeRoutePlace(simd=arch.simd, **ids),
        )
        reasons.append(f"route: three launches for {problem.num_pairs} pairs (> {MAX_ONE_GROUP_PAIRS})")
    choice = XeChoice(
        route=route,
        pack=pack,
        gate_up=gate_up,
        down=down,
        combine=XeCombine(simd=arch.simd, emulated=emulated, dtype=problem.dtype, **ids),
        reasons=tuple(reasons),
        quantize_inter=quantize_inter,
    )
    is_single, why = xe_single.decide(row, single_launch_objections(problem, device, choice))
    return dataclasses.replace(
        choice, single=xe_single.single_kernel(choice) if is_single else None, reasons=(*choice.reasons, why)
    )


def single_launch_objections(problem: MoEProblem, device: Device, choice: XeChoice) -> list[str]:
    """Returns why one launch cannot do what ``choice`` does; none if it can."""
    chunks = ceil_div(problem.hidden_size, _chunk_columns(problem)) if problem.num_pairs else 1
    return xe_single.objections(problem, device, choice, chunks)


def _chunk_columns(problem: MoEProblem) -> int:
    """Output columns that down and combine do at a time."""
    at_most = PARTIAL_BYTES // (problem.num_pairs * 4) // COLUMN_CHUNK
    return min(problem.hidden_size, max(at_most, 1) * COLUMN_CHUNK)


def _words(spec: XeQuantize) -> str:
    if not spec.has_input_quant:
        return (
            f"scaled by a power of two per row to {spec.to.value}" if spec.to is DType.FP16 else f"as {spec.to.value}"
        )
    scales = "given scales" if spec.has_scale else f"scales per {spec.block_k or 'row'}"
    return f"rounded to {spec.input_quant.value} with {scales}, kept as {spec.to.value}"


def _check_sizes(problem: MoEProblem) -> None:
    reasons = []
    if problem.num_pairs + problem.num_experts > MAX_TILES:
        reasons.append(f"M * k + E = {problem.num_pairs + problem.num_experts} exceeds 2^31 - 1")
    widest = max(2 * problem.intermediate_size, problem.hidden_size)
    if widest > SURFACE_LIMIT:
        reasons.append(f"max(2 I, H) = {widest} exceeds 2^24")
    column_tiles = ceil_div(widest, 16)
    blocks = _max_blocks(problem, VECTOR_TILE_ROWS)
    if not reasons and column_tiles * blocks > MAX_TILES:
        reasons.append(f"{blocks} row blocks x {column_tiles} column tiles exceed 2^31 - 1")
    if problem.input_quant is not None and (problem.w1_quant is None or problem.w2_quant is None):
        reasons.append("quantized inputs need quantized weights in both GEMMs")
    if problem.w1_quant is not None and problem.w1_quant.format.has_k_order and problem.input_block_k:
        reasons.append("input scales per block of K are in the order of K, which k_order changes")
    if reasons:
        raise UnsupportedProblemError(problem=str(problem), reasons=tuple(reasons))


def gate_up_fields(problem: MoEProblem) -> dict[str, Any]:
    """Returns the fields that gate_up kernels of both kinds have for what comes after their main loop."""
    weighted = problem.router_weight_on_input
    return {
        "activation": problem.activation,
        "gate_up": problem.gate_up,
        "has_limit": problem.swiglu_limit is not None,
        "has_bias": problem.w1_bias_dtype is not None,
        "bias_dtype": problem.w1_bias_dtype or DType.FP32,
        "router_weight_on_input": weighted,
        "topk_weights_dtype": problem.topk_weights_dtype if weighted else DType.FP32,
    }


def down_fields(problem: MoEProblem) -> dict[str, Any]:
    """The same for down kernels."""
    weighted = not problem.router_weight_on_input
    return {
        "has_bias": problem.w2_bias_dtype is not None,
        "bias_dtype": problem.w2_bias_dtype or DType.FP32,
        "weighted": weighted,
        "topk_weights_dtype": problem.topk_weights_dtype if weighted else DType.FP32,
    }


def _vector_kernels(problem: MoEProblem, emulated: bool) -> tuple[XeVectorGateUp, XeVectorDown]:
    def wide(layout: Layout, *strides: int) -> bool:
        aligned = problem.base_alignment % 4 == 0 and all(s * problem.dtype.num_bytes % 4 == 0 for s in strides)
        return layout is Layout.NK and aligned

    common: dict[str, Any] = {
        "simd": VECTOR_SIMD,
        "dtype": problem.dtype,
        "tile_rows": VECTOR_TILE_ROWS,
        "sub_groups": VECTOR_SUB_GROUPS,
    }
    first: dict[str, Any] = {"emulated": emulated, "layout": problem.w1_layout, **gate_up_fields(problem)}
    second: dict[str, Any] = {"layout": problem.w2_layout, **down_fields(problem)}
    gate_up: type[XeVectorGateUp] = XeVectorGateUp
    down: type[XeVectorDown] = XeVectorDown
    if problem.w1_quant is None:
        first["wide"] = wide(problem.w1_layout, problem.w1_stride, problem.w1_expert_stride, problem.x_row_stride)
    else:
        gate_up = XeQuantVectorGateUp
        first |= {"wide": False, **quant_fields(problem, "w1", None)}
    if problem.w2_quant is None:
        second["wide"] = wide(problem.w2_layout, problem.w2_stride, problem.w2_expert_stride)
    else:
        down = XeQuantVectorDown
        second |= {"wide": False, **quant_fields(problem, "w2", None)}
    return gate_up(**common, **first), down(**common, **second)


def _dpas_kernels(
    problem: MoEProblem,
    device: Device,
    arch: XeArchitecture,
    emulated: bool,
    configs: Sequence[TunedConfig] | None,
    family: Family,
) -> tuple[XeGateUp, XeDown, TunedConfig | None, list[str]]:
    w1_class, w1_reason = weights_class(problem, arch, "w1")
    w2_class, w2_reason = weights_class(problem, arch, "w2")
    tokens, tokens_reason = tokens_class(problem, arch, family.gathers and problem.w1_quant is None)
    reasons = [w1_reason, w2_reason, tokens_reason]
    candidates = tiles(arch, (w1_class, w2_class), problem.w1_quant is not None or problem.w2_quant is not None)

    def kernels(tile: Tile) -> tuple[XeGateUp, XeDown]:
        common: dict[str, Any] = {
            "simd": arch.simd,
            "emulated": emulated,
            "dtype": problem.dtype,
            **{f.name: getattr(tile, f.name) for f in dataclasses.fields(Tile) if f.name != "name"},
        }
        packed = XeTokens.BLOCK2D if arch.has_block2d else XeTokens.PACKED
        first: dict[str, Any] = {"layout": problem.w1_layout, "weights": w1_class, **gate_up_fields(problem)}
        second: dict[str, Any] = {"layout": problem.w2_layout, "weights": w2_class, **down_fields(problem)}
        gate_up, down = family.gate_up, family.down
        if problem.w1_quant is not None:
            gate_up = XeQuantGateUp
            first |= quant_fields(problem, "w1", w1_class)
        if problem.w2_quant is not None:
            down = XeQuantDown
            second |= quant_fields(problem, "w2", w2_class)
        return gate_up(**common, tokens=tokens, **first), down(**common, tokens=packed, **second)

    order: list[tuple[Tile, str, TunedConfig | None]] = []
    row = tuned.find(tuned.configured() if configs is None else configs, problem, device, family.impl)
    if row is not None:
        tile = tuned_tile(row, candidates)
        if tile is not None:
            order.append((tile, f"tile {tile.name}: tuned, {row.origin}", row))
        else:
            known = ", ".join(f"{t.block_rows}/{t.block_columns}/{t.k_slices}" for t in candidates)
            reasons.append(
                f"{row.origin} ignored: no tile with pad_m/pad_n/splitK "
                f"{row.block_rows}/{row.block_columns}/{row.k_slices} (there are {known})"
            )
    first, why = preferred_tile(problem, candidates)
    order.append((first, why, None))
    order += [(tile, f"tile {tile.name}: the next one that fits", None) for tile in candidates if tile is not first]
    for candidate, why, origin in order:
        gate_up, down = kernels(candidate)
        objections = [*tile_objections(gate_up, device, arch), *tile_objections(down, device, arch)]
        if objections:
            reasons.append(f"tile {candidate.name} rejected: {'; '.join(dict.fromkeys(objections))}")
            continue
        mode = "256" if gate_up.large_grf else "128"
        columns = f"({candidate.tile_columns}+{candidate.tile_columns})"
        reasons.append(
            f"{why}; {candidate.tile_rows}x{columns} per sub-group, {mode}-GRF mode, {gate_up.local_mem_bytes} B of SLM"
        )
        if candidate.k_slices > 1:
            reasons.append(f"split-K: {candidate.k_slices} slices in a work-group, added in SLM in a fixed order")
        return gate_up, down, origin, reasons
    raise UnsupportedProblemError(problem=str(problem), reasons=tuple(reasons))


def launches(problem: MoEProblem, device: Device, choice: XeChoice) -> Plan:
    """Returns the launches, scalars and workspace that solve ``problem`` with the kernels of ``choice``."""
    if problem.num_tokens == 0:
        return Plan(launches=(), buffers=(), decisions=(*choice.reasons, "no tokens: nothing to launch"))
    m, h, i = problem.num_tokens, problem.hidden_size, problem.intermediate_size
    pairs, element = problem.num_pairs, problem.dtype.num_bytes
    arch = architecture(device.arch)
    inter_pitch = align_up(i, K_STEP)
    packed_pitch = align_up(h, K_STEP if problem.w1_quant is None else QUANT_K_STEP)
    packed_inter_pitch = align_up(i, QUANT_K_STEP)
    max_blocks = _max_blocks(problem, choice.block_rows)
    x_blocks, inter_blocks = (ceil_div(k, problem.input_block_k) if problem.input_block_k else 1 for k in (h, i))

    columns = _chunk_columns(problem)
    partial_pitch = align_up(columns, 8)
    num_ranges = range_count(problem.num_pairs, device, choice.route)
    routing = {
        "num_tokens": m,
        "top_k": problem.top_k,
        "num_experts": problem.num_experts,
        "num_global_experts": problem.num_global_experts or 0,
        "topk_ids_row_stride": problem.topk_ids_row_stride,
    }
    buffers = [
        Buffer("route_table", num_ranges * problem.num_experts * 4),
        Buffer("expert_offsets", (problem.num_experts + 1) * 4),
        Buffer("sorted_pairs", pairs * 4),
        Buffer("blocks", max_blocks * 16),
        Buffer("num_blocks", 4),
        Buffer("packed_x", pairs * packed_pitch * packed_bytes(choice.pack) if choice.pack is not None else 0),
        Buffer("inter", pairs * inter_pitch * (element if problem.input_quant is None else 4)),
        Buffer("partial", pairs * partial_pitch * 4),
        Buffer("x_scale", pairs * x_blocks * 4 if problem.w1_quant is not None else 0),
    ]
    if choice.quantize_inter is not None:
        buffers.append(
            Buffer("packed_inter", pairs * packed_inter_pitch * packed_bytes(choice.quantize_inter)),
        )
        buffers.append(Buffer("inter_scale", pairs * inter_blocks * 4))

    steps = range_launches(choice.route, {**routing, "block_rows": choice.block_rows}, num_ranges)

    def pack_groups(spec: XeSpec) -> int:
        sub_groups = ROUTE_LOCAL_SIZE // spec.simd
        return min(resident_groups(device, arch, sub_groups, False), ceil_div(pairs, sub_groups))

    if isinstance(choice.pack, XeQuantize):
        first_quant = launch(
            choice.pack,
            pack_groups(choice.pack),
            ROUTE_LOCAL_SIZE,
            k=h,
            top_k=problem.top_k,
            num_experts=problem.num_experts,
            packed_pitch=packed_pitch,
            given_stride=problem.a1_scale_stride or 0,
            source_stride=problem.x_row_stride,
        )
        names = {"source": "hidden_states", "order": "w1_k_order", "given": "a1_scale", "packed": "packed_x"}
        steps.append(dataclasses.replace(first_quant, aliases={**names, "scale": "x_scale"}))
    elif choice.pack is not None:
        steps.append(
            launch(
                choice.pack,
                pack_groups(choice.pack),
                ROUTE_LOCAL_SIZE,
                hidden_size=h,
                top_k=problem.top_k,
                num_experts=problem.num_experts,
                packed_pitch=packed_pitch,
                x_row_stride=problem.x_row_stride,
            )
        )

    gate_up = choice.gate_up
    shared = {
        "hidden_size": h,
        "intermediate_size": i,
        "top_k": problem.top_k,
        "inter_pitch": inter_pitch,
        "topk_weights_row_stride": problem.topk_weights_row_stride,
    }
    numbers = {"swiglu_alpha": problem.swiglu_alpha, "swiglu_limit": problem.swiglu_limit or 0.0}
    w1 = {"w_expert_stride": problem.w1_expert_stride, "w_stride": problem.w1_stride}
    if isinstance(gate_up, XeGateUp):
        column_tiles = ceil_div(inter_pitch, gate_up.sub_groups_n * gate_up.tile_columns)  # at most, ungated half
        gathers = gate_up.tokens is XeTokens.GATHER
    else:
        column_tiles = ceil_div(i, gate_up.local_size)
        gathers = problem.w1_quant is None
    w1["x_stride"] = problem.x_row_stride if gathers else packed_pitch
    grid = _grid(device, arch, gate_up, max_blocks * column_tiles)
    if problem.w1_quant is not None:
        w1 |= quant_scalars(problem.w1_quant, x_blocks)
    gate_up_launch = launch(gate_up, grid, gate_up.local_size, **shared, **w1, **numbers)
    if problem.w1_quant is not None:
        w1_names = {"w_scale": "w1_scale", "w_zero_point": "w1_zero_point"}
        gate_up_launch = dataclasses.replace(gate_up_launch, aliases=w1_names)
    steps.append(gate_up_launch)

    down = choice.down
    w2: dict[str, int] = {"w_expert_stride": problem.w2_expert_stride, "w_stride": problem.w2_stride}
    w2_names: dict[str, str | None] = {}
    if choice.quantize_inter is not None:
        assert problem.w2_quant is not None
        second_quant = launch(
            choice.quantize_inter,
            pack_groups(choice.quantize_inter),
            ROUTE_LOCAL_SIZE,
            k=i,
            top_k=1,
            num_experts=problem.num_experts,
            packed_pitch=packed_inter_pitch,
            given_stride=problem.a2_scale_stride or 0,
            source_stride=inter_pitch,
        )
        names = {"source": "inter", "given": "a2_scale", "packed": "packed_inter", "scale": "inter_scale"}
        steps.append(dataclasses.replace(second_quant, aliases={**names, "order": None}))
        w2 |= quant_scalars(problem.w2_quant, inter_blocks)
        shared["inter_pitch"] = packed_inter_pitch
        w2_names = {
            "w_scale": "w2_scale",
            "w_zero_point": "w2_zero_point",
            "x_scale": "inter_scale",
            "inter": "packed_inter",
        }
    width = 2 * (down.sub_groups_n * down.tile_columns if isinstance(down, XeDown) else down.local_size)
    combine_sub_groups = ROUTE_LOCAL_SIZE // choice.combine.simd
    for first in range(0, h, columns):
        here = min(columns, h - first)
        chunk = {"first_column": first, "num_columns": here, "partial_pitch": partial_pitch}
        down_grid = _grid(device, arch, down, max_blocks * ceil_div(here, width))
        down_launch = launch(down, down_grid, down.local_size, **shared, **chunk, **w2)
        steps.append(dataclasses.replace(down_launch, aliases=w2_names))
        pieces = m * ceil_div(here, 4 * choice.combine.simd)
        groups = min(resident_groups(device, arch, combine_sub_groups, False), ceil_div(pieces, combine_sub_groups))
        steps.append(
            launch(choice.combine, groups, ROUTE_LOCAL_SIZE, **routing, **chunk, out_row_stride=problem.out_row_stride)
        )

    counters: tuple[Buffer, ...] = ()
    if choice.single is not None:
        one = choice.single
        grid = _grid(device, arch, one, max_blocks * max(column_tiles, ceil_div(h, width)))
        single = launch(
            one,
            grid,
            one.local_size,
            **{**routing, **shared, **numbers},
            num_ranges=min(num_ranges, one.local_size // one.simd),
            packed_pitch=packed_pitch,
            partial_pitch=partial_pitch,
            max_polls=xe_single.max_polls(device),
            x_row_stride=problem.x_row_stride,
            w1_expert_stride=problem.w1_expert_stride,
            w1_stride=problem.w1_stride,
            w2_expert_stride=problem.w2_expert_stride,
            w2_stride=problem.w2_stride,
            out_row_stride=problem.out_row_stride,
        )
        steps, counters = [single], (Buffer("counters", TICKETS_COUNTER_BYTES),)

    decisions = [
        *choice.reasons,
        f"at most {max_blocks} row blocks of {choice.block_rows}; grid of {grid} work-groups walks over the tiles",
        f"output in {ceil_div(h, columns)} chunk(s) of {columns} columns ({pairs * partial_pitch * 4} B of fp32 rows)",
    ]
    return Plan(launches=tuple(steps), buffers=tuple(buffers), counters=counters, decisions=tuple(decisions))


def packed_bytes(spec: XePack | XeQuantize) -> int:
    """Bytes of an element of packed rows."""
    return {DType.INT8: 1, DType.FP16: 2, DType.FP32: 4}[spec.to] if isinstance(spec, XeQuantize) else 2


def quant_scalars(quant: WeightQuant, x_blocks: int) -> dict[str, int]:
    """Returns the scalar arguments that kernels of quantized weights have."""
    return {
        "block_n": quant.format.block_n,
        "x_blocks": x_blocks,
        "scale_expert_stride": quant.scale_expert_stride,
        "scale_n_stride": quant.scale_n_stride,
        "scale_k_stride": quant.scale_k_stride,
        "zero_expert_stride": quant.zero_expert_stride,
        "zero_n_stride": quant.zero_n_stride,
        "zero_k_stride": quant.zero_k_stride,
    }


def _grid(
    device: Device,
    arch: XeArchitecture,
    spec: XeGateUp | XeDown | XeVectorGateUp | XeVectorDown | XeSingle,
    max_tiles: int,
) -> int:
    groups = resident_groups(device, arch, spec.local_size // spec.simd, spec.large_grf)
    return max(1, min(groups, max_tiles))


def check_problem(problem: MoEProblem, choice: XeChoice) -> MoEProblem:
    """Returns a small problem for the kernels of ``choice``: several blocks, full and not, tails where allowed."""
    gate_up, down = choice.gate_up, choice.down
    h_multiple, i_multiple = 1, 1
    if isinstance(gate_up, XeGateUp) and isinstance(down, XeDown):
        kinds = {
            (gate_up.weights, gate_up.layout, "w1"),
            (down.weights, down.layout, "w2"),
        }
        for weights, layout, which in kinds:
            if weights is XeWeights.ELEMENT:
                continue
            along_k = K_STEP if weights is XeWeights.ROW else 8
            quant = quant_of(problem, which)
            if quant is not None:  # rows a multiple of 32 B resp. 16 B
                along_k = (256 if weights is XeWeights.ROW else 128) // quant.format.bits
            if (which == "w1") == (layout is Layout.NK):
                h_multiple = max(h_multiple, along_k)
            else:
                i_multiple = max(i_multiple, along_k)
        if gate_up.tokens is XeTokens.GATHER:
            h_multiple = K_STEP
        if any(weights is XeWeights.BLOCK2D for weights, _, _ in kinds):  # experts 64 B apart: H * I a multiple of 32
            h_multiple, i_multiple = max(h_multiple, 8), max(i_multiple, 8)
        if isinstance(choice.pack, XePack) and choice.pack.wide:
            h_multiple = max(h_multiple, 8)
    elif (isinstance(gate_up, XeVectorGateUp) and gate_up.wide) or (isinstance(down, XeVectorDown) and down.wide):
        h_multiple = i_multiple = 2
    # K of quantized weights goes over into a second block of scales, is wide enough for 2D blocks, and fills its bytes.
    quants = (problem.w1_quant, problem.w2_quant)
    if any(quant is not None and quant.format.bits == 4 for quant in quants):
        h_multiple, i_multiple = max(h_multiple, 2), max(i_multiple, 2)
    more_h, more_i = (0 if q is None else max(64, min(q.format.block_k, 256)) for q in quants)
    small_h = align_up(101 + more_h, h_multiple)
    small_i = align_up(67 + more_i, i_multiple)
    top_k, experts = min(problem.top_k, 3), 3
    # Rows per expert: more than one block on average, so that blocks are full, partly full and second ones.
    rows = choice.block_rows + choice.block_rows // 2 + 3
    tokens = max(3, ceil_div(rows * experts, top_k))
    return problem.resized(
        num_tokens=tokens, hidden_size=small_h, intermediate_size=small_i, num_experts=experts, top_k=top_k
    )


def _max_blocks(problem: MoEProblem, block_rows: int) -> int:
    """Row blocks that any routing can need."""
    return min(problem.num_experts, problem.num_pairs) + problem.num_pairs // block_rows

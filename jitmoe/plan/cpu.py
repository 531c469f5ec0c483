# SPDX-License-Identifier: MIT
"""The plan for CPU devices: gate_up and down, after route where there are many pairs. Any shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jitmoe.device import CpuIsa, Device
from jitmoe.plan.cpu_specs import (
    CpuDownAmxSpec,
    CpuDownSpec,
    CpuGateUpAmxSpec,
    CpuGateUpSpec,
    CpuInterRowsSpec,
    CpuQuantDownAmxSpec,
    CpuQuantDownSpec,
    CpuQuantGateUpAmxSpec,
    CpuQuantGateUpSpec,
    CpuQuantSingleSpec,
    CpuRowsSpec,
    CpuSingleSpec,
    CpuTilesSpec,
    RouteSerialSpec,
)
from jitmoe.plan.launch import Buffer, Launch, Plan
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat, WeightQuant
from jitmoe.problems.fused_moe import DType, Layout, MoEProblem
from jitmoe.rounding import align_up
from jitmoe.spec import KernelSpec

# Numbers that kernels name too; tests/unit/test_plan_cpu.py compares them with the headers.
FEW_PAIRS = 64  # kFewPairs in cpu/routing.hpp
SLOT_GRANULE = 16  # kSlotGranule in cpu/routing.hpp
MAX_GATE_UP_ROWS = 96  # kMaxRows in kernel/cpu_gate_up.hpp
MAX_DOWN_COLUMNS = 192  # kMaxColumns in kernel/cpu_down.hpp
GROUP_BYTES = 16  # sizeof(cpu::Group)
COUNTER_BYTES = 384  # Tickets::kCounterBytes in cpu/tickets.hpp
# Ranges are multiples of both the lanes form's 6 weight rows and the 16 columns that a sum row is made of.
RANGE_STEP = 48
ITEMS_PER_CORE = 8  # work-items per core that balance uneven ones; measured: fewer leave cores idle at the end
AMX_MAX_TILES = 16  # kMaxTiles in cpu/amx_form.hpp
AMX_TILE = 16  # tokens, or weight rows, of one tile
AMX_STEP = 32  # elements of K that a tile row holds
AMX_ROWS = 2 * AMX_TILE  # weight rows that are multiplied together
AMX_ITEMS_PER_CORE = 8
AMX_ITEMS_PER_CORE_OF_FEW = 16  # up to AMX_FEW_TOKENS: a work-item left over at the end is a larger part of the whole
AMX_FEW_TOKENS = 64
# What a work-item costs by itself (finding the routing, setting up the tiles) is about what reading so much from the L2
# cache does: with 128 KiB a layer of 1.5 MiB and 16 tokens takes 65 instead of 80 us.
AMX_ITEM_BYTES = 1 << 17
# Every work-item of down reads the whole intermediate. Two per core leave one idle at the end if the other is slower.
AMX_DOWN_ITEMS_PER_CORE = 4
# Each k of [K][N] weights is in a page of its own, which costs more than reading a part: few work-items, wide parts.
AMX_KN_ITEMS_PER_CORE = 2
# Tokens per expert from which on fp16 is worth cutting into two bf16: at 2 it takes 1.4 times as long, at 8 0.9 times.
SPLIT_MIN_TOKENS = 6
# Tokens per expert up to which rows are multiplied while they are read, where there are tiles: plain numbers, FP8 in
# chunks and int8 that tiles read where they are; other integers and FP4 in chunks; codes that are not read in chunks.
# docs/cpu-kernels.md has the measurements.
ROWS_TOKENS, ROWS_TOKENS_INTEGERS, ROWS_TOKENS_OTHERS = 2, 3, 1
# Elements of K that share a scale where tiles multiply int8 with 16-bit fixed-point inputs: 512 products fit an int32;
# blocks of 64 take 1.35 times as long as staged bf16 with 64 tokens per expert, those of 128 are as fast there.
MAX_FIXED_BLOCK_K, MIN_FIXED_BLOCK_K = 512, 128
FIXED_STEP = 64  # int8 of K that a tile row holds
MAX_QUAD_BLOCK_K = 512  # 128 quads: sums of int8 products are corrected chunk by chunk
CHUNK_K = 128  # kChunkK in cpu/chunk_rows.hpp
CHUNK_PARTS = (32, 64)  # blocks that are shorter than a chunk
# What constants that nobody looks at are: one binary for all.
_NO_FORMAT = WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=0, block_k=0)
ROW_STEP = 64  # prepared rows are a multiple of this many elements apart
ONE_BLOCK = 1 << 30  # rows per block where all share a scale
PANEL_BYTES = 1 << 20  # token tiles of one work-item: half of an L2 cache of 2 MiB, beside the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuChoice:
    """Kernels and range sizes for one problem on one CPU."""

    route: RouteSerialSpec | None  # None: the others find the routing themselves
    x_rows: CpuRowsSpec | None  # prepares the first GEMM's inputs; None: they are read as they are
    y_rows: CpuInterRowsSpec | CpuTilesSpec | None  # likewise the second GEMM's
    gate_up: CpuGateUpSpec | CpuGateUpAmxSpec
    down: CpuDownSpec | CpuDownAmxSpec
    single: CpuSingleSpec | None  # does the work of both in one launch; None: they have one each
    gate_up_rows: int  # of one work-item; AMX: of one step
    amx_items: int  # AMX: work-items of gate_up
    block_tokens: int  # AMX: tokens of one expert that gate_up multiplies together
    down_columns: int
    decisions: tuple[str, ...]


def choose(problem: MoEProblem, device: Device) -> CpuChoice:
    """Returns kernels for the device's instruction set, and ranges that keep all cores busy."""
    isa = device.cpu_isa if device.cpu_isa is not None else CpuIsa.GENERIC
    few_pairs = problem.num_pairs <= FEW_PAIRS
    ids_dtype, has_expert_map = problem.topk_ids_dtype, problem.num_global_experts is not None
    route = None if few_pairs else RouteSerialSpec(ids_dtype=ids_dtype, has_expert_map=has_expert_map)
    if not few_pairs:  # one binary for all
        ids_dtype, has_expert_map = DType.INT64, False
    decisions = (
        f"instruction set {isa.value}, {device.num_compute_units} compute units",
        f"{problem.num_pairs} pairs: routing "
        + (f"found by each work-item (at most {FEW_PAIRS})" if few_pairs else "sorted by a launch of its own"),
    )
    first, second = _first_epilogue(problem), _second_epilogue(problem)
    cores = max(1, device.num_compute_units)
    groups = max_groups(problem)
    is_plain = problem.w1_quant is None and problem.w2_quant is None
    common: dict[str, Any] = {"few_pairs": few_pairs, "ids_dtype": ids_dtype, "has_expert_map": has_expert_map}
    if isa.has_tiles and _takes_tiles(problem, isa):
        few = problem.num_tokens <= AMX_FEW_TOKENS
        items = cores * (AMX_ITEMS_PER_CORE_OF_FEW if few else AMX_ITEMS_PER_CORE)
        nk_down_items = items if few else cores * AMX_DOWN_ITEMS_PER_CORE
        kn_items = cores * AMX_KN_ITEMS_PER_CORE
        gate_up_items = items if problem.w1_layout is Layout.NK else kn_items
        down_items = nk_down_items if problem.w2_layout is Layout.NK else kn_items
        gate_up_items = min(gate_up_items, _most_amx_items(problem, problem.w1_quant, problem.w1_rows, cores))
        down_items = min(down_items, _most_amx_items(problem, problem.w2_quant, problem.intermediate_size, cores))
        first_gemm = _tiles_gemm(problem, isa, problem.w1_quant, problem.hidden_size) | _prepared(problem, tiles=True)
        second_gemm = _tiles_gemm(problem, isa, problem.w2_quant, problem.intermediate_size)
        rows = common | {"isa": CpuIsa.AVX512_BF16}
        gate_up_spec = (CpuGateUpAmxSpec if problem.w1_quant is None else CpuQuantGateUpAmxSpec)(
            **first_gemm, w1_layout=problem.w1_layout, **first, **common
        )
        block_tokens = _amx_block_tokens(problem, gate_up_spec)
        down_columns = _amx_down_columns(problem, down_items)
        return CpuChoice(
            route=route,
            # cpu_rows looks at block_k for int8 in quads alone: one binary for all blocks.
            x_rows=_rows(problem, first_gemm | {"block_k": 0}, rows) if gate_up_spec.x_prepared else None,
            y_rows=_inter_tiles(problem, second_gemm) if second_gemm["x_prepared"] else None,
            gate_up=gate_up_spec,
            down=(CpuDownAmxSpec if problem.w2_quant is None else CpuQuantDownAmxSpec)(
                **second_gemm, w2_layout=problem.w2_layout, **second, **common
            ),
            single=None,
            gate_up_rows=AMX_TILE,
            amx_items=gate_up_items,
            block_tokens=block_tokens,
            down_columns=down_columns,
            decisions=(
                *decisions,
                f"gate_up: {gate_up_items} equal shares of active experts' rows, up to {block_tokens} tokens at once",
                f"down: ranges of {down_columns} of {problem.hidden_size} columns",
            ),
        )
    isa = isa.at_most(CpuIsa.AVX512_BF16)
    if isa is CpuIsa.AVX512_BF16 and _has_odd_blocks(problem):  # a pair belongs to one block
        isa = CpuIsa.AVX512
    first_gemm, second_gemm = _first_gemm(problem, isa), _second_gemm(problem, isa)
    rows = common | {"isa": isa}
    wanted_items = ITEMS_PER_CORE * cores
    gate_up_rows = _range_size(problem.intermediate_size, max(1, wanted_items // groups), MAX_GATE_UP_ROWS)
    down_columns = _range_size(problem.hidden_size, wanted_items, MAX_DOWN_COLUMNS)
    gate_up = (CpuGateUpSpec if is_plain else CpuQuantGateUpSpec)(
        isa=isa,
        dtype=problem.dtype,
        w1_layout=problem.w1_layout,
        w2_layout=problem.w2_layout,
        **first,
        **first_gemm,
        **common,
    )
    down = (CpuDownSpec if is_plain else CpuQuantDownSpec)(
        isa=isa,
        dtype=problem.dtype,
        w2_layout=problem.w2_layout,
        **second,
        **second_gemm,
        **common,
    )
    single = None
    if few_pairs and not gate_up.x_prepared and not down.x_prepared:
        single = (CpuSingleSpec if is_plain else CpuQuantSingleSpec)(gate_up=gate_up, down=down)
    return CpuChoice(
        route=route,
        x_rows=_rows(problem, first_gemm, rows) if gate_up.x_prepared else None,
        y_rows=_inter_rows(problem, second_gemm, rows) if down.x_prepared else None,
        gate_up=gate_up,
        down=down,
        single=single,
        gate_up_rows=gate_up_rows,
        amx_items=0,
        block_tokens=0,
        down_columns=down_columns,
        decisions=(
            *decisions,
            f"gate_up: ranges of {gate_up_rows} of {problem.intermediate_size} rows for up to {groups} active experts",
            f"down: ranges of {down_columns} of {problem.hidden_size} columns"
            + (", in the same launch" if single is not None else ""),
        ),
    )


def _takes_tiles(problem: MoEProblem, isa: CpuIsa) -> bool:
    """Whether the kernels with tiles, of 16-bit numbers (two bf16 for an fp16) or int8, can do it and are faster."""
    forms = [quant.format for quant in (problem.w1_quant, problem.w2_quant) if quant is not None]
    if problem.input_quant is not None:  # a tile row belongs to one block
        has_many = problem.num_pairs > max(_most_row_pairs(problem), FEW_PAIRS)
        fits = len(forms) == 2 and all(_sum_block_k(problem, form) % AMX_STEP == 0 for form in forms)
        return problem.dtype is not DType.FP32 and has_many and fits
    if _takes_fixed_point(problem):
        return problem.num_pairs > max(_most_row_pairs(problem), FEW_PAIRS)
    if problem.dtype is DType.FP16 and isa is CpuIsa.AMX_BF16:  # staging weights is too much work for few tokens
        has_many = problem.num_pairs > FEW_PAIRS and problem.num_pairs >= SPLIT_MIN_TOKENS * max_groups(problem)
        return not forms and {problem.w1_layout, problem.w2_layout} == {Layout.NK} and has_many
    if problem.dtype is DType.FP32 or (problem.dtype is DType.FP16 and not all(_fits_fp16(form) for form in forms)):
        return False
    rows_are_dense = problem.w1_layout is Layout.NK and problem.w2_layout is Layout.NK
    if rows_are_dense and problem.num_pairs <= max(_most_row_pairs(problem), FEW_PAIRS if forms else 0):
        return False
    return all(form.block_k % AMX_STEP == 0 for form in forms)


def _takes_fixed_point(problem: MoEProblem) -> bool:
    """Whether tiles multiply int8 where they are; inputs become 16-bit fixed-point numbers, in two bytes each."""

    def fits(quant: WeightQuant | None, k: int) -> bool:
        if quant is None:
            return False
        form = quant.format
        fits_blocks = form.block_k % FIXED_STEP == 0 and _fixed_block_k(form) >= MIN_FIXED_BLOCK_K
        return form.encoding is Encoding.INT8 and fits_blocks and k % 2 == 0

    both_fit = fits(problem.w1_quant, problem.hidden_size) and fits(problem.w2_quant, problem.intermediate_size)
    return both_fit and problem.input_quant is None and problem.dtype is not DType.FP32


def _fixed_block_k(form: WeightFormat) -> int:
    """Returns how many elements of K share a scale of 16-bit fixed-point inputs."""
    return form.block_k if 0 < form.block_k <= MAX_FIXED_BLOCK_K else math.gcd(form.block_k, MAX_FIXED_BLOCK_K)


def _most_row_pairs(problem: MoEProblem) -> int:
    """Returns up to how many pairs rows are multiplied while they are read, in the order in which they are stored."""

    def tokens(quant: WeightQuant | None) -> int:
        if quant is None:
            return ROWS_TOKENS
        if not _takes_chunks(problem, quant.format):
            return ROWS_TOKENS_OTHERS
        is_float = quant.format.encoding in (Encoding.E4M3, Encoding.E5M2)
        return ROWS_TOKENS if is_float or _takes_fixed_point(problem) else ROWS_TOKENS_INTEGERS

    return min(tokens(problem.w1_quant), tokens(problem.w2_quant)) * problem.num_experts


def _fits_fp16(form: WeightFormat) -> bool:
    """Whether a code times the scale that it is staged with is as exact in fp16 as larger numbers are."""
    has_integers = form.encoding in (Encoding.INT8, Encoding.INT4, Encoding.UINT4)
    return form.block_k == 0 or (has_integers and form.scale_dtype is DType.FP16)


def _sum_block_k(problem: MoEProblem, form: WeightFormat) -> int:
    """Returns how many elements of K share a scale on both sides, 0 for all."""
    return math.gcd(form.block_k, problem.input_block_k)


def _tiles_gemm(problem: MoEProblem, isa: CpuIsa, quant: WeightQuant | None, k: int) -> dict[str, Any]:
    form = _NO_FORMAT if quant is None else quant.format
    x_dtype, block_k, input_block_k = problem.dtype, _sum_block_k(problem, form), problem.input_block_k
    if problem.input_quant is not None:  # every quantized input is exact in bf16
        both_int8 = problem.input_quant is InputQuant.INT8 and form.encoding is Encoding.INT8
        x_dtype = DType.INT8 if both_int8 and k % 2 == 0 and not block_k else DType.BF16
    elif _takes_fixed_point(problem):
        x_dtype, block_k, input_block_k = DType.INT16, _fixed_block_k(form), _fixed_block_k(form)
    is_rounded = problem.input_quant is not None or x_dtype is DType.INT16
    return {
        "isa": isa if x_dtype is DType.FP16 else CpuIsa.AMX_BF16,
        "dtype": problem.dtype,
        "x_dtype": x_dtype,
        "x_prepared": is_rounded,
        "x_scaled": is_rounded,
        "quantized": quant is not None,
        "encoding": form.encoding,
        "scale_dtype": form.scale_dtype,
        "has_zero_point": form.has_zero_point,
        "block_k": block_k,
        "scale_block_k": form.block_k,
        "input_block_k": input_block_k,
        "chunk_rows": False,
    }


def _has_odd_blocks(problem: MoEProblem) -> bool:
    sizes = [quant.format.block_k for quant in (problem.w1_quant, problem.w2_quant) if quant is not None]
    return any(size % 2 for size in (*sizes, problem.input_block_k))


def _gemm(problem: MoEProblem, isa: CpuIsa, quant: WeightQuant | None, plain_dtype: DType) -> dict[str, Any]:
    """Returns how one GEMM multiplies: the dtype of its inputs, and the blocks of K whose sums are scaled."""
    form = None if quant is None else quant.format
    x_dtype = plain_dtype
    scale_block_k = 0 if form is None else form.block_k
    block_k = math.gcd(scale_block_k, problem.input_block_k)
    if problem.input_quant is not None:  # every quantized input is exact in bf16
        has_pairs = isa is CpuIsa.AVX512_BF16 and (form is not None or problem.dtype is DType.BF16)
        x_dtype = DType.BF16 if has_pairs else DType.FP32
        quad_block_k = _quad_block_k(block_k)
        both_int8 = problem.input_quant is InputQuant.INT8 and form is not None and form.encoding is Encoding.INT8
        if isa is CpuIsa.AVX512_BF16 and both_int8 and quad_block_k:
            x_dtype, block_k = DType.INT8, quad_block_k
    if block_k == 0 and form is not None and form.has_zero_point:  # zero points are taken care of in blocks
        block_k = MAX_QUAD_BLOCK_K
    some = form or _NO_FORMAT
    return {
        "x_dtype": x_dtype,
        "x_scaled": problem.input_quant is not None,
        "quantized": form is not None,
        "encoding": some.encoding,
        "scale_dtype": some.scale_dtype,
        "has_zero_point": some.has_zero_point,
        "block_k": block_k,
        "scale_block_k": scale_block_k,
        "input_block_k": problem.input_block_k,
        "chunk_rows": isa is CpuIsa.AVX512_BF16 and form is not None and _takes_chunks(problem, form),
    }


def _takes_chunks(problem: MoEProblem, form: WeightFormat) -> bool:
    """Whether few tokens are multiplied chunk by chunk: exact enough, and codes and blocks are what it needs."""
    is_float = form.encoding in (Encoding.E4M3, Encoding.E5M2)  # products of bf16
    fits = form.block_k % CHUNK_K == 0 or form.block_k in CHUNK_PARTS
    if problem.input_quant is not None:  # rounded inputs are bf16; only their products with FP8 are exact
        return fits and is_float and problem.input_block_k % CHUNK_K == 0
    return fits and (problem.dtype is DType.BF16 or (problem.dtype is DType.FP16 and not is_float))


def _quad_block_k(block_k: int) -> int:
    """Returns the largest part of a block that int8 products are summed over, 0 if there is none."""
    if block_k == 0:
        return MAX_QUAD_BLOCK_K
    return max((size for size in range(4, MAX_QUAD_BLOCK_K + 1, 4) if block_k % size == 0), default=0)


def _first_gemm(problem: MoEProblem, isa: CpuIsa) -> dict[str, Any]:
    return {
        **_gemm(problem, isa, problem.w1_quant, problem.dtype),
        **_prepared(problem, tiles=False),
        "inter_dtype": DType.FP32 if problem.input_quant is not None else problem.dtype,
    }


def _prepared(problem: MoEProblem, *, tiles: bool) -> dict[str, bool]:
    """Returns what becomes of the first GEMM's inputs, and of its outputs as the second one's inputs."""
    has_order = problem.w1_quant is not None and problem.w1_quant.format.has_k_order
    is_rounded = problem.input_quant is not None or (tiles and _takes_fixed_point(problem))
    return {
        "x_prepared": is_rounded or has_order,
        "x_by_slot": has_order or problem.a1_scale_stride == 1,
        "inter_is_fp32": is_rounded,
    }


def _second_gemm(problem: MoEProblem, isa: CpuIsa) -> dict[str, Any]:
    pairs = problem.dtype is DType.BF16 and isa is CpuIsa.AVX512_BF16  # else the intermediate is floats
    plain_dtype = DType.BF16 if pairs else DType.FP32
    return {
        **_gemm(problem, isa, problem.w2_quant, plain_dtype),
        "x_prepared": problem.input_quant is not None,
    }


def _rows(problem: MoEProblem, gemm: dict[str, Any], common: dict[str, Any]) -> CpuRowsSpec:
    return CpuRowsSpec(
        **common,
        **_rounding(problem, gemm, problem.a1_scale_stride),
        from_dtype=problem.dtype,
        has_order=problem.w1_quant is not None and problem.w1_quant.format.has_k_order,
        by_slot=gemm["x_by_slot"],
        from_slots=False,
    )


def _inter_rows(problem: MoEProblem, gemm: dict[str, Any], common: dict[str, Any]) -> CpuInterRowsSpec:
    return CpuInterRowsSpec(
        **common,
        **_rounding(problem, gemm, problem.a2_scale_stride),
        from_dtype=DType.FP32,
        has_order=False,
        by_slot=True,
        from_slots=True,
    )


def _inter_tiles(problem: MoEProblem, gemm: dict[str, Any]) -> CpuTilesSpec:
    return CpuTilesSpec(
        kind=_kind(problem, gemm),
        to_dtype=gemm["x_dtype"],
        is_given=problem.a2_scale_stride is not None,
        input_block_k=gemm["input_block_k"],
        block_k=gemm["block_k"],
    )


def _rounding(problem: MoEProblem, gemm: dict[str, Any], given_stride: int | None) -> dict[str, Any]:
    return {
        "to_dtype": gemm["x_dtype"],
        "is_quantized": gemm["x_scaled"],
        "kind": _kind(problem, gemm),
        "is_given": given_stride is not None,
        "input_block_k": gemm["input_block_k"],
        "block_k": gemm["block_k"],
    }


def _kind(problem: MoEProblem, gemm: dict[str, Any]) -> DType:
    """Returns the numbers that inputs are rounded to; int8 where they are not."""
    if problem.input_quant is not None:
        return DType(problem.input_quant.value)
    return DType.INT16 if gemm["x_dtype"] is DType.INT16 else DType.INT8


def _quant_scalars(w: str, quant: WeightQuant | None) -> dict[str, int]:
    if quant is None:
        quant = WeightQuant(_NO_FORMAT, 0, 0, 0)
    return {
        f"{w}_scale_expert_stride": quant.scale_expert_stride,
        f"{w}_scale_n_stride": quant.scale_n_stride,
        f"{w}_scale_k_stride": quant.scale_k_stride,
        f"{w}_zero_expert_stride": quant.zero_expert_stride,
        f"{w}_zero_n_stride": quant.zero_n_stride,
        f"{w}_zero_k_stride": quant.zero_k_stride,
        f"{w}_block_n": quant.format.block_n or ONE_BLOCK,
    }


def _bias(dtype: DType | None) -> dict[str, Any]:
    return {"has_bias": dtype is not None, "bias_dtype": dtype or DType.FP32}


def _first_epilogue(problem: MoEProblem) -> dict[str, Any]:
    """Returns the constants of gate_up's epilogue; what is not looked at has one value."""
    on_input = problem.router_weight_on_input
    return {
        "activation": problem.activation,
        "gate_up": problem.gate_up,
        "weight_on_input": on_input,
        "weights_dtype": problem.topk_weights_dtype if on_input else DType.FP32,
        **_bias(problem.w1_bias_dtype),
    }


def _second_epilogue(problem: MoEProblem) -> dict[str, Any]:
    """Returns the constants of down's epilogue."""
    on_input = problem.router_weight_on_input
    return {
        "weight_on_input": on_input,
        "weights_dtype": DType.FP32 if on_input else problem.topk_weights_dtype,
        **_bias(problem.w2_bias_dtype),
    }


def _panel_row_bytes(problem: MoEProblem, gate_up: CpuGateUpAmxSpec) -> int:
    """Returns the bytes of a token in tiles, and of its scales."""
    is_split = gate_up.x_dtype is DType.FP16 and gate_up.isa is CpuIsa.AMX_BF16  # two bf16 stand for an fp16
    element = 4 if is_split else gate_up.x_dtype.num_bytes
    step = FIXED_STEP if gate_up.x_dtype in (DType.INT8, DType.INT16) else AMX_STEP
    row = element * align_up(problem.hidden_size, step)
    return row + (_tile_scale_bytes(problem.hidden_size, gate_up.block_k) if gate_up.x_scaled else 0)


def _tile_scale_bytes(k: int, block_k: int) -> int:
    """Returns the bytes of a token's scales that follow a tile."""
    return 4 * -(-k // block_k) if block_k else 0


def _amx_block_tokens(problem: MoEProblem, gate_up: CpuGateUpAmxSpec) -> int:
    """Returns how many tokens of an expert fit the panel: a multiple of two tiles, no more than there are tokens."""
    fitting = PANEL_BYTES // _panel_row_bytes(problem, gate_up) // AMX_ROWS * AMX_ROWS
    most = min(AMX_MAX_TILES * AMX_TILE, align_up(problem.num_tokens, AMX_TILE))
    return max(AMX_TILE, min(fitting, most))


def _most_amx_items(problem: MoEProblem, quant: WeightQuant | None, size: int, cores: int) -> int:
    """Returns how many work-items at most share the weights of the active experts, [size][H] each."""
    bits = 8 * problem.dtype.num_bytes if quant is None else quant.format.bits
    return max(cores, max_groups(problem) * size * problem.hidden_size * bits // 8 // AMX_ITEM_BYTES)


def _amx_down_columns(problem: MoEProblem, items: int) -> int:
    """Returns the columns of one range, of which there are at most ``items``."""
    return align_up(-(-problem.hidden_size // items), AMX_ROWS)


def _range_size(size: int, wanted_ranges: int, maximum: int) -> int:
    """Returns the range length, a multiple of 16, that gives about ``wanted_ranges`` ranges of ``size``."""
    length = -(-size // wanted_ranges)
    step = RANGE_STEP if length >= RANGE_STEP else 16
    return min(maximum, -(-length // step) * step)


def max_groups(problem: MoEProblem) -> int:
    """Returns how many experts can have tokens at most."""
    return min(problem.num_experts, problem.num_pairs)


def launches(problem: MoEProblem, device: Device, choice: CpuChoice) -> Plan:
    """Returns the launches: routing and prepared rows where they are asked for, then the two GEMMs, or both in one."""
    groups = max_groups(problem)
    slots = problem.num_pairs + groups * (SLOT_GRANULE - 1)
    # Units: a pair of bf16 or one float, in 4 bytes. Rows of the intermediate are padded to 16 units.
    inter_row_bytes = 4 * -(-problem.intermediate_size // 16) * 16
    gate_up_ranges = -(-problem.intermediate_size // choice.gate_up_rows)
    gate_up_items = choice.amx_items or groups * gate_up_ranges
    down_ranges = -(-problem.hidden_size // choice.down_columns)
    x_stride, y_stride = (align_up(size, ROW_STEP) for size in (problem.hidden_size, problem.intermediate_size))
    num_x_rows = slots if choice.x_rows is not None and choice.x_rows.by_slot else problem.num_tokens
    scalars: dict[str, int | float] = {
        "num_tokens": problem.num_tokens,
        "top_k": problem.top_k,
        "num_experts": problem.num_experts,
        "num_global_experts": problem.num_global_experts or 0,
        "hidden_size": problem.hidden_size,
        "intermediate_size": problem.intermediate_size,
        "n_block": choice.gate_up_rows,
        "num_ranges": gate_up_ranges,
        "num_items": gate_up_items,
        "block_tokens": choice.block_tokens,
        "h_block": choice.down_columns,
        "x_row_stride": problem.x_row_stride,
        "w1_expert_stride": problem.w1_expert_stride,
        "w1_stride": problem.w1_stride,
        "w2_expert_stride": problem.w2_expert_stride,
        "w2_stride": problem.w2_stride,
        "topk_ids_row_stride": problem.topk_ids_row_stride,
        "topk_weights_row_stride": problem.topk_weights_row_stride,
        "out_row_stride": problem.out_row_stride,
        **_quant_scalars("w1", problem.w1_quant),
        **_quant_scalars("w2", problem.w2_quant),
        "x_rows_stride": x_stride,
        "y_rows_stride": y_stride,
        "swiglu_alpha": problem.swiglu_alpha,
        "swiglu_limit": math.inf if problem.swiglu_limit is None else problem.swiglu_limit,
    }
    x_items = min(num_x_rows, ITEMS_PER_CORE * max(1, device.num_compute_units))
    x_scalars = {
        "size": problem.hidden_size,
        "num_items": x_items,
        "from_stride": problem.x_row_stride,
        "rows_stride": x_stride,
        "given_stride": problem.a1_scale_stride or 0,
    }
    y_items = min(problem.num_pairs, ITEMS_PER_CORE * max(1, device.num_compute_units))
    y_scalars = {
        "size": problem.intermediate_size,
        "num_items": y_items,
        "from_stride": inter_row_bytes // 4,
        "rows_stride": y_stride,
        "given_stride": problem.a2_scale_stride or 0,
    }
    panels = 0
    if isinstance(choice.gate_up, CpuGateUpAmxSpec):
        panels = gate_up_items * choice.block_tokens * _panel_row_bytes(problem, choice.gate_up)
    steps: list[tuple[KernelSpec | None, int, dict[str, int]]] = [
        (choice.route, 1, {}),
        (choice.x_rows, x_items, x_scalars),
        (choice.gate_up, gate_up_items, {}),
        (choice.y_rows, y_items, y_scalars),
        (choice.down, down_ranges, {}),
    ]
    if choice.single is not None:
        items = max(1, device.num_compute_units)
        steps = [(choice.single, items, {"num_items": items})]
    return Plan(
        counters=() if choice.single is None else (Buffer("counters", COUNTER_BYTES),),
        launches=tuple(
            Launch(spec=spec, global_size=(size,), local_size=(1,), scalars=scalars | more)
            for spec, size, more in steps
            if spec is not None
        ),
        buffers=(
            Buffer("cursors", 4 * problem.num_experts),
            Buffer("sorted_pairs", 4 * problem.num_pairs),
            Buffer("groups", GROUP_BYTES * (1 + groups)),
            Buffer("panels", panels),
            # In token tiles of fp16, two bf16 take the place of a float, 32 numbers at a time.
            Buffer("inter", slots * 4 * align_up(problem.intermediate_size, AMX_STEP)),
            *_row_buffers("x", choice.x_rows, num_x_rows, problem.hidden_size),
            *_row_buffers("y", choice.y_rows, slots, problem.intermediate_size),
            Buffer("sums", 4 * problem.num_tokens * down_ranges * choice.down_columns),
        ),
        decisions=choice.decisions,
    )


def _row_buffers(x: str, spec: CpuRowsSpec | CpuTilesSpec | None, rows: int, size: int) -> tuple[Buffer, ...]:
    """Returns the buffers of prepared rows; empty ones where there are none."""
    sizes = [0, 0, 0]
    if isinstance(spec, CpuTilesSpec):
        row_bytes = spec.to_dtype.num_bytes * align_up(size, ROW_STEP)
        sizes = [row_bytes + _tile_scale_bytes(size, spec.block_k), 4, 0]
    elif spec is not None:
        blocks = -(-size // spec.input_block_k) if spec.input_block_k else 1
        corrections = -(-size // spec.block_k) if spec.block_k else 1
        sizes = [spec.to_dtype.num_bytes * align_up(size, ROW_STEP), 4 * blocks, 4 * corrections]
    return tuple(
        Buffer(f"{x}_{part}", rows * num_bytes)
        for part, num_bytes in zip(("rows", "scale", "correction"), sizes, strict=True)
    )


def check_problem(problem: MoEProblem, choice: CpuChoice) -> MoEProblem:
    """Returns a problem with full, partial and tiny blocks, and tails in every dimension."""
    quants = [quant for quant in (problem.w1_quant, problem.w2_quant) if quant is not None]
    gemms = (choice.gate_up, choice.down)
    has_pairs = choice.amx_items > 0 and any(gemm.x_dtype in (DType.INT8, DType.INT16) for gemm in gemms)
    even = 1 if has_pairs or any(quant.format.bits == 4 for quant in quants) else 0  # two codes share a byte
    first_block, second_block = (gemm.block_k if choice.amx_items and gemm.x_scaled else 0 for gemm in gemms)
    return problem.resized(
        num_tokens=29 if choice.route is None else 89,
        hidden_size=choice.down_columns + 83 + even + first_block,
        intermediate_size=choice.gate_up_rows + 37 + even + second_block,
        num_experts=3,
        top_k=2,
    )

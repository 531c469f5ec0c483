# SPDX-License-Identifier: MIT
"""The CPU plan: numbers shared with the headers, ranges that cover everything, buffers that are large enough."""

from __future__ import annotations

import dataclasses
import re

import pytest
from helpers.builders import cpu_device, moe_problem

from jitmoe.device import CpuIsa
from jitmoe.plan import cpu
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import DType, Layout
from jitmoe.source import INCLUDE_DIR


def constant(header: str, name: str) -> int:
    found = re.search(rf"constexpr int {name} = (\d+);", (INCLUDE_DIR / "jitmoe" / header).read_text())
    assert found is not None, f"{name} is not in {header}"
    return int(found.group(1))


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ("cpu/routing.hpp", "kFewPairs", cpu.FEW_PAIRS),
        ("cpu/routing.hpp", "kSlotGranule", cpu.SLOT_GRANULE),
        ("cpu/tickets.hpp", "kCounterBytes", cpu.COUNTER_BYTES),
        ("kernel/cpu_gate_up.hpp", "kMaxRows", cpu.MAX_GATE_UP_ROWS),
        ("kernel/cpu_down.hpp", "kMaxColumns", cpu.MAX_DOWN_COLUMNS),
        ("cpu/chunk_rows.hpp", "kChunkK", cpu.CHUNK_K),
        ("cpu/amx_form.hpp", "kMaxTiles", cpu.AMX_MAX_TILES),
        ("cpu/amx.hpp", "kTokens", cpu.AMX_TILE),
        ("cpu/amx.hpp", "kRows", cpu.AMX_TILE),
        ("cpu/amx.hpp", "kStep", cpu.AMX_STEP),
    ],
)
def test_numbers_agree_with_the_headers(header, name, value):
    assert constant(header, name) == value


PROBLEMS = [
    moe_problem(num_tokens=m, hidden_size=h, intermediate_size=i, num_experts=e, top_k=k)
    for m in (1, 3, 8, 9, 64, 1024)
    for h, i, e, k in ((1, 1, 1, 1), (70, 33, 5, 3), (256, 128, 8, 2), (2048, 768, 128, 8), (4096, 1536, 128, 8))
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("cores", [1, 2, 96])
def test_ranges_cover_the_problem_and_fit_the_kernels(problem, cores):
    device = cpu_device(num_compute_units=cores)
    choice = cpu.choose(problem, device)
    plan = cpu.launches(problem, device, choice)
    last = plan.launches[-1]
    assert choice.gate_up_rows % 16 == 0 and choice.gate_up_rows <= cpu.MAX_GATE_UP_ROWS
    assert choice.down_columns % 16 == 0 and choice.down_columns <= cpu.MAX_DOWN_COLUMNS
    num_ranges = last.scalars["num_ranges"]
    assert num_ranges * choice.gate_up_rows >= problem.intermediate_size
    if choice.single is not None:
        assert last.spec == choice.single and last.global_size == (last.scalars["num_items"],) == (cores,)
        return
    gate_up = plan.launches[-2]
    assert (gate_up.spec, last.spec) == (choice.gate_up, choice.down)
    assert gate_up.global_size == (cpu.max_groups(problem) * num_ranges,)
    assert last.global_size[0] * choice.down_columns >= problem.hidden_size
    assert (last.global_size[0] - 1) * choice.down_columns < problem.hidden_size


WITH_TILES = [problem for problem in PROBLEMS if problem.num_pairs > cpu.ROWS_TOKENS * problem.num_experts]


@pytest.mark.parametrize("problem", WITH_TILES, ids=str)
@pytest.mark.parametrize("cores", [1, 2, 96])
def test_tiles_cover_the_problem_and_fit_the_kernels(problem, cores):
    device = cpu_device(num_compute_units=cores, cpu_isa=CpuIsa.AMX_BF16)
    choice = cpu.choose(problem, device)
    plan = cpu.launches(problem, device, choice)
    by_kernel = {launch.spec.KERNEL: launch for launch in plan.launches}
    gate_up, down = by_kernel["cpu_gate_up_amx"], by_kernel["cpu_down_amx"]
    tokens = gate_up.scalars["block_tokens"]
    assert tokens % cpu.AMX_TILE == 0 and 0 < tokens <= cpu.AMX_MAX_TILES * cpu.AMX_TILE
    assert gate_up.global_size == (gate_up.scalars["num_items"],)
    assert choice.down_columns % cpu.AMX_ROWS == 0
    assert down.global_size[0] * choice.down_columns >= problem.hidden_size
    assert (down.global_size[0] - 1) * choice.down_columns < problem.hidden_size
    sizes = {buffer.name: buffer.num_bytes for buffer in plan.buffers}
    padded = -(-problem.hidden_size // cpu.AMX_STEP) * cpu.AMX_STEP
    assert sizes["panels"] == gate_up.global_size[0] * tokens * padded * 2
    assert sizes["sums"] >= 4 * problem.num_tokens * choice.down_columns * down.global_size[0]


def test_scales_of_blocks_follow_their_tiles():
    problem = quantized(
        *(Encoding.E4M3, 128),
        num_tokens=64,
        num_experts=8,
        top_k=2,
        hidden_size=1000,
        intermediate_size=500,
        input_quant=InputQuant.E4M3,
        input_block_k=128,
    )
    device = cpu_device(cpu_isa=CpuIsa.AMX_BF16)
    choice = cpu.choose(problem, device)
    plan = cpu.launches(problem, device, choice)
    sizes = {buffer.name: buffer.num_bytes for buffer in plan.buffers}
    gate_up = next(launch for launch in plan.launches if launch.spec == choice.gate_up)
    tokens = gate_up.global_size[0] * choice.block_tokens
    assert sizes["panels"] == tokens * (2 * 1024 + 4 * 8)
    worst_slots = 64 * 2 + 8 * 15
    assert sizes["y_rows"] == worst_slots * (2 * 512 + 4 * 4)
    assert sizes["x_scale"] == 64 * 4 * 8


def test_bytes_of_fixed_point_inputs_follow_each_other():
    problem = quantized(
        Encoding.INT8, 0, num_tokens=64, num_experts=8, top_k=2, hidden_size=1000, intermediate_size=500
    )
    device = cpu_device(cpu_isa=CpuIsa.AMX_BF16)
    choice = cpu.choose(problem, device)
    plan = cpu.launches(problem, device, choice)
    sizes = {buffer.name: buffer.num_bytes for buffer in plan.buffers}
    gate_up = next(launch for launch in plan.launches if launch.spec == choice.gate_up)
    assert sizes["panels"] == gate_up.global_size[0] * choice.block_tokens * (2 * 1024 + 4 * 2)
    assert sizes["y_rows"] == (64 * 2 + 8 * 15) * (2 * 512 + 4 * 1)
    assert (sizes["x_rows"], sizes["x_scale"]) == (64 * 2 * 1024, 64 * 4 * 2)


@pytest.mark.parametrize(
    ("forms", "changes", "tokens"),
    [
        ((None, None), {}, cpu.ROWS_TOKENS),
        ((None, None), {"dtype": DType.FP16}, cpu.ROWS_TOKENS),
        (((Encoding.INT8, 0), (Encoding.UINT4, 32)), {}, cpu.ROWS_TOKENS_INTEGERS),
        (((Encoding.INT8, 0), (Encoding.INT8, 128)), {}, cpu.ROWS_TOKENS),
        (((Encoding.E2M1, 32), (Encoding.E4M3, 128)), {}, cpu.ROWS_TOKENS),
        (((Encoding.INT4, 128), None), {}, cpu.ROWS_TOKENS),
        (((Encoding.INT4, 96), (Encoding.INT4, 96)), {}, cpu.ROWS_TOKENS_OTHERS),  # no whole chunks
        (((Encoding.E4M3, 0), (Encoding.E4M3, 0)), {"input_quant": InputQuant.E4M3}, cpu.ROWS_TOKENS),
        (((Encoding.INT8, 0), (Encoding.INT8, 0)), {"input_quant": InputQuant.INT8}, cpu.ROWS_TOKENS_OTHERS),
    ],
    ids=str,
)
def test_few_tokens_per_expert_take_no_tiles(forms, changes, tokens):
    def quant(form):
        if form is None:
            return None
        return WeightFormat(encoding=form[0], scale_dtype=DType.FP32, block_n=1, block_k=form[1]).dense(1, 1)

    device = cpu_device(cpu_isa=CpuIsa.AMX_FP16)
    sizes = {"num_experts": 64, "top_k": 2, "w1_quant": quant(forms[0]), "w2_quant": quant(forms[1])} | changes
    most = tokens * 32
    for num_tokens, kernel in ((1, "cpu_gate_up"), (most, "cpu_gate_up"), (most + 1, "cpu_gate_up_amx")):
        assert kernel == cpu.choose(moe_problem(num_tokens=num_tokens, **sizes), device).gate_up.KERNEL


def test_columns_are_always_for_tiles():
    problem = moe_problem(num_tokens=1, num_experts=8, top_k=2, w1_layout=Layout.KN, w2_layout=Layout.KN)
    assert cpu.choose(problem, cpu_device(cpu_isa=CpuIsa.AMX_BF16)).gate_up.KERNEL == "cpu_gate_up_amx"


def test_columns_go_to_few_work_items():
    sizes = {"num_tokens": 64, "num_experts": 8, "top_k": 2, "hidden_size": 2048, "intermediate_size": 768}
    device = cpu_device(cpu_isa=CpuIsa.AMX_BF16)
    rows, columns = (
        cpu.choose(moe_problem(w1_layout=layout, w2_layout=layout, **sizes), device)
        for layout in (Layout.NK, Layout.KN)
    )
    assert columns.amx_items == 2 * device.num_compute_units < rows.amx_items
    assert columns.down_columns == 2048 / (2 * device.num_compute_units) > rows.down_columns


def test_small_layers_go_to_few_work_items():
    sizes = {"num_tokens": 16, "num_experts": 8, "top_k": 2, "hidden_size": 256}
    device = cpu_device(cpu_isa=CpuIsa.AMX_BF16, num_compute_units=4)
    tiny, larger = (
        cpu.choose(moe_problem(intermediate_size=intermediate, **sizes), device) for intermediate in (128, 4096)
    )
    assert (tiny.amx_items, larger.amx_items) == (8, 64)  # of 128 KiB; as many as a core has at most
    assert (tiny.down_columns, larger.down_columns) == (64, 32)


def quantized(encoding: Encoding, block_k: int, **sizes):
    form = WeightFormat(encoding=encoding, scale_dtype=DType.FP32, block_n=1, block_k=block_k)
    return moe_problem(w1_quant=form.dense(1, 1), w2_quant=form.dense(1, 1), **sizes)


@pytest.mark.parametrize(
    ("problem", "isa", "expected"),
    [
        (quantized(Encoding.INT8, 0), CpuIsa.AMX_BF16, True),
        (quantized(Encoding.INT8, 32), CpuIsa.AMX_BF16, True),
        (quantized(Encoding.INT4, 32), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.INT4, 48), CpuIsa.AVX512_BF16, False),
        (quantized(Encoding.E2M1, 128, dtype=DType.FP16), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.E2M1, 128, dtype=DType.FP32), CpuIsa.AVX512_BF16, False),  # 16 bits are too few
        (quantized(Encoding.E4M3, 128), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.E4M3, 32), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.E4M3, 96), CpuIsa.AVX512_BF16, False),
        (quantized(Encoding.E4M3, 128, dtype=DType.FP16), CpuIsa.AVX512_BF16, False),  # products of bf16
        (quantized(Encoding.E5M2, 64), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.INT4, 128), CpuIsa.AVX512, False),
        (quantized(Encoding.E4M3, 0, input_quant=InputQuant.E4M3), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.E4M3, 128, input_quant=InputQuant.E4M3, input_block_k=128), CpuIsa.AVX512_BF16, True),
        (quantized(Encoding.E4M3, 64, input_quant=InputQuant.E4M3, input_block_k=64), CpuIsa.AVX512_BF16, False),
        (quantized(Encoding.INT8, 0, input_quant=InputQuant.INT8), CpuIsa.AVX512_BF16, False),  # products of int8
        (moe_problem(), CpuIsa.AVX512_BF16, False),
    ],
    ids=str,
)
def test_which_codes_are_multiplied_in_chunks(problem, isa, expected):
    assert cpu.choose(problem, cpu_device(cpu_isa=isa)).gate_up.chunk_rows is expected


NO_TILES = CpuIsa.AVX512_BF16


@pytest.mark.parametrize(
    ("device", "dtype", "tokens", "changes", "expected"),
    [
        (CpuIsa.AMX_BF16, DType.BF16, 8, {}, NO_TILES),
        (CpuIsa.AMX_BF16, DType.BF16, 9, {}, CpuIsa.AMX_BF16),
        (CpuIsa.AMX_BF16, DType.FP16, 8, {}, NO_TILES),  # cutting numbers in two is for many tokens
        (CpuIsa.AMX_BF16, DType.FP16, 256, {}, CpuIsa.AMX_BF16),
        (CpuIsa.AMX_BF16, DType.FP16, 256, {"w2_layout": Layout.KN}, NO_TILES),
        (CpuIsa.AMX_BF16, DType.FP32, 256, {}, NO_TILES),
        (CpuIsa.AMX_FP16, DType.BF16, 8, {}, NO_TILES),
        (CpuIsa.AMX_FP16, DType.BF16, 9, {}, CpuIsa.AMX_BF16),
        (CpuIsa.AMX_FP16, DType.FP16, 8, {}, NO_TILES),
        (CpuIsa.AMX_FP16, DType.FP16, 9, {}, CpuIsa.AMX_FP16),
        (CpuIsa.AMX_FP16, DType.FP16, 1, {"w2_layout": Layout.KN}, CpuIsa.AMX_FP16),
        (CpuIsa.AMX_FP16, DType.FP32, 256, {}, NO_TILES),
    ],
)
def test_what_tiles_multiply(device, dtype, tokens, changes, expected):
    problem = moe_problem(dtype=dtype, num_tokens=tokens, num_experts=8, top_k=2, **changes)
    choice = cpu.choose(problem, cpu_device(cpu_isa=device))
    has_tiles = expected is not NO_TILES
    assert ("cpu_gate_up_amx" if has_tiles else "cpu_gate_up") == choice.gate_up.KERNEL
    assert (choice.gate_up.isa, choice.down.isa) == (expected, expected)
    assert (choice.amx_items > 0) is has_tiles


@pytest.mark.parametrize(
    ("encoding", "block_k", "scale_dtype", "expected"),
    [
        (Encoding.INT8, 32, DType.FP16, True),
        (Encoding.INT8, 32, DType.BF16, False),
        (Encoding.E4M3, 0, DType.BF16, True),
        (Encoding.E5M2, 0, DType.FP32, True),
        (Encoding.INT4, 128, DType.FP16, True),
        (Encoding.UINT4, 32, DType.FP16, True),
        (Encoding.INT4, 128, DType.BF16, False),  # products may be too small for fp16
        (Encoding.E2M1, 32, DType.E8M0, False),
        (Encoding.E2M1, 32, DType.FP16, False),  # halves of the smallest scale
        (Encoding.E4M3, 128, DType.FP16, False),
        (Encoding.INT4, 48, DType.FP16, False),  # a tile row belongs to one block
    ],
)
def test_which_codes_become_fp16(encoding, block_k, scale_dtype, expected):
    form = WeightFormat(encoding=encoding, scale_dtype=scale_dtype, block_n=1, block_k=block_k).dense(1, 1)
    problem = moe_problem(dtype=DType.FP16, num_tokens=99, num_experts=8, top_k=2, w1_quant=form, w2_quant=form)
    for isa in (CpuIsa.AMX_BF16, CpuIsa.AMX_FP16):
        choice = cpu.choose(problem, cpu_device(cpu_isa=isa))
        assert (choice.amx_items > 0) is (expected and isa is CpuIsa.AMX_FP16)
        assert not choice.amx_items or choice.gate_up.isa is choice.down.isa is CpuIsa.AMX_FP16


@pytest.mark.parametrize(
    ("block_k", "changes", "expected"),
    [
        (0, {}, (512, 512)),
        (128, {"dtype": DType.FP16}, (128, 128)),
        (192, {}, (192, 192)),
        (1024, {}, (512, 512)),
        (768, {}, (256, 256)),
        (64, {}, None),  # sums are stored too often
        (576, {}, None),  # likewise: 64 is what divides 512 too
        (160, {}, None),  # a tile row belongs to one block
        (0, {"hidden_size": 2047}, None),  # int8 are read two by two
        (0, {"intermediate_size": 767}, None),
        (0, {"num_tokens": 8}, None),  # 2 per expert: rows are faster
    ],
    ids=str,
)
def test_int8_meets_fixed_point_inputs_on_tiles(block_k, changes, expected):
    problem = quantized(Encoding.INT8, block_k, **({"num_tokens": 64, "num_experts": 8, "top_k": 2} | changes))
    device = cpu_device(cpu_isa=CpuIsa.AMX_BF16)
    choice = cpu.choose(problem, device)
    gemms = (choice.gate_up, choice.down)
    assert {gemm.x_dtype is DType.INT16 for gemm in gemms} == {expected is not None}
    if expected is not None:
        assert tuple(gemm.input_block_k for gemm in gemms) == tuple(gemm.block_k for gemm in gemms) == expected
        kernels = [launch.spec.KERNEL for launch in cpu.launches(problem, device, choice).launches]
        assert kernels == ["route_serial", "cpu_rows", "cpu_gate_up_amx", "cpu_tiles", "cpu_down_amx"]


def test_fp16_takes_the_room_that_it_is_multiplied_as():
    problem = moe_problem(dtype=DType.FP16, num_tokens=999, hidden_size=2048, num_experts=2, top_k=2)
    panels = {}
    for isa in (CpuIsa.AMX_BF16, CpuIsa.AMX_FP16):
        device = cpu_device(cpu_isa=isa)
        choice = cpu.choose(problem, device)
        buffers = {buffer.name: buffer.num_bytes for buffer in cpu.launches(problem, device, choice).buffers}
        panels[isa] = buffers["panels"] / (choice.amx_items * choice.block_tokens * problem.hidden_size)
    assert panels == {CpuIsa.AMX_BF16: 4, CpuIsa.AMX_FP16: 2}


@pytest.mark.parametrize(
    ("encoding", "block_k", "changes", "expected"),
    [
        (Encoding.INT8, 0, {}, DType.INT8),
        (Encoding.INT8, 0, {"intermediate_size": 767}, DType.INT8),  # of the second GEMM alone
        (Encoding.INT8, 0, {"hidden_size": 2047}, DType.BF16),  # int8 are read two by two
        (Encoding.E4M3, 0, {}, DType.BF16),
        (Encoding.INT8, 128, {}, DType.BF16),  # sums of blocks of bf16 are scaled
        (Encoding.E4M3, 128, {}, DType.BF16),
        (Encoding.E4M3, 48, {}, None),  # a tile row belongs to one block
        (Encoding.INT8, 0, {"dtype": DType.FP32}, None),
        (Encoding.INT8, 0, {"num_tokens": 4}, None),
    ],
    ids=str,
)
def test_quantized_inputs_meet_tiles(encoding, block_k, changes, expected):
    sizes = {"num_tokens": 64, "num_experts": 8, "top_k": 2} | changes
    problem = quantized(encoding, block_k, input_quant=InputQuant.INT8, input_block_k=block_k, **sizes)
    choice = cpu.choose(problem, cpu_device(cpu_isa=CpuIsa.AMX_BF16))
    has_tiles = choice.gate_up.KERNEL == "cpu_gate_up_amx"
    assert (choice.gate_up.x_dtype if has_tiles else None) is expected


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_few_pairs_need_one_launch(problem):
    choice = cpu.choose(problem, cpu_device())
    plan = cpu.launches(problem, cpu_device(), choice)
    assert choice.gate_up.few_pairs == choice.down.few_pairs == (problem.num_pairs <= cpu.FEW_PAIRS)
    assert len(plan.launches) == (1 if choice.gate_up.few_pairs else 3)
    assert plan.counter_bytes == (512 if choice.gate_up.few_pairs else 0)  # whole parts of 256


@pytest.mark.parametrize(
    ("changes", "launches"),
    [
        ({}, ["cpu_single"]),
        ({"input_quant": InputQuant.INT8}, ["cpu_rows", "cpu_gate_up", "cpu_rows", "cpu_down"]),
        ({"has_k_order": True}, ["cpu_rows", "cpu_gate_up", "cpu_down"]),
    ],
    ids=str,
)
def test_inputs_that_are_made_first_take_launches_of_their_own(changes, launches):
    changes = dict(changes)
    form = WeightFormat(
        encoding=Encoding.INT8,
        scale_dtype=DType.FP32,
        block_n=1,
        block_k=0,
        has_k_order=changes.pop("has_k_order", False),
    )
    plain = dataclasses.replace(form, has_k_order=False)
    problem = moe_problem(w1_quant=form.dense(64, 64), w2_quant=plain.dense(64, 32), **changes)
    plan = cpu.launches(problem, cpu_device(), cpu.choose(problem, cpu_device()))
    assert [launch.spec.KERNEL for launch in plan.launches] == launches


def test_buffers_hold_the_worst_routing():
    """Every expert's tokens start at a multiple of the granule, so each may waste all but one place."""
    problem = moe_problem(num_tokens=100, top_k=3, num_experts=7, intermediate_size=33)
    plan = cpu.launches(problem, cpu_device(), cpu.choose(problem, cpu_device()))
    sizes = {buffer.name: buffer.num_bytes for buffer in plan.buffers}
    worst_slots = 7 * 15 + 300
    assert sizes["inter"] >= worst_slots * 48 * 4
    assert sizes["groups"] >= 16 * (1 + 7)
    assert sizes["sorted_pairs"] >= 4 * 300


def test_specs_do_not_depend_on_sizes_beyond_few_or_many():
    def specs(**sizes):
        problem = moe_problem(**sizes)
        return cpu.launches(problem, cpu_device(), cpu.choose(problem, cpu_device())).specs

    many = specs(num_tokens=100)
    assert specs(num_tokens=1000, hidden_size=99, intermediate_size=17, num_experts=77, top_k=5) == many
    assert specs(num_tokens=3) == specs(num_tokens=1, hidden_size=99, num_experts=77)
    assert set(specs(num_tokens=3)).isdisjoint(many)


@pytest.mark.parametrize("isa", CpuIsa)
@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32])
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("tokens", [1, 500])
def test_the_check_problem_runs_the_same_kernels(isa, dtype, layout, tokens):
    device = cpu_device(cpu_isa=isa)
    problem = moe_problem(num_tokens=tokens, dtype=dtype, w1_layout=layout, w2_layout=layout)
    choice = cpu.choose(problem, device)
    small = cpu.check_problem(problem, choice)
    plan = cpu.launches(problem, device, choice)
    assert cpu.launches(small, device, choice).specs == plan.specs
    assert (small.num_pairs <= cpu.FEW_PAIRS) == choice.gate_up.few_pairs

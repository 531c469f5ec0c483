# SPDX-License-Identifier: MIT
"""The CPU plan: pure values, no device."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.builders import cpu_device, moe_problem

from jitmoe.device import CpuIsa
from jitmoe.plan import cpu
from jitmoe.problem import Activation, DType, Layout

PROBLEM = moe_problem(num_tokens=64, hidden_size=2048, intermediate_size=768, num_experts=128, top_k=8)


def plan_of(problem=PROBLEM, device=None):
    device = device or cpu_device()
    return cpu.launches(problem, device, cpu.choose(problem, device))


def test_three_launches_in_order():
    assert [launch.spec.KERNEL for launch in plan_of().launches] == ["route_serial", "cpu_gate_up", "cpu_down"]


@pytest.mark.parametrize("changes", [{"num_tokens": 1}, {"num_tokens": 5000}, {"num_experts": 3}, {"top_k": 1}])
def test_kernels_do_not_depend_on_token_expert_or_slot_counts(changes):
    assert plan_of(dataclasses.replace(PROBLEM, **changes)).specs == plan_of().specs


@pytest.mark.parametrize("changes", [{"hidden_size": 2047}, {"intermediate_size": 33}])
def test_kernels_do_not_depend_on_sizes(changes):
    assert plan_of(dataclasses.replace(PROBLEM, **changes)).specs == plan_of().specs


@pytest.mark.parametrize(
    ("changes", "kernels"),
    [
        ({"dtype": DType.FP16}, {"cpu_gate_up", "cpu_down"}),
        ({"w1_layout": Layout.KN}, {"cpu_gate_up"}),
        ({"w2_layout": Layout.KN}, {"cpu_down"}),
        ({"activation": Activation.GELU}, {"cpu_gate_up"}),
        ({"topk_weights_dtype": DType.BF16}, {"cpu_down"}),
        ({"topk_ids_dtype": DType.INT32}, {"route_serial"}),
        ({"num_global_experts": 256}, {"route_serial"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_each_kernel_is_specialized_on(changes, kernels):
    changed = set(plan_of(dataclasses.replace(PROBLEM, **changes)).specs) - set(plan_of().specs)
    assert {spec.KERNEL for spec in changed} == kernels


def test_instruction_set_comes_from_the_device():
    for isa in CpuIsa:
        choice = cpu.choose(PROBLEM, cpu_device(cpu_isa=isa))
        assert choice.gate_up.isa is choice.down.isa
        assert choice.gate_up.isa is (CpuIsa.AVX512_BF16 if isa is CpuIsa.AMX_BF16 else isa)
    assert cpu.choose(PROBLEM, cpu_device(cpu_isa=None)).gate_up.isa is CpuIsa.GENERIC


@pytest.mark.parametrize("cores", [1, 2, 8, 64, 192])
@pytest.mark.parametrize("num_tokens", [1, 16, 1024])
def test_ranges_cover_everything_and_keep_cores_busy(cores, num_tokens):
    problem = dataclasses.replace(PROBLEM, num_tokens=num_tokens)
    _, gate_up, down = plan_of(problem, cpu_device(num_compute_units=cores)).launches
    rows, columns = gate_up.scalars["n_block"], down.scalars["h_block"]
    assert rows % cpu.RANGE_STEP == 0 and 0 < rows <= cpu.MAX_GATE_UP_ROWS
    assert columns % cpu.RANGE_STEP == 0 and 0 < columns <= cpu.MAX_DOWN_COLUMNS
    assert gate_up.global_size[1] * rows >= problem.intermediate_size > (gate_up.global_size[1] - 1) * rows
    assert down.global_size[0] * columns >= problem.hidden_size > (down.global_size[0] - 1) * columns
    assert gate_up.global_size[0] * gate_up.global_size[1] >= min(cores, 128)
    assert down.global_size[0] >= min(cores, problem.hidden_size // cpu.RANGE_STEP)


@pytest.mark.parametrize("intermediate_size", [1, 31, 32, 768, 1024, 1536])
@pytest.mark.parametrize("isa", [CpuIsa.AVX512_BF16, CpuIsa.AVX2])
def test_intermediate_rows_hold_the_padding_and_avoid_few_cache_sets(intermediate_size, isa):
    problem = dataclasses.replace(PROBLEM, intermediate_size=intermediate_size)
    plan = plan_of(problem, cpu_device(cpu_isa=isa))
    stride = plan.launches[1].scalars["inter_stride"]
    padded = -(-intermediate_size // cpu.INTER_GRANULE) * cpu.INTER_GRANULE
    assert stride >= (padded // 2 if isa is CpuIsa.AVX512_BF16 else padded)
    assert stride * cpu.UNIT_BYTES % cpu.SET_BYTES != 0
    inter = next(buffer for buffer in plan.buffers if buffer.name == "inter")
    assert inter.num_bytes == stride * cpu.UNIT_BYTES * problem.num_pairs


@pytest.mark.parametrize("counts", [[1], [96], [97], [192, 1], [1000, 0, 3], [95, 96, 97, 98]])
def test_every_routing_fits_the_block_table(counts):
    """Blocks are cut as route_serial does: as few as possible, of nearly equal size."""
    problem = dataclasses.replace(PROBLEM, num_tokens=sum(counts), top_k=1, num_experts=len(counts))
    blocks = sum(-(-count // cpu.BLOCK_TOKENS) for count in counts)
    assert blocks <= cpu.max_blocks(problem)


def test_check_problem_runs_the_same_kernels():
    device = cpu_device()
    choice = cpu.choose(PROBLEM, device)
    small = cpu.check_problem(PROBLEM, choice)
    assert cpu.launches(small, device, choice).specs == plan_of().specs
    assert small.num_pairs < 1000

# SPDX-License-Identifier: MIT
"""The plans of the ops around the experts as pure functions: arguments, coverage, self-checks of the same kernels."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.builders import cpu_device, gpu_device
from helpers.report import isa_report
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmoe.device import CpuIsa, DeviceKind
from jitmoe.plan import activate_cpu, planner_for, sorting_cpu, sorting_xe, topk_cpu
from jitmoe.plan.architectures import architecture
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import Activation, DType, GateUp
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.problems.sorting import SortProblem

DEVICES = [
    *(cpu_device(cpu_isa=isa) for isa in (CpuIsa.GENERIC, CpuIsa.AMX_FP16)),
    *(gpu_device(arch) for arch in ("pvc", "dg2", "mtl")),
    dataclasses.replace(gpu_device("bmg-g21"), kind=DeviceKind.XE_EMULATED),
]
PROBLEMS = list(isa_report.around_problems())


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: f"{device.kind.value}-{device.arch}")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_argument_has_a_value_and_the_self_check_runs_the_same_kernels(problem, device):
    planner = planner_for(problem, device)
    choice = planner.choose(problem, device)
    plan = planner.launches(problem, device, choice)
    assert plan.launches and plan.decisions
    known = {*problem.OPERATION.tensors, *(buffer.name for buffer in plan.buffers)}
    for launch in plan.launches:
        for argument in launch.spec.ARGUMENTS:
            assert argument.name in (known if argument.is_pointer else launch.scalars), argument
        assert launch.global_size[0] % launch.local_size[0] == 0
        assert launch.local_size[0] <= device.max_work_group_size
    small = planner.check_problem(problem, choice)
    assert planner.launches(small, device, choice).specs == plan.specs
    assert not small.is_empty


def route(num_tokens, num_experts=64, **fields):
    routing = Routing(**{"top_k": 2, **fields})
    return RoutingProblem(
        num_tokens=num_tokens, num_experts=num_experts, routing=routing, dtype=DType.BF16, bias_dtype=None,
        ids_dtype=DType.INT32, logits_row_stride=num_experts, weights_row_stride=routing.num_slots,
        ids_row_stride=routing.num_slots,
    )  # fmt: skip


@given(st.integers(1, 10**6), st.integers(1, 200))
def test_every_token_belongs_to_one_work_item(num_tokens, cores):
    device = cpu_device(num_compute_units=cores)
    problem = route(num_tokens)
    (launch,) = topk_cpu.launches(problem, device, topk_cpu.choose(problem, device)).launches
    each, items = launch.scalars["tokens_per_item"], launch.global_size[0]
    assert (items - 1) * each < num_tokens <= items * each


def test_what_makes_no_difference_makes_no_other_kernel():
    device = cpu_device()

    def kernel(**fields):
        return topk_cpu.choose(route(100, **fields), device).topk

    one = kernel()
    assert kernel(num_groups=4, topk_groups=4, group_score="top2_sum") == one
    assert kernel(scaling_factor=3.0, num_shared_experts=2, shared_expert_weight=0.1, capacity_factor=1.5) == one
    assert kernel(renormalize_epsilon=1.0, renormalize_min=0.5, jitter_eps=0.3) == one
    assert kernel(scoring="none", topk_before_scoring=True) == kernel(scoring="none")
    assert kernel(scoring="sparsemixer", topk_before_scoring=True) == kernel(scoring="sparsemixer") != one
    assert kernel(temperature=2.0) == kernel(temperature=3.0) != one
    for field in ({"top_k": 3}, {"renormalize": True}, {"num_groups": 2}, {"scoring": "sigmoid"}):
        assert kernel(**field) != one


def sort(num_tokens, **changes):
    values = {
        "num_tokens": num_tokens, "top_k": 8, "num_experts": 64, "num_global_experts": None, "block_size": 16,
        "ids_dtype": DType.INT64, "ids_row_stride": 8, "num_sorted": 10**6, "num_blocks": 10**5,
    }  # fmt: skip
    return SortProblem(**{**values, **changes})


def test_sorting_many_pairs_or_clearing_much_takes_all_cores():
    cpu, gpu = cpu_device(num_compute_units=3), gpu_device("pvc")
    for problem, cpu_launches, gpu_launches in (
        (sort(0), 1, 1),
        (sort(2048), 1, 1),
        (sort(2049), 2, 1),
        (sort(4097), 2, 3),
        (sort(1, weights_dtype=DType.FP32, zeroed_bytes=10**8), 2, 3),
    ):
        assert len(sorting_cpu.launches(problem, cpu, sorting_cpu.choose(problem, cpu)).launches) == cpu_launches
        assert len(sorting_xe.launches(problem, gpu, sorting_xe.choose(problem, gpu)).launches) == gpu_launches
    assert sorting_cpu.choose(sort(100000), cpu).num_ranges == 6


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 30000), st.integers(1, 64))
def test_every_element_is_activated_once(rows, columns, cores):
    problem = ActivateProblem(
        num_rows=rows, num_columns=columns, dtype=DType.FP32, activation=Activation.SILU, gate_up=GateUp.SEPARATE,
        alpha=1.0, limit=None, gate_row_stride=columns, up_row_stride=columns, out_row_stride=columns,
    )  # fmt: skip
    device = cpu_device(num_compute_units=cores)
    (launch,) = activate_cpu.launches(problem, device, activate_cpu.choose(problem, device)).launches
    numbers = launch.scalars
    across, down = numbers["column_items"], launch.global_size[0] // numbers["column_items"]
    assert across * down == launch.global_size[0]
    assert (across - 1) * numbers["columns_per_item"] < columns <= across * numbers["columns_per_item"]
    assert (down - 1) * numbers["rows_per_item"] < rows <= down * numbers["rows_per_item"]


def test_sub_groups_follow_the_architecture():
    for arch in ("pvc", "dg2", "mtl"):
        device = gpu_device(arch)
        for problem in PROBLEMS:
            planner = planner_for(problem, device)
            specs = planner.launches(problem, device, planner.choose(problem, device)).specs
            assert {spec.simd for spec in specs} == {architecture(arch).simd}

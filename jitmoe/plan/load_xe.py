# SPDX-License-Identifier: MIT
"""The plan for load statistics on Intel GPUs: one work-group, after counting in many for many pairs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.plan.architectures import architecture
from jitmoe.plan.launch import Buffer, Plan
from jitmoe.plan.xe_ranges import MAX_ONE_GROUP_PAIRS, range_count, range_launches
from jitmoe.plan.xe_specs import XeRouteCount, XeSpec
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.sorting import LoadProblem
from jitmoe.spec import Argument, arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class XeExpertLoad(XeSpec):
    """Pairs per expert, from their counts per range."""

    KERNEL: ClassVar[str] = "xe_expert_load"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in topk_ids, out route_table, out counts, out imbalance, int32 num_tokens, int32 top_k, int32 num_experts,
        int32 num_ranges, int64 topk_ids_row_stride"""
    )

    ids_dtype: DType
    has_expert_map: bool  # False; RouteGroup asks
    is_counted: bool  # by an earlier launch


def choose(problem: LoadProblem, device: Device) -> tuple[XeSpec, ...]:
    """Returns the kernels."""
    simd = architecture(device.arch).simd
    few = problem.num_pairs <= MAX_ONE_GROUP_PAIRS
    if few:
        return (XeExpertLoad(simd=simd, ids_dtype=problem.ids_dtype, has_expert_map=False, is_counted=False),)
    return (
        XeRouteCount(simd=simd, ids_dtype=problem.ids_dtype, has_expert_map=False),
        XeExpertLoad(simd=simd, ids_dtype=DType.INT64, has_expert_map=False, is_counted=True),  # one binary for all
    )


def launches(problem: LoadProblem, device: Device, choice: tuple[XeSpec, ...]) -> Plan:
    """Returns the launches."""
    num_ranges = range_count(problem.num_pairs, device, choice)
    scalars = {
        "num_tokens": problem.num_tokens,
        "top_k": problem.top_k,
        "num_experts": problem.num_experts,
        "num_global_experts": 0,
        "topk_ids_row_stride": problem.ids_row_stride,
        "block_rows": 1,
    }
    unused = [Buffer(name, 0) for name in ("expert_map", "expert_offsets", "sorted_pairs", "blocks", "num_blocks")]
    return Plan(
        launches=tuple(range_launches(choice, scalars, num_ranges)),
        buffers=(Buffer("route_table", 4 * problem.num_experts * num_ranges), *unused),
        decisions=(f"{problem.num_pairs} pairs: {len(choice)} launch(es), {num_ranges} ranges",),
    )


def check_problem(problem: LoadProblem, choice: tuple[XeSpec, ...]) -> LoadProblem:
    """Returns a small problem with several ranges."""
    return dataclasses.replace(problem, num_tokens=211, num_experts=37, ids_row_stride=problem.top_k)

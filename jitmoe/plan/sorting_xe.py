# SPDX-License-Identifier: MIT
"""The plan for sorting pairs by expert on Intel GPUs: one work-group for few pairs, three launches for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.plan.architectures import architecture
from jitmoe.plan.launch import Buffer, Plan
from jitmoe.plan.sorting_specs import SORT_ARGUMENTS, ids_constants, sort_scalars, weights_constants
from jitmoe.plan.xe_ranges import MAX_ONE_GROUP_PAIRS, range_count, range_launches
from jitmoe.plan.xe_specs import XeSpec
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.sorting import SortProblem
from jitmoe.spec import Argument, arguments

MAX_ONE_GROUP_ZEROED_BYTES = 1 << 20  # a guess: one Xe-core stores that in some 10 us


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSortScan(XeSpec):
    """Step 2 of 3: first places and the experts of blocks."""

    KERNEL: ClassVar[str] = "xe_align_scan"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        SORT_ARGUMENTS.format(workspace="out route_table, out expert_offsets")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSortCount(XeSortScan):
    """Step 1 of 3: pairs per range and expert, and all that is no pair."""

    KERNEL: ClassVar[str] = "xe_align_count"

    ids_dtype: DType
    has_expert_map: bool
    has_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSortPlace(XeSortCount):
    """Step 3 of 3: the pairs."""

    KERNEL: ClassVar[str] = "xe_align_place"

    weights_dtype: DType  # fp32 without weights


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSort(XeSortPlace):
    """All steps in one work-group."""

    KERNEL: ClassVar[str] = "xe_align"


@dataclass(frozen=True, slots=True, kw_only=True)
class XeSortChoice:
    """The kernels of one call and why."""

    steps: tuple[XeSortScan, ...]
    reasons: tuple[str, ...]


def choose(problem: SortProblem, device: Device) -> XeSortChoice:
    """Returns one kernel, or three for many pairs."""
    simd, ids, weights = architecture(device.arch).simd, ids_constants(problem), weights_constants(problem)
    if problem.num_pairs <= MAX_ONE_GROUP_PAIRS and problem.zeroed_bytes <= MAX_ONE_GROUP_ZEROED_BYTES:
        reason = f"{problem.num_pairs} pairs: one work-group (at most {MAX_ONE_GROUP_PAIRS})"
        return XeSortChoice(steps=(XeSort(simd=simd, **ids, **weights),), reasons=(reason,))
    return XeSortChoice(
        steps=(
            XeSortCount(simd=simd, **ids, has_weights=weights["has_weights"]),
            XeSortScan(simd=simd),
            XeSortPlace(simd=simd, **ids, **weights),
        ),
        reasons=(f"{problem.num_pairs} pairs, {problem.zeroed_bytes} B to clear: three launches",),
    )


def launches(problem: SortProblem, device: Device, choice: XeSortChoice) -> Plan:
    """Returns the launches."""
    # Ranges are for the pairs; clearing and padding take some more work-items if they are much.
    work = max(problem.num_pairs, problem.num_sorted // 16, problem.zeroed_bytes // 64)
    num_ranges = range_count(work, device, choice.steps)
    return Plan(
        launches=tuple(range_launches(choice.steps, sort_scalars(problem, num_ranges), num_ranges)),
        buffers=(
            Buffer("route_table", 4 * problem.num_experts * num_ranges),
            Buffer("expert_offsets", 4 * (problem.num_experts + 1)),
        ),
        decisions=(*choice.reasons, f"{num_ranges} ranges"),
    )


def check_problem(problem: SortProblem, choice: XeSortChoice) -> SortProblem:
    """Returns a small problem for the same kernels, with several ranges."""
    return problem.resized(num_tokens=211, num_experts=37, block_size=4)

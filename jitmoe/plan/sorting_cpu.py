# SPDX-License-Identifier: MIT
"""The plan for sorting pairs by expert on CPU devices: one launch for few pairs, two that use all cores for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.plan.launch import Buffer, Launch, Plan
from jitmoe.plan.sorting_specs import SORT_ARGUMENTS, ids_constants, sort_scalars, weights_constants
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.sorting import SortProblem
from jitmoe.spec import Argument, KernelSpec, arguments

MAX_SERIAL_PAIRS = 16384  # some 40 us of one core, about what another launch costs
MAX_SERIAL_ZEROED_BYTES = 1 << 20
MIN_PAIRS_PER_RANGE = 4096
RANGES_PER_CORE = 2  # balance what other programs take away


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSortCount(KernelSpec):
    """Step 1 of 2: pairs per range and expert."""

    KERNEL: ClassVar[str] = "cpu_align_count"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(SORT_ARGUMENTS.format(workspace="out counts, out cursors"))

    ids_dtype: DType
    has_expert_map: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSortPlace(CpuSortCount):
    """Step 2 of 2: everything to its place."""

    KERNEL: ClassVar[str] = "cpu_align_place"

    has_weights: bool
    weights_dtype: DType  # fp32 without weights


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSort(CpuSortPlace):
    """Both steps in one work-item."""

    KERNEL: ClassVar[str] = "cpu_align"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSortChoice:
    """The kernels of one call and why."""

    steps: tuple[CpuSortCount, ...]
    num_ranges: int
    reasons: tuple[str, ...]


def choose(problem: SortProblem, device: Device) -> CpuSortChoice:
    """Returns one kernel, or two for many pairs."""
    ids, weights = ids_constants(problem), weights_constants(problem)
    if problem.num_pairs <= MAX_SERIAL_PAIRS and problem.zeroed_bytes <= MAX_SERIAL_ZEROED_BYTES:
        reason = f"{problem.num_pairs} pairs: one work-item (at most {MAX_SERIAL_PAIRS})"
        return CpuSortChoice(steps=(CpuSort(**ids, **weights),), num_ranges=1, reasons=(reason,))
    ranges = RANGES_PER_CORE * max(1, device.num_compute_units)
    if problem.zeroed_bytes <= MAX_SERIAL_ZEROED_BYTES:
        ranges = min(ranges, max(1, problem.num_pairs // MIN_PAIRS_PER_RANGE))
    return CpuSortChoice(
        steps=(CpuSortCount(**ids), CpuSortPlace(**ids, **weights)),
        num_ranges=ranges,
        reasons=(f"{problem.num_pairs} pairs, {problem.zeroed_bytes} B to clear: two launches over {ranges} ranges",),
    )


def launches(problem: SortProblem, device: Device, choice: CpuSortChoice) -> Plan:
    """Returns the launches."""
    scalars = sort_scalars(problem, choice.num_ranges)
    table_bytes = 4 * problem.num_experts * choice.num_ranges
    return Plan(
        launches=tuple(
            Launch(spec=spec, global_size=(choice.num_ranges,), local_size=(1,), scalars=scalars)
            for spec in choice.steps
        ),
        buffers=(Buffer("counts", table_bytes), Buffer("cursors", table_bytes)),
        decisions=choice.reasons,
    )


def check_problem(problem: SortProblem, choice: CpuSortChoice) -> SortProblem:
    """Returns a small problem for the same kernels; their ranges are then small, and some are empty."""
    return problem.resized(num_tokens=71, num_experts=13, block_size=4)

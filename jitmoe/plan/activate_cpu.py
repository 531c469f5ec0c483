# SPDX-License-Identifier: MIT
"""The plan for activations on CPU devices: one launch, rows and columns cut into pieces of some KiB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import CpuIsa, Device
from jitmoe.plan.launch import Launch, Plan
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import Activation, DType, GateUp
from jitmoe.spec import Argument, KernelSpec, arguments

MIN_ELEMENTS_PER_ITEM = 8192  # some microseconds: less would be lost on handing out the work-items
ITEMS_PER_CORE = 4  # balance what other programs take away
COLUMN_STEP = 64  # pieces of a row begin at multiples of this


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuActivate(KernelSpec):
    """Activation of rows."""

    KERNEL: ClassVar[str] = "cpu_activate"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in gate, in up, out out, int32 num_columns, int32 column_items, int32 columns_per_item, int64 num_rows,
        int64 rows_per_item, int64 gate_row_stride, int64 up_row_stride, int64 out_row_stride, float32 alpha,
        float32 limit"""
    )

    isa: CpuIsa
    dtype: DType
    activation: Activation
    gate_up: GateUp


def choose(problem: ActivateProblem, device: Device) -> CpuActivate:
    """Returns the kernel for the device's instruction set."""
    isa = device.cpu_isa if device.cpu_isa is not None else CpuIsa.GENERIC
    isa = isa.at_most(CpuIsa.AVX512)  # nothing here multiplies 16-bit numbers: one binary for all AVX-512
    return CpuActivate(isa=isa, dtype=problem.dtype, activation=problem.activation, gate_up=problem.gate_up)


def launches(problem: ActivateProblem, device: Device, choice: CpuActivate) -> Plan:
    """Returns the launch."""
    items = ITEMS_PER_CORE * max(1, device.num_compute_units)
    elements = max(MIN_ELEMENTS_PER_ITEM, -(-problem.num_rows * problem.num_columns // items))
    rows = max(1, elements // problem.num_columns)
    columns = min(problem.num_columns, -(-elements // COLUMN_STEP) * COLUMN_STEP)
    column_items = -(-problem.num_columns // columns)
    scalars = {
        "num_columns": problem.num_columns,
        "column_items": column_items,
        "columns_per_item": columns,
        "num_rows": problem.num_rows,
        "rows_per_item": rows,
        "gate_row_stride": problem.gate_row_stride,
        "up_row_stride": problem.up_row_stride,
        "out_row_stride": problem.out_row_stride,
        "alpha": problem.alpha,
        "limit": math.inf if problem.limit is None else problem.limit,
    }
    size = column_items * -(-problem.num_rows // rows)
    return Plan(
        launches=(Launch(spec=choice, global_size=(size,), local_size=(1,), scalars=scalars),),
        buffers=(),
        decisions=(f"instruction set {choice.isa.value}; pieces of {rows} rows x {columns} columns",),
    )


def check_problem(problem: ActivateProblem, choice: CpuActivate) -> ActivateProblem:
    """Returns a small problem with a tail."""
    return problem.resized(num_rows=5, num_columns=67)

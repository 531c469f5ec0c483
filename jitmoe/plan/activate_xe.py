# SPDX-License-Identifier: MIT
"""The plan for activations on Intel GPUs: one launch, one element per work-item at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device, DeviceKind
from jitmoe.plan.architectures import architecture, resident_groups
from jitmoe.plan.launch import Plan
from jitmoe.plan.xe_ranges import launch
from jitmoe.plan.xe_specs import XeSpec
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import Activation, DType, GateUp
from jitmoe.spec import Argument, arguments

LOCAL_SIZE = 256  # a guess: rows of experts are longer, and small work-groups spread


@dataclass(frozen=True, slots=True, kw_only=True)
class XeActivate(XeSpec):
    """Activation of rows."""

    KERNEL: ClassVar[str] = "xe_activate"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in gate, in up, out out, int32 num_columns, int64 num_rows, int64 gate_row_stride, int64 up_row_stride,
        int64 out_row_stride, float32 alpha, float32 limit"""
    )

    emulated: bool
    dtype: DType
    activation: Activation
    gate_up: GateUp
    has_limit: bool


def choose(problem: ActivateProblem, device: Device) -> XeActivate:
    """Returns the kernel."""
    return XeActivate(
        simd=architecture(device.arch).simd,
        emulated=device.kind is DeviceKind.XE_EMULATED,
        dtype=problem.dtype,
        activation=problem.activation,
        gate_up=problem.gate_up,
        has_limit=problem.limit is not None,
    )


def launches(problem: ActivateProblem, device: Device, choice: XeActivate) -> Plan:
    """Returns the launch."""
    pieces = problem.num_rows * -(-problem.num_columns // LOCAL_SIZE)
    resident = resident_groups(device, architecture(device.arch), LOCAL_SIZE // choice.simd, False)
    step = launch(
        choice,
        max(1, min(pieces, resident)),
        LOCAL_SIZE,
        num_columns=problem.num_columns,
        num_rows=problem.num_rows,
        gate_row_stride=problem.gate_row_stride,
        up_row_stride=problem.up_row_stride,
        out_row_stride=problem.out_row_stride,
        alpha=problem.alpha,
        limit=problem.limit or 0.0,
    )
    return Plan(launches=(step,), buffers=(), decisions=(f"{pieces} pieces of up to {LOCAL_SIZE} columns",))


def check_problem(problem: ActivateProblem, choice: XeActivate) -> ActivateProblem:
    """Returns a small problem with a tail."""
    return problem.resized(num_rows=5, num_columns=LOCAL_SIZE + 67)

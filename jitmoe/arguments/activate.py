# SPDX-License-Identifier: MIT
"""Argument checks of ``activate``: tensor facts in, a problem value out, or an ``ArgumentError``."""

from __future__ import annotations

from jitmoe.arguments.common import Facts, check_dtype, check_places, shape_text
from jitmoe.errors import ArgumentError
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, Activation, DType, GateUp
from jitmoe.tensors import TensorInfo


def _row_layout(name: str, info: TensorInfo) -> tuple[int, int]:
    """Returns (number of rows, row stride) of a tensor [*, I] whose rows are dense and evenly spaced."""
    *lead, last = info.shape
    if last > 1 and info.strides[-1] != 1:
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="unit stride in the last dimension")
    rows, stride = 1, last
    for size, step in reversed(list(zip(lead, info.strides[:-1], strict=True))):
        if size == 1:
            continue
        if rows == 1:
            stride = step
        elif step != rows * stride:
            raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="evenly spaced rows")
        rows *= size
    return (0 if 0 in info.shape else rows), stride


def activated(info: TensorInfo, gate_up: GateUp) -> tuple[DType, tuple[int, ...]]:
    """Returns the dtype and shape of the result of activating ``info``."""
    dtype = check_dtype("gate", info, COMPUTE_DTYPES)
    if not info.shape:
        raise ArgumentError(argument="gate", got="shape []", expected="[*, I]")
    *lead, last = info.shape
    if gate_up.rows(1) == 2:
        if last % 2:
            raise ArgumentError(
                argument="gate", got=f"shape {shape_text(info)}", expected="[*, 2*I], an even last size"
            )
        last //= 2
    return dtype, (*lead, last)


def activate_problem(
    facts: Facts, activation: Activation, gate_up: GateUp, alpha: float, limit: float | None
) -> ActivateProblem:
    """Checks the tensors of an ``activate`` call (gate, up or None, out) and returns what is asked.

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    gate = check_places(facts, "gate")
    dtype, shape = activated(gate, gate_up)
    up, out = facts["up"], facts["out"]
    assert out is not None
    for name, info in (("up", up), ("out", out)):
        if info is not None:
            check_dtype(name, info, (dtype,))
            if info.shape != shape:
                raise ArgumentError(argument=name, got=f"shape {shape_text(info)}", expected=f"{list(shape)}")
    num_rows, out_row_stride = _row_layout("out", out)
    if num_rows > 1 and out_row_stride < shape[-1]:
        raise ArgumentError(argument="out", got=f"strides {out.strides}", expected="rows that do not overlap")
    return ActivateProblem(
        num_rows=num_rows,
        num_columns=shape[-1],
        dtype=dtype,
        activation=activation,
        gate_up=gate_up,
        alpha=alpha,
        limit=limit,
        gate_row_stride=_row_layout("gate", gate)[1],
        up_row_stride=0 if up is None else _row_layout("up", up)[1],
        out_row_stride=out_row_stride,
    )

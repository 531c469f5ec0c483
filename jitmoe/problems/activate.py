# SPDX-License-Identifier: MIT
"""Problem value of ``activate``: the activation between the two GEMMs as an op of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import DeviceKind
from jitmoe.operation import Operation
from jitmoe.problems.fused_moe import Activation, DType, GateUp

ACTIVATE = Operation(
    name="activate",
    tensors=("gate", "up", "out"),
    outputs=("out",),
    planners={
        DeviceKind.CPU: "jitmoe.plan.activate_cpu",
        DeviceKind.GPU: "jitmoe.plan.activate_xe",
        DeviceKind.XE_EMULATED: "jitmoe.plan.activate_xe",
    },
    check="jitmoe.checks.activate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateProblem:
    """One ``activate`` call: R rows of I results. Strides are in elements."""

    OPERATION: ClassVar[Operation] = ACTIVATE

    num_rows: int  # R
    num_columns: int  # I
    dtype: DType
    activation: Activation
    gate_up: GateUp  # where the up values are
    alpha: float
    limit: float | None
    gate_row_stride: int
    up_row_stride: int
    out_row_stride: int

    @property
    def is_empty(self) -> bool:
        return self.num_rows == 0 or self.num_columns == 0

    def resized(self, *, num_rows: int, num_columns: int) -> ActivateProblem:
        """Returns the same kind of problem with other sizes and densely packed tensors."""
        return dataclasses.replace(
            self,
            num_rows=num_rows,
            num_columns=num_columns,
            gate_row_stride=self.gate_up.rows(num_columns),
            up_row_stride=num_columns,
            out_row_stride=num_columns,
        )

    def __str__(self) -> str:
        limit = "" if self.limit is None else f" limit={self.limit:g}"
        return (
            f"activate({self.num_rows} x {self.num_columns} {self.dtype.value} {self.activation.value} "
            f"{self.gate_up.value}{limit})"
        )

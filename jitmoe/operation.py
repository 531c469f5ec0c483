# SPDX-License-Identifier: MIT
"""The contract of an op: what all stages between its public function and its kernels know of it.

An op is one ``Operation`` value, a frozen problem class that names it, a plan module per kind of device, and a check
module. Stages find their part through ``problem.OPERATION``, so that a new op adds files and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jitmoe.device import DeviceKind


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Operation:
    """One op."""

    name: str
    tensors: tuple[str, ...]  # the caller's tensors, named like the kernel arguments that receive their addresses
    outputs: tuple[str, ...]  # those of them that the kernels write
    planners: Mapping[DeviceKind, str]  # module with the functions of ``plan.Planner``
    check: str  # module with the functions of ``selfcheck.Check``


@runtime_checkable
class Chain(Protocol):
    """A problem made of others that run one after the other, each of which is built and checked by itself."""

    @property
    def parts(self) -> tuple[Problem, ...]: ...


def parts_of(problem: Problem) -> tuple[Problem, ...]:
    """Returns the problems that ``problem`` is made of: itself, unless it is a chain."""
    return problem.parts if isinstance(problem, Chain) else (problem,)


class Problem(Protocol):
    """What is asked of one op: a frozen value of sizes, dtypes, strides and options, without tensors."""

    OPERATION: ClassVar[Operation]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute, so that nothing is launched."""

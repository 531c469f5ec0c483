# SPDX-License-Identifier: MIT
"""Pure decisions: from (problem, device) to kernels, launches and workspace. No torch, no ctypes, no subprocess.

Each implementation is one module with the three functions of ``Planner``; ``planner_for`` says which one is used.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from jitmoe.device import Device
from jitmoe.operation import Problem
from jitmoe.plan.launch import Plan


class Planner(Protocol):
    """What a plan module offers. A ``Choice`` is its own frozen value: kernels and run-time tile numbers."""

    def choose(self, problem: Any, device: Device) -> Any:
        """Returns the choice for ``problem``, with its reasons; raises ``UnsupportedProblemError``."""

    def launches(self, problem: Any, device: Device, choice: Any) -> Plan:
        """Returns the launches that solve ``problem`` with the kernels of ``choice``."""

    def check_problem(self, problem: Any, choice: Any) -> Any:
        """Returns a small problem that exercises every kernel of ``choice``, tails included where it allows them."""


def planner_for(problem: Problem, device: Device) -> Planner:
    """Returns the plan module of a problem's op for a device's kind."""
    return cast(Planner, importlib.import_module(problem.OPERATION.planners[device.kind]))


def plan_for(problem: Problem, device: Device) -> Plan:
    """Returns the launches that solve ``problem`` on a device; raises ``UnsupportedProblemError``."""
    planner = planner_for(problem, device)
    return planner.launches(problem, device, planner.choose(problem, device))

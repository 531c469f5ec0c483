# SPDX-License-Identifier: MIT
"""Pure decisions: from (problem, device) to kernels, launches and workspace. No torch, no ctypes, no subprocess.

Each implementation is one module with the three functions of ``Planner``; ``planner_for`` says which one a device uses.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from jitmoe.device import Device, DeviceKind
from jitmoe.plan.launch import Plan
from jitmoe.problem import MoEProblem


class Planner(Protocol):
    """What a plan module offers. A ``Choice`` is its own frozen value: kernels and run-time tile numbers."""

    def choose(self, problem: MoEProblem, device: Device) -> Any:
        """Returns the choice for ``problem``, with its reasons; raises ``UnsupportedProblemError``."""

    def launches(self, problem: MoEProblem, device: Device, choice: Any) -> Plan:
        """Returns the launches that solve ``problem`` with the kernels of ``choice``."""

    def check_problem(self, problem: MoEProblem, choice: Any) -> MoEProblem:
        """Returns a small problem that exercises every kernel of ``choice``, tails included where it allows them."""


_MODULES = {
    DeviceKind.CPU: "jitmoe.plan.cpu",
    DeviceKind.GPU: "jitmoe.plan.xe",
    DeviceKind.XE_EMULATED: "jitmoe.plan.xe",
}


def planner_for(device: Device) -> Planner:
    """Returns the plan module of a device's kind."""
    return cast(Planner, importlib.import_module(_MODULES[device.kind]))

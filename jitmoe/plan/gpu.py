# SPDX-License-Identifier: MIT
"""Which implementation of the grouped GEMMs an Intel GPU runs: ``xe`` (small headers, the default) or ``cutlass``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jitmoe import knobs
from jitmoe.device import Device
from jitmoe.plan import cutlass, tuned, xe
from jitmoe.plan.tuned import TunedConfig
from jitmoe.plan.xe import check_problem, launches
from jitmoe.problems.fused_moe import MoEProblem

__all__ = ["check_problem", "choose", "implementation", "launches"]

IMPLEMENTATIONS = {xe.IMPL: xe.choose, cutlass.IMPL: cutlass.choose}


def implementation(problem: MoEProblem, device: Device, configs: Sequence[TunedConfig], wanted: str) -> tuple[str, str]:
    """Returns the name of the implementation and the reason.

    Args:
        configs: tuned rows; one that fits decides if ``wanted`` does not.
        wanted: "auto", or a name (JITMOE_IMPL).
    """
    if wanted != "auto":
        return wanted, f"impl {wanted}: asked for (JITMOE_IMPL)"
    row = tuned.find(configs, problem, device, *IMPLEMENTATIONS)
    if row is not None and row.impl != xe.IMPL:
        found = cutlass.objections(problem, device)
        if not found:
            return row.impl, f"impl {row.impl}: tuned, {row.origin}"
        return xe.IMPL, f"impl xe: {row.origin} asks for {row.impl}, which cannot be had ({'; '.join(found)})"
    return xe.IMPL, "impl xe: the default (JITMOE_IMPL=cutlass or a tuned row chooses CuTe's kernels)"


def choose(problem: MoEProblem, device: Device) -> xe.XeChoice:
    """Returns the kernels for ``problem`` on ``device``; raises ``UnsupportedProblemError``."""
    configs = tuned.configured()
    impl, reason = implementation(problem, device, configs, knobs.current().impl)
    choice = IMPLEMENTATIONS[impl](problem, device, configs)
    return dataclasses.replace(choice, reasons=(reason, *choice.reasons))

# SPDX-License-Identifier: MIT
"""CPU plans for a lesser instruction set than the CPU has: its kernels run here all the same."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from jitmoe import calls
from jitmoe.device import CpuIsa
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import stream_of


def available() -> list[CpuIsa]:
    """Returns the instruction sets that this CPU, and Linux, let kernels use."""
    order = list(CpuIsa)
    found = order[: order.index(cpu.isa_of(cpu.host_flags(), "")) + 1]
    return [isa for isa in found if not isa.has_tiles or cpu.request_tiles()]


@contextlib.contextmanager
def planned_for(isa: CpuIsa) -> Iterator[None]:
    """Calls on the default CPU queue are planned for ``isa``."""
    stream = stream_of(cpu.default_queue().addressof_ref())
    before = stream.device
    calls._prepared.clear()
    stream.device = dataclasses.replace(before, cpu_isa=isa)
    try:
        yield
    finally:
        stream.device = before
        calls._prepared.clear()

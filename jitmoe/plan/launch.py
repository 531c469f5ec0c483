# SPDX-License-Identifier: MIT
"""The values that a plan consists of: which kernels run, over which ranges, with which arguments and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jitmoe.spec import KernelSpec

WORKSPACE_ALIGNMENT = 256  # bytes; 2D block surfaces need 64, a few cache lines keep buffers apart


@dataclass(frozen=True, slots=True)
class Buffer:
    """A part of the workspace, named like the kernel arguments that receive its address."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel launch. Pointer arguments are found by name: first among the call's tensors, then the buffers."""

    spec: KernelSpec
    global_size: tuple[int, ...]  # work-items per dimension, slowest first
    local_size: tuple[int, ...]
    scalars: Mapping[str, int | float]
    # Kernel arguments that are another tensor or buffer than they are named; None: a null pointer.
    aliases: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a call does on the device, in order on one in-order queue."""

    launches: tuple[Launch, ...]
    buffers: tuple[Buffer, ...]
    counters: tuple[Buffer, ...] = ()  # zero before the first launch; kernels leave them zero; the queue keeps them
    decisions: tuple[str, ...] = field(default=(), compare=False)  # what was chosen or rejected, and why

    @property
    def specs(self) -> tuple[KernelSpec, ...]:
        """The distinct kernels, in launch order."""
        return tuple(dict.fromkeys(launch.spec for launch in self.launches))

    @property
    def workspace_bytes(self) -> int:
        return _total_bytes(self.buffers)

    @property
    def counter_bytes(self) -> int:
        return _total_bytes(self.counters)

    def buffer_offsets(self) -> dict[str, int]:
        """Returns each buffer's byte offset in the workspace."""
        return _offsets(self.buffers)

    def counter_offsets(self) -> dict[str, int]:
        """Returns each counter's byte offset in the queue's counters."""
        return _offsets(self.counters)


def _total_bytes(buffers: tuple[Buffer, ...]) -> int:
    return sum(_aligned(buffer.num_bytes) for buffer in buffers)


def _offsets(buffers: tuple[Buffer, ...]) -> dict[str, int]:
    offsets: dict[str, int] = {}
    position = 0
    for buffer in buffers:
        offsets[buffer.name] = position
        position += _aligned(buffer.num_bytes)
    return offsets


def _aligned(num_bytes: int) -> int:
    return -(-max(num_bytes, 1) // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

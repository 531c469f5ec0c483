# SPDX-License-Identifier: MIT
"""A plan bound to kernels, ready to be submitted again and again with other tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jitmoe.errors import LaunchError
from jitmoe.plan.launch import Plan
from jitmoe.runtime import sycl
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.spec import KernelSpec

_ARGUMENT_CODES = {
    "in": sycl.ARGUMENT_POINTER,
    "out": sycl.ARGUMENT_POINTER,
    "int32": sycl.ARGUMENT_INT32,
    "int64": sycl.ARGUMENT_INT64,
    "float32": sycl.ARGUMENT_FLOAT32,
}
_SCALAR_TYPES: dict[str, type[ctypes.c_int32] | type[ctypes.c_int64] | type[ctypes.c_float]] = {
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}


class _Submission:
    """One launch with its argument arrays, allocated once. A pointer argument's slot holds the address itself."""

    __slots__ = ("call", "keep_alive", "kernel", "slots")

    def __init__(self, kernel: Kernel, launch_arguments: tuple[object, ...], slots: ctypes.Array[ctypes.c_void_p]):
        self.kernel = kernel
        self.slots = slots
        self.call = launch_arguments  # what follows the queue in DPCTLQueue_SubmitNDRange
        self.keep_alive: list[object] = []


class BoundPlan:
    """A plan with loaded kernels. Not thread-safe by itself: ``submit`` runs under the stream's lock."""

    def __init__(
        self,
        plan: Plan,
        kernels: Mapping[KernelSpec, Kernel],
        tensor_names: Sequence[str],
        absent: Collection[str] = (),
    ) -> None:
        """Binds pointer arguments by name: to a tensor, a counter or a buffer of the plan, to null if ``absent``."""
        self._workspace_bytes = plan.workspace_bytes
        self._workspace_at = -1
        self._counter_bytes = plan.counter_bytes
        offsets, counter_offsets = plan.buffer_offsets(), plan.counter_offsets()
        tensor_position = {name: position for position, name in enumerate(tensor_names)}
        self._submissions: list[_Submission] = []
        self._tensor_slots: list[tuple[ctypes.Array[ctypes.c_void_p], int, int]] = []
        self._buffer_slots: list[tuple[ctypes.Array[ctypes.c_void_p], int, int]] = []
        self._counter_slots: list[tuple[ctypes.Array[ctypes.c_void_p], int, int]] = []
        for launch in plan.launches:
            arguments = launch.spec.ARGUMENTS
            slots = (ctypes.c_void_p * len(arguments))()
            codes = (ctypes.c_int * len(arguments))(*(_ARGUMENT_CODES[argument.kind] for argument in arguments))
            dimensions = len(launch.global_size)
            ranges = (ctypes.c_size_t * 6)(
                *launch.global_size, *[1] * (3 - dimensions), *launch.local_size, *[1] * (3 - dimensions)
            )
            range_address = ctypes.addressof(ranges)
            submission = _Submission(
                kernels[launch.spec],
                (
                    ctypes.addressof(slots),
                    ctypes.addressof(codes),
                    len(arguments),
                    range_address,
                    range_address + 3 * ctypes.sizeof(ctypes.c_size_t),
                    dimensions,
                    None,
                    0,
                ),
                slots,
            )
            submission.keep_alive += [codes, ranges]
            for index, argument in enumerate(arguments):
                if argument.is_pointer:
                    name = launch.aliases.get(argument.name, argument.name)
                    if name in tensor_position:
                        self._tensor_slots.append((slots, index, tensor_position[name]))
                    elif name in counter_offsets:
                        self._counter_slots.append((slots, index, counter_offsets[name]))
                    elif name is not None and (name in offsets or name not in absent):
                        self._buffer_slots.append((slots, index, offsets[name]))
                else:
                    value: Any = launch.scalars[argument.name]
                    scalar = _SCALAR_TYPES[argument.kind](value)
                    if argument.kind != "float32" and scalar.value != value:  # floats are rounded
                        raise OverflowError(f"{argument.name}={value} exceeds {argument.kind}")
                    submission.keep_alive.append(scalar)
                    slots[index] = ctypes.addressof(scalar)
            self._submissions.append(submission)

    def submit(self, stream: Stream, addresses: Sequence[int | None]) -> None:
        """Submits every launch in order; does not wait. ``addresses`` follow ``tensor_names``.

        Raises:
            LaunchError: the runtime refused a submission.
        """
        workspace = stream.workspace(self._workspace_bytes)
        if workspace != self._workspace_at:
            for slots, index, offset in self._buffer_slots:
                slots[index] = workspace + offset
            self._workspace_at = workspace
        for slots, index, offset in self._counter_slots:
            slots[index] = stream.counters(self._counter_bytes) + offset
        for slots, index, position in self._tensor_slots:
            slots[index] = addresses[position]
        library = sycl.library()
        submit, delete = library.DPCTLQueue_SubmitNDRange, library.DPCTLEvent_Delete
        queue_ref = stream.queue_ref
        if not stream.in_order:
            delete(library.DPCTLQueue_SubmitBarrier(queue_ref))
        for submission in self._submissions:
            event = submit(submission.kernel.handle, queue_ref, *submission.call)
            if not event:
                raise LaunchError(
                    kernel=submission.kernel.name,
                    detail=f"{stream.device} refused the submission (its reason is on stderr)",
                )
            delete(event)
            if not stream.in_order:  # keeps our launches, and whatever the caller submits next, in order
                delete(library.DPCTLQueue_SubmitBarrier(queue_ref))

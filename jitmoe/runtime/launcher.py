# SPDX-License-Identifier: MIT
"""A plan bound to kernels, ready to be submitted again and again with other tensors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jitmoe.errors import LaunchError
from jitmoe.plan.launch import Launch, Plan
from jitmoe.runtime import sycl
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.spec import Argument, KernelSpec

_ARGUMENT_CODES = {
    "in": sycl.ARGUMENT_POINTER,
    "out": sycl.ARGUMENT_POINTER,
    "int32": sycl.ARGUMENT_INT32,
    "int64": sycl.ARGUMENT_INT64,
    "float32": sycl.ARGUMENT_FLOAT32,
}
_Scalar = ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float
_SCALAR_TYPES: dict[str, type[_Scalar]] = {
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}

Slots = ctypes.Array[ctypes.c_void_p]


class _Submission:
    """One launch with its argument arrays, allocated once.

    Attributes:
        slots: one per argument. A pointer argument's slot holds the address itself, a scalar's the value (kernels for
            CPUs) or its address.
        struct_bytes: size of the slots where they are passed as one struct, else 0.
        values: what the runtime takes argument values from: the slots, or a handle of the struct.
        call: what follows the queue in DPCTLQueue_SubmitNDRange.
    """

    __slots__ = ("_keep_alive", "call", "kernel", "slots", "slots_address", "struct_bytes", "values")

    def __init__(self, kernel: Kernel, launch: Launch):
        self.kernel = kernel
        arguments = launch.spec.ARGUMENTS
        self.slots = (ctypes.c_void_p * len(arguments))()
        codes = [_ARGUMENT_CODES[argument.kind] for argument in arguments]
        self._keep_alive: list[object] = []
        for index, argument in enumerate(arguments):
            if not argument.is_pointer:
                scalar = _scalar(argument, launch.scalars[argument.name])
                self._keep_alive.append(scalar)
                self.slots[index] = _bits(scalar) if launch.spec.is_for_cpus else ctypes.addressof(scalar)
        self.slots_address = ctypes.addressof(self.slots)
        self.values, self.struct_bytes = self.slots, 0
        if launch.spec.is_for_cpus:
            self.values, self.struct_bytes = (ctypes.c_void_p * 1)(), ctypes.sizeof(self.slots)
            codes = [sycl.ARGUMENT_RAW]
        code_array = (ctypes.c_int * len(codes))(*codes)
        dimensions = len(launch.global_size)
        ranges = (ctypes.c_size_t * 6)(
            *launch.global_size, *[1] * (3 - dimensions), *launch.local_size, *[1] * (3 - dimensions)
        )
        range_address = ctypes.addressof(ranges)
        self._keep_alive += [code_array, ranges]
        self.call = (
            ctypes.addressof(self.values),
            ctypes.addressof(code_array),
            len(codes),
            range_address,
            range_address + 3 * ctypes.sizeof(ctypes.c_size_t),
            dimensions,
            None,
            0,
        )


def _scalar(argument: Argument, value: Any) -> _Scalar:
    scalar = _SCALAR_TYPES[argument.kind](value)
    if argument.kind != "float32" and scalar.value != value:  # floats are rounded
        raise OverflowError(f"{argument.name}={value} exceeds {argument.kind}")
    return scalar


def _bits(scalar: _Scalar) -> int:
    """Returns the scalar's bytes as the low end of a slot."""
    return int.from_bytes(bytes(scalar), sys.byteorder)


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
        self._tensor_slots: list[tuple[Slots, int, int]] = []
        self._buffer_slots: list[tuple[Slots, int, int]] = []
        self._counter_slots: list[tuple[Slots, int, int]] = []
        for launch in plan.launches:
            submission = _Submission(kernels[launch.spec], launch)
            for index, argument in enumerate(launch.spec.ARGUMENTS):
                if not argument.is_pointer:
                    continue
                name = launch.aliases.get(argument.name, argument.name)
                if name in tensor_position:
                    self._tensor_slots.append((submission.slots, index, tensor_position[name]))
                elif name in counter_offsets:
                    self._counter_slots.append((submission.slots, index, counter_offsets[name]))
                elif name is not None and (name in offsets or name not in absent):
                    self._buffer_slots.append((submission.slots, index, offsets[name]))
            self._submissions.append(submission)

    def submit(self, stream: Stream, addresses: Sequence[int | None], keep: object = None) -> None:
        """Submits every launch in order; does not wait.

        Args:
            addresses: of the tensors, in the order of ``tensor_names``.
            keep: stays alive until the last launch has finished, if anything is given.

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
        make_struct, delete_struct = library.DPCTLRawKernelArg_Create, library.DPCTLRawKernelArg_Delete
        queue_ref = stream.queue_ref
        if not stream.in_order:
            delete(library.DPCTLQueue_SubmitBarrier(queue_ref))
        for submission in self._submissions:
            struct_bytes = submission.struct_bytes
            if struct_bytes:  # the handle is a copy of the slots
                struct = make_struct(submission.slots_address, struct_bytes)
                submission.values[0] = struct
            event = submit(submission.kernel.handle, queue_ref, *submission.call)
            if struct_bytes:
                delete_struct(struct)
            if not event:
                raise LaunchError(
                    kernel=submission.kernel.name,
                    detail=f"{stream.device} refused the submission (its reason is on stderr)",
                )
            if keep is not None and submission is self._submissions[-1]:
                stream.keep(event, keep)
            else:
                delete(event)
            if not stream.in_order:  # keeps our launches, and whatever the caller submits next, in order
                delete(library.DPCTLQueue_SubmitBarrier(queue_ref))

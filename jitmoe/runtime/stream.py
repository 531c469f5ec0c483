# SPDX-License-Identifier: MIT
"""A caller's queue, with the device behind it and the workspace and counters that calls on it share."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Iterator

from jitmoe.device import Device
from jitmoe.errors import RuntimeUnavailableError
from jitmoe.plan.launch import WORKSPACE_ALIGNMENT
from jitmoe.runtime import sycl
from jitmoe.runtime.probe import probe


class Stream:
    """One ``sycl::queue``. ``lock`` is held while a call packs and submits, so calls of threads never interleave.

    Attributes:
        queue_ref: address of our own copy of the queue object.
        context_ref, device_ref: handles for loading kernels.
        context_id: equal for queues that share a context, so that they share kernels.
        in_order: whether the queue keeps submissions in order by itself.
    """

    def __init__(self, queue_ref: int, *, emulated_arch: str | None = None) -> None:
        library = sycl.library()
        copy = library.DPCTLQueue_Copy(queue_ref)
        if not copy:
            raise RuntimeUnavailableError(reason="the queue cannot be used", advice="pass a valid sycl::queue")
        self.queue_ref: int = copy
        self.context_ref: int = library.DPCTLQueue_GetContext(copy)
        self.device_ref: int = library.DPCTLQueue_GetDevice(copy)
        self.context_id: int = library.DPCTLContext_Hash(self.context_ref)
        self.in_order: bool = library.DPCTLQueue_IsInOrder(copy)
        self.device: Device = probe(copy, emulated_arch=emulated_arch)
        self.emulated_arch = emulated_arch
        self.lock = threading.Lock()
        self._workspace = 0
        self._workspace_bytes = 0
        self._counters = 0
        self._counter_bytes = 0
        self._kept: deque[tuple[int, object]] = deque()  # (event, what lives until then), oldest first

    def is_same_queue(self, queue_ref: int) -> bool:
        """Whether another ``sycl::queue*`` is a handle of the same queue."""
        return bool(sycl.library().DPCTLQueue_AreEq(self.queue_ref, queue_ref))

    def workspace(self, num_bytes: int) -> int:
        """Returns the address of at least ``num_bytes`` of device memory, aligned for block loads.

        The workspace only grows, at least by half, and what it outgrew is kept: submitted or captured work may still
        use it, and waiting for that is not ours to do. All outgrown parts together are smaller than twice the last.
        """
        if num_bytes > self._workspace_bytes:
            grown = max(num_bytes, self._workspace_bytes + self._workspace_bytes // 2)
            address = sycl.library().DPCTLaligned_alloc_device(WORKSPACE_ALIGNMENT, grown, self.queue_ref)
            if not address:
                raise RuntimeUnavailableError(
                    reason=f"{self.device.name} cannot give {grown} bytes of workspace",
                    advice="free device memory or send fewer tokens per call",
                )
            self._workspace, self._workspace_bytes = address, grown
        return self._workspace

    def counters(self, num_bytes: int) -> int:
        """Returns the address of at least ``num_bytes`` of device memory that are zero between launches.

        Every launch that uses them leaves them zero, so all share them. Waits when they grow; outgrown ones are kept.
        """
        if num_bytes > self._counter_bytes:
            zeros = ctypes.create_string_buffer(num_bytes)
            self._counters = self.upload(ctypes.addressof(zeros), num_bytes)
            self._counter_bytes = num_bytes
        return self._counters

    def keep(self, event: int, thing: object) -> None:
        """Keeps ``thing`` alive until ``event``, which becomes ours, is complete; looks when it is called again.

        The runtime does not know what memory a kernel uses whose pointers are in a struct (``KernelSpec.is_for_cpus``),
        and drivers of GPUs do not ask: memory whose last owner lets go of it would be freed under a running kernel.
        Events of a queue that is recording a graph have no status; who replays the graph keeps the memory.
        """
        self._let_go()
        self._kept.append((event, thing))

    def _let_go(self) -> None:
        library, kept, pending = sycl.library(), self._kept, (sycl.EVENT_SUBMITTED, sycl.EVENT_RUNNING)
        while kept and library.DPCTLEvent_GetCommandExecutionStatus(kept[0][0]) not in pending:
            library.DPCTLEvent_Delete(kept.popleft()[0])

    def wait(self) -> None:
        """Blocks until everything submitted to the queue has finished."""
        sycl.library().DPCTLQueue_Wait(self.queue_ref)

    def upload(self, source: int, num_bytes: int) -> int:
        """Returns fresh device memory with ``num_bytes`` copied from host address ``source``; waits. Pair: free."""
        library = sycl.library()
        address = library.DPCTLaligned_alloc_device(WORKSPACE_ALIGNMENT, max(num_bytes, 1), self.queue_ref)
        if not address:
            raise RuntimeUnavailableError(
                reason=f"{self.device.name} cannot give {num_bytes} bytes", advice="free device memory"
            )
        self.copy(address, source, num_bytes)
        return int(address)

    def copy(self, destination: int, source: int, num_bytes: int) -> None:
        """Copies between host and device addresses in either direction; waits."""
        if num_bytes:
            library = sycl.library()
            event = library.DPCTLQueue_Memcpy(self.queue_ref, destination, source, num_bytes)
            library.DPCTLEvent_Wait(event)
            library.DPCTLEvent_Delete(event)

    def free(self, address: int) -> None:
        """Frees memory from ``upload``; nothing submitted may still use it."""
        sycl.library().DPCTLfree_with_queue(address, self.queue_ref)

    def close(self) -> None:
        """Waits, then frees workspace, counters and our handles. Only for streams nobody else uses."""
        self.wait()
        self._let_go()
        for address in filter(None, (self._workspace, self._counters)):
            self.free(address)
        library = sycl.library()
        library.DPCTLDevice_Delete(self.device_ref)
        library.DPCTLContext_Delete(self.context_ref)
        library.DPCTLQueue_Delete(self.queue_ref)


_streams: dict[tuple[int, str | None], Stream] = {}
_lock = threading.Lock()


def stream_of(queue_ref: int, *, emulated_arch: str | None = None) -> Stream:
    """Returns the ``Stream`` of a ``sycl::queue*``; the same queue always gets the same one."""
    sycl.check_not_forked()
    stream = _streams.get((queue_ref, emulated_arch))
    if stream is not None and stream.is_same_queue(queue_ref):  # an address can be reused by another queue
        return stream
    with _lock:
        for (_, arch), stream in _streams.items():
            if arch == emulated_arch and stream.is_same_queue(queue_ref):
                break
        else:
            stream = Stream(queue_ref, emulated_arch=emulated_arch)
        _streams[(queue_ref, emulated_arch)] = stream
    return stream


@contextlib.contextmanager
def private_stream(stream: Stream) -> Iterator[Stream]:
    """Yields a stream on a queue of its own with the same context and device; frees its workspace at the end."""
    library = sycl.library()
    queue_ref = library.DPCTLQueue_Create(stream.context_ref, stream.device_ref, None, sycl.QUEUE_IN_ORDER)
    if not queue_ref:
        raise RuntimeUnavailableError(reason=f"{stream.device.name} gives no second queue", advice="see stderr")
    own = Stream(queue_ref, emulated_arch=stream.emulated_arch)
    library.DPCTLQueue_Delete(queue_ref)
    try:
        yield own
    finally:
        own.close()

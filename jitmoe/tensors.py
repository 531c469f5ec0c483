# SPDX-License-Identifier: MIT
"""The tensor edge: torch, USM and DLPack objects -> addresses, shapes, strides, dtypes and the queue they live on."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import BY_TORCH_NAME, DType, check_dtype_name
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import Stream, stream_of

# typestr of __sycl_usm_array_interface__; numpy has no bfloat16, the packages that add one use a 2-byte void.
_TYPESTRS = {
    "f2": DType.FP16,
    "f4": DType.FP32,
    "f8": DType.FP64,
    "i4": DType.INT32,
    "i8": DType.INT64,
    "i1": DType.INT8,
    "u1": DType.UINT8,
    "V2": DType.BF16,
}
_TYPESTR_OF = {dtype: f"<{text}" for text, dtype in _TYPESTRS.items()} | {
    DType.INT8: "|i1",
    DType.UINT8: "|u1",
    DType.E4M3: "|u1",
    DType.E5M2: "|u1",
    DType.E8M0: "|u1",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What jitmoe needs to know of one tensor. ``dtype`` is None for types that no kernel takes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: DType | None
    dtype_name: str
    place: str  # equal for tensors that one kernel can use together


class UsmArray:
    """A typed, strided view of USM memory (``dpctl.memory.MemoryUSM*``), bfloat16 included.

    Args:
        memory: an object with ``__sycl_usm_array_interface__`` over bytes; kept alive by the view.
        shape: sizes.
        dtype: "bf16", "fp16", "fp32", "fp64", "int32", "int64", "int8", "uint8", "e4m3", "e5m2" or "e8m0", or a
            torch dtype of these.
        strides: in elements; None for C order.

    Raises:
        ArgumentError: an argument is none of that, or the memory is too small.
    """

    def __init__(self, memory: Any, shape: Sequence[int], dtype: Any, strides: Sequence[int] | None = None) -> None:
        self.memory = memory
        self.shape = tuple(int(size) for size in shape)
        self.dtype = check_dtype_name("dtype", dtype, tuple(DType))
        self.strides = _c_order(self.shape) if strides is None else tuple(int(stride) for stride in strides)
        if not is_usm(memory) or not hasattr(memory, "nbytes"):
            expected = "USM memory with nbytes, such as dpctl.memory.MemoryUSMDevice"
            raise ArgumentError(argument="memory", got=type(memory).__name__, expected=expected)
        base = memory.__sycl_usm_array_interface__
        if len(self.strides) != len(self.shape) or any(stride < 0 for stride in self.strides):
            raise ArgumentError(argument="strides", got=str(self.strides), expected=f"{len(self.shape)} strides >= 0")
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        needed = 0 if 0 in self.shape else (last + 1) * self.dtype.num_bytes
        if memory.nbytes < needed:
            raise ArgumentError(
                argument="memory", got=f"{memory.nbytes} bytes", expected=f"at least {needed} bytes for {self.shape}"
            )
        self.__sycl_usm_array_interface__ = {
            "data": base["data"],
            "shape": self.shape,
            "strides": self.strides,
            "typestr": _TYPESTR_OF[self.dtype],
            "version": 1,
            "syclobj": base["syclobj"],
        }

    @property
    def mT(self) -> UsmArray:
        """The same memory with the last two dimensions swapped."""

        def swapped(values: tuple[int, ...]) -> tuple[int, ...]:
            return (*values[:-2], values[-1], values[-2])

        return UsmArray(self.memory, swapped(self.shape), self.dtype, swapped(self.strides))

    def __repr__(self) -> str:
        return f"UsmArray(shape={self.shape}, dtype={self.dtype.value!r}, strides={self.strides})"


def _c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def dense(info: TensorInfo) -> TensorInfo:
    """Returns the facts that a new tensor of the same kind will have: packed rows, aligned."""
    return dataclasses.replace(info, address=0, strides=_c_order(info.shape))


@functools.cache
def torch_dtypes() -> Mapping[DType, Any]:
    """Returns torch's dtype of each of ours."""
    import torch

    return {dtype: getattr(torch, dtype.torch_name) for dtype in DType if hasattr(torch, dtype.torch_name)}


def is_torch(value: object) -> bool:
    """Whether ``value`` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_usm(value: object) -> bool:
    """Whether ``value`` describes USM memory."""
    return hasattr(value, "__sycl_usm_array_interface__")


def adopt(name: str, value: Any) -> Any:
    """Returns ``value`` as something ``describe`` takes: DLPack producers become torch tensors without a copy."""
    if is_torch(value) or is_usm(value):
        return value
    if hasattr(value, "__dlpack__"):
        from torch.utils.dlpack import from_dlpack

        try:
            return from_dlpack(value)
        except (RuntimeError, TypeError, ValueError, BufferError) as error:
            raise ArgumentError(
                argument=name, got=f"{type(value).__name__} that torch cannot take ({error})", expected="a tensor"
            ) from error
    raise ArgumentError(
        argument=name,
        got=type(value).__name__,
        expected="a torch tensor, an object with __sycl_usm_array_interface__ or a DLPack object",
    )


def describe(name: str, value: Any) -> TensorInfo:
    """Returns the facts of an adopted tensor; refuses one whose elements are not in memory, as they are."""
    if is_torch(value):
        if value.layout != sys.modules["torch"].strided:
            raise ArgumentError(argument=name, got=f"layout {value.layout}", expected="a dense tensor")
        device = value.device
        if value.numel() and not has_memory(value):
            kind = f"{type(value).__name__} on {device}"
            raise ArgumentError(
                argument=name, got=f"a {kind} without memory", expected="a tensor with memory of its own"
            )
        if value.is_neg():
            got = "a view with a negation still to come"
            raise ArgumentError(argument=name, got=got, expected="what torch.resolve_neg makes of it")
        return TensorInfo(
            address=value.data_ptr(),
            shape=tuple(value.shape),
            strides=tuple(value.stride()),
            dtype=BY_TORCH_NAME.get(str(value.dtype)),
            dtype_name=str(value.dtype),
            place=f"torch {device}",
        )
    interface = value.__sycl_usm_array_interface__
    typestr = str(interface["typestr"]).lstrip("<|=")
    dtype = _TYPESTRS.get(typestr)
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    item_bytes = dtype.num_bytes if dtype is not None else 1
    return TensorInfo(
        address=int(interface["data"][0]) + int(interface.get("offset", 0) or 0) * item_bytes,
        shape=shape,
        strides=_c_order(shape) if strides is None else tuple(int(stride) for stride in strides),
        dtype=dtype,
        dtype_name=interface["typestr"],
        place=f"usm (context {stream_of(queue_ref_of(interface['syclobj'])).context_id:x})",
    )


def has_memory(value: Any) -> bool:
    """Whether a torch tensor is more than metadata: storages may be emptied (FSDP) or stand for others (DTensor)."""
    try:
        return bool(value.untyped_storage().data_ptr())  # the tensor's own address is its offset where there is none
    except RuntimeError:  # torch refuses to say
        return False


def stream_for(first: Any, queue: Any) -> tuple[Stream, bool]:
    """Returns (the stream to launch on, whether to wait before returning), by a call's first tensor.

    torch CPU tensors are synchronous, so a call on them waits, unless the caller gave a queue of their own. torch XPU
    tensors run on torch's current stream, USM on the queue that its memory belongs to; neither waits.
    """
    if queue is not None:
        return stream_of(queue_ref_of(queue)), False
    if is_torch(first):
        if first.device.type == "cpu":
            return stream_of(cpu.default_queue().addressof_ref()), True
        return stream_of(xpu_queue_ref(first.device)), False
    return stream_of(queue_ref_of(first.__sycl_usm_array_interface__["syclobj"])), False


def queue_ref_of(queue: Any) -> int:
    """Returns the ``sycl::queue*`` of a dpctl queue, a torch XPU stream or a plain address."""
    if isinstance(queue, int) and not isinstance(queue, bool) and queue > 0:
        return queue
    if hasattr(queue, "addressof_ref") and type(queue).__name__ == "SyclQueue":
        return int(queue.addressof_ref())
    if hasattr(queue, "sycl_queue"):
        native = queue.sycl_queue
        return int(native) if isinstance(native, int) else int(native.addressof_ref())
    raise ArgumentError(
        argument="queue",
        got=type(queue).__name__,
        expected="a dpctl.SyclQueue, a torch.xpu.Stream or the address of a sycl::queue",
    )


def xpu_queue_ref(device: Any) -> int:
    """Returns the ``sycl::queue*`` of torch's current stream on an XPU device."""
    return int(sys.modules["torch"].xpu.current_stream(device).sycl_queue)


def empty_like(value: Any) -> Any:
    """Returns an uninitialized, densely packed tensor of the same kind, shape, dtype and place."""
    if is_torch(value):
        return value.new_empty(value.shape)
    info = describe("hidden_states", value)
    assert info.dtype is not None
    return empty(value, info.shape, info.dtype)


def empty(like: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    """Returns an uninitialized, densely packed tensor of another's kind and place."""
    if is_torch(like):
        return like.new_empty(shape, dtype=torch_dtypes()[dtype])
    import dpctl.memory

    num_bytes = dtype.num_bytes
    for size in shape:
        num_bytes *= size
    queue = like.__sycl_usm_array_interface__["syclobj"]
    return UsmArray(dpctl.memory.MemoryUSMDevice(max(num_bytes, 1), queue=queue), shape, dtype)


def to_host(value: Any, stream: Stream) -> Any:
    """Returns a torch CPU tensor with the content of a USM array; waits for the queue."""
    import torch

    info = describe("tensor", value)
    assert info.dtype is not None
    num_elements = (
        0
        if 0 in info.shape
        else 1 + sum((size - 1) * stride for size, stride in zip(info.shape, info.strides, strict=True))
    )
    flat = torch.empty(num_elements, dtype=torch_dtypes()[info.dtype])
    stream.wait()
    stream.copy(flat.data_ptr(), info.address, num_elements * info.dtype.num_bytes)
    return flat.as_strided(info.shape, info.strides)


def from_host(value: Any, host: Any, stream: Stream) -> None:
    """Copies a torch CPU tensor into a USM array of the same shape; waits for the queue."""
    info = describe("tensor", value)
    assert info.dtype is not None
    rows = host.reshape(-1, host.shape[-1]).contiguous()
    batches_of_one = len(info.shape) == 3 and info.shape[1] == 1
    row_stride = info.strides[0] if batches_of_one or len(info.shape) == 1 else info.strides[-2]
    row_bytes = rows.shape[-1] * info.dtype.num_bytes
    stream.wait()
    for row in range(rows.shape[0]):
        stream.copy(
            info.address + row * row_stride * info.dtype.num_bytes, rows.data_ptr() + row * row_bytes, row_bytes
        )

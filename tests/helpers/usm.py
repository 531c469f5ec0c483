# SPDX-License-Identifier: MIT
"""Tensors between torch and USM memory."""

from __future__ import annotations

import dpctl
import dpctl.memory
import numpy
import torch

from jitmoe import UsmArray
from jitmoe.runtime import cpu

DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "int32",
    torch.int64: "int64",
}


def to_usm(
    tensor: torch.Tensor, queue: dpctl.SyclQueue | None = None, kind: type = dpctl.memory.MemoryUSMDevice
) -> UsmArray:
    """Copies a tensor's storage, gaps included, to USM memory; without a queue to the default CPU queue's."""
    flat = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    content = flat.view(torch.uint8).numpy()
    memory = kind(max(content.nbytes, 1), queue=cpu.default_queue() if queue is None else queue)
    if content.nbytes:
        memory.copy_from_host(content)
    assert tensor.storage_offset() == 0
    return UsmArray(memory, tensor.shape, DTYPES[tensor.dtype], tensor.stride())


def from_usm(array: UsmArray, queue: dpctl.SyclQueue | None = None) -> torch.Tensor:
    """Waits for the queue and copies an array's memory to a tensor with the same strides."""
    (cpu.default_queue() if queue is None else queue).wait()
    content = numpy.empty(array.memory.nbytes, numpy.uint8)
    array.memory.copy_to_host(content)
    dtype = next(dtype for dtype, name in DTYPES.items() if name == array.dtype.value)
    return torch.from_numpy(content).view(dtype).as_strided(array.shape, array.strides)

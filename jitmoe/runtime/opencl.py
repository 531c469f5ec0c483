# SPDX-License-Identifier: MIT
"""Building programs through the OpenCL driver, so that its machine code can be kept and its build log read.

The CPU device takes 50-300 ms to turn one GEMM kernel's SPIR-V into machine code and 1-3 ms to take that machine code
back (clCreateProgramWithBinary). Constants are those of the Khronos header cl.h.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jitmoe.errors import LoadError
from jitmoe.runtime import interop
from jitmoe.runtime.stream import Stream

_CL_SUCCESS = 0
_CL_PROGRAM_BUILD_LOG = 0x1183
_CL_PROGRAM_BINARY_SIZES = 0x1165
_CL_PROGRAM_BINARIES = 0x1166

_handle = ctypes.c_void_p
_size = ctypes.c_size_t


@functools.cache
def _library() -> Any:
    """Returns the OpenCL loader with typed functions, or None. The SYCL runtime has loaded the same one before."""
    try:
        loaded = ctypes.CDLL("libOpenCL.so.1")
        for name, result, arguments in (
            ("clCreateProgramWithIL", _handle, [_handle, ctypes.c_char_p, _size, _handle]),
            (
                "clCreateProgramWithBinary",
                _handle,
                [_handle, ctypes.c_uint, _handle, _handle, _handle, _handle, _handle],
            ),
            ("clBuildProgram", ctypes.c_int, [_handle, ctypes.c_uint, _handle, ctypes.c_char_p, _handle, _handle]),
            ("clGetProgramInfo", ctypes.c_int, [_handle, ctypes.c_uint, _size, _handle, _handle]),
            ("clGetProgramBuildInfo", ctypes.c_int, [_handle, _handle, ctypes.c_uint, _size, _handle, _handle]),
            ("clReleaseProgram", ctypes.c_int, [_handle]),
        ):
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError):
        return None
    return loaded


def is_available(stream: Stream) -> bool:
    """Whether programs for this stream's device can be built here."""
    return stream.device.backend == "opencl" and interop.functions() is not None and _library() is not None


def build(
    name: str, stream: Stream, *, spirv: bytes = b"", machine_code: bytes = b"", options: str = ""
) -> tuple[int, bytes]:
    """Builds a program from SPIR-V, or from machine code of this very device and driver.

    Args:
        name: of the kernel, for messages.
        spirv: used unless there is machine code.
        machine_code: what an earlier build returned.
        options: for the driver's compiler.

    Returns:
        (``sycl::kernel_bundle*``, machine code to give next time)

    Raises:
        LoadError: with the driver's build log.
    """
    opencl = _library()
    context, device_handle = interop.native_handles(stream)
    device = ctypes.c_void_p(device_handle)
    status = ctypes.c_int(0)
    if machine_code:
        size = ctypes.c_size_t(len(machine_code))
        content = ctypes.create_string_buffer(machine_code, len(machine_code))
        start = ctypes.c_void_p(ctypes.addressof(content))
        program = opencl.clCreateProgramWithBinary(
            context, 1, ctypes.byref(device), ctypes.byref(size), ctypes.byref(start), None, ctypes.byref(status)
        )
    else:
        program = opencl.clCreateProgramWithIL(context, spirv, len(spirv), ctypes.byref(status))
    if not program or status.value != _CL_SUCCESS:
        raise LoadError(kernel=name, reason=f"the OpenCL driver takes no such image (error {status.value})")
    result = opencl.clBuildProgram(program, 1, ctypes.byref(device), options.encode(), None, None)
    if result != _CL_SUCCESS:
        log = _build_log(opencl, program, device)
        opencl.clReleaseProgram(program)
        raise LoadError(kernel=name, reason=f"the OpenCL driver cannot build it (error {result}): {log}")
    return interop.kernel_bundle(program, stream), machine_code or _machine_code(opencl, program)


def _build_log(opencl: Any, program: int, device: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t(0)
    opencl.clGetProgramBuildInfo(program, device, _CL_PROGRAM_BUILD_LOG, 0, None, ctypes.byref(size))
    text = ctypes.create_string_buffer(max(1, size.value))
    opencl.clGetProgramBuildInfo(program, device, _CL_PROGRAM_BUILD_LOG, size.value, text, None)
    return text.value.decode(errors="replace").strip() or "no build log"


def _machine_code(opencl: Any, program: int) -> bytes:
    """Returns the program's machine code, or nothing if the driver does not give it."""
    size = ctypes.c_size_t(0)
    if opencl.clGetProgramInfo(program, _CL_PROGRAM_BINARY_SIZES, ctypes.sizeof(size), ctypes.byref(size), None):
        return b""
    content = ctypes.create_string_buffer(max(1, size.value))
    start = ctypes.c_void_p(ctypes.addressof(content))
    if opencl.clGetProgramInfo(program, _CL_PROGRAM_BINARIES, ctypes.sizeof(start), ctypes.byref(start), None):
        return b""
    return content.raw[: size.value]

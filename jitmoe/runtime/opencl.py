# SPDX-License-Identifier: MIT
"""Building programs through the OpenCL driver, so that its machine code can be kept and its build log read.

dpctl can only build from SPIR-V, every time, and says nothing when that fails. The CPU device takes 50-300 ms to turn
one GEMM kernel's SPIR-V into machine code and 1-3 ms to take that machine code back (clCreateProgramWithBinary).

The finished ``cl_program`` becomes a ``sycl::kernel_bundle`` through ``sycl::detail::make_kernel_bundle``, which is
what ``sycl::make_kernel_bundle`` calls. It and ``getNative`` are C++ symbols of libsycl.so.9; where they are missing,
``is_available`` is False and the loader lets dpctl build. Nothing here throws a C++ exception: a program that the
driver has built is only wrapped.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jitmoe.errors import LoadError
from jitmoe.runtime import sycl
from jitmoe.runtime.stream import Stream

BACKEND = "opencl"
_SUPPORTED_SONAME = "libsycl.so.9"
_MAKE_KERNEL_BUNDLE = "_ZN4sycl3_V16detail18make_kernel_bundleEmRKNS0_7contextEbNS0_12bundle_stateENS0_7backendE"
_CONTEXT_GET_NATIVE = "_ZNK4sycl3_V17context9getNativeEv"
_DEVICE_GET_NATIVE = "_ZNK4sycl3_V16device9getNativeEv"
_SYCL_BACKEND_OPENCL = 1  # sycl::backend
_STATE_EXECUTABLE = 2  # sycl::bundle_state
_SHARED_PTR_BYTES = 16  # a kernel_bundle is one std::shared_ptr

_CL_SUCCESS = 0
_CL_PROGRAM_BUILD_LOG = 0x1183
_CL_PROGRAM_BINARY_SIZES = 0x1165
_CL_PROGRAM_BINARIES = 0x1166

_handle = ctypes.c_void_p
_size = ctypes.c_size_t


@functools.cache
def _libraries() -> tuple[Any, Any] | None:
    """Returns (libsycl, libOpenCL) with typed functions, or None where one of them lacks something."""
    if sycl.runtime_soname() != _SUPPORTED_SONAME:
        return None
    try:
        libsycl = ctypes.CDLL(_SUPPORTED_SONAME)
        make = getattr(libsycl, _MAKE_KERNEL_BUNDLE)
        for name in (_CONTEXT_GET_NATIVE, _DEVICE_GET_NATIVE):
            getattr(libsycl, name).restype = _handle
            getattr(libsycl, name).argtypes = [_handle]
        # The shared_ptr is returned through memory whose address is a hidden first argument (Itanium C++ ABI).
        make.restype = None
        make.argtypes = [_handle, _size, _handle, ctypes.c_bool, ctypes.c_int, ctypes.c_char]
        opencl = ctypes.CDLL("libOpenCL.so.1")
        for name, arguments in {
            "clCreateProgramWithIL": [_handle, ctypes.c_char_p, _size, _handle],
            "clCreateProgramWithBinary": [_handle, ctypes.c_uint, _handle, _handle, _handle, _handle, _handle],
        }.items():
            function = getattr(opencl, name)
            function.restype = _handle
            function.argtypes = arguments
        opencl.clBuildProgram.argtypes = [_handle, ctypes.c_uint, _handle, ctypes.c_char_p, _handle, _handle]
        opencl.clGetProgramInfo.argtypes = [_handle, ctypes.c_uint, _size, _handle, _handle]
        opencl.clGetProgramBuildInfo.argtypes = [_handle, _handle, ctypes.c_uint, _size, _handle, _handle]
        opencl.clReleaseProgram.argtypes = [_handle]
    except (OSError, AttributeError):
        return None
    return libsycl, opencl


def is_available(stream: Stream) -> bool:
    """Whether programs for this stream's device can be built here."""
    return stream.device.backend == BACKEND and _libraries() is not None


def build(
    name: str, stream: Stream, *, spirv: bytes = b"", binary: bytes = b"", options: str = ""
) -> tuple[int, bytes]:
    """Builds a program from SPIR-V or from machine code of this very device and driver.

    Args:
        name: of the kernel, for messages.
        spirv, binary: one of the two.
        options: for the driver's compiler.

    Returns:
        (``sycl::kernel_bundle*`` that lives as long as the process, machine code to give as ``binary`` next time)

    Raises:
        LoadError: with the driver's build log.
    """
    libraries = _libraries()
    assert libraries is not None
    libsycl, opencl = libraries
    context = getattr(libsycl, _CONTEXT_GET_NATIVE)(stream.context_ref)
    device = ctypes.c_void_p(getattr(libsycl, _DEVICE_GET_NATIVE)(stream.device_ref))
    status = ctypes.c_int(0)
    if binary:
        size = ctypes.c_size_t(len(binary))
        content = ctypes.create_string_buffer(binary, len(binary))
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
    bundle = ctypes.create_string_buffer(_SHARED_PTR_BYTES)
    _keep_alive.append(bundle)
    getattr(libsycl, _MAKE_KERNEL_BUNDLE)(
        ctypes.addressof(bundle), program, stream.context_ref, True, _STATE_EXECUTABLE, _SYCL_BACKEND_OPENCL
    )
    return ctypes.addressof(bundle), binary or _machine_code(opencl, program)


_keep_alive: list[Any] = []  # kernel bundles are never destroyed: at exit the runtime may be gone before them


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

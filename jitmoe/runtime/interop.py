# SPDX-License-Identifier: MIT
"""SYCL backend interoperability without a C++ compiler: native handles out of, and kernel bundles into, libsycl.

dpctl can only build from SPIR-V, every time, and says nothing when that fails. So ``opencl.py`` and ``level_zero.py``
build through the driver's own C interface, and the finished program or module becomes a ``sycl::kernel_bundle`` here,
through ``sycl::detail::make_kernel_bundle``: what ``sycl::make_kernel_bundle`` calls. It and ``getNative`` are C++
symbols of libsycl.so.9; where they are missing, ``functions()`` is None and the loader lets dpctl build.
No C++ exception can come back: what the driver has built is only wrapped.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jitmoe.runtime import sycl
from jitmoe.runtime.stream import Stream

_SUPPORTED_SONAME = "libsycl.so.9"
_MAKE_KERNEL_BUNDLE = "_ZN4sycl3_V16detail18make_kernel_bundleEmRKNS0_7contextEbNS0_12bundle_stateENS0_7backendE"
_CONTEXT_GET_NATIVE = "_ZNK4sycl3_V17context9getNativeEv"
_DEVICE_GET_NATIVE = "_ZNK4sycl3_V16device9getNativeEv"
_STATE_EXECUTABLE = 2  # sycl::bundle_state
_SHARED_PTR_BYTES = 16  # a kernel_bundle is one std::shared_ptr

# sycl::backend by the names in Device.backend
SYCL_BACKENDS = {"opencl": 1, "level_zero": 2}

_keep_alive: list[Any] = []  # kernel bundles are never destroyed: at exit the runtime may be gone before them


@functools.cache
def functions() -> tuple[Any, Any, Any] | None:
    """Returns (context.getNative, device.getNative, make_kernel_bundle), typed, or None where libsycl lacks one."""
    if sycl.runtime_soname_or_none() != _SUPPORTED_SONAME:
        return None
    try:
        library = ctypes.CDLL(_SUPPORTED_SONAME)
        context_get_native = getattr(library, _CONTEXT_GET_NATIVE)
        device_get_native = getattr(library, _DEVICE_GET_NATIVE)
        make_kernel_bundle = getattr(library, _MAKE_KERNEL_BUNDLE)
    except (OSError, AttributeError):
        return None
    for getter in (context_get_native, device_get_native):
        getter.restype = ctypes.c_void_p
        getter.argtypes = [ctypes.c_void_p]
    # The shared_ptr is returned through memory whose address is a hidden first argument (Itanium C++ ABI).
    make_kernel_bundle.restype = None
    make_kernel_bundle.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_bool,
        ctypes.c_int,
        ctypes.c_char,
    ]
    return context_get_native, device_get_native, make_kernel_bundle


def native_handles(stream: Stream) -> tuple[int, int]:
    """Returns the backend's (context, device) behind a stream, e.g. (cl_context, cl_device_id)."""
    available = functions()
    assert available is not None
    context_get_native, device_get_native, _ = available
    return context_get_native(stream.context_ref), device_get_native(stream.device_ref)


def kernel_bundle(program: int, stream: Stream) -> int:
    """Returns a ``sycl::kernel_bundle*`` around a built cl_program or ze_module; lives as long as the process."""
    available = functions()
    assert available is not None
    make_kernel_bundle = available[2]
    bundle = ctypes.create_string_buffer(_SHARED_PTR_BYTES)
    _keep_alive.append(bundle)
    backend = SYCL_BACKENDS[stream.device.backend]
    make_kernel_bundle(ctypes.addressof(bundle), program, stream.context_ref, True, _STATE_EXECUTABLE, backend)
    return ctypes.addressof(bundle)

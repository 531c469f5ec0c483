# SPDX-License-Identifier: MIT
"""ctypes bindings to libDPCTLSyclInterface: the C face of the SYCL runtime. Handles are plain integers here.

Declarations follow the headers in dpctl/include/syclinterface of dpctl 0.22. Every function that can fail returns
NULL and prints its reason to stderr, so callers check and raise.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import threading
from pathlib import Path
from typing import Any

from jitmoe.errors import RuntimeUnavailableError

# DPCTLKernelArgType in dpctl_sycl_enum_types.h
ARGUMENT_INT32 = 4
ARGUMENT_INT64 = 6
ARGUMENT_FLOAT32 = 8
ARGUMENT_POINTER = 10
ARGUMENT_RAW = 13
EVENT_SUBMITTED, EVENT_RUNNING = 1, 2  # DPCTLSyclEventStatusType
QUEUE_IN_ORDER = 1 << 1  # DPCTLQueuePropertyType

_handle = ctypes.c_void_p
_size = ctypes.c_size_t

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "DPCTLContext_Hash": (_size, [_handle]),
    "DPCTLContext_Delete": (None, [_handle]),
    "DPCTLCString_Delete": (None, [_handle]),
    "DPCTLDevice_Delete": (None, [_handle]),
    "DPCTLDevice_GetBackend": (ctypes.c_int, [_handle]),
    "DPCTLDevice_GetDriverVersion": (_handle, [_handle]),
    "DPCTLDevice_GetLocalMemSize": (ctypes.c_uint64, [_handle]),
    "DPCTLDevice_GetMaxComputeUnits": (ctypes.c_uint32, [_handle]),
    "DPCTLDevice_GetMaxWorkGroupSize": (_size, [_handle]),
    "DPCTLDevice_GetName": (_handle, [_handle]),
    "DPCTLDevice_IsCPU": (ctypes.c_bool, [_handle]),
    "DPCTLDevice_IsGPU": (ctypes.c_bool, [_handle]),
    "DPCTLEvent_Delete": (None, [_handle]),
    "DPCTLEvent_GetCommandExecutionStatus": (ctypes.c_int, [_handle]),
    "DPCTLEvent_Wait": (None, [_handle]),
    "DPCTLKernelBundle_CreateFromSpirv": (_handle, [_handle, _handle, ctypes.c_char_p, _size, ctypes.c_char_p]),
    "DPCTLKernelBundle_GetKernel": (_handle, [_handle, ctypes.c_char_p]),
    "DPCTLKernelBundle_HasKernel": (ctypes.c_bool, [_handle, ctypes.c_char_p]),
    "DPCTLKernel_GetNumArgs": (_size, [_handle]),
    "DPCTLQueue_AreEq": (ctypes.c_bool, [_handle, _handle]),
    "DPCTLQueue_Create": (_handle, [_handle, _handle, _handle, ctypes.c_int]),
    "DPCTLQueue_Copy": (_handle, [_handle]),
    "DPCTLQueue_Delete": (None, [_handle]),
    "DPCTLQueue_GetContext": (_handle, [_handle]),
    "DPCTLQueue_GetDevice": (_handle, [_handle]),
    "DPCTLQueue_IsInOrder": (ctypes.c_bool, [_handle]),
    "DPCTLQueue_Memcpy": (_handle, [_handle, _handle, _handle, _size]),
    "DPCTLQueue_SubmitBarrier": (_handle, [_handle]),
    "DPCTLQueue_SubmitNDRange": (
        _handle,
        [_handle, _handle, _handle, _handle, _size, _handle, _handle, _size, _handle, _size],
    ),
    "DPCTLQueue_Wait": (None, [_handle]),
    "DPCTLRawKernelArg_Available": (ctypes.c_bool, []),
    "DPCTLRawKernelArg_Create": (_handle, [_handle, _size]),
    "DPCTLRawKernelArg_Delete": (None, [_handle]),
    "DPCTLaligned_alloc_device": (_handle, [_size, _size, _handle]),
    "DPCTLfree_with_queue": (None, [_handle, _handle]),
}

BACKEND_NAMES = {1 << 16: "cuda", 1 << 17: "level_zero", 1 << 18: "opencl", 1 << 19: "hip"}


def interface_path() -> Path:
    """Returns the path of dpctl's C library; raises ``RuntimeUnavailableError`` without importing dpctl."""
    found = importlib.util.find_spec("dpctl")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    for folder in folders:
        path = Path(folder) / "libDPCTLSyclInterface.so"
        if path.is_file():
            return path
    raise RuntimeUnavailableError(reason="dpctl is not installed", advice="pip install 'dpctl>=0.22'")


def soname_needed_by(image: bytes) -> str:
    """Returns the libsycl soname that an ELF file names (its dynamic string table), or an empty string."""
    found = re.search(rb"\0(libsycl\.so\.\d+)\0", image)
    return found.group(1).decode() if found else ""


@functools.cache
def runtime_soname() -> str:
    """Returns the soname of the libsycl that dpctl runs on, e.g. "libsycl.so.9"."""
    return soname_needed_by(interface_path().read_bytes())


def runtime_soname_or_none() -> str:
    """Returns ``runtime_soname()``, or an empty string where there is no runtime (compiling for elsewhere)."""
    try:
        return runtime_soname()
    except RuntimeUnavailableError:
        return ""


def loaded_libsycl() -> tuple[str, ...]:
    """Returns the sonames of all libsycl that are mapped into this process; two of them cannot share queues."""
    try:
        text = Path("/proc/self/maps").read_text()
    except OSError:
        return ()
    return tuple(sorted(set(re.findall(r"/(libsycl\.so\.\d+)(?:[.\d]*)$", text, flags=re.MULTILINE))))


@functools.cache
def library() -> Any:
    """Returns the loaded C library with typed functions; raises ``RuntimeUnavailableError``."""
    path = interface_path()
    wanted = runtime_soname()
    other = [name for name in loaded_libsycl() if name != wanted]
    if other:
        raise RuntimeUnavailableError(
            reason=f"this process has loaded {other[0]} and dpctl needs {wanted}: the two cannot share a queue",
            advice="use a torch and a dpctl of the same oneAPI major (torch 2.13+ XPU goes with dpctl 0.22)",
        )
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise RuntimeUnavailableError(
            reason=f"cannot use {path}: {error}", advice="pip install --force-reinstall dpctl intel-sycl-rt"
        ) from error
    if not loaded.DPCTLRawKernelArg_Available():
        raise RuntimeUnavailableError(
            reason=f"{path} was built without raw kernel arguments", advice="pip install 'dpctl>=0.22'"
        )
    _watch_forks()
    return loaded


def string(handle: int | None) -> str:
    """Returns the text of a C string that the library allocated, and frees it."""
    if not handle:
        return ""
    text = ctypes.string_at(handle).decode(errors="replace")
    library().DPCTLCString_Delete(handle)
    return text


_forked = threading.Event()


def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_forked.set)


def check_not_forked() -> None:
    """Raises in a process forked after the runtime started: its worker threads do not exist there and waits hang."""
    if _forked.is_set():
        raise RuntimeUnavailableError(
            reason="this process was forked after the SYCL runtime had started, which does not survive a fork",
            advice="start worker processes with the 'spawn' method, or call jitmoe only after the fork",
        )

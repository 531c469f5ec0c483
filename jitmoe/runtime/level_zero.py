# SPDX-License-Identifier: MIT
"""Building modules through the Level Zero driver (Intel GPUs): native images, machine code to keep, build logs.

Never run on a GPU by us: there is none on the machines this project is developed on. The calls and structures
follow ze_api.h of the Level Zero specification 1.x (module.yml) and are tested against a stand-in driver.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jitmoe.errors import LoadError
from jitmoe.runtime import interop
from jitmoe.runtime.stream import Stream

_ZE_RESULT_SUCCESS = 0
_ZE_STRUCTURE_TYPE_MODULE_DESC = 0x1B
_ZE_MODULE_FORMAT_IL_SPIRV = 0
_ZE_MODULE_FORMAT_NATIVE = 1

_handle = ctypes.c_void_p


class ModuleDescription(ctypes.Structure):
    """ze_module_desc_t."""

    _fields_ = (
        ("stype", ctypes.c_uint32),
        ("pNext", ctypes.c_void_p),
        ("format", ctypes.c_uint32),
        ("inputSize", ctypes.c_size_t),
        ("pInputModule", ctypes.c_void_p),
        ("pBuildFlags", ctypes.c_char_p),
        ("pConstants", ctypes.c_void_p),
    )


@functools.cache
def _library() -> Any:
    """Returns the Level Zero loader with typed functions, or None."""
    try:
        loaded = ctypes.CDLL("libze_loader.so.1")
        for name, arguments in (
            ("zeModuleCreate", [_handle, _handle, _handle, _handle, _handle]),
            ("zeModuleGetNativeBinary", [_handle, _handle, _handle]),
            ("zeModuleBuildLogGetString", [_handle, _handle, _handle]),
            ("zeModuleBuildLogDestroy", [_handle]),
        ):
            function = getattr(loaded, name)
            function.restype = ctypes.c_int
            function.argtypes = arguments
    except (OSError, AttributeError):
        return None
    return loaded


def is_available(stream: Stream) -> bool:
    """Whether modules for this stream's device can be built here."""
    return stream.device.backend == "level_zero" and interop.functions() is not None and _library() is not None


def build(
    name: str, stream: Stream, *, spirv: bytes = b"", machine_code: bytes = b"", options: str = ""
) -> tuple[int, bytes]:
    """Builds a module; arguments, result and errors as for ``opencl.build``.

    ``machine_code`` may also be what ocloc made for this GPU: the driver refuses what does not fit it.
    """
    driver = _library()
    context, device = interop.native_handles(stream)
    image = machine_code or spirv
    content = ctypes.create_string_buffer(image, len(image))
    description = ModuleDescription(
        stype=_ZE_STRUCTURE_TYPE_MODULE_DESC,
        format=_ZE_MODULE_FORMAT_NATIVE if machine_code else _ZE_MODULE_FORMAT_IL_SPIRV,
        inputSize=len(image),
        pInputModule=ctypes.addressof(content),
        pBuildFlags=options.encode(),
    )
    module, log = ctypes.c_void_p(), ctypes.c_void_p()
    result = driver.zeModuleCreate(context, device, ctypes.byref(description), ctypes.byref(module), ctypes.byref(log))
    text = _take_log(driver, log)
    if result != _ZE_RESULT_SUCCESS or not module.value:
        raise LoadError(
            kernel=name, reason=f"the Level Zero driver takes no such image (error {result & 0xFFFFFFFF:#x}): {text}"
        )
    return interop.kernel_bundle(module.value, stream), machine_code or _machine_code(driver, module)


def _take_log(driver: Any, log: ctypes.c_void_p) -> str:
    """Returns the build log's text and frees it."""
    if not log.value:
        return "no build log"
    size = ctypes.c_size_t(0)
    driver.zeModuleBuildLogGetString(log, ctypes.byref(size), None)
    text = ctypes.create_string_buffer(max(1, size.value))
    driver.zeModuleBuildLogGetString(log, ctypes.byref(size), text)
    driver.zeModuleBuildLogDestroy(log)
    return text.value.decode(errors="replace").strip() or "no build log"


def _machine_code(driver: Any, module: ctypes.c_void_p) -> bytes:
    """Returns the module's machine code, or nothing if the driver does not give it."""
    size = ctypes.c_size_t(0)
    if driver.zeModuleGetNativeBinary(module, ctypes.byref(size), None) or not size.value:
        return b""
    content = ctypes.create_string_buffer(size.value)
    if driver.zeModuleGetNativeBinary(module, ctypes.byref(size), content):
        return b""
    return content.raw[: size.value]

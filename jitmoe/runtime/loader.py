# SPDX-License-Identifier: MIT
"""Artifact -> ``sycl::kernel*``, for both kinds of artifact. Loaded code is never unloaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jitmoe.device import DeviceKind
from jitmoe.errors import LoadError
from jitmoe.runtime import level_zero, opencl, spirv, sycl
from jitmoe.runtime.stream import Stream

ABI_VERSION = 1  # of the functions that shared libraries export; JITMOE_ABI_VERSION in host/shared_library.hpp
ERROR_TEXT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that is ready to be launched on queues of one context."""

    name: str
    handle: int  # sycl::kernel*


def load_spirv(
    name: str,
    image: bytes,
    num_arguments: int,
    stream: Stream,
    *,
    large_grf: bool = False,
    is_vectorized: bool = False,
    machine_code: bytes = b"",
) -> tuple[Kernel, bytes]:
    """Builds a SPIR-V image for the stream's device. The caller has verified the digests of both images.

    Args:
        large_grf: build for 256-GRF mode (GPUs).
        is_vectorized: the kernel uses explicit vectors in work-groups of one work-item (CPUs).
        machine_code: what an earlier call returned for the same image, device and driver: no build is needed then.

    Returns:
        (the kernel, machine code to keep for next time; empty where the driver gives none)

    Raises:
        LoadError: the runtime refuses the image or does not find the kernel. (A truncated image would end the
            process instead, which is why nothing unverified may come here.)
    """
    try:
        hinted = spirv.with_vector_hint(image)
    except ValueError as error:
        raise LoadError(kernel=name, reason=str(error)) from error
    if is_vectorized and stream.device.kind is DeviceKind.CPU:
        image = hinted
    # As a property in the source this would become a build option that the CPU device rejects.
    options = "-ze-opt-large-register-file" if large_grf and stream.device.kind is DeviceKind.GPU else ""
    driver = next((driver for driver in (opencl, level_zero) if driver.is_available(stream)), None)
    if driver is not None:
        bundle, machine_code = driver.build(name, stream, spirv=image, machine_code=machine_code, options=options)
    else:
        bundle = sycl.library().DPCTLKernelBundle_CreateFromSpirv(
            stream.context_ref, stream.device_ref, image, len(image), options.encode()
        )
        if not bundle:
            raise LoadError(kernel=name, reason=f"{stream.device} does not accept the image (options: {options})")
        machine_code = b""
    return _kernel_of(bundle, name, num_arguments), machine_code


def _kernel_of(bundle: int, name: str, num_arguments: int) -> Kernel:
    library = sycl.library()
    entry = f"__sycl_kernel_{name}".encode()
    if not library.DPCTLKernelBundle_HasKernel(bundle, entry):  # asking for a missing kernel crashes later
        raise LoadError(kernel=name, reason=f"the image has no entry point {entry.decode()}")
    handle = library.DPCTLKernelBundle_GetKernel(bundle, entry)
    if not handle:
        raise LoadError(kernel=name, reason=f"the runtime gives no kernel for {entry.decode()}")
    found = library.DPCTLKernel_GetNumArgs(handle)
    if found != num_arguments:
        raise LoadError(kernel=name, reason=f"the kernel takes {found} arguments instead of {num_arguments}")
    return Kernel(name, handle)


def load_shared_library(name: str, image: bytes, build_key: str, stream: Stream) -> Kernel:
    """Loads a library made by icpx and asks it for its kernel on the stream's queue.

    Args:
        image: the library's verified bytes.
        build_key: the key it must say it was built for.

    Raises:
        LoadError: another libsycl, ABI version or key than expected, or the library reports an error.
    """
    needed = sycl.soname_needed_by(image)
    if needed != sycl.runtime_soname():  # before dlopen: two libsycl in one process cannot be undone
        raise LoadError(
            kernel=name, reason=f"it needs {needed or 'no libsycl'}, this process runs {sycl.runtime_soname()}"
        )
    with _library_file(image) as file:
        try:
            loaded = ctypes.CDLL(str(file))
            loaded.jitmoe_abi_version.restype = ctypes.c_int32
            loaded.jitmoe_build_key.restype = ctypes.c_char_p
            loaded.jitmoe_get_kernel.restype = ctypes.c_void_p
            loaded.jitmoe_get_kernel.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        except (OSError, AttributeError) as error:
            raise LoadError(kernel=name, reason=str(error), path=file) from error
    version = loaded.jitmoe_abi_version()
    if version != ABI_VERSION:
        raise LoadError(kernel=name, reason=f"its ABI version is {version} instead of {ABI_VERSION}", path=file)
    found = loaded.jitmoe_build_key().decode(errors="replace")
    if found != build_key:
        raise LoadError(kernel=name, reason=f"it was built for key {found}, not {build_key}", path=file)
    text = ctypes.create_string_buffer(ERROR_TEXT_BYTES)
    handle = loaded.jitmoe_get_kernel(name.encode(), stream.queue_ref, text, ERROR_TEXT_BYTES)
    if not handle:
        raise LoadError(kernel=name, reason=text.value.decode(errors="replace"), path=file)
    return Kernel(name, handle)


@contextlib.contextmanager
def _library_file(image: bytes) -> Iterator[Path]:
    """Yields a file with exactly ``image``: a private copy, so that what is mapped is what was verified."""
    folder = Path("/dev/shm")  # containers often mount it so that nothing there can be executed
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        folder = Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix="jitmoe-", suffix=".so") as stream:
        stream.write(image)
        stream.flush()
        yield Path(stream.name)

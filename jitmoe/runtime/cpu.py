# SPDX-License-Identifier: MIT
"""The SYCL CPU device: finding and registering its runtime, its default queue, and the facts of the CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import threading
from pathlib import Path
from typing import Any

from jitmoe.device import CpuIsa
from jitmoe.errors import RuntimeUnavailableError
from jitmoe.runtime import sycl

RUNTIME_PACKAGE = "intel-opencl-rt"
RUNTIME_LIBRARY = "libintelocl.so"
ICD_VARIABLE = "OCL_ICD_FILENAMES"

CPUINFO = Path("/proc/cpuinfo")
# What each instruction set needs, by the names that are listed there. Of the CPUs with avx512_bf16 only Cooper Lake has
# no gfni.
_AVX512_FLAGS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_BF16_FLAGS = _AVX512_FLAGS | {"avx512_bf16", "avx512_vnni", "gfni"}
_TILE_FLAGS = _BF16_FLAGS | {"amx_tile", "amx_bf16", "amx_int8"}
_ISA_FLAGS: tuple[tuple[CpuIsa, frozenset[str]], ...] = (
    (CpuIsa.AMX_FP16, _TILE_FLAGS | {"amx_fp16"}),
    (CpuIsa.AMX_BF16, _TILE_FLAGS),
    (CpuIsa.AVX512_BF16, _BF16_FLAGS),
    (CpuIsa.AVX512, _AVX512_FLAGS),
    (CpuIsa.AVX2, frozenset({"avx2", "fma", "f16c"})),
)
# CL_CONFIG_CPU_TARGET_ARCH makes the runtime generate code for less than the CPU has.
TARGET_VARIABLE = "CL_CONFIG_CPU_TARGET_ARCH"
_TARGET_ISA = {"corei7": CpuIsa.GENERIC, "corei7-avx": CpuIsa.GENERIC, "core-avx2": CpuIsa.AVX2, "skx": CpuIsa.AVX512}


def find_runtime() -> Path | None:
    """Returns the CPU runtime's library from the intel-opencl-rt wheel, or None."""
    from importlib import metadata  # here: it alone would double the time that importing jitmoe takes

    try:
        distribution = metadata.distribution(RUNTIME_PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    for line in (distribution.read_text("RECORD") or "").splitlines():
        path = line.partition(",")[0]
        if path.endswith("/" + RUNTIME_LIBRARY):
            located = Path(str(distribution.locate_file(path))).resolve()
            return located if located.is_file() else None
    return None


def register_runtime() -> None:
    """Names the wheel's CPU runtime to the OpenCL loader; only works before the first platform query.

    A wheel registers no ICD, so without this the process has no CPU device. What the user set stays.
    """
    if os.environ.get(ICD_VARIABLE):
        return
    runtime = find_runtime()
    if runtime is not None:
        os.environ[ICD_VARIABLE] = str(runtime)


_lock = threading.Lock()
_queue: Any = None


def default_queue() -> Any:
    """Returns the process-wide in-order ``dpctl.SyclQueue`` on the CPU device; raises ``RuntimeUnavailableError``."""
    global _queue
    if _queue is None:
        with _lock:
            if _queue is None:
                _queue = _make_queue()
    return _queue


def _make_queue() -> Any:
    sycl.check_not_forked()
    register_runtime()
    try:
        import dpctl
    except ImportError as error:
        raise RuntimeUnavailableError(
            reason=f"dpctl cannot be imported: {error}", advice="pip install 'jitmoe[cpu]'"
        ) from error
    try:
        return dpctl.SyclQueue("cpu", property=["in_order"])
    except dpctl.SyclQueueCreationError as error:
        raise RuntimeUnavailableError(reason="there is no SYCL CPU device", advice=_advice()) from error


def _advice() -> str:
    if find_runtime() is None and not os.environ.get(ICD_VARIABLE):
        return "pip install 'jitmoe[cpu]' (it brings intel-opencl-rt, the CPU device's runtime)"
    selector = os.environ.get("ONEAPI_DEVICE_SELECTOR", "")
    if selector and "cpu" not in selector and "opencl:*" not in selector:
        return f"ONEAPI_DEVICE_SELECTOR={selector} hides the CPU device: unset it or add opencl:cpu"
    return (
        "call jitmoe before anything else in the process asks SYCL for its platforms, "
        f"or set {ICD_VARIABLE} to {RUNTIME_LIBRARY}'s path before starting"
    )


@functools.cache
def host_flags() -> frozenset[str]:
    """Returns the CPU's feature names as Linux spells them; empty where they cannot be read.

    Linux knows ``amx_fp16`` but does not list it in /proc/cpuinfo; the C library is asked for that one.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    if "amx_tile" in flags and _leaf_7_1_eax() >> _AMX_FP16_BIT & 1:
        flags.append("amx_fp16")
    return frozenset(flags)


# Intel SDM volume 2, CPUID. glibc 2.33 and newer (sys/platform/x86.h) numbers the leaves and gives registers of each.
_GLIBC_LEAF_7_1 = 6
_AMX_FP16_BIT = 21  # of EAX


def _leaf_7_1_eax() -> int:
    """Returns the register EAX of CPUID leaf 7, subleaf 1, or 0 where the C library does not tell."""
    try:
        leaf = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf
    except (OSError, AttributeError):
        return 0
    leaf.argtypes, leaf.restype = [ctypes.c_uint], ctypes.POINTER(ctypes.c_uint32)
    return int(leaf(_GLIBC_LEAF_7_1)[0])


def features_digest() -> str:
    """Returns a digest of the CPU's features and of the settings that change what code the runtime makes for it."""
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("CL_CONFIG_CPU_")]
    facts = "\0".join([*sorted(host_flags()), *settings])
    return hashlib.sha256(facts.encode(), usedforsecurity=False).hexdigest()[:16]


def isa_of(flags: frozenset[str], target: str) -> CpuIsa:
    """Returns the best instruction set that ``flags`` offer and the runtime's ``target`` setting allows."""
    best = next((isa for isa, needed in _ISA_FLAGS if needed <= flags), CpuIsa.GENERIC)
    return best.at_most(_TARGET_ISA.get(target, best))


def isa() -> CpuIsa:
    """Returns the instruction set that CPU kernels may use in this process; asks for the tile registers of AMX."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return CpuIsa.GENERIC
    best = isa_of(host_flags(), os.environ.get(TARGET_VARIABLE, ""))
    if best.has_tiles and not request_tiles():
        return CpuIsa.AVX512_BF16
    return best


# Linux, arch/x86/include/uapi/asm/prctl.h and Documentation/arch/x86/xstate.rst
_SYS_ARCH_PRCTL = 158
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_XFEATURE_XTILEDATA = 18


@functools.cache
def request_tiles() -> bool:
    """Asks the kernel for AMX tile data, for all threads of the process, and returns whether they may use it.

    Without permission the first tile instruction is SIGILL. The permission stays, survives fork, and makes signal
    frames of threads that use tiles 8 KiB larger, which is why Linux refuses it where an alternate signal stack is too
    small for that.
    """
    if platform.system() != "Linux":
        return False
    try:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return False
    syscall.restype = ctypes.c_long
    if syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, ctypes.c_ulong(_XFEATURE_XTILEDATA)) != 0:
        return False
    granted = ctypes.c_uint64(0)
    if syscall(_SYS_ARCH_PRCTL, _ARCH_GET_XCOMP_PERM, ctypes.byref(granted)) != 0:
        return False
    return bool(granted.value >> _XFEATURE_XTILEDATA & 1)


@functools.cache
def cache_bytes(level: int) -> int:
    """Returns the size of CPU 0's data cache at ``level`` (2: per core, 3: shared), or 0 if unknown."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text().strip() != "Instruction":
                text = (index / "size").read_text().strip()
                return int(text.rstrip("KM")) << (20 if text.endswith("M") else 10)
        except (OSError, ValueError):
            continue
    return 0

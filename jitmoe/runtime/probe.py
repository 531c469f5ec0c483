# SPDX-License-Identifier: MIT
"""Device facts of a real queue."""

from __future__ import annotations

import ctypes
import logging

from jitmoe.device import Device, DeviceKind
from jitmoe.errors import RuntimeUnavailableError
from jitmoe.runtime import cpu, sycl

logger = logging.getLogger("jitmoe")

# sycl::ext::oneapi::experimental::architecture (device_architecture.def of intel-sycl-rt 2026.2) without the
# revision in the lowest 12 bits -> ocloc's device name. Devices that share code share a name.
_ARCHITECTURES = {
    0x30DC00: "dg2",
    0x30E000: "dg2",
    0x30E400: "dg2",
    0x30F000: "pvc",
    0x30F400: "pvc",
    0x311800: "mtl",
    0x311C00: "mtl",
    0x312800: "arl-h",
    0x500400: "bmg-g21",
    0x500800: "bmg-g31",
    0x501000: "lnl-m",
    0x780000: "ptl-h",
    0x780400: "ptl-h",
    0x8C2C00: "cri",
}
_ARCHITECTURE_GETTER = (
    "_ZNK4sycl3_V16device13get_info_implINS0_3ext6oneapi12experimental4info6device12architectureEEE"
    "NS0_6detail11ABINeutralTINS9_19is_device_info_descIT_E11return_typeEE4typeEv"
)
# For runtimes without that symbol: what device names contain.
_NAME_PARTS = (
    ("B580", "bmg-g21"),
    ("B570", "bmg-g21"),
    ("Pro B50", "bmg-g21"),
    ("Pro B60", "bmg-g21"),
    ("Pro B70", "bmg-g31"),
    ("Data Center GPU Max", "pvc"),
    ("Arc(TM) A", "dg2"),
    ("Arc(TM) 140V", "lnl-m"),
    ("Arc(TM) 130V", "lnl-m"),
)
UNKNOWN_GPU = "unknown"


def probe(queue_ref: int, *, emulated_arch: str | None = None) -> Device:
    """Returns the facts of the device behind a ``sycl::queue*``.

    Args:
        queue_ref: address of a ``sycl::queue``.
        emulated_arch: for tests and tools: treat the CPU device behind the queue as an emulation of this GPU.
    """
    library = sycl.library()
    device_ref = library.DPCTLQueue_GetDevice(queue_ref)
    if not device_ref:
        raise RuntimeUnavailableError(reason="the queue has no device", advice="pass a valid queue")
    try:
        is_cpu = library.DPCTLDevice_IsCPU(device_ref)
        if not is_cpu and not library.DPCTLDevice_IsGPU(device_ref):
            raise RuntimeUnavailableError(
                reason="the queue's device is neither a CPU nor a GPU", advice="use a queue on an Intel GPU or the CPU"
            )
        if emulated_arch is not None:
            kind, arch = DeviceKind.XE_EMULATED, emulated_arch
        elif is_cpu:
            kind, arch = DeviceKind.CPU, "x86-64"
        else:
            kind, arch = DeviceKind.GPU, _gpu_arch(device_ref)
        return Device(
            kind=kind,
            arch=arch,
            name=sycl.string(library.DPCTLDevice_GetName(device_ref)).strip(),
            driver_version=sycl.string(library.DPCTLDevice_GetDriverVersion(device_ref)),
            backend=sycl.BACKEND_NAMES.get(library.DPCTLDevice_GetBackend(device_ref), "unknown"),
            num_compute_units=library.DPCTLDevice_GetMaxComputeUnits(device_ref),
            max_work_group_size=library.DPCTLDevice_GetMaxWorkGroupSize(device_ref),
            local_mem_bytes=library.DPCTLDevice_GetLocalMemSize(device_ref),
            cpu_isa=cpu.isa() if is_cpu else None,
            features=cpu.features_digest() if is_cpu else "",
            l2_bytes=cpu.cache_bytes(2) if is_cpu else 0,
            l3_bytes=cpu.cache_bytes(3) if is_cpu else 0,
        )
    finally:
        library.DPCTLDevice_Delete(device_ref)


def _gpu_arch(device_ref: int) -> str:
    """Returns ocloc's name of the GPU. Never run on a GPU by us; the CPU device answers the same query (tests)."""
    value = architecture_code(device_ref)
    if value is not None and value >> 12 in _ARCHITECTURES:
        return _ARCHITECTURES[value >> 12]
    name = sycl.string(sycl.library().DPCTLDevice_GetName(device_ref))
    for part, arch in _NAME_PARTS:
        if part in name:
            return arch
    logger.warning("jitmoe: GPU %r (architecture %s) is not known; portable kernels are used", name, value)
    return UNKNOWN_GPU


def architecture_code(device_ref: int) -> int | None:
    """Returns the runtime's architecture number of a ``sycl::device*``, or None where libsycl cannot be asked."""
    try:
        getter = ctypes.CDLL(sycl.runtime_soname())[_ARCHITECTURE_GETTER]
    except (OSError, AttributeError):
        return None
    getter.restype = ctypes.c_uint64
    getter.argtypes = [ctypes.c_void_p]
    return int(getter(device_ref))

# SPDX-License-Identifier: MIT
"""Facts about Intel GPU architectures, by ocloc's device name, and stand-in devices for compiling offline.

Sources of each row:
  simd, has_dpas, has_block2d: what ocloc 26.27 generates for the name (docs/isa-report.md), and for mtl Intel's product
      page (Meteor Lake's Xe-LPG has no XMX; ocloc accepts dpas for it all the same, so acceptance proves nothing).
  engines_per_core, threads_per_engine, core counts, L2: Intel's product pages and architecture slides for the largest
      product of the name (Max 1550, Arc B580, Arc Pro B70, Arc 140V, Arc B390, Arc A770, Core Ultra 155H/285H).
  local_mem_bytes: SYCL's local_mem_size on these products as published (128 KiB from Xe-HPC on, 64 KiB before).
Rows marked "guess" have no public product. A present device's own numbers always win; only its name is looked up here.
"""

from __future__ import annotations

from dataclasses import dataclass

from jitmoe.device import Device, DeviceKind

KIB = 1024
EMULATED_WORK_GROUPS = 3  # odd, so that tiles spread unevenly; few, so that each work-group walks over several


@dataclass(frozen=True, slots=True, kw_only=True)
class XeArchitecture:
    """One architecture."""

    name: str
    simd: int  # sub-group size that the kernels use
    has_dpas: bool
    has_block2d: bool  # 2D block loads and stores
    grf_bytes: int  # of one register
    engines_per_core: int  # vector engines of an Xe-core
    threads_per_engine: int  # with 128 registers per thread; half with 256
    cores: int  # Xe-cores of the largest product
    local_mem_bytes: int  # SLM per work-group
    l2_bytes: int  # last-level cache of the GPU
    note: str = ""

    @property
    def num_engines(self) -> int:
        return self.cores * self.engines_per_core

    def max_sub_groups(self, large_grf: bool) -> int:
        """Sub-groups that one Xe-core, and so one work-group, holds."""
        return self.engines_per_core * self.threads_per_engine // (2 if large_grf else 1)


def _xe2(name: str, cores: int, l2_mib: int, note: str = "") -> XeArchitecture:
    """Xe-HPC, Xe2, Xe3: SIMD16, 2D blocks, 8 engines x 8 threads per core."""
    return XeArchitecture(
        name=name,
        simd=16,
        has_dpas=True,
        has_block2d=True,
        grf_bytes=64,
        engines_per_core=8,
        threads_per_engine=8,
        cores=cores,
        local_mem_bytes=128 * KIB,
        l2_bytes=l2_mib * KIB * KIB,
        note=note,
    )


def _xe_hpg(name: str, cores: int, l2_mib: int, *, has_dpas: bool, note: str = "") -> XeArchitecture:
    """Xe-HPG, Xe-LPG: 32-byte registers, no 2D blocks, 16 engines x 8 threads per core."""
    return XeArchitecture(
        name=name,
        simd=8 if has_dpas else 16,
        has_dpas=has_dpas,
        has_block2d=False,
        grf_bytes=32,
        engines_per_core=16,
        threads_per_engine=8,
        cores=cores,
        local_mem_bytes=64 * KIB,
        l2_bytes=l2_mib * KIB * KIB,
        note=note,
    )


ARCHITECTURES: dict[str, XeArchitecture] = {
    row.name: row
    for row in (
        _xe2("pvc", 128, 408),
        _xe2("bmg-g21", 20, 18),
        _xe2("bmg-g31", 32, 32, note="L2 size is a guess"),
        _xe2("lnl-m", 8, 8),
        _xe2("ptl-h", 12, 16),
        _xe2("cri", 32, 32, note="guess: announced, no product yet"),
        _xe_hpg("dg2", 32, 16, has_dpas=True),
        _xe_hpg("arl-h", 8, 8, has_dpas=True),
        _xe_hpg("mtl", 8, 4, has_dpas=False),
    )
}

# GPUs that are not in the table get kernels that need nothing special.
UNKNOWN = _xe_hpg("unknown", 8, 4, has_dpas=False, note="not in the table: kernels without dpas and 2D blocks")


def architecture(name: str) -> XeArchitecture:
    """Returns the facts for ocloc's device name, ``UNKNOWN`` if it is not in the table."""
    return ARCHITECTURES.get(name, UNKNOWN)


def offline_device(name: str) -> Device:
    """Returns a device value for compiling without the device; raises ``KeyError`` for names not in the table."""
    arch = ARCHITECTURES[name]
    return Device(
        kind=DeviceKind.GPU,
        arch=name,
        name=f"{name} (offline)",
        driver_version="",
        backend="level_zero",
        num_compute_units=arch.num_engines,
        max_work_group_size=1024,
        local_mem_bytes=arch.local_mem_bytes,
        l2_bytes=0,
    )


def resident_groups(device: Device, arch: XeArchitecture, sub_groups: int, large_grf: bool) -> int:
    """Returns how many work-groups of ``sub_groups`` the device holds at once."""
    if device.kind is DeviceKind.XE_EMULATED:
        return EMULATED_WORK_GROUPS
    threads = device.num_compute_units * arch.threads_per_engine // (2 if large_grf else 1)
    return max(1, threads // sub_groups)

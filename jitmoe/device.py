# SPDX-License-Identifier: MIT
"""What is there: the facts of one device, as a frozen value. ``runtime/probe.py`` fills it in from a real device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum


class DeviceKind(str, Enum):
    CPU = "cpu"  # the SYCL CPU device
    GPU = "gpu"  # an Intel GPU
    XE_EMULATED = "xe-emulated"  # GPU kernels with portable intrinsics on the SYCL CPU device (tests and tools only)


class CpuIsa(str, Enum):
    """Instruction sets that CPU kernels are written for, weakest first."""

    GENERIC = "generic"
    AVX2 = "avx2"  # AVX2, FMA, F16C
    AVX512 = "avx512"  # F, BW, DQ, VL
    AVX512_BF16 = "avx512_bf16"  # with VNNI and GFNI
    AMX_BF16 = "amx_bf16"  # with int8
    AMX_FP16 = "amx_fp16"

    @property
    def has_tiles(self) -> bool:
        """Whether it has AMX."""
        return self in (CpuIsa.AMX_BF16, CpuIsa.AMX_FP16)

    def at_most(self, limit: CpuIsa) -> CpuIsa:
        """Returns the weaker of the two."""
        return min(self, limit, key=tuple(CpuIsa).index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Facts that planning and compiling use; nothing here is a handle."""

    kind: DeviceKind
    arch: str  # GPUs: ocloc's device name, e.g. "bmg-g21"; CPUs: "x86-64"
    name: str
    driver_version: str
    backend: str  # "opencl" or "level_zero"
    num_compute_units: int  # CPU: hardware threads the runtime uses; GPU: vector engines
    max_work_group_size: int
    local_mem_bytes: int  # SLM per work-group
    cpu_isa: CpuIsa | None = None  # CPUs: what the device's code generator targets
    features: str = ""  # CPUs: digest of all that decides which machine code runs here
    l2_bytes: int = 0  # CPUs: per core; 0 = unknown
    l3_bytes: int = 0  # CPUs: per socket; 0 = unknown

    @property
    def fingerprint(self) -> str:
        """What must be the same for a kernel's self-check to stay valid: device, instruction set and driver."""
        isa = self.cpu_isa.value if self.cpu_isa is not None else ""
        facts = "\0".join(
            (self.kind.value, self.arch, self.name, isa, self.features, self.backend, self.driver_version)
        )
        return hashlib.sha256(facts.encode(), usedforsecurity=False).hexdigest()[:16]

    def __str__(self) -> str:
        isa = f", {self.cpu_isa.value}" if self.cpu_isa is not None else ""
        driver = f", driver {self.driver_version}" if self.driver_version else ""  # none offline
        return f"{self.name} ({self.kind.value}, {self.arch}{isa}{driver})"

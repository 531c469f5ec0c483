# SPDX-License-Identifier: MIT
"""Devices as people name them: those that are here (with a queue), and stand-ins for compiling offline."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from typing import Any

from jitmoe.device import CpuIsa, Device, DeviceKind
from jitmoe.errors import JitMoEError
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.runtime import cpu

CPU_NAMES = tuple(f"cpu-{isa.value}" for isa in CpuIsa)


class DeviceError(JitMoEError):
    """A device name that means nothing here."""

    def __init__(self, *, name: str, reason: str) -> None:
        super().__init__(name=name, reason=reason)

    name: str
    reason: str

    def __str__(self) -> str:
        return f"device {self.name}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One device to prepare kernels for; without a queue it is not here and nothing can be run on it."""

    device: Device
    queue: Any = None  # dpctl.SyclQueue

    @property
    def is_present(self) -> bool:
        return self.queue is not None

    @property
    def words(self) -> str:
        """The device for people."""
        return str(self.device) if self.is_present else self.device.name


def present_targets() -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Returns (devices that SYCL shows in this process, GPUs first; why others could not be used)."""
    from jitmoe.runtime.probe import probe

    cpu.register_runtime()
    try:
        import dpctl
    except ImportError as error:
        return (), (f"dpctl cannot be imported ({error})",)
    targets: dict[tuple[DeviceKind, str], Target] = {}
    problems = []
    try:
        devices = dpctl.get_devices()
    except Exception as error:  # whatever the runtime says about a broken installation
        return (), (f"dpctl cannot list devices ({error})",)
    for sycl_device in sorted(devices, key=lambda d: (not d.is_gpu, "level_zero" not in str(d.backend))):
        if not (sycl_device.is_gpu or sycl_device.is_cpu):
            continue
        if sycl_device.is_gpu and "Intel" not in sycl_device.vendor:
            continue
        try:
            queue = dpctl.SyclQueue(sycl_device, property=["in_order"])
            device = probe(queue.addressof_ref())
        except (JitMoEError, RuntimeError) as error:
            problems.append(f"{sycl_device.name}: {error}")
            continue
        # A GPU is listed once per backend, and equal GPUs share kernels: the first of a kind stands for all.
        targets.setdefault((device.kind, device.arch), Target(device=device, queue=queue))
    return tuple(targets.values()), tuple(problems)


def offline_cpu(isa: CpuIsa) -> Device:
    """Returns a CPU that is not here, with code for ``isa``. Sizes only shape launches, not binaries."""
    return Device(
        kind=DeviceKind.CPU,
        arch="x86-64",
        name=f"cpu-{isa.value} (offline)",
        driver_version="",
        backend="opencl",
        num_compute_units=8,
        max_work_group_size=8192,
        local_mem_bytes=256 << 10,
        cpu_isa=isa,
    )


def resolve(names: list[str]) -> tuple[Target, ...]:
    """Returns the targets that ``names`` mean; without names, the GPUs that are here, else the CPU.

    Names: "cpu", "gpu" (all GPUs that are here), a GPU architecture such as "bmg-g21" (the device if it is here,
    offline otherwise), "cpu-avx2" and the like (offline).

    Raises:
        DeviceError: a name is unknown, or the device it needs is not here.
    """
    wants_host = not names or any(name in ("cpu", "gpu", "xpu") or name in ARCHITECTURES for name in names)
    present, problems = present_targets() if wants_host else ((), ())
    gpus = [target for target in present if target.device.kind is DeviceKind.GPU]
    cpus = [target for target in present if target.device.kind is DeviceKind.CPU]
    why = f" ({'; '.join(problems)})" if problems else ""
    if not names:
        if gpus or cpus:
            return tuple(gpus or cpus)
        raise DeviceError(
            name="(default)",
            reason=f"SYCL shows no GPU and no CPU device here{why}\n"
            "pip install 'jitmoe[cpu]' brings the CPU device; --device bmg-g21 compiles for a GPU that is not here; "
            "jitmoe-info says more",
        )
    targets: dict[Device, Target] = {}
    for name in names:
        found: list[Target]
        if name == "cpu":
            found = cpus
            if not found and platform.machine() in ("x86_64", "AMD64"):
                found = [Target(device=offline_cpu(cpu.isa()))]
        elif name in ("gpu", "xpu"):
            found = gpus
            if not found:
                raise DeviceError(name=name, reason=f"no Intel GPU is here{why}; one of {', '.join(ARCHITECTURES)} "
                                  "compiles for a GPU that is not here")  # fmt: skip
        elif name in ARCHITECTURES:
            found = [target for target in gpus if target.device.arch == name] or [Target(device=offline_device(name))]
        elif name in CPU_NAMES:
            found = [Target(device=offline_cpu(CpuIsa(name.removeprefix("cpu-"))))]
        else:
            known = ["cpu", "gpu", *ARCHITECTURES, *CPU_NAMES]
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise DeviceError(name=name, reason=f"unknown; {hint}")
        for target in found:
            targets.setdefault(target.device, target)
    return tuple(targets.values())

# SPDX-License-Identifier: MIT
"""Which devices the tools take, with a stand-in for dpctl."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from helpers.builders import cpu_device, gpu_device, moe_problem

from jitmoe.cli import devices
from jitmoe.device import CpuIsa, DeviceKind
from jitmoe.errors import RuntimeUnavailableError
from jitmoe.plan import planner_for


def listed(name: str, *, kind: str = "gpu", backend: str = "level_zero", vendor: str = "Intel(R) Corporation"):
    return SimpleNamespace(name=name, vendor=vendor, backend=backend, is_gpu=kind == "gpu", is_cpu=kind == "cpu")


class Queue:
    def __init__(self, device, property):
        self.device = device

    def addressof_ref(self):
        return self.device


@pytest.fixture
def dpctl(monkeypatch) -> SimpleNamespace:
    """What SYCL lists; a device's name says what the probe finds."""

    def probe(device):
        if "broken" in device.name:
            raise RuntimeUnavailableError(reason="no context", advice="")
        if device.is_cpu:
            return cpu_device(name=device.name)
        return gpu_device(device.name, backend=device.backend)

    module = SimpleNamespace(listed=[], SyclQueue=Queue)
    module.get_devices = lambda: module.listed
    monkeypatch.setitem(sys.modules, "dpctl", module)
    monkeypatch.setattr(devices.cpu, "register_runtime", lambda: None)
    monkeypatch.setattr("jitmoe.runtime.probe.probe", probe)
    return module


def test_gpus_come_first_and_once_through_level_zero(dpctl):
    dpctl.listed = [
        listed("A CPU", kind="cpu", backend="opencl"),
        listed("pvc", backend="opencl"),
        listed("pvc"),
        listed("bmg-g21"),
        listed("pvc"),
    ]
    targets, problems = devices.present_targets()
    assert [(target.device.arch, target.device.backend) for target in targets] == [
        ("pvc", "level_zero"), ("bmg-g21", "level_zero"), ("x86-64", "opencl"),
    ]  # fmt: skip
    assert problems == ()
    assert [target.device.arch for target in devices.resolve([])] == ["pvc", "bmg-g21"]
    assert devices.resolve(["bmg-g21"])[0].is_present


def test_what_we_have_no_kernels_for_is_passed_over(dpctl):
    dpctl.listed = [
        listed("other", vendor="Another vendor"),
        listed("FPGA", kind="accelerator"),
        listed("A CPU", kind="cpu"),
    ]
    targets, _ = devices.present_targets()
    assert [target.device.kind for target in targets] == [DeviceKind.CPU]


def test_a_device_that_cannot_be_used_is_reported_and_the_others_stay(dpctl):
    dpctl.listed = [listed("broken"), listed("A CPU", kind="cpu")]
    targets, problems = devices.present_targets()
    assert len(targets) == 1
    assert "broken" in problems[0] and "no context" in problems[0]


def test_a_runtime_that_cannot_list_is_reported(dpctl):
    def fail():
        raise RuntimeError("no platform")

    dpctl.get_devices = fail
    assert devices.present_targets() == ((), ("dpctl cannot list devices (no platform)",))


def test_without_dpctl_offline_devices_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "dpctl", None)
    assert devices.resolve(["pvc"])[0].device.arch == "pvc"
    with pytest.raises(devices.DeviceError, match="dpctl cannot be imported"):
        devices.resolve(["gpu"])


@pytest.mark.parametrize("isa", CpuIsa)
def test_every_offline_cpu_can_be_planned_for(isa):
    target = devices.resolve([f"cpu-{isa.value}"])[0]
    assert not target.is_present
    assert planner_for(moe_problem(), target.device)
    assert str(target.device) == f"cpu-{isa.value} (offline) (cpu, x86-64, {isa.value})"

# SPDX-License-Identifier: MIT
"""The Level Zero edge against a stand-in driver made of C callbacks: what reaches the driver, and what comes back."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from jitmoe.errors import LoadError
from jitmoe.runtime import interop, level_zero

CONTEXT, DEVICE, MODULE, LOG = 0x1000, 0x2000, 0x3000, 0x4000


class StandInDriver:
    """Records ze_module_desc_t as a C driver would read it, through real C calls."""

    def __init__(self, *, result=0, log=b"", binary=b"native bytes"):
        self.descriptions, self.destroyed_logs = [], []
        self._binary, self._log, self._result = binary, log, result
        pointer = ctypes.c_void_p
        three = ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.POINTER(ctypes.c_size_t), pointer)
        five = ctypes.CFUNCTYPE(
            ctypes.c_int,
            pointer,
            pointer,
            ctypes.POINTER(level_zero.ModuleDescription),
            ctypes.POINTER(pointer),
            ctypes.POINTER(pointer),
        )
        self.zeModuleCreate = five(self._create)
        self.zeModuleGetNativeBinary = three(lambda _, size, to: self._give(self._binary, size, to))
        self.zeModuleBuildLogGetString = three(lambda _, size, to: self._give(self._log + b"\0", size, to))
        self.zeModuleBuildLogDestroy = ctypes.CFUNCTYPE(ctypes.c_int, pointer)(self._destroy)

    def _create(self, context, device, description, module, log):
        d = description.contents
        self.descriptions.append(
            (
                context,
                device,
                d.stype,
                d.format,
                ctypes.string_at(d.pInputModule, d.inputSize),
                d.pBuildFlags,
                d.pConstants,
            )
        )
        module[0] = MODULE if self._result == 0 else None
        log[0] = LOG
        return self._result

    def _give(self, content, size, to):
        if to:
            ctypes.memmove(to, content, len(content))
        size[0] = len(content)
        return 0

    def _destroy(self, log):
        self.destroyed_logs.append(log)
        return 0


@pytest.fixture
def use(monkeypatch):
    def install(driver):
        monkeypatch.setattr(level_zero, "_library", lambda: driver)
        monkeypatch.setattr(interop, "native_handles", lambda stream: (CONTEXT, DEVICE))
        monkeypatch.setattr(interop, "kernel_bundle", lambda module, stream: module + 1)
        return driver

    return install


STREAM = SimpleNamespace(device=SimpleNamespace(backend="level_zero"))


def test_spirv_is_described_as_the_specification_says_and_machine_code_comes_back(use):
    driver = use(StandInDriver())
    bundle, machine_code = level_zero.build("k", STREAM, spirv=b"spirv!!!", options="-ze-opt-large-register-file")
    assert driver.descriptions == [(CONTEXT, DEVICE, 0x1B, 0, b"spirv!!!", b"-ze-opt-large-register-file", None)]
    assert (bundle, machine_code) == (MODULE + 1, b"native bytes")
    assert driver.destroyed_logs == [LOG]


def test_machine_code_goes_in_as_native_format_and_is_not_asked_for_again(use):
    driver = use(StandInDriver(binary=b"other"))
    _, machine_code = level_zero.build("k", STREAM, spirv=b"spirv!!!", machine_code=b"\x7fELF\0kept")
    assert driver.descriptions[0][3:5] == (1, b"\x7fELF\0kept")
    assert machine_code == b"\x7fELF\0kept"


def test_a_refused_module_brings_the_drivers_log(use):
    driver = use(StandInDriver(result=0x70000004, log=b"error: undefined reference to 'x'"))
    with pytest.raises(LoadError, match=r"0x70000004.*undefined reference"):
        level_zero.build("jitmoe_k", STREAM, spirv=b"spirv!!!")
    assert driver.destroyed_logs == [LOG]


def test_the_description_has_the_layout_of_ze_module_desc_t():
    layout = {
        name: getattr(level_zero.ModuleDescription, name).offset for name, _ in level_zero.ModuleDescription._fields_
    }
    assert layout == {
        "stype": 0, "pNext": 8, "format": 16, "inputSize": 24, "pInputModule": 32, "pBuildFlags": 40, "pConstants": 48
    }  # fmt: skip

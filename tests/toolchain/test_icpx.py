# SPDX-License-Identifier: MIT
"""The whole icpx path with a stand-in on PATH that accepts exactly the command line jitmoe emits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from helpers import fake_icpx, moe
from helpers.builders import cpu_device, gpu_device, moe_problem
from helpers.processes import still_running
from helpers.spec_samples import specs_of

from jitmoe import pipeline
from jitmoe.builder import compile_request
from jitmoe.compilers.base import CompileRequest
from jitmoe.compilers.icpx import HOST_INCLUDE, Icpx, find_icpx, sycl_target
from jitmoe.compilers.sycl_jit import find_sycl_jit
from jitmoe.compilers.sycl_tla import find_sycl_tla
from jitmoe.errors import CompileError, LoadError
from jitmoe.plan import cutlass
from jitmoe.runtime import cpu, loader, sycl
from jitmoe.runtime.stream import stream_of
from jitmoe.source import INCLUDE_DIR, render

pytestmark = [pytest.mark.gxx, pytest.mark.device]
KEY = "ab" * 32


@pytest.fixture
def count(tmp_path) -> Path:
    return tmp_path / "count"


@pytest.fixture(autouse=True)
def on_path(tmp_path, monkeypatch, private_cache, count) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    executable = folder / "icpx"
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_icpx.__file__}" "$@"\n')
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ICPX_COUNT", str(count))
    return executable


def icpx() -> Icpx:
    found, words = find_icpx()
    assert found is not None, words
    return found


def request(arch: str = "x86-64", large_grf: bool = False) -> CompileRequest:
    spec = specs_of(cpu_device())[0]
    return CompileRequest(kernel=spec.entry_name, spec=str(spec), source=render(spec), arch=arch, large_grf=large_grf)


def compiled(mode: str = "", monkeypatch=None, **kwargs) -> bytes:
    if mode:
        monkeypatch.setenv("FAKE_ICPX_MODE", mode)
    return icpx().compile(request(**kwargs), build_key=KEY, timeout_s=300.0).image


def stream():
    return stream_of(cpu.default_queue().addressof_ref())


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# finding it


def test_it_is_found_with_version_and_abi():
    found = icpx()
    assert found.version == fake_icpx.VERSION
    assert found.identity == f"icpx {fake_icpx.VERSION}"
    assert found.runtime_abi == "libsycl.so.9"


def test_an_icpx_of_another_major_is_not_used(monkeypatch):
    from jitmoe.compilers.find import find_compilers

    monkeypatch.setenv("FAKE_ICPX_VERSION", "Intel(R) oneAPI DPC++/C++ Compiler 2025.3.1 (2025.3.1.20251023)")
    compilers, searched = find_compilers("auto", "libsycl.so.9")
    assert [compiler.name for compiler in compilers] == ["sycl-jit"]
    assert "libsycl.so.8" in searched[0] and "libsycl.so.9" in searched[0]


def test_an_icpx_that_cannot_even_say_its_version(on_path):
    on_path.write_text("#!/bin/sh\nexit 3\n")
    found, words = find_icpx()
    assert found is None and "--version failed" in words
    on_path.write_text("#!/bin/sh\nexit 0\n")
    assert find_icpx()[1].endswith("--version printed nothing")


@pytest.mark.parametrize(
    ("arch", "target"),
    [
        ("x86-64", "spir64"),
        ("unknown", "spir64"),
        ("bmg-g21", "intel_gpu_bmg_g21"),
        ("pvc", "intel_gpu_pvc"),
        ("ptl-h", "intel_gpu_ptl_h"),
        ("dg2", "intel_gpu_acm_g10,intel_gpu_acm_g11,intel_gpu_acm_g12"),
    ],
)
def test_targets(arch, target):
    assert sycl_target(arch) == target
    assert f"-fsycl-targets={target}" in icpx().argv(request(arch=arch))


# compiling


def test_a_library_is_built_and_gives_a_kernel():
    image = compiled()
    assert image[:4] == b"\x7fELF"
    assert sycl.soname_needed_by(image) == "libsycl.so.9"
    kernel = loader.load_shared_library(request().kernel, image, KEY, stream())
    assert kernel.handle


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2"])
@pytest.mark.parametrize("large_grf", [False, True])
def test_gpu_command_lines_are_accepted(arch, large_grf):
    assert compiled(arch=arch, large_grf=large_grf)


def test_headers_of_another_package_come_after_an_overlay_that_is_gone_afterwards(monkeypatch, tmp_path):
    package, words = find_sycl_tla()
    if package is None:
        pytest.skip(words)
    problem = moe_problem(hidden_size=64, intermediate_size=64, base_alignment=64)
    spec = cutlass.choose(problem, gpu_device(), configs=()).gate_up
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    artifact = icpx().compile(compile_request(spec, "bmg-g21"), build_key=KEY, timeout_s=300.0)
    assert artifact.image[:4] == b"\x7fELF"
    assert list(folder.iterdir()) == []


def test_the_stand_in_takes_nothing_else():
    for arguments in (["-c", "x.cpp"], [], ["-fsycl"]):
        assert subprocess.run(["icpx", *arguments], capture_output=True).returncode == 1


def test_an_error_brings_message_command_and_spec(monkeypatch):
    with pytest.raises(CompileError) as failed:
        compiled("error", monkeypatch)
    text = str(failed.value)
    for part in ("exit code 1", f"{request().kernel}.cpp:7:3: error: expected expression", "-fsycl-targets=spir64"):
        assert part in text
    assert request().spec in text


def test_a_hang_is_killed_with_all_its_children(monkeypatch):
    monkeypatch.setenv("FAKE_ICPX_MODE", "hang")
    started = time.monotonic()
    with pytest.raises(CompileError, match="no result within 3 s") as failed:
        icpx().compile(request(), build_key=KEY, timeout_s=3.0)
    assert time.monotonic() - started < 100
    pids = [int(pid) for pid in failed.value.log.split()]
    assert len(pids) == 2 and not still_running(pids)


def test_a_crash_names_the_signal(monkeypatch):
    with pytest.raises(CompileError, match="signal 6"):
        compiled("crash", monkeypatch)


def test_success_without_a_library_is_an_error(monkeypatch):
    with pytest.raises(CompileError, match="wrote no library"):
        compiled("no-output", monkeypatch)


def test_warnings_are_kept_as_log(monkeypatch):
    monkeypatch.setenv("FAKE_ICPX_MODE", "warning")
    assert "something harmless" in icpx().compile(request(), build_key=KEY, timeout_s=300.0).log


# loading


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("wrong-abi", "ABI version is 99 instead of 1"),
        ("wrong-key", f"built for key {'0' * 64}, not {KEY}"),
        ("no-kernel", "no kernel missing"),
    ],
)
def test_libraries_that_are_refused(monkeypatch, mode, reason):
    image = compiled(mode, monkeypatch)
    with pytest.raises(LoadError) as refused:
        loader.load_shared_library(request().kernel, image, KEY, stream())
    assert reason in str(refused.value)


def test_another_kernel_is_refused():
    image = compiled()
    with pytest.raises(LoadError, match="this library holds"):
        loader.load_shared_library("jitmoe_other", image, KEY, stream())


def test_another_libsycl_is_refused_before_it_is_opened(monkeypatch):
    image = compiled()
    monkeypatch.setattr("ctypes.CDLL", lambda *args: pytest.fail("opened"))
    with pytest.raises(LoadError, match=r"needs libsycl\.so\.8"):
        loader.load_shared_library(request().kernel, image.replace(b"libsycl.so.9\0", b"libsycl.so.8\0"), KEY, stream())
    with pytest.raises(LoadError, match="needs no libsycl"):
        loader.load_shared_library(request().kernel, b"\x7fELF", KEY, stream())


def test_nothing_is_left_behind_in_memory_or_on_disk(monkeypatch):
    image = compiled()
    make, made = tempfile.NamedTemporaryFile, []

    def noted(**options):
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", noted)
    loader.load_shared_library(request().kernel, image, KEY, stream())
    (file,) = made
    assert not Path(file.name).exists()


# the whole way


def test_fused_moe_through_shared_libraries(monkeypatch, caplog, count):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    monkeypatch.setenv("JITMOE_COMPILER", "icpx")
    for call in (moe.make(40), moe.make(33, 71, 33), moe.make(40, activation="gelu")):
        moe.check(call.run(), call)
    entries = list(pipeline.default().cache.writable.iterate())
    assert len(entries) == 4 and all((entry.path / "kernel.so").is_file() for entry in entries)
    assert len(count.read_text()) == 4
    assert warnings(caplog) == []


def test_a_broken_icpx_is_replaced_with_one_warning(monkeypatch, caplog, count):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    monkeypatch.setenv("JITMOE_JOBS", "1")
    monkeypatch.setenv("FAKE_ICPX_MODE", "error")
    call = moe.make(9, dtype=torch.float32)
    moe.check(call.run(), call)
    (message,) = warnings(caplog)
    assert "icpx failed" in message and "expected expression" in message
    assert len(count.read_text()) <= 3


def test_libraries_that_do_not_load_are_replaced_too(monkeypatch, caplog):
    """An icpx whose output is of no use here is as broken as one that fails."""
    monkeypatch.setenv("JITMOE_STRICT", "1")
    monkeypatch.setenv("FAKE_ICPX_MODE", "wrong-abi")
    call = moe.make(9)
    moe.check(call.run(), call)
    assert len(warnings(caplog)) == 1


# the real host part


def test_the_host_part_is_good_c_plus_plus(tmp_path):
    """g++ parses it against the headers of the wheel, after a translation unit that stands for a kernel."""
    library, _ = find_sycl_jit()
    source = tmp_path / "host.cpp"
    source.write_text(
        "#include <sycl/ext/oneapi/experimental/free_function_traits.hpp>\n"
        '#define JITMOE_BUILD_KEY "key"\n#define JITMOE_ENTRY_NAME "jitmoe_toy"\n'
        "#define JITMOE_KERNEL_NAME jitmoe_toy\n"
        'extern "C" void jitmoe_toy(void*) {}\n'
        "template <> struct sycl::ext::oneapi::experimental::is_nd_range_kernel<jitmoe_toy, 1> : std::true_type {};\n"
        "template <> struct sycl::ext::oneapi::experimental::is_kernel<jitmoe_toy> : std::true_type {};\n"
        + HOST_INCLUDE
    )
    done = subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Werror=return-type", f"-I{INCLUDE_DIR}",
         "-isystem", str(library.library.parent.parent / "include"), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_gpu_arch_names_that_probe_knows_have_targets():
    from jitmoe.runtime.probe import _ARCHITECTURES

    for arch in set(_ARCHITECTURES.values()):
        assert sycl_target(gpu_device(arch).arch).startswith("intel_gpu_")

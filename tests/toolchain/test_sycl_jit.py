# SPDX-License-Identifier: MIT
"""The compiler library of the intel-sycl-rt wheel, in its worker process."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.builders import cpu_device, gpu_device
from helpers.processes import still_running
from helpers.spec_samples import GPU_ARCHS, devices, emulated, specs_of

from jitmoe.compilers import base, sycl_jit
from jitmoe.compilers.base import ArtifactKind, CompileRequest
from jitmoe.errors import CompileError
from jitmoe.source import INCLUDE_DIR, render
from jitmoe.spec import KernelSpec

KEY = "ab" * 32
TOY = """\
#include <jitmoe/entry.hpp>
extern "C" JITMOE_ND_RANGE(1)
void jitmoe_toy(const void* x, void* y, jitmoe::int32 n) {
  const auto i = jitmoe::nd_item<1>().get_global_id(0);
  if (i < unsigned(n)) static_cast<float*>(y)[i] = 2 * static_cast<const float*>(x)[i];
}
"""
BUILTIN = """\
#include <jitmoe/entry.hpp>
extern __attribute__((sycl_device)) void __spirv_ControlBarrierArriveINTEL(int, int, int) noexcept;
extern "C" JITMOE_ND_RANGE(1)
void jitmoe_toy(void* y) {
  __spirv_ControlBarrierArriveINTEL(2, 2, 0);
  *static_cast<int*>(y) = 1;
}
"""


@pytest.fixture(scope="module")
def compiler() -> sycl_jit.SyclJit:
    found, words = sycl_jit.find_sycl_jit()
    assert found is not None, words
    return found


def request(source: str = TOY, kernel: str = "jitmoe_toy") -> CompileRequest:
    return CompileRequest(kernel=kernel, spec="toy()", source=source, arch="x86-64", large_grf=False)


def compile_(compiler, source: str = TOY, *, timeout_s: float = 300.0, **more):
    return compiler.compile(request(source, **more), build_key=KEY, timeout_s=timeout_s)


def test_it_is_found_with_a_digest(compiler):
    assert compiler.library.is_file()
    assert re.fullmatch(r"sycl-jit 2026\.\S+ sha256=\S+", compiler.identity)


def test_a_good_source_becomes_spirv(compiler):
    artifact = compile_(compiler)
    assert artifact.kind is ArtifactKind.SPIRV
    assert artifact.image[:4] == bytes.fromhex("03022307")
    assert b"__sycl_kernel_jitmoe_toy" in artifact.image
    assert 0 < artifact.seconds < 60
    assert artifact.log.strip() == ""


def test_the_same_source_gives_the_same_bytes(compiler):
    assert compile_(compiler).image == compile_(compiler).image


def test_an_error_names_our_file_and_line(compiler):
    with pytest.raises(CompileError) as failed:
        compile_(compiler, TOY.replace("2 * ", "two * "))
    text = str(failed.value)
    assert "jitmoe_toy.cpp:5:" in text and "undeclared identifier 'two'" in text
    assert "toy()" in text and "-O3" in text
    assert not failed.value.is_passing


def test_an_error_in_a_header_names_the_header(compiler):
    with pytest.raises(CompileError, match=r"jitmoe/kernel/nothing\.hpp"):
        compile_(compiler, "#include <jitmoe/kernel/nothing.hpp>\n" + TOY)


def test_warnings_are_errors(compiler):
    with pytest.raises(CompileError, match="unused"):
        compile_(compiler, TOY.replace("const auto i", "int unused;\n  const auto i"))


def test_a_source_without_the_entry_point_is_an_error(compiler):
    with pytest.raises(CompileError, match="no image holds the entry point __sycl_kernel_jitmoe_other"):
        compile_(compiler, kernel="jitmoe_other")


def test_a_refused_spirv_extension_is_an_error_with_its_meaning(compiler):
    """The library ends its process with code 18; in the caller's process that would be the end of the caller."""
    with pytest.raises(CompileError, match="SPIR-V translator refused an extension") as failed:
        compile_(compiler, BUILTIN)
    assert "exit code 18" in str(failed.value)
    assert "split_barrier" in failed.value.log.lower() or failed.value.log


def test_a_timeout_kills_the_worker(compiler):
    deep = "template <int n> struct F { static constexpr long v = F<n - 1>::v + F<n - 2>::v; };\n"
    endless = "constexpr int spin() { int n = 0; while (true) ++n; return n; }\n"
    slow = deep + endless + TOY.replace("2 * ", "1000000 * ") + "static_assert(__builtin_constant_p(0));\n"
    started = time.monotonic()
    with pytest.raises(CompileError, match=r"no result within 0\.05 s"):
        compile_(compiler, slow, timeout_s=0.05)
    assert time.monotonic() - started < 60


# run(): the process under the compilers


def run(code: str, *, timeout_s: float = 300.0, stdin: bytes = b""):
    return base.run((sys.executable, "-c", code), request=request(), stdin=stdin, timeout_s=timeout_s)


def test_run_returns_what_was_printed():
    done = run("import sys; sys.stdout.write(sys.stdin.read() * 2); sys.stderr.write('hm'); sys.exit(3)", stdin=b"ab")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"abab", "hm")


def test_run_kills_the_whole_group(tmp_path):
    """Grandchildren too, and what ignores SIGTERM."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('so far', file=sys.stderr, flush=True)\n"
        "time.sleep(100)\n"
    )
    with pytest.raises(CompileError, match="no result within 3 s") as failed:
        run(code, timeout_s=3.0)
    assert "so far" in failed.value.log
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and not still_running(pids)


@pytest.mark.parametrize(("number", "is_passing"), [(11, False), (6, False), (9, True)])
def test_run_names_the_signal(number, is_passing):
    with pytest.raises(CompileError, match=f"killed by signal {number}") as failed:
        run(f"import os; os.kill(os.getpid(), {number})")
    assert failed.value.is_passing == is_passing
    assert ("memory" in str(failed.value)) == is_passing


def test_run_says_that_it_cannot_start():
    with pytest.raises(CompileError, match="cannot start the compiler") as failed:
        base.run(("/nonexistent/icpx",), request=request(), stdin=b"", timeout_s=1.0)
    assert failed.value.is_passing


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "garbage",
        "{}",
        "{}\\nxx",
        '{\\"error\\": 0}\\n',
        '{\\"error\\": 0, \\"image_size\\": 9, \\"log\\": \\"\\"}\\nabc',
    ],
)
def test_a_garbage_answer_is_an_error(compiler, monkeypatch, tmp_path, answer):
    worker = tmp_path / "worker.py"
    worker.write_text(f'import sys\nsys.stdin.read()\nsys.stdout.write("{answer}")\n')
    monkeypatch.setattr(sycl_jit, "WORKER", worker)
    with pytest.raises(CompileError, match="incomplete answer"):
        compile_(compiler)


def test_a_worker_that_dies_is_an_error(compiler, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(sycl_jit, "WORKER", worker)
    with pytest.raises(CompileError, match="signal 6"):
        compile_(compiler)


def test_the_user_s_python_set_up_does_not_reach_the_worker(compiler, monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(77)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    monkeypatch.chdir(tmp_path)
    assert compile_(compiler).image


def test_an_older_wheel_is_refused(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.distribution("intel-sycl-rt")

    class Old:
        version = "2025.3.1"
        read_text = real.read_text
        locate_file = real.locate_file

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Old)
    found, words = sycl_jit.find_sycl_jit()
    assert found is None and "2025.3.1" in words and "2026.x" in words


def test_no_wheel_says_so(monkeypatch):
    import importlib.metadata

    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    assert sycl_jit.find_sycl_jit() == (None, "intel-sycl-rt: not installed")


# the private ABI


def test_the_worker_s_structures_have_the_sizes_of_the_library():
    """As measured on intel-sycl-rt 2026.0 to 2026.2; a new wheel that changes them fails the compilations above."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("worker", sycl_jit.WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    sizes = {"InMemoryFile": 16, "View": 16, "Result": 56, "Image": 64, "PropertyValue": 32, "PropertySet": 24}
    assert {name: ctypes.sizeof(getattr(worker, name)) for name in sizes} == sizes
    assert worker.Image.start.offset == 16 and worker.Image.symbols.offset == 32
    assert worker.Result.log.offset == 48


def test_properties_of_the_image_are_read(compiler):
    source = TOY.replace("JITMOE_ND_RANGE(1)", "JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16)")
    properties = compile_(compiler, source).properties
    assert any("requirements" in name for name in properties), properties
    assert "reqd_sub_group_size" in str(properties)


# what we really compile


def sampled(specs: tuple[KernelSpec, ...], most: int) -> tuple[KernelSpec, ...]:
    """Returns at most ``most`` specs of each family, spread evenly."""
    families: dict[type, list[KernelSpec]] = {}
    for spec in specs:
        families.setdefault(type(spec), []).append(spec)
    return tuple(
        members[index * len(members) // min(most, len(members))]
        for members in families.values()
        for index in range(min(most, len(members)))
    )


COMPILED_PER_FAMILY = int(os.environ.get("JITMOE_TEST_SPECS", "3"))


@pytest.mark.parametrize("device", devices(), ids=lambda d: d.cpu_isa.value if d.cpu_isa else d.arch)
def test_rendered_specs_compile_without_a_warning(builder, device):
    """A spread of each family; JITMOE_TEST_SPECS=1000 compiles every spec that the planners ask for."""
    specs = sampled(specs_of(device), COMPILED_PER_FAMILY)

    def attempt(spec: KernelSpec) -> str:
        try:
            # Native forms need ocloc's extensions (test_xe_*).
            image = builder.build_one(emulated(spec), device).files[ArtifactKind.SPIRV.value]
            return "" if image else f"{spec}: nothing"
        except CompileError as error:
            return f"{spec}: {error}"

    with ThreadPoolExecutor(2) as pool:
        assert [problem for problem in pool.map(attempt, specs) if problem] == []


def test_device_sources_never_pull_in_the_whole_of_sycl(compiler):
    """Such a source compiles ten times as long; the preprocessor itself says whether it happened."""
    for device in (cpu_device(), *map(gpu_device, GPU_ARCHS)):
        for spec in sampled(specs_of(device), 1):
            check = (
                "\n#ifdef SYCL_LANGUAGE_VERSION\n#endif\n#if defined(__SYCL_SYCL_HPP) \n#error all of SYCL\n#endif\n"
            )
            assert "sycl/sycl.hpp" not in render(spec) + check
    included = set()
    pending = ["jitmoe/entry.hpp", *(f"jitmoe/kernel/{p.name}" for p in (INCLUDE_DIR / "jitmoe/kernel").glob("*.hpp"))]
    while pending:
        name = pending.pop()
        if name in included:
            continue
        included.add(name)
        text = (INCLUDE_DIR / name).read_text() if (INCLUDE_DIR / name).is_file() else ""
        pending += re.findall(r"#\s*include\s+<(jitmoe/[^>]+)>", text)
        for other in re.findall(r"#\s*include\s+<(sycl/[^>]+)>", text):
            assert other not in ("sycl/sycl.hpp", "sycl/builtins.hpp"), (name, other)


def test_a_small_kernel_takes_a_fraction_of_the_time_that_the_whole_of_sycl_takes(compiler):
    """0.12-0.2 s against 1.5 s on a quiet machine; a busy one slows down both."""
    small = min(compile_(compiler).seconds for _ in range(3))
    assert small < 0.5 * min(compile_(compiler, "#include <sycl/sycl.hpp>\n" + TOY).seconds for _ in range(2))

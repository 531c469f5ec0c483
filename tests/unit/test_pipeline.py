# SPDX-License-Identifier: MIT
"""The wiring, with compilers that count: what is compiled when, by whom, and what happens when it fails."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time

import pytest
from helpers.builders import OtherToySpec, ToySpec, cpu_device, gpu_device
from helpers.fakes import FakeCompiler

from jitmoe import knobs
from jitmoe.cache import open_cache
from jitmoe.compilers.base import ArtifactKind
from jitmoe.errors import CompileError, MissingKernelError, ToolchainNotFoundError
from jitmoe.pipeline import Pipeline
from jitmoe.source import render

SPECS = (ToySpec(), ToySpec(tile=64), OtherToySpec())


def pipeline(folder, *compilers, readonly=(), **settings) -> Pipeline:
    """A pipeline as a new process would have it."""
    made = Pipeline(
        settings=dataclasses.replace(knobs.Knobs(), **settings), cache=open_cache(folder, readonly), compilers=compilers
    )
    made.events = []
    made.on_build = made.events.append
    return made


def icpx(**changes) -> FakeCompiler:
    return FakeCompiler(name="icpx", kind=ArtifactKind.SHARED_LIBRARY, runtime_abi="libsycl.so.9", **changes)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def sources(made: Pipeline) -> list[str]:
    return [event.source for event in made.events]


# what is compiled


def test_each_spec_is_compiled_once_and_found_by_the_next_process(private_cache, caplog):
    compiler = FakeCompiler()
    first = pipeline(private_cache, compiler)
    entries = first.build(SPECS, cpu_device())
    assert set(entries) == set(SPECS)
    assert sorted(request.source for request in compiler.requests) == sorted(map(render, SPECS))
    assert sources(first) == ["fake"] * 3
    second = pipeline(private_cache, compiler)
    again = second.build(SPECS, cpu_device())
    assert len(compiler.requests) == 3
    assert sources(second) == ["cache"] * 3
    assert {spec: entry.files for spec, entry in again.items()} == {s: e.files for s, e in entries.items()}
    assert warnings(caplog) == []


def test_only_what_is_missing_is_compiled(private_cache):
    compiler = FakeCompiler()
    pipeline(private_cache, compiler).build(SPECS[:1], cpu_device())
    made = pipeline(private_cache, compiler)
    made.build(SPECS, cpu_device())
    assert len(compiler.requests) == 3
    assert sorted(sources(made)) == ["cache", "fake", "fake"]


def test_an_entry_keeps_image_source_log_and_where_it_came_from(private_cache):
    entry = pipeline(private_cache, FakeCompiler()).build(SPECS[:1], cpu_device())[SPECS[0]]
    assert entry.files["kernel.spv"] == b"image"
    assert entry.files["kernel.cpp"].decode() == render(SPECS[0])
    assert entry.files["build.log"] == b""
    assert entry.info["compiler"] == "fake 1"
    assert entry.info["spec"] == str(SPECS[0])
    assert entry.info["device"] == "x86-64"


def test_the_compiler_gets_the_digest_as_build_key_and_the_timeout(private_cache):
    compiler = FakeCompiler()
    made = pipeline(private_cache, compiler, compile_timeout_s=12.5)
    entry = made.build(SPECS[:1], cpu_device())[SPECS[0]]
    assert compiler.build_keys == [entry.key.digest]
    assert compiler.timeouts == [12.5]


def test_kernels_of_one_plan_compile_in_parallel(private_cache):
    meeting = threading.Barrier(3, timeout=100)

    class Waits(FakeCompiler):
        def compile(self, request, *, build_key, timeout_s):
            meeting.wait()
            return super().compile(request, build_key=build_key, timeout_s=timeout_s)

    pipeline(private_cache, Waits(), jobs=3).build(SPECS, cpu_device())


def test_jobs_bounds_what_runs_at_once(private_cache):
    inside, most, guard = 0, 0, threading.Lock()

    class Slow(FakeCompiler):
        def compile(self, request, *, build_key, timeout_s):
            nonlocal inside, most
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1
            return super().compile(request, build_key=build_key, timeout_s=timeout_s)

    pipeline(private_cache, Slow(), jobs=1).build(SPECS, cpu_device())
    assert most == 1


def test_processes_that_build_the_same_at_once_compile_it_once(private_cache):
    """Two pipelines with locks of their own stand for two processes."""

    class Slow(FakeCompiler):
        def compile(self, request, *, build_key, timeout_s):
            time.sleep(0.2)
            return super().compile(request, build_key=build_key, timeout_s=timeout_s)

    compiler = Slow()
    crowd = [pipeline(private_cache, compiler, jobs=3) for _ in range(4)]
    threads = [threading.Thread(target=made.build, args=(SPECS, cpu_device())) for made in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiler.requests) == 3
    assert sorted(source for made in crowd for source in sources(made)) == ["cache"] * 9 + ["fake"] * 3


def test_a_lock_that_is_held_too_long_only_costs_work(private_cache, caplog):
    compiler = FakeCompiler()
    made = pipeline(private_cache, compiler, lock_timeout_s=0.1)
    key = made.key(SPECS[0], cpu_device(), compiler)
    with open_cache(private_cache, ()).build_lock(key, timeout_s=1.0):
        made.build(SPECS[:1], cpu_device())
    assert len(compiler.requests) == 1
    assert "JITMOE_LOCK_TIMEOUT" in warnings(caplog)[0]


def test_damage_is_compiled_again_with_one_warning(private_cache, caplog):
    compiler = FakeCompiler()
    entry = pipeline(private_cache, compiler).build(SPECS[:1], cpu_device())[SPECS[0]]
    path = open_cache(private_cache, ()).writable.entry_path(entry.key)
    (path / "kernel.spv").write_bytes(b"imagf")
    made = pipeline(private_cache, compiler)
    assert made.build(SPECS[:1], cpu_device())[SPECS[0]].files["kernel.spv"] == b"image"
    assert len(compiler.requests) == 2
    assert len(warnings(caplog)) == 1
    third = pipeline(private_cache, compiler)
    third.build(SPECS[:1], cpu_device())
    assert len(compiler.requests) == 2 and len(warnings(caplog)) == 1


def test_damage_in_a_read_only_layer_is_one_warning_and_goes_to_the_writable_one(private_cache, tmp_path, caplog):
    compiler = FakeCompiler()
    entry = pipeline(tmp_path / "baked", compiler).build(SPECS[:1], cpu_device())[SPECS[0]]
    path = open_cache(tmp_path / "baked", ()).writable.entry_path(entry.key)
    (path / "kernel.spv").write_bytes(b"imagf")
    pipeline(private_cache, compiler, readonly=(tmp_path / "baked",)).build(SPECS[:1], cpu_device())
    assert len(compiler.requests) == 2
    assert len(warnings(caplog)) == 1


def test_a_cache_that_cannot_store_still_gives_kernels_with_one_warning(private_cache, caplog, monkeypatch):
    compiler = FakeCompiler()
    made = pipeline(private_cache, compiler)

    def full(self, entry):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jitmoe.cache.files.FileStore.put", full)
    for _ in range(2):
        made.build(SPECS, cpu_device())
    assert len(compiler.requests) == 3
    assert len(warnings(caplog)) == 1


# failures


def test_a_failure_carries_its_evidence(private_cache):
    with pytest.raises(CompileError) as failed:
        pipeline(private_cache, FakeCompiler(failure="exit code 1")).build(SPECS[:1], cpu_device())
    error = failed.value
    assert error.source_path.read_text() == render(SPECS[0])
    assert error.source_path.parent.parent == private_cache / "failed"
    assert "toy.cpp:3:1" in (error.source_path.parent / "error.log").read_text()
    for part in ("exit code 1", "fake -O3", str(SPECS[0]), str(error.source_path), "toy.cpp:3:1: error: no"):
        assert part in str(error)


def test_a_failure_stores_no_entry(private_cache):
    made = pipeline(private_cache, FakeCompiler(failure="exit code 1"))
    with pytest.raises(CompileError):
        made.build(SPECS, cpu_device())
    assert list(made.cache.writable.folders()) == []


def test_a_kernel_that_no_compiler_takes_is_not_tried_again_in_this_process(private_cache):
    """Every new token count asks for the same kernels: each would pay for the same failure."""
    compiler = FakeCompiler(failure="exit code 1")
    made = pipeline(private_cache, compiler)
    for _ in range(3):
        with pytest.raises(CompileError, match="exit code 1"):
            made.build(SPECS[:1], cpu_device())
    assert len(compiler.requests) == 1
    with pytest.raises(CompileError):  # but another process tries again: what was wrong may have been put right
        pipeline(private_cache, compiler).build(SPECS[:1], cpu_device())
    assert len(compiler.requests) == 2


def test_the_next_compiler_takes_over_with_one_warning(private_cache, caplog):
    broken, good = icpx(failure="exit code 1"), FakeCompiler()
    made = pipeline(private_cache, broken, good, jobs=1)
    entries = made.build(SPECS, cpu_device())
    assert len(broken.requests) == 1, "a compiler that fails once is not asked again"
    assert len(good.requests) == 3
    assert all("kernel.spv" in entry.files for entry in entries.values())
    (message,) = warnings(caplog)
    assert "icpx failed" in message and "exit code 1" in message
    assert len(list((private_cache / "failed").iterdir())) == 1


def test_a_failure_is_remembered_by_the_next_process(private_cache, caplog):
    pipeline(private_cache, icpx(failure="exit code 1"), FakeCompiler()).build(SPECS[:1], cpu_device())
    caplog.clear()
    broken, good = icpx(failure="exit code 1"), FakeCompiler()
    made = pipeline(private_cache, broken, good)
    made.build(SPECS[:1], cpu_device())
    assert sources(made) == ["cache"]
    assert broken.requests == good.requests == []
    assert warnings(caplog) == []


def test_a_new_version_of_the_compiler_gets_a_new_chance(private_cache):
    pipeline(private_cache, icpx(failure="exit code 1"), FakeCompiler()).build(SPECS[:1], cpu_device())
    better = icpx(version="2")
    pipeline(private_cache, better, FakeCompiler()).build(SPECS[:1], cpu_device())
    assert len(better.requests) == 1


@pytest.mark.parametrize("reason", ["killed", "cannot start"])
def test_a_passing_failure_is_not_remembered(private_cache, reason):
    """Out of memory or out of processes says nothing about the kernel."""
    broken = icpx(failure=reason, is_passing=True)
    pipeline(private_cache, broken, FakeCompiler()).build(SPECS[:1], cpu_device())
    better = icpx()
    made = pipeline(private_cache, better, FakeCompiler())
    made.build(SPECS[:1], cpu_device())
    assert len(better.requests) == 1


def test_the_preferred_compiler_is_used_although_another_ones_image_is_there(private_cache):
    good = FakeCompiler()
    pipeline(private_cache, good).build(SPECS[:1], cpu_device())
    preferred = icpx()
    pipeline(private_cache, preferred, good).build(SPECS[:1], cpu_device())
    assert len(preferred.requests) == 1


# nothing may or can be compiled


def test_disable_jit_names_the_kernel_and_the_warmup(private_cache):
    compiler = FakeCompiler()
    with pytest.raises(MissingKernelError) as missing:
        pipeline(private_cache, compiler, disable_jit=True).build(SPECS, gpu_device("pvc"))
    text = str(missing.value)
    assert compiler.requests == []
    for part in ("jitmoe_toy", "JITMOE_DISABLE_JIT=1", str(SPECS[0]), "jitmoe-warmup MODEL --device pvc"):
        assert part in text
    assert "no entry of jitmoe_toy" in text


def test_disable_jit_says_cpu_for_cpus(private_cache):
    with pytest.raises(MissingKernelError, match="--device cpu"):
        pipeline(private_cache, FakeCompiler(), disable_jit=True).build(SPECS, cpu_device())


def test_disable_jit_explains_the_near_miss(private_cache):
    pipeline(private_cache, FakeCompiler(kind=ArtifactKind.SHARED_LIBRARY)).build(SPECS[:1], cpu_device())
    with pytest.raises(MissingKernelError) as missing:
        pipeline(private_cache, FakeCompiler(version="2", kind=ArtifactKind.SHARED_LIBRARY), disable_jit=True).build(
            SPECS[:1], cpu_device()
        )
    assert "compiler: wanted 'fake 2', found 'fake 1'" in str(missing.value)


def test_disable_jit_uses_what_is_there(private_cache):
    pipeline(private_cache, FakeCompiler()).build(SPECS, cpu_device())
    made = pipeline(private_cache, FakeCompiler(), disable_jit=True)
    made.build(SPECS, cpu_device())
    assert sources(made) == ["cache"] * 3


@pytest.mark.parametrize("later", [{"disable_jit": True}, {}], ids=["compiling is forbidden", "there is no compiler"])
def test_an_image_of_another_compiler_version_is_used_when_nothing_can_be_built(private_cache, later):
    pipeline(private_cache, FakeCompiler(version="1")).build(SPECS, cpu_device())
    compilers = (FakeCompiler(version="2"),) if later else ()
    made = pipeline(private_cache, *compilers, **later)
    entries = made.build(SPECS, cpu_device())
    assert sources(made) == ["cache"] * 3
    assert {dict(entry.key.build)["compiler"] for entry in entries.values()} == {"fake 1"}


def test_a_shared_library_of_another_compiler_is_not_used_that_way(private_cache):
    pipeline(private_cache, icpx()).build(SPECS[:1], cpu_device())
    with pytest.raises(ToolchainNotFoundError):
        pipeline(private_cache).build(SPECS[:1], cpu_device())


def test_a_newer_compiler_builds_anew_when_it_may(private_cache):
    pipeline(private_cache, FakeCompiler(version="1")).build(SPECS, cpu_device())
    newer = FakeCompiler(version="2")
    pipeline(private_cache, newer).build(SPECS, cpu_device())
    assert len(newer.requests) == 3


def test_no_compiler_at_all_says_where_it_looked(private_cache, monkeypatch):
    monkeypatch.setattr(
        "jitmoe.builder.find_compilers", lambda choice, soname: ((), ("icpx: not on PATH", "intel-sycl-rt: no"))
    )
    for choice in ("auto", "icpx"):
        made = Pipeline(settings=knobs.Knobs(compiler=choice), cache=open_cache(private_cache, ()))
        with pytest.raises(ToolchainNotFoundError) as missing:
            made.build(SPECS, cpu_device())
        assert missing.value.searched == ("icpx: not on PATH", "intel-sycl-rt: no")
        assert missing.value.wanted == choice


def test_making_a_pipeline_touches_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("jitmoe.builder.open_cache", lambda *args: pytest.fail("opened the cache"))
    monkeypatch.setattr("jitmoe.builder.find_compilers", lambda *args: pytest.fail("looked for compilers"))
    Pipeline()


def test_the_target_of_a_request_is_the_device_that_runs_it(private_cache):
    """GPU kernels that are emulated on the CPU device are compiled for the CPU device."""
    from jitmoe.device import DeviceKind

    compiler = FakeCompiler()
    made = pipeline(private_cache, compiler)
    made.build(SPECS[:1], gpu_device("pvc"))
    made.build(SPECS[1:2], dataclasses.replace(cpu_device(), kind=DeviceKind.XE_EMULATED, arch="pvc"))
    assert [request.arch for request in compiler.requests] == ["pvc", "x86-64"]

# SPDX-License-Identifier: MIT
"""The cache key: each entry counts, framing keeps entries apart, and nothing else counts."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import pytest
from helpers.builders import BASE_BUILD, BASE_REQUEST, ToySpec, cache_key, cpu_device, gpu_device
from helpers.fakes import FakeCompiler

from jitmoe.cache.key import differences
from jitmoe.compilers.base import ArtifactKind
from jitmoe.pipeline import Pipeline


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"name": "jitmoe_other"}, id="differs on name"),
        *(pytest.param({entry: value + "x"}, id=f"differs on {entry}") for entry, value in BASE_REQUEST),
        *(pytest.param({entry: value + "x"}, id=f"differs on {entry}") for entry, value in BASE_BUILD),
        pytest.param({"request": BASE_REQUEST[:-1]}, id="differs on a missing request entry"),
        pytest.param({"build": BASE_BUILD[:-1]}, id="differs on a missing build entry"),
        pytest.param({"build": (*BASE_BUILD, ("driver", ""))}, id="differs on an empty entry more"),
        pytest.param({"build": BASE_BUILD[::-1]}, id="differs on order"),
    ],
)
def test_digest_differs(changes):
    assert cache_key(**changes).digest != cache_key().digest


@pytest.mark.parametrize("entry", [name for name, _ in BASE_BUILD])
def test_build_entries_leave_the_request_digest_alone(entry):
    assert cache_key(**{entry: "other"}).request_digest == cache_key().request_digest


@pytest.mark.parametrize("entry", [name for name, _ in BASE_REQUEST])
def test_request_entries_change_both_digests(entry):
    changed = cache_key(**{entry: "other"})
    assert changed.request_digest != cache_key().request_digest
    assert changed.digest != cache_key().digest


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param((("ab", "c"),), (("a", "bc"),), id="name and value"),
        pytest.param((("a", "b"), ("c", "d")), (("a", "bc"), ("", "d")), id="across entries"),
        pytest.param((("a", ""), ("", "b")), (("a", "b"), ("", "")), id="empty parts"),
        pytest.param((("a", "b\0"),), (("a", "b"), ("\0", "")), id="zero bytes"),
    ],
)
def test_framing_keeps_neighbours_apart(left, right):
    assert cache_key(request=left).digest != cache_key(request=right).digest


def test_a_request_entry_cannot_pose_as_a_build_entry():
    moved = cache_key(request=(*BASE_REQUEST, BASE_BUILD[0]), build=BASE_BUILD[1:])
    assert moved.digest != cache_key().digest


def test_equal_keys_have_equal_digests_in_every_process():
    code = "from helpers.builders import cache_key; print(cache_key().digest)"
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="tests",
        env={"PYTHONHASHSEED": "7"},
    )
    assert there.stdout.strip() == cache_key().digest


def test_the_digest_is_sha256_over_length_framed_parts():
    """Written out once by hand: a change here makes every cache in the world a miss, so SCHEMA_VERSION must rise."""

    def framed(*parts: str) -> bytes:
        return b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)

    key = cache_key(name="n", request=(("spec", "s"),), build=(("compiler", "ü"),))
    request = hashlib.sha256(framed("schema", "1", "name", "n", "spec", "s")).hexdigest()
    assert key.request_digest == request
    assert key.digest == hashlib.sha256(framed("request", request, "compiler", "ü")).hexdigest()


def test_differences_name_the_entry_and_both_values():
    lines = differences(BASE_BUILD, (("compiler", "icpx 2026"), *BASE_BUILD[1:], ("driver", "1.2")))
    assert lines == [
        "compiler: wanted 'sycl-jit 2026.2.0 abc', found 'icpx 2026'",
        "driver: wanted nothing, found '1.2'",
    ]


def test_differences_shorten_sources_to_digests():
    (line,) = differences((("source", "a\nb"),), (("source", "a\nc"),))
    assert line.startswith("source: wanted sha256 ")
    assert "\n" not in line


# What the pipeline puts into a key


def _key(spec=None, device=None, **compiler):
    pipeline = Pipeline(compilers=())
    return pipeline.key(spec or ToySpec(), device or cpu_device(), FakeCompiler(**compiler))


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        pytest.param({"version": "2"}, True, id="differs on compiler version"),
        pytest.param({"options": ("-O2",)}, True, id="differs on options"),
        pytest.param({"options": ("-O", "3")}, True, id="differs on option boundaries"),
        pytest.param({"runtime_abi": "libsycl.so.9"}, True, id="differs on runtime"),
        pytest.param({"spec": ToySpec(tile=33)}, True, id="differs on spec"),
        pytest.param({"memory_per_job_bytes": 1}, False, id="equal for another memory estimate"),
    ],
)
def test_pipeline_key_axes(changes, differs):
    assert (_key(**changes).digest != _key().digest) == differs


@pytest.mark.parametrize(
    "change",
    [
        {"driver_version": "9"},
        {"name": "Another CPU"},
        {"num_compute_units": 64},
        {"local_mem_bytes": 1},
        {"arch": "x86-64-v5"},
        {"l2_bytes": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_spirv_keys_do_not_know_the_device(change):
    """SPIR-V is finished by the driver at load time; what the kernel assumes of the device is in the spec."""
    assert _key(device=cpu_device(**change)).digest == _key().digest


@pytest.mark.parametrize(
    ("change", "differs"),
    [({"driver_version": "9"}, True), ({"arch": "pvc"}, True), ({"num_compute_units": 64}, False)],
    ids=["differs on driver", "differs on arch", "equal for another size"],
)
def test_shared_library_keys_know_arch_and_driver(change, differs):
    base = _key(device=gpu_device(), kind=ArtifactKind.SHARED_LIBRARY)
    other = _key(device=dataclasses.replace(gpu_device(), **change), kind=ArtifactKind.SHARED_LIBRARY)
    assert (base.digest != other.digest) == differs


def test_a_header_edit_changes_the_key(monkeypatch):
    before = _key()
    monkeypatch.setattr("jitmoe.builder.header_digest", lambda: "0" * 64)
    assert _key().request_digest != before.request_digest


def test_real_compilers_put_no_path_of_this_machine_into_the_key():
    from jitmoe.compilers.find import find_compilers

    compilers, _ = find_compilers("auto")
    for compiler in compilers:
        key = Pipeline(compilers=()).key(ToySpec(), cpu_device(), compiler)
        for name, value in key.build:
            assert "/" not in value, (name, value)

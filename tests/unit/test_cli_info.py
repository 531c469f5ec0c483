# SPDX-License-Identifier: MIT
"""jitmoe-info's judgements over made-up facts, and that it survives whatever is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.builders import cache_entry

from jitmoe import knobs
from jitmoe.cache.files import FileStore
from jitmoe.cli import advice, facts, info
from jitmoe.cli.advice import Finding, Verdict
from jitmoe.cli.facts import Facts
from jitmoe.cli.layers import Layer
from jitmoe.plan import tuned
from jitmoe.source import header_digest

LAYER = Layer(store=FileStore(Path("cache"), writable=True), role="writable", state="")
CPU = {"kind": "cpu", "arch": "x86-64", "name": "A CPU", "isa": "avx2", "compute_units": 8, "driver": "1", "runs": True,
       "error": "", "words": "A CPU (cpu)"}  # fmt: skip
GPU = {**CPU, "kind": "gpu", "arch": "bmg-g31", "name": "Arc Pro B70", "words": "Arc Pro B70 (gpu)", "isa": None}
COMPILER = {"name": "sycl-jit", "identity": "sycl-jit 2026.2.0 sha256=x", "used": True, "works": True, "error": "",
            "seconds": 0.1}  # fmt: skip


def made(**changes: Any) -> Facts:
    """Facts of a machine on which all is well; a test names what it varies."""
    values: dict[str, Any] = {
        "jitmoe": "1.0",
        "python": "3.12",
        "system": "Linux",
        "packages": {"torch": "2.13.0", "dpctl": "0.22.1", "intel-sycl-rt": "2026.2.0", "intel-opencl-rt": "2026.2.0"},
        "environment": {"OMP_WAIT_POLICY": "passive"},
        "knob_rows": (),
        "knob_errors": (),
        "tuned_error": "",
        "unknown_knobs": {},
        "settings": knobs.Knobs(),
        "compilers": (COMPILER,),
        "searched": ("icpx: not on PATH", "intel-sycl-rt 2026.2.0"),
        "needed_libsycl": "libsycl.so.9",
        "torch": {"version": "2.13.0", "xpu_available": False, "devices": [], "libsycl": []},
        "sycl": {"devices": [], "targets": [CPU], "problems": [], "libsycl": ["libsycl.so.9"], "cpu_runtime": "/x"},
        "hidden_devices": (),
        "path_libsycl": (),
        "render_nodes": (),
        "free_memory": 8 << 30,
        "free_disk": 8 << 30,
        "start_method": "spawn",
    }
    return Facts(**{**values, **changes})


def findings(layers: tuple[Layer, ...] = (LAYER,), **changes: Any) -> list[Finding]:
    return advice.find_all(made(**changes), layers)


def without(*packages: str) -> dict[str, Any]:
    return {"packages": {**made().packages, **dict.fromkeys(packages)}}


def test_nothing_to_say_where_all_is_well():
    assert findings() == []


NO_DEVICE = {**made().sycl, "targets": []}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no dpctl": ({**without("dpctl"), "sycl": {"error": "no module"}}, "problem", "dpctl is not installed"),
    "old dpctl": ({"packages": {**made().packages, "dpctl": "0.19.0"}}, "problem", "too old"),
    "runtime crashes": ({"sycl": {"error": "boom (signal 11)"}}, "problem", "signal 11"),
    "no torch": ({**without("torch"), "torch": {"error": "no module"}}, "warning", "torch is not installed"),
    "broken torch": ({"torch": {"error": "OSError: libfoo"}}, "warning", "libfoo"),
    "two libsycl": ({"torch": {**made().torch, "libsycl": ["libsycl.so.8"]}}, "problem", "libsycl.so.8"),
    "old toolkit on the path": ({"path_libsycl": ("/opt/libsycl.so.8",)}, "warning", "LD_LIBRARY_PATH"),
    "no CPU runtime": ({**without("intel-opencl-rt"), "sycl": NO_DEVICE}, "problem", "intel-opencl-rt"),
    "CPU runtime not registered": (
        {"sycl": NO_DEVICE, "environment": {"OCL_ICD_FILENAMES": "/other.so"}}, "problem", "no CPU device"),
    "hidden": (
        {"hidden_devices": ("Arc",), "environment": {"ONEAPI_DEVICE_SELECTOR": "opencl:cpu"}}, "warning", "hides Arc"),
    "no access to the GPU": (
        {"render_nodes": ({"path": "/dev/dri/renderD128", "accessible": False},)}, "problem", "may not open"),
    "no GPU driver": (
        {"render_nodes": ({"path": "/dev/dri/renderD128", "accessible": True},)}, "warning", "SYCL does not show it"),
    "probe fails": (
        {"sycl": {**made().sycl, "targets": [{**CPU, "runs": False, "error": "nothing"}]}}, "problem", "probe kernel"),
    "CPU build of torch": ({"sycl": {**made().sycl, "targets": [GPU, CPU]}}, "note", "no XPU support"),
    "B70": ({"sycl": {**made().sycl, "targets": [GPU, CPU]}}, "note", "22958"),
    "no compiler": ({"compilers": ()}, "problem", "no compiler"),
    "wanted compiler": (
        {"compilers": ({**COMPILER, "used": False},), "settings": knobs.Knobs(compiler="icpx")}, "problem",
        "JITMOE_COMPILER=icpx"),
    "broken compiler": ({"compilers": ({**COMPILER, "works": False},)}, "problem", "three lines"),
    "broken icpx": (
        {"compilers": ({**COMPILER, "name": "icpx", "works": False}, COMPILER)}, "warning", "icpx cannot compile"),
    "ONEAPI_ROOT": ({"environment": {"ONEAPI_ROOT": "/opt"}}, "note", "ONEAPI_ROOT"),
    "SYCL cache": ({"environment": {"SYCL_CACHE_PERSISTENT": "1"}}, "warning", "22853"),
    "CPU target": ({"environment": {"CL_CONFIG_CPU_TARGET_ARCH": "corei7"}}, "warning", "corei7"),
    "spinning threads": ({"environment": {}}, "note", "OpenMP threads spin"),
    "fork": ({"start_method": "fork"}, "note", "fork"),
    "bad knob": ({"knob_errors": ("JITMOE_JOBS: expected a number",)}, "problem", "JITMOE_JOBS"),
    "bad tuned file": ({"tuned_error": "no column token"}, "problem", "JITMOE_TUNED_CONFIG cannot be used: no column"),
    "misspelt knob": ({"unknown_knobs": {"JITMOE_STRICKT": "JITMOE_STRICT"}}, "warning", "JITMOE_STRICKT"),
    "foreign variable": ({"unknown_knobs": {"JITMOE_SERVICE_HOST": ""}}, "note", "JITMOE_SERVICE_HOST"),
    "no compiling": ({"settings": knobs.Knobs(disable_jit=True)}, "note", "JITMOE_DISABLE_JIT"),
    "full disk": ({"free_disk": 1 << 20}, "warning", "1.0 MB are free"),
    "little memory": ({"free_memory": 1 << 20}, "warning", "memory"),
    "failed check": ({"failed_checks": ("toy on A CPU: wrong",)}, "warning", "toy on A CPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_trap_is_seen_and_comes_with_advice(case):
    changes, level, words = CASES[case]
    matching = [finding for finding in findings(**changes) if words in finding.what]
    assert [finding.level for finding in matching] == [level]
    assert matching[0].advice


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_a_sycl_cache_that_is_off_is_no_trap(value):
    assert findings(environment={**made().environment, "SYCL_CACHE_PERSISTENT": value}) == []


def test_cache_folders_are_judged():
    refused = dataclasses.replace(LAYER, role="not usable", state="belongs to user 7")
    instead = dataclasses.replace(LAYER, state="used instead")
    assert [finding.level for finding in findings((refused,))] == ["warning", "warning"]
    assert "reboot" in findings((refused, instead))[1].what


def test_the_worst_comes_first():
    levels = [finding.level for finding in findings(compilers=(), start_method="fork", free_disk=1)]
    assert levels == ["problem", "warning", "note"]


def test_report_names_everything_and_the_verdict():
    text = info.report(
        made(), [LAYER], [Finding("warning", "something\nwith evidence", "do this")], Verdict(fresh=("A CPU (cpu)",))
    )
    assert "runs the probe kernel" in text and "probe kernel in 0.10 s" in text
    assert "!  something" in text and "with evidence" in text and "do this" in text
    assert text.endswith("fused_moe runs on\n  A CPU (cpu)")
    bare = made(sycl={"error": "x"}, torch={"error": "y"}, compilers=(), searched=())
    assert "cannot run its kernels here" in info.report(bare, [], [], advice.verdict(bare, []))


NOT_TRIED = {**made().sycl, "targets": [{**CPU, "runs": None}]}
FAILS = {**made().sycl, "targets": [{**CPU, "runs": False, "error": "nothing"}]}
UNUSED = {**COMPILER, "used": False}
UNABLE: dict[str, dict[str, Any]] = {
    "no compiler": {"compilers": (), "sycl": NOT_TRIED},
    "only a compiler that JITMOE_COMPILER forbids": {
        "compilers": (UNUSED,), "settings": knobs.Knobs(compiler="icpx")},
    "the allowed compiler does not work": {
        "compilers": (UNUSED, {**COMPILER, "name": "icpx", "works": False}), "settings": knobs.Knobs(compiler="icpx")},
    "compiling is forbidden": {"settings": knobs.Knobs(disable_jit=True)},
}  # fmt: skip


@pytest.mark.parametrize("case", UNABLE)
def test_where_nothing_can_be_compiled_cached_kernels_decide(case):
    bare = made(**UNABLE[case])
    assert advice.verdict(bare, ["x86-64"]) == Verdict(cached=("A CPU (cpu)",))
    nowhere = advice.verdict(bare, ["bmg-g21"])
    assert not nowhere.fresh and not nowhere.cached
    assert "cannot run its kernels here" in nowhere.text
    assert ("raises an error" in nowhere.text) == (case == "compiling is forbidden")
    assert "JITMOE_STRICT=1" in advice.verdict(made(sycl=FAILS, settings=knobs.Knobs(strict=True)), []).text


def test_a_device_that_fails_the_probe_does_not_count():
    assert advice.verdict(made(sycl=FAILS), ["x86-64"]).why_not


@pytest.mark.parametrize("change", [{"knob_errors": ("JITMOE_JOBS",)}, {"tuned_error": "no column"}], ids=str)
def test_with_settings_that_cannot_be_read_nothing_runs(change):
    assert "until the settings are corrected" in advice.verdict(made(**change), ["x86-64"]).why_not


def test_exit_code_and_json_follow_the_facts(monkeypatch, capsys):
    monkeypatch.setattr(info, "collect", lambda folder, failed: made(failed_checks=failed))
    assert info.main(["--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["runs_on"] == ["A CPU (cpu)"]
    assert record["cache"][0]["role"] == "writable"
    for change in ({"sycl": {"error": "x"}}, {"knob_errors": ("JITMOE_JOBS",)}, UNABLE["compiling is forbidden"]):
        monkeypatch.setattr(info, "collect", lambda folder, failed, change=change: made(**change))
        assert info.main([]) == 1


@pytest.mark.parametrize(("headers", "code"), [(header_digest(), 0), ("0" * 64, 1)], ids=["ours", "other sources"])
def test_only_kernels_of_the_installed_sources_count(monkeypatch, capsys, private_cache, headers, code):
    store = FileStore(private_cache, writable=True)
    store.prepare()
    store.put(dataclasses.replace(cache_entry(), info={**cache_entry().info, "device": "x86-64", "headers": headers}))
    monkeypatch.setattr(info, "collect", lambda folder, failed: made(**UNABLE["compiling is forbidden"]))
    assert info.main([]) == code
    assert ("with cached kernels only" in capsys.readouterr().out) == (code == 0)


def test_settings_are_shown_with_their_origin_and_bad_ones_do_not_stop_it():
    settings, rows, errors = facts.read_knobs({"JITMOE_STRICT": "1", "MAX_JOBS": "3", "JITMOE_LOCK_TIMEOUT": "soon"})
    by_name = {row["variable"]: (row["value"], row["origin"]) for row in rows}
    assert by_name["JITMOE_STRICT"] == ("1", "environment")
    assert by_name["JITMOE_JOBS"] == ("3", "MAX_JOBS")
    assert by_name["JITMOE_LOCK_TIMEOUT"] == ("soon", "environment, cannot be read")
    assert by_name["JITMOE_COMPILE_TIMEOUT"] == ("300", "default")
    assert settings.strict and len(errors) == 1 and "JITMOE_LOCK_TIMEOUT" in errors[0]


@pytest.mark.parametrize(
    ("script", "timeout_s", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", 100.0, "signal 11"),
        ("import sys; print('bad news', file=sys.stderr); sys.exit(15)", 100.0, "bad news (exit code 15)"),
        ("print('no JSON')", 100.0, "no output (exit code 0)"),
        ("import time; time.sleep(300)", 1.0, "no answer within"),
    ],
)
def test_a_child_that_dies_or_hangs_is_a_fact(monkeypatch, script, timeout_s, words):
    run = subprocess.run
    monkeypatch.setattr(facts, "CHILD_TIMEOUT_S", timeout_s)
    monkeypatch.setattr(facts.subprocess, "run", lambda command, **more: run((sys.executable, "-c", script), **more))
    assert words in facts.ask_child("sycl")["error"]


def test_a_missing_module_in_the_child_is_a_fact(tmp_path, monkeypatch):
    (tmp_path / "dpctl.py").write_text("raise ImportError('no dpctl here')")
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "no torch here" in facts.ask_child("torch")["error"]
    assert "no dpctl here" in facts.ask_child("sycl")["error"]


def test_torch_xpu_devices_are_seen(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N\n"
        "__version__ = '2.14+xpu'\nversion = N(xpu='20260100')\nTensor = object\n"
        "p = N(name='Arc', driver_version='1.6')\n"
        "xpu = N(is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda i: p)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = facts.ask_child("torch")
    assert answer["xpu_available"] and answer["devices"] == [{"name": "Arc", "driver": "1.6"}]
    assert "seen by torch" in info.report(made(torch=answer), [LAYER], [], Verdict())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("folder", "Is a directory"),
        (b"cu_num,token\n", "no column model_dim"),
        (b"\xff\xfe\x00", "can't decode"),
        (",".join(tuned.COLUMNS).encode() + b"\n1,1,1,1,1,1,silu,bf16\n", "whole numbers"),
        (",".join(tuned.COLUMNS).encode() + b"\n160,8,2048,768,128,8,silu,bf16,xe,0,128,128\n", ""),
    ],
)
def test_the_tuned_file_is_read(monkeypatch, tmp_path, content, words):
    path = tmp_path / "tuned.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("JITMOE_TUNED_CONFIG", str(path))
    monkeypatch.setenv("JITMOE_STRICKT", "1")
    monkeypatch.setattr(facts, "ask_child", lambda *what, **more: {"error": "not asked"})
    monkeypatch.setattr(facts, "_probe_compilers", lambda settings: ([], (), b""))
    found = facts.collect(None, ())
    assert words in found.tuned_error and bool(words) == bool(found.tuned_error)
    assert found.unknown_knobs == {"JITMOE_STRICKT": "JITMOE_STRICT"}

# SPDX-License-Identifier: MIT
"""The tools as people start them: own processes, an empty home, the SYCL CPU device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHAPE = "H64,I48,E4,k2"
SMALL = (SHAPE, "--device", "cpu", "--dtype", "fp32", "--ids", "int64", "--weights", "fp32")
CALL = """
import torch, jitmoe, jitmoe.reference
x, w1, w2 = torch.randn(3, 64), torch.randn(4, 96, 64), torch.randn(4, 64, 48)
ids, weights = torch.tensor([[0, 1], [2, 3], [1, 1]]), torch.rand(3, 2)
y = jitmoe.fused_moe(x, w1, w2, weights, ids)
expected = jitmoe.reference.fused_moe(x, w1, w2, weights, ids)
print(float((y - expected).norm() / expected.norm()))
"""


def tool(name: str, *arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", f"jitmoe.cli.{name}", *arguments), capture_output=True, text=True, timeout=120,
        env=environment(home, **variables), check=False,
    )  # fmt: skip


def environment(home: Path, **variables: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JITMOE_", "XDG_"))}
    return {**plain, "HOME": str(home), **variables}


@pytest.fixture(scope="module")
def warm_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh home, warmed up for one small layer."""
    home = tmp_path_factory.mktemp("home")
    finished = tool("warmup", *SMALL, home=home)
    assert finished.returncode == 0, finished.stderr
    assert "5 compiled, 0 cached, 0 failed" in finished.stdout
    assert "checked" in finished.stdout
    return home


def test_after_warming_up_nothing_is_compiled_or_checked(warm_home: Path):
    finished = subprocess.run(
        (sys.executable, "-c", CALL), capture_output=True, text=True, timeout=60, check=False,
        env=environment(warm_home, JITMOE_DISABLE_JIT="1", JITMOE_STRICT="1"),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 1e-5
    records = sorted((warm_home / ".cache/jitmoe/trust").iterdir())
    before = [record.stat().st_mtime_ns for record in records]
    again = tool("warmup", *SMALL, "-q", home=warm_home)
    assert "0 compiled, 5 cached, 0 failed" in again.stdout
    assert [record.stat().st_mtime_ns for record in records] == before


def test_the_cache_of_a_warm_up_is_whole_and_current(warm_home: Path):
    assert tool("cache", "verify", home=warm_home).returncode == 0
    stale = tool("cache", "clear", "--stale", home=warm_home)
    assert (stale.returncode, "nothing to remove" in stale.stdout) == (0, True), stale.stdout
    shown = json.loads(tool("cache", "list", "--json", home=warm_home).stdout)
    assert {record["device"] for record in shown} == {"x86-64"}


def test_a_bundle_serves_another_home_that_may_not_compile(warm_home: Path, tmp_path: Path):
    assert tool("cache", "export", str(tmp_path / "kernels.tar"), home=warm_home).returncode == 0
    other = tmp_path / "other"
    other.mkdir()
    assert tool("cache", "import", str(tmp_path / "kernels.tar"), home=other).returncode == 0
    finished = tool("warmup", *SMALL, home=other, JITMOE_DISABLE_JIT="1")
    assert finished.returncode == 0, finished.stderr
    assert "0 compiled, 5 cached" in finished.stdout


def test_a_reader_that_goes_away_is_no_traceback(warm_home: Path):
    command = f"{sys.executable} -m jitmoe.cli.cache list --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(
        ("bash", "-c", command), capture_output=True, text=True, env=environment(warm_home), timeout=60, check=False
    )
    assert finished.stderr == ""


def test_ctrl_c_ends_at_once_and_what_is_compiled_stays(tmp_path: Path):
    process = subprocess.Popen(
        (sys.executable, "-m", "jitmoe.cli.warmup", "mixtral-8x7b", "--device", "bmg-g21,dg2,pvc", "--jobs", "1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[ 2/"):
            break
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert (process.returncode, "interrupted" in errors, "Traceback" in errors) == (130, True, False)
    assert tool("cache", "verify", home=tmp_path).returncode == 0
    assert len(json.loads(tool("cache", "list", "--json", home=tmp_path).stdout)) >= 2


def test_info_tries_the_device_out(warm_home: Path):
    finished = tool("info", "--json", home=warm_home)
    assert finished.returncode == 0, finished.stderr
    facts = json.loads(finished.stdout)
    assert facts["runs_on"]
    assert [compiler["works"] for compiler in facts["compilers"] if compiler["name"] == "sycl-jit"] == [True]
    assert [target["runs"] for target in facts["sycl"]["targets"]] == [True]
    assert all(finding["level"] != "problem" for finding in facts["findings"])


def test_info_sees_hidden_devices_and_survives_without_a_home(tmp_path: Path):
    finished = tool("info", home=tmp_path / "nothing", ONEAPI_DEVICE_SELECTOR="level_zero:gpu", JITMOE_JOBS="many")
    assert finished.returncode == 1
    assert "ONEAPI_DEVICE_SELECTOR=level_zero:gpu hides" in finished.stdout
    assert "JITMOE_JOBS: expected a number" in finished.stdout
    assert finished.stderr == ""

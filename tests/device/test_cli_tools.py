# SPDX-License-Identifier: MIT
"""The tools as people start them: own processes, an empty home, the SYCL CPU device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
        (sys.executable, "-m", f"jitmoe.cli.{name}", *arguments), capture_output=True, text=True, timeout=300,
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
    assert "4 compiled, 0 cached, 0 failed" in finished.stdout
    assert "checked" in finished.stdout
    return home


def test_after_warming_up_nothing_is_compiled_or_checked(warm_home: Path):
    finished = subprocess.run(
        (sys.executable, "-c", CALL), capture_output=True, text=True, timeout=300, check=False,
        env=environment(warm_home, JITMOE_DISABLE_JIT="1", JITMOE_STRICT="1"),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 1e-5
    records = sorted((warm_home / ".cache/jitmoe/trust").iterdir())
    before = [record.stat().st_mtime_ns for record in records]
    again = tool("warmup", *SMALL, "-q", home=warm_home)
    assert "0 compiled, 4 cached, 0 failed" in again.stdout
    assert [record.stat().st_mtime_ns for record in records] == before


OTHER_OPS = """
import torch, jitmoe
ids, weights = torch.tensor([[0, 1], [2, 3], [1, 1]]), torch.rand(3, 2)
jitmoe.expert_load(ids, 4)
jitmoe.activate(torch.randn(6, 96), layout="concatenated")
d = torch.empty(3, 64)
jitmoe.grouped_gemm_moe(torch.randn(3, 48), torch.randn(4, 64, 48), None, d, weights, ids, 2, True)
jitmoe.moe_align_block_size(ids, 4, 16)
jitmoe.moe_sorting(ids, weights, 4, 64, "fp32")
"""


def test_ops_that_are_asked_for_need_nothing_else(tmp_path: Path):
    ops = "expert_load,activate,grouped_gemm_moe,moe_align_block_size,moe_sorting"
    finished = tool("warmup", *SMALL, "--tokens", "3", "--ops", ops, home=tmp_path)
    assert finished.returncode == 0, finished.stderr
    called = subprocess.run(
        (sys.executable, "-c", OTHER_OPS), capture_output=True, text=True, timeout=300, check=False,
        env=environment(tmp_path, JITMOE_DISABLE_JIT="1", JITMOE_STRICT="1"),
    )  # fmt: skip
    assert called.returncode == 0, called.stderr


# A layer with groups, a correction bias and a shared expert: every way to call it, and what must be the same.
ROUTED_CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": 64, "moe_intermediate_size": 48, "n_routed_experts": 8, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 2, "n_shared_experts": 1, "torch_dtype": "bfloat16",
}  # fmt: skip
ROUTED_CALLS = """
import dataclasses, sys, torch, jitmoe
from jitmoe import reference
from jitmoe.models import find_model
router = find_model(sys.argv[1]).router
shared = dataclasses.replace(router.routing, num_shared_experts=1)
bias = torch.randn(8)
w1, w2 = torch.randn(9, 96, 64).bfloat16() / 8, torch.randn(9, 64, 48).bfloat16() / 8
largest = 0.0
def compare(result, expected):
    global largest
    largest = max(largest, float((result.float() - expected.float()).norm() / expected.float().norm()))
for m in (1, 3, 70):
    x = torch.randn(m, 64).bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(m, 8).to(dtype)
        for routing, last in ((router.routing, 8), (shared, 9)):
            weights, ids = reference.route(logits, routing, correction_bias=bias)
            expected = reference.fused_moe(x, w1[:last], w2[:last], weights, ids)
            routed = {"router_logits": logits, "routing": routing, "correction_bias": bias}
            compare(jitmoe.fused_moe(x, w1[:last], w2[:last], **routed), expected)
            for ids_dtype in ("int32", "int64"):
                weights, ids = jitmoe.route(logits, routing, correction_bias=bias, ids_dtype=ids_dtype)
                for w in (weights, weights.to(x.dtype)):
                    compare(jitmoe.fused_moe(x, w1[:last], w2[:last], w, ids), expected)
                    if last == 9:
                        one = jitmoe.fused_moe(x, w1, w2, w[:, :2].contiguous(), ids[:, :2].contiguous(),
                                               num_shared_experts=1)
                        compare(one, expected)
print(largest)
"""


def test_after_warming_up_a_model_its_router_compiles_nothing_either(tmp_path: Path):
    config, home = tmp_path / "config.json", tmp_path / "home"
    config.write_text(json.dumps(ROUTED_CONFIG))
    home.mkdir()
    warm = tool("warmup", str(config), "--device", "cpu", home=home)
    assert warm.returncode == 0, warm.stderr
    assert "2 of 4 groups by top2_sum" in warm.stdout and "checked cpu_topk" in warm.stdout
    records = sorted((home / ".cache/jitmoe/trust").iterdir())
    finished = subprocess.run(
        (sys.executable, "-c", ROUTED_CALLS, str(config)), capture_output=True, text=True, timeout=300, check=False,
        env=environment(home, JITMOE_DISABLE_JIT="1", JITMOE_STRICT="1"),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 1e-2
    assert sorted((home / ".cache/jitmoe/trust").iterdir()) == records


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
    assert "0 compiled, 4 cached" in finished.stdout


def test_a_reader_that_goes_away_is_no_traceback(warm_home: Path):
    command = f"{sys.executable} -m jitmoe.cli.cache list --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(
        ("bash", "-c", command), capture_output=True, text=True, env=environment(warm_home), timeout=300, check=False
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
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, "interrupted" in errors, "Traceback" in errors) == (130, True, False)
    assert tool("cache", "verify", home=tmp_path).returncode == 0
    asked_for = int(line.removeprefix("[ 2/").partition("]")[0])
    compiled = len(json.loads(tool("cache", "list", "--json", home=tmp_path).stdout))
    assert 2 <= compiled < asked_for, "it did not go on"


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

# SPDX-License-Identifier: MIT
"""jitmoe-warmup with the real planners, offline devices and a compiler that counts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
from helpers.fakes import FakeCompiler

from jitmoe import builder, pipeline
from jitmoe.cli import devices, model_calls, warmup
from jitmoe.cli.devices import Target
from jitmoe.cli.model_calls import Dtypes
from jitmoe.device import Device
from jitmoe.models import MODELS
from jitmoe.plan import plan_for
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routed import ROUTED_IDS_DTYPE, ROUTED_WEIGHTS_DTYPE, RoutedMoEProblem
from jitmoe.spec import KernelSpec


@pytest.fixture
def compiler(monkeypatch) -> FakeCompiler:
    fake = FakeCompiler()
    monkeypatch.setattr(builder, "find_compilers", lambda choice, soname: ((fake,), ("fake",)))
    monkeypatch.setattr(pipeline, "find_ocloc", lambda: (None, "fake"))  # its images are no SPIR-V
    return fake


DTYPES = Dtypes(ids=(DType.INT32, DType.INT64), weights=(DType.FP32, DType.BF16), logits=(DType.FP32, DType.BF16))


def device_of(name: str) -> Device:
    return devices.resolve([name])[0].device


def prepared(model: str, device: str, ops=model_calls.DEFAULT_OPS, tokens=None) -> set[KernelSpec]:
    """The kernels that a warm-up makes."""
    counts = tokens or model_calls.default_token_counts()
    calls = model_calls.calls_of(device_of(device), MODELS[model], ops, DTYPES, counts, exact=tokens is not None)
    return {spec for one in calls for spec in one.specs}


@pytest.mark.parametrize("device", ARCHITECTURES)
def test_default_token_counts_meet_every_kernel_choice(device):
    every_count = tuple(range(1, 1200)) + tuple(range(1200, model_calls.MAX_TOKENS, 37))
    ops = ("fused_moe", "moe_sorting")
    assert prepared("qwen3-30b-a3b", device, ops, every_count) <= prepared("qwen3-30b-a3b", device, ops)


def test_buckets_reach_from_one_to_the_next():
    calls = model_calls.calls_of(
        device_of("bmg-g21"), MODELS["deepseek-v3"], ("fused_moe", "moe_align_block_size"), DTYPES,
        model_calls.default_token_counts(), exact=False,
    )  # fmt: skip
    for one in calls:
        assert one.buckets[0].first == 1
        assert one.buckets[-1].last == model_calls.MAX_TOKENS
        assert [b.last + 1 for b in one.buckets[:-1]] == [b.first for b in one.buckets[1:]]
    assert {len(one.buckets) for one in calls if one.op == "moe_align_block_size"} == {2}


COUNTS = (1, 2, 7, 64, 300, 1024, 5000, 16384)


@pytest.mark.parametrize("device", ["bmg-g21", "dg2", "cpu-avx512"])
@pytest.mark.parametrize("name", MODELS)
def test_calls_that_route_first_need_nothing_else(name, device):
    model, there = MODELS[name], device_of(device)
    ready = prepared(name, device)
    routing = model.router.routing
    assert routing is not None
    for shared in {0, model.num_shared_experts}:
        layer = model.with_shared_experts() if shared else model
        for m, logits in itertools.product(COUNTS, DTYPES.logits):
            route = model.routing_problem(m, logits_dtype=logits, ids_dtype=ROUTED_IDS_DTYPE)
            route = dataclasses.replace(route, routing=dataclasses.replace(routing, num_shared_experts=shared))
            experts = layer.problem(
                m, topk_ids_dtype=ROUTED_IDS_DTYPE, topk_weights_dtype=ROUTED_WEIGHTS_DTYPE, base_alignment=64
            )
            chain = plan_for(RoutedMoEProblem(routing=route, experts=experts), there)
            assert set(chain.specs) <= ready
            assert {spec.KERNEL for spec in chain.specs} & {"xe_topk", "cpu_topk"}
            if shared:
                adjust = model.adjust_problem(m, ids_dtype=DType.INT64, weights_dtype=DType.BF16)
                given = plan_for(RoutedMoEProblem(routing=adjust, experts=experts), there)
                assert set(given.specs) <= ready


def test_compiles_each_binary_once_and_finds_it_again(compiler, capsys):
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21"]) == 0
    first = capsys.readouterr().out
    count = len(compiler.requests)
    assert count == len({request.source for request in compiler.requests}) > 4
    assert f"{count} compiled, 0 cached, 0 failed" in first
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "-q"]) == 0
    assert f"0 compiled, {count} cached, 0 failed" in capsys.readouterr().out
    assert len(compiler.requests) == count


def test_other_models_with_the_same_router_need_nothing_new(compiler):
    warmup.main(["qwen3-30b-a3b", "--device", "bmg-g21"])
    count = len(compiler.requests)
    warmup.main(["qwen3-235b-a22b", "--device", "bmg-g21"])
    assert len(compiler.requests) == count


def test_several_devices_in_one_go(compiler, capsys):
    assert warmup.main(["olmoe-1b-7b", "--device", "bmg-g21,dg2,cpu-avx2", "--tokens", "1,64"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("bmg-g21 (offline)", "dg2 (offline)", "cpu-avx2 (offline)"))
    assert "not checked" in out


def test_dry_run_compiles_nothing_and_makes_no_folder(compiler, capsys, tmp_path):
    assert warmup.main(["qwen3-30b-a3b", "--device", "pvc", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "0 cached" in out and "missing" in out and "M 1.." in out
    assert not compiler.requests
    assert not (tmp_path / "cache").exists()
    warmup.main(["qwen3-30b-a3b", "--device", "pvc", "-q"])
    capsys.readouterr()
    warmup.main(["qwen3-30b-a3b", "--device", "pvc", "--dry-run"])
    assert ", 0 to compile" in capsys.readouterr().out
    warmup.main(["qwen3-30b-a3b", "--device", "pvc", "--dry-run", "-q"])
    summary = capsys.readouterr().out
    assert ", 0 to compile" in summary and len(summary.splitlines()) == 4  # model, router, count, cache


def test_two_4_bit_codes_share_a_byte(compiler, capsys):
    assert warmup.main(["H64,I97,E4,k2", "--device", "pvc", "--format", "mxfp4"]) != 0
    assert "I = 97 is odd" in capsys.readouterr().err
    assert warmup.main(["H64,I97,E4,k2", "--device", "pvc", "--format", "int8", "--dry-run", "-q"]) == 0


def test_explain_shows_each_bucket(compiler, capsys):
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "--tokens", "1,4096", "--explain", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "M = 1\n" in out and "M = 4096\n" in out and "workspace" in out
    warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "--tokens", "2,1", "--explain", "--dry-run"])
    assert "M = 1,2\n" in capsys.readouterr().out


def specs_of(compiler: FakeCompiler, kernel: str) -> list[str]:
    """The compiled specs of one kernel."""
    return [request.spec for request in compiler.requests if request.spec.startswith(f"{kernel}(")]


def test_dtypes_can_be_narrowed(compiler):
    narrow = ["--ids", "int64", "--weights", "bf16", "--tokens", "8"]
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", *narrow, "--logits", "bf16"]) == 0
    assert ["int64" in spec for spec in specs_of(compiler, "xe_combine")] == [True, False]  # given, and routed
    assert ["topk_weights_dtype=bf16" in spec for spec in specs_of(compiler, "xe_down")] == [True, False]
    assert len(specs_of(compiler, "xe_topk")) == 2
    assert all("(dtype=bf16 " in spec for spec in specs_of(compiler, "xe_topk"))
    compiler.requests.clear()
    assert warmup.main(["H4096,I14336,E8,k2", "--device", "dg2", *narrow]) == 0  # nothing is known of its routing
    assert not any("ids_dtype=int32" in request.spec for request in compiler.requests)
    assert all("topk_weights_dtype=bf16" in spec for spec in specs_of(compiler, "xe_down"))
    assert not specs_of(compiler, "xe_topk")


def test_ops_can_be_chosen(compiler, capsys):
    base = ["deepseek-v3", "--device", "bmg-g21", "--tokens", "8", "--ids", "int32", "--weights", "fp32"]
    assert warmup.main([*base, "--ops", "route"]) == 0
    assert len(compiler.requests) == len(specs_of(compiler, "xe_topk")) == 2
    assert warmup.main([*base, "--ops", "moe_align_block_size,moe_sorting"]) == 0
    assert len(specs_of(compiler, "xe_align")) == 2
    assert not specs_of(compiler, "xe_down")
    assert warmup.main([*base, "--ops", "fused_moe"]) == 0
    assert len(specs_of(compiler, "xe_topk")) == 2 and len(specs_of(compiler, "adjust_routing")) == 1
    capsys.readouterr()
    assert warmup.main(["H64,I64,E8,k2", "--device", "bmg-g21", "--ops", "route"]) == 2
    assert "its routing is not known" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["bmg-g21", "cpu-avx512"])
@pytest.mark.parametrize("name", MODELS)
def test_single_ops_follow_the_model(name, device):
    model = MODELS[name]
    asked = model_calls.calls_of(
        device_of(device), model, ("expert_load", "activate", "grouped_gemm_moe"), DTYPES, (300,)
    )
    found = {one.op: one.buckets[-1].problem for one in asked}
    assert (found["expert_load"].num_experts, found["expert_load"].top_k) == (model.num_experts, model.top_k)
    activate, product = found["activate"], found["grouped_gemm_moe"]
    assert (activate.num_rows, activate.num_columns) == (300 * model.top_k, model.intermediate_size)
    assert (activate.activation.value, activate.gate_up, activate.limit) == (
        model.activation, model.gate_up, model.swiglu_limit)  # fmt: skip
    assert (product.n, product.k, product.layout) == (
        model.hidden_size, model.intermediate_size, model.stored_layouts[1])  # fmt: skip
    assert {one.op for one in asked if "int64" in one.dtypes} == {"expert_load", "grouped_gemm_moe"}


def test_routing_is_shown(compiler, capsys):
    assert warmup.main(["deepseek-v3", "--device", "bmg-g21", "--dry-run", "--explain", "--tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert "routing: sigmoid, then top-k, in 4 of 8 groups" in out
    assert "route(M=8 E=256 k=8 fp32 sigmoid biased 4/8 groups top2_sum)" in out
    assert "route by token count, logits fp32, ids int32\n  M 8             xe_topk (" in out
    assert warmup.main(["H64,I64,E8,k2", "--device", "bmg-g21", "--dry-run"]) == 0
    assert "routing: not known; calls with routing= are not prepared" in capsys.readouterr().out


def test_expert_parallel_ranks_get_kernels_with_a_map(compiler):
    warmup.main(["deepseek-v3", "--device", "bmg-g21", "--tokens", "8", "--ep", "8"])
    assert all("has_expert_map=False" not in request.spec for request in compiler.requests)
    assert any("has_expert_map=True" in request.spec for request in compiler.requests)


def test_a_failing_compiler_is_reported_with_its_evidence(compiler, capsys):
    compiler.failure = "the compiler reported an error (code 1)"
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "--tokens", "8"]) == 1
    captured = capsys.readouterr()
    assert "0 compiled, 0 cached" in captured.out
    assert "toy.cpp:3:1: error: no" in captured.err


def test_the_same_failure_is_shown_once_and_many_are_counted(compiler, capsys, monkeypatch):
    monkeypatch.setattr(builder, "find_compilers", lambda choice, soname: ((), ("icpx: not on PATH",)))
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21"]) == 1
    assert capsys.readouterr().err.count("no SYCL compiler found") == 1
    compiler.failure = "no"
    monkeypatch.setattr(builder, "find_compilers", lambda choice, soname: ((compiler,), ()))
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("FAILED") == warmup.SHOWN_FAILURES and "failures more" in errors


def test_without_compiling_it_says_what_is_missing(compiler, capsys, monkeypatch):
    monkeypatch.setenv("JITMOE_DISABLE_JIT", "1")
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "--tokens", "8"]) == 1
    assert "JITMOE_DISABLE_JIT=1 forbids compiling" in capsys.readouterr().err
    assert not compiler.requests


def test_a_full_disk_is_a_failure_with_its_reason_even_when_quiet(compiler, capsys, monkeypatch):
    def full(self, entry):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jitmoe.cache.files.FileStore.put", full)
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21", "--tokens", "8", "-q"]) == 1
    errors = capsys.readouterr().err
    assert "No space left on device" in errors and "kernels could not be stored" in errors


def test_a_self_check_record_that_cannot_be_stored_is_a_failure(compiler, capsys, monkeypatch):
    def full(self, name, verdict):
        raise OSError(28, "No space left on device")

    def check(self, problem, stream, names):
        self.cache.put_verdict("toy", {"status": "passed"})

    monkeypatch.setattr("jitmoe.cache.files.FileStore.put_verdict", full)
    monkeypatch.setattr(pipeline.Pipeline, "prepare", check)
    monkeypatch.setattr(warmup, "stream_of", lambda address: None)
    here = Target(device=offline_device("bmg-g21"), queue=SimpleNamespace(addressof_ref=lambda: 0))
    monkeypatch.setattr(warmup, "resolve", lambda names: (here,))
    assert warmup.main(["mixtral-8x7b", "--tokens", "8", "-q"]) == 1
    captured = capsys.readouterr()
    assert "0 failed" in captured.out
    assert "1 self-check record could not be stored" in captured.err and "kernel" not in captured.err.split("1 self")[1]


def test_without_a_place_to_store_it_refuses(compiler, capsys, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(blocked / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(blocked))
    assert warmup.main(["mixtral-8x7b", "--device", "bmg-g21"]) == 1
    assert "JITMOE_CACHE_DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["qwen3-30b"], "Did you mean qwen3-30b-a3b"),
        (["gpt-oss-20b", "--layout", "kn"], "quantized weights are"),
        (["mixtral-8x7b", "--device", "bgm-g21"], "did you mean bmg-g21"),
        (["mixtral-8x7b", "--device", "bmg-g21", "--tp", "3"], "cannot be split tensor parallel into 3"),
    ],
)
def test_what_is_not_understood_ends_with_2(arguments, words, capsys):
    assert warmup.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--tokens", "0"],
        ["x", "--ids", "int8"],
        ["x", "--ops", "nothing"],
        ["x", "--jobs", "0"],
        *(
            ["x", f"--{option}", text]
            for option in ("ops", "ids", "weights", "logits", "device")
            for text in ("", " , ")
        ),
    ],
)
def test_wrong_command_lines_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        warmup.main(arguments)
    assert caught.value.code == 2


def test_a_format_without_loader_needs_an_explicit_dtype(compiler, capsys, tmp_path):
    path = tmp_path / "config.json"
    config = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_local_experts": 4,
              "num_experts_per_tok": 2, "quantization_config": {"quant_method": "bitsandbytes"}}  # fmt: skip
    path.write_text(json.dumps(config))
    assert warmup.main([str(path), "--device", "bmg-g21"]) == 2
    assert "--dtype bf16" in capsys.readouterr().err
    assert warmup.main([str(path), "--device", "bmg-g21", "--dtype", "bf16", "--dry-run"]) == 0


def test_gpt_oss_in_bf16_has_all_its_features(compiler, capsys):
    assert warmup.main(["gpt-oss-20b", "--device", "bmg-g21", "--dtype", "bf16", "--tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert "swiglu_oai, limit 7, interleaved, biases, weights [E, K, N]" in out
    gate_up = [request.spec for request in compiler.requests if "gate_up" in request.spec]
    assert gate_up and all("swiglu_oai" in spec and "interleaved" in spec for spec in gate_up)


def test_the_table_is_shown_with_its_features(capsys):
    assert warmup.main(["--list-models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MODELS) + 1
    assert any("gpt-oss-20b" in line and "e2m1/1x32/e8m0" in line for line in lines)


def test_default_device_is_the_gpu_then_the_cpu(monkeypatch):
    gpu = Target(device=offline_device("pvc"), queue=object())
    cpu = Target(device=devices.offline_cpu(devices.CpuIsa.AVX2), queue=object())
    monkeypatch.setattr(devices, "present_targets", lambda: ((gpu, cpu), ()))
    assert devices.resolve([]) == (gpu,)
    assert devices.resolve(["cpu"]) == (cpu,)
    assert devices.resolve(["pvc"]) == (gpu,)
    assert not devices.resolve(["dg2"])[0].is_present
    monkeypatch.setattr(devices, "present_targets", lambda: ((cpu,), ()))
    assert devices.resolve([]) == (cpu,)
    monkeypatch.setattr(devices, "present_targets", lambda: ((), ("no dpctl",)))
    with pytest.raises(devices.DeviceError, match="no dpctl"):
        devices.resolve([])
    assert devices.resolve(["bmg-g21"])[0].device.arch == "bmg-g21"

# SPDX-License-Identifier: MIT
"""Routing, sorting and load statistics on the CPU device and on emulated GPUs, against their twins."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import dpctl
import dpctl.memory
import pytest
import torch
from helpers import xe_emulation
from helpers.routing import Case, first_difference, run

import jitmoe
from jitmoe import reference
from jitmoe.errors import ArgumentError, LoadError
from jitmoe.pipeline import Pipeline, default
from jitmoe.plan import load_xe, sorting_cpu, sorting_xe
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routing import Routing
from jitmoe.problems.sorting import LoadProblem, SortProblem
from jitmoe.runtime import cpu
from jitmoe.selfcheck import judge_floats

DEEPSEEK = Routing(
    top_k=8, scoring="sigmoid", num_groups=8, topk_groups=4, group_score="top2_sum",
    renormalize=True, renormalize_epsilon=1e-20, scaling_factor=2.5,
)  # fmt: skip
# name -> (experts, router, dtype of logits, dtype of the bias)
ROUTERS = {
    "deepseek v3": (256, DEEPSEEK, torch.bfloat16, torch.float32),
    "mixtral": (8, Routing(top_k=2, renormalize=True), torch.float16, None),
    "qwen3": (128, Routing(top_k=8, renormalize=True, num_shared_experts=1), torch.bfloat16, None),
    "512 experts": (512, Routing(top_k=10), torch.float32, None),
    "1000 of 32": (1000, Routing(top_k=32), torch.float32, torch.bfloat16),
    "gpt-oss": (32, Routing(top_k=4, topk_before_scoring=True), torch.bfloat16, None),
    "llama 4": (17, Routing(top_k=1, topk_before_scoring=True, scoring="sigmoid"), torch.float32, None),
    "phi": (16, Routing(top_k=2, scoring="sparsemixer"), torch.bfloat16, None),
    "phi, many": (160, Routing(top_k=20, scoring="sparsemixer", jitter_eps=0.2), torch.float32, None),
    "phi, everything": (40, Routing(top_k=7, scoring="sparsemixer", jitter_eps=0.3, temperature=1.7, num_groups=5,
                                    topk_groups=3, renormalize=True, num_shared_experts=1),
                        torch.float32, torch.float32),
    "odd groups": (35, Routing(top_k=6, num_groups=7, topk_groups=3, renormalize=True, renormalize_min=0.7),
                   torch.float32, torch.float16),
    "sqrt_softplus": (60, Routing(top_k=17, scoring="sqrt_softplus", temperature=1.7), torch.float32, torch.float32),
    "given": (5, Routing(top_k=5, scoring="none", scaling_factor=-0.5), torch.float32, None),
    "one": (1, Routing(top_k=1), torch.float32, None),
    "capped": (40, Routing(top_k=4, capacity_factor=1.2, renormalize=True), torch.bfloat16, torch.float32),
    "capped groups": (256, dataclasses.replace(DEEPSEEK, capacity_factor=0.8, num_shared_experts=2),
                      torch.float32, torch.float32),
}  # fmt: skip
DEVICES = ["cpu", "bmg-g21"]


@pytest.fixture
def pipeline() -> Pipeline:
    return default()


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


def logits(kind: str, tokens: int, experts: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, experts, generator=generator)
    if kind == "tied":
        x = torch.randint(0, 3, (tokens, experts), generator=generator).float()
    if kind == "saturated":
        x = x * 1000
    if kind == "-inf":
        x[torch.rand(tokens, experts, generator=generator) < 0.6] = float("-inf")
        x[tokens // 2] = float("-inf")
    if kind == "huge":
        x = x.sign() * torch.rand(tokens, experts, generator=generator) * torch.finfo(dtype).max
    return x.to(dtype)


@pytest.mark.parametrize(
    ("name", "device"),
    [(name, device) for device in ("cpu", "bmg-g21") for name in ROUTERS]
    + [(name, "dg2") for name in ("deepseek v3", "1000 of 32", "odd groups", "phi, everything", "capped groups")],
)
def test_routes_like_its_twin(pipeline: Pipeline, name: str, device: str) -> None:
    experts, routing, dtype, bias_dtype = ROUTERS[name]
    bias = None if bias_dtype is None else (torch.randn(experts) / 8).to(bias_dtype)
    for kind in ("random", "tied", "saturated", "-inf", "huge"):
        x = logits(kind, 45, experts, dtype)
        if routing.scoring.value == "none":
            x = x.nan_to_num(neginf=0.0)
        case = Case(x, routing, bias, ids_dtype=DType.INT64 if name == "one" else DType.INT32)
        weights, ids = case.run(pipeline, device)
        expected_weights, expected_ids = case.expected()
        assert torch.equal(ids, expected_ids), f"{kind}: {first_difference(case, ids, expected_ids)}"
        torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=0.0, equal_nan=True)


def test_softmax_of_512_experts_is_as_accurate_as_torch(pipeline: Pipeline) -> None:
    x = logits("random", 64, 512, torch.float32) * 4
    exact = torch.softmax(x.double(), dim=-1)

    def error(weights: torch.Tensor, ids: torch.Tensor) -> float:
        wanted = exact.gather(1, ids.long())
        return float(((weights - wanted) / wanted).abs().max())

    torchs = error(*torch.softmax(x, dim=-1).topk(10, dim=-1))
    for device in DEVICES:
        assert error(*Case(x, Routing(top_k=10)).run(pipeline, device)) <= max(torchs, 5e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_strides_shared_experts_and_many_tokens(pipeline: Pipeline, device: str) -> None:
    experts, routing, dtype, _ = ROUTERS["qwen3"]
    wide = torch.full((3000, experts + 9), float("nan"), dtype=dtype)
    wide[:, 3 : experts + 3] = logits("random", 3000, experts, dtype)
    case = Case(wide[:, 3 : experts + 3], routing, gap=2)
    weights, ids = case.run(pipeline, device)
    expected = case.expected()
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(weights, expected[0], rtol=2e-6, atol=0.0)


def test_no_expert_is_over_capacity_and_few_tokens_move() -> None:
    x = logits("random", 500, 40, torch.bfloat16) + torch.arange(40) / 20
    routing = ROUTERS["capped"][1]
    _, ids = jitmoe.route(x.bfloat16(), routing)
    counts, imbalance = jitmoe.expert_load(ids, 40)
    _, free = jitmoe.route(x.bfloat16(), dataclasses.replace(routing, capacity_factor=None))
    assert int(counts.max()) <= 60 and float(imbalance) < 1.2001
    assert float(jitmoe.expert_load(free, 40).imbalance) > 1.5
    assert bool((ids >= 0).all())
    assert torch.equal(ids[:20], free[:20])  # nobody is full yet


def test_short_forms() -> None:
    x, bias = logits("random", 30, 64, torch.float32), torch.randn(64) / 8

    def same(found: tuple[torch.Tensor, torch.Tensor], routing: Routing, bias: torch.Tensor | None = None) -> None:
        expected = reference.route(x, routing, correction_bias=bias)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=0.0)

    same(jitmoe.topk_softmax(x, 4, True), Routing(top_k=4, renormalize=True))
    same(jitmoe.topk_sigmoid(x, 1), Routing(top_k=1, scoring="sigmoid"))
    same(
        jitmoe.topk_sigmoid(x, 3, True, correction_bias=bias, routed_scaling_factor=2.0, num_fused_shared_experts=1),
        Routing(top_k=3, scoring="sigmoid", renormalize=True, scaling_factor=2.0, num_shared_experts=1),
        bias,
    )
    same(
        jitmoe.topk_sqrt_softplus(x, 2),
        Routing(top_k=2, scoring="sqrt_softplus", renormalize=True),
    )
    groups = Routing(top_k=4, num_groups=8, topk_groups=3, scaling_factor=16.0)
    same(jitmoe.grouped_topk(x, 4, False, 8, 3, routed_scaling_factor=16.0), groups)
    same(
        jitmoe.grouped_topk(
            x, 4, True, 8, 3, "sigmoid", 2.5, bias,
            num_fused_shared_experts=2, apply_routed_scaling_factor_on_output=False,
        ),
        dataclasses.replace(
            groups, scoring="sigmoid", group_score="top2_sum", renormalize=True, scaling_factor=1.0,
            num_shared_experts=2, shared_expert_weight=0.4,
        ),
        bias,
    )  # fmt: skip


@pytest.mark.parametrize("top_k", [True, [2], 2.0, 0])
def test_short_forms_check_their_arguments(top_k: object) -> None:
    jitmoe.topk_softmax(torch.zeros(2, 4), 1)
    with pytest.raises(ArgumentError, match="top_k"):
        jitmoe.topk_softmax(torch.zeros(2, 4), top_k)
    with pytest.raises(ArgumentError, match="scoring"):
        jitmoe.grouped_topk(torch.zeros(2, 4), 1, False, 1, 1, "relu")


def test_outputs_that_are_given_are_written_and_returned() -> None:
    x = logits("random", 9, 64, torch.float32)
    wide = torch.full((9, 11), -1.0)
    ids = torch.empty(9, 4, dtype=torch.int64)
    found = jitmoe.route(x, Routing(top_k=4), topk_weights=wide[:, 2:6], topk_ids=ids)
    expected = reference.route(x, Routing(top_k=4), ids_dtype="int64")
    assert found[0].data_ptr() == wide[:, 2:6].data_ptr() and found[1] is ids
    assert torch.equal(ids, expected[1]) and bool((wide[:, :2] == -1).all()) and bool((wide[:, 6:] == -1).all())
    empty = jitmoe.route(x[:0], Routing(top_k=4), ids_dtype=torch.int64)
    assert empty[0].shape == empty[1].shape == (0, 4) and empty[1].dtype == torch.int64


ROUTE_ERRORS = [
    ({"router_logits": torch.zeros(4)}, "router_logits"),
    ({"router_logits": torch.zeros(4, 8, dtype=torch.float64)}, "router_logits"),
    ({"router_logits": torch.zeros(8, 4).T}, "router_logits"),
    ({"router_logits": torch.zeros(4, 1)}, "routing.top_k"),
    ({"routing": "softmax"}, "routing"),
    ({"correction_bias": torch.zeros(7)}, "correction_bias"),
    ({"correction_bias": torch.zeros(8, dtype=torch.int32)}, "correction_bias"),
    ({"correction_bias": torch.zeros(1, 8)}, "correction_bias"),
    ({"ids_dtype": "int16"}, "ids_dtype"),
    ({"topk_ids": torch.zeros(4, 3, dtype=torch.int32)}, "topk_ids"),
    ({"topk_ids": torch.zeros(4, 2)}, "topk_ids"),
    ({"topk_weights": torch.zeros(4, 2, dtype=torch.bfloat16)}, "topk_weights"),
    ({"topk_weights": torch.zeros(1, 2).expand(4, 2)}, "topk_weights"),
]


@pytest.mark.parametrize(("wrong", "name"), ROUTE_ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_arguments_of_route(wrong: dict, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        jitmoe.route(**{"router_logits": torch.zeros(4, 8), "routing": Routing(top_k=2), **wrong})
    assert caught.value.argument == name


def sort_ids(tokens: int, top_k: int, experts: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(-1, experts + 2, (tokens, top_k), generator=generator).to(dtype)


# (tokens, k, experts, block size); even numbers of tokens: int64 ids; odd: int32 with a map
SHAPES = [(0, 2, 5, 4), (1, 1, 1, 1), (3, 2, 100, 16), (700, 4, 61, 32), (401, 3, 300, 7)]
WAYS = [("cpu", False), ("cpu", True), ("bmg-g21", False), ("bmg-g21", True), ("dg2", True)]


@pytest.mark.parametrize(("device", "many"), WAYS)
def test_sorting_is_its_twin(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, device: str, many: bool) -> None:
    if many:
        monkeypatch.setattr(sorting_cpu, "MAX_SERIAL_PAIRS", -1)
        monkeypatch.setattr(sorting_cpu, "MIN_PAIRS_PER_RANGE", 64)
        monkeypatch.setattr(sorting_xe, "MAX_ONE_GROUP_PAIRS", -1)
    for tokens, top_k, experts, block_size in SHAPES:
        ids = sort_ids(tokens, top_k, experts, torch.int32 if tokens % 2 else torch.int64)
        expert_map = None
        if tokens % 2:
            expert_map = torch.randperm(experts, generator=torch.Generator().manual_seed(1)).to(torch.int32)
            expert_map[0] = experts + 5
        weights = torch.rand(tokens, top_k).half()
        expected = reference.moe_sorting(ids, weights, experts, 33, torch.bfloat16, block_size, expert_map=expert_map)
        outputs = [torch.full_like(tensor, 7) for tensor in expected]
        names = ("sorted_token_ids", "sorted_weights", "expert_ids", "num_tokens_post_pad", "output")
        problem = SortProblem(
            num_tokens=tokens,
            top_k=top_k,
            num_experts=experts,
            num_global_experts=None if expert_map is None else experts,
            block_size=block_size,
            ids_dtype=DType.INT32 if tokens % 2 else DType.INT64,
            ids_row_stride=top_k,
            num_sorted=expected[0].numel(),
            num_blocks=expected[2].numel(),
            weights_dtype=DType.FP16,
            weights_row_stride=top_k,
            zeroed_bytes=66 * tokens,
        )
        named = dict(zip(names, outputs, strict=True))
        run(pipeline, problem, device, topk_ids=ids, topk_weights=weights, expert_map=expert_map, **named)
        for name, found, wanted in zip(names, outputs, expected, strict=True):
            assert torch.equal(found, wanted), (name, tokens, top_k, experts, block_size)


def test_align_both_forms() -> None:
    ids = sort_ids(100, 3, 10, torch.int32)
    expected = reference.moe_align_block_size(ids, 10, 8)
    for found, wanted in zip(jitmoe.moe_align_block_size(ids, block_size=8, num_experts=10), expected, strict=True):
        assert torch.equal(found, wanted)
    buffers = [torch.full((size,), -9, dtype=torch.int32) for size in (500, 90, 1)]
    returned = jitmoe.moe_align_block_size(ids, 10, 8, *buffers)
    assert all(a is b for a, b in zip(returned, buffers, strict=True))
    longest = expected[0].numel()
    assert torch.equal(buffers[0][:longest], expected[0]) and bool((buffers[0][longest:] == 300).all())
    assert torch.equal(buffers[1][: longest // 8], expected[1]) and bool((buffers[1][longest // 8 :] == -1).all())
    assert torch.equal(buffers[2], expected[2])


def test_align_with_many_pairs_and_moe_sorting() -> None:
    ids = sort_ids(5000, 4, 33, torch.int64)
    for found, wanted in zip(
        jitmoe.moe_align_block_size(ids, 33, 64), reference.moe_align_block_size(ids, 33, 64), strict=True
    ):
        assert torch.equal(found, wanted)
    weights = torch.rand(5000, 4).double()
    for found, wanted in zip(
        jitmoe.moe_sorting(ids, weights, 33, 96, "fp16", 16),
        reference.moe_sorting(ids, weights, 33, 96, torch.float16, 16),
        strict=True,
    ):
        assert torch.equal(found, wanted)


SORT_ERRORS = [
    ({"topk_ids": torch.zeros(4, dtype=torch.int32)}, "topk_ids"),
    ({"topk_ids": torch.zeros(4, 0, dtype=torch.int32)}, "topk_ids"),
    ({"topk_ids": torch.zeros(4, 2)}, "topk_ids"),
    ({"topk_ids": torch.zeros(2, 4, dtype=torch.int32).T}, "topk_ids"),
    ({"num_experts": 0}, "num_experts"),
    ({"block_size": 2.0}, "block_size"),
    ({"block_size": 2**30}, "block_size"),
    ({"sorted_token_ids": torch.zeros(3, dtype=torch.int32)}, "sorted_token_ids"),
    ({"sorted_token_ids": torch.zeros(99, dtype=torch.int64)}, "sorted_token_ids"),
    ({"experts_ids": torch.zeros(1, dtype=torch.int32)}, "experts_ids"),
    ({"num_tokens_post_pad": torch.zeros(0, dtype=torch.int32)}, "num_tokens_post_pad"),
    ({"expert_map": torch.zeros(4, dtype=torch.int64)}, "expert_map"),
]


@pytest.mark.parametrize(("wrong", "name"), SORT_ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_arguments_of_align(wrong: dict, name: str) -> None:
    ids = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ArgumentError) as caught:
        jitmoe.moe_align_block_size(**{"topk_ids": ids, "num_experts": 4, "block_size": 4, **wrong})
    assert caught.value.argument == name


@pytest.mark.parametrize(("device", "many"), WAYS)
def test_load_is_its_twin(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, device: str, many: bool) -> None:
    monkeypatch.setattr(load_xe, "MAX_ONE_GROUP_PAIRS", -1 if many else 10**9)
    for tokens, top_k, experts, _ in SHAPES:
        ids = sort_ids(tokens, top_k, experts, torch.int32)
        counts, imbalance = torch.full((experts,), -3, dtype=torch.int32), torch.full((1,), float("nan"))
        problem = LoadProblem(
            num_tokens=tokens, top_k=top_k, num_experts=experts, ids_dtype=DType.INT32, ids_row_stride=top_k
        )
        run(pipeline, problem, device, topk_ids=ids, counts=counts, imbalance=imbalance)
        expected = reference.expert_load(ids, experts)
        assert torch.equal(counts, expected[0])
        torch.testing.assert_close(imbalance, expected[1])


def test_a_new_temperature_costs_no_compilation(pipeline: Pipeline) -> None:
    schedule = jitmoe.TemperatureSchedule(first=4.0, last=1.5, num_steps=5)
    x, routing = logits("random", 20, 64, torch.float32), Routing(top_k=2, renormalize=True)
    specs = set()
    for step in range(6):
        case = Case(x, dataclasses.replace(routing, temperature=schedule.at(step)))
        specs.update(case.plan(xe_emulation.stream("bmg-g21")).specs)
        torch.testing.assert_close(case.run(pipeline, "cpu")[0], case.expected()[0], rtol=2e-6, atol=0.0)
    assert len(specs) == 1


@pytest.mark.parametrize("target", ["corei7", "core-avx2"])
def test_smaller_instruction_sets(target: str, shared_cache_dir: Path) -> None:
    """Vectors of 4 and 8 lanes, in a process whose CPU device generates code for a lesser CPU."""
    environment = {**os.environ, cpu.TARGET_VARIABLE: target, "JITMOE_CACHE_DIR": str(shared_cache_dir)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "import test_route_and_sort as t; t.check_instruction_set()"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,  # for a busy machine
    )
    assert done.returncode == 0, done.stderr


def check_instruction_set() -> None:
    test_routes_like_its_twin(default(), "deepseek v3", "cpu")
    gate = torch.randn(3, 134)
    expected = reference.activate(gate.double(), activation="gelu", layout="interleaved")
    assert not judge_floats(jitmoe.activate(gate, activation="gelu", layout="interleaved"), expected, DType.FP32)[1]


def test_without_kernels_the_reference_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "0")

    def refuse(*arguments: object) -> None:
        raise LoadError(kernel="any", reason="a test")

    monkeypatch.setattr(default(), "prepare", refuse)
    x, routing = logits("random", 6, 40, torch.float32), Routing(top_k=3, num_shared_experts=1)
    ids = sort_ids(30, 2, 5, torch.int32)
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    pairs = [
        (jitmoe.route(x, routing, ids_dtype="int64"), reference.route(x, routing, ids_dtype="int64")),
        (jitmoe.moe_align_block_size(ids, 5, 4), reference.moe_align_block_size(ids, 5, 4)),
        (
            jitmoe.moe_sorting(ids, torch.ones(30, 2), 5, 7, "bf16", 4),
            reference.moe_sorting(ids, torch.ones(30, 2), 5, 7, torch.bfloat16, 4),
        ),
        (tuple(jitmoe.expert_load(ids, 5)), reference.expert_load(ids, 5)),
        ((jitmoe.activate(gate, up, "gelu"),), (reference.activate(gate, up, "gelu"),)),
    ]
    for found, expected in pairs:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_have_gradients_where_logits_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "0")
    x = logits("random", 6, 10, torch.float32).requires_grad_()
    weights, ids = jitmoe.route(x, Routing(top_k=2))
    weights.sum().backward()
    wanted = x.detach().clone().requires_grad_()
    torch.softmax(wanted, dim=-1).gather(1, ids.long()).sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad)


def test_usm_arrays() -> None:
    cpu.default_queue()  # registers the CPU runtime
    queue = dpctl.SyclQueue("cpu", property=["in_order"])
    x, routing = logits("random", 7, 24, torch.float32), Routing(top_k=3)
    memory = dpctl.memory.MemoryUSMShared(x.numel() * 4, queue=queue)
    memory.copy_from_host(x.numpy().view("u1").reshape(-1))
    weights, ids = jitmoe.route(jitmoe.UsmArray(memory, x.shape, "fp32"), routing)
    aligned = jitmoe.moe_align_block_size(ids, 24, 4)
    load = jitmoe.expert_load(ids, 24)
    queue.wait()

    def host(array: jitmoe.UsmArray, kind: str) -> torch.Tensor:
        return torch.from_numpy(array.memory.copy_to_host().view(kind).reshape(array.shape).copy())

    expected = reference.route(x, routing)
    torch.testing.assert_close(host(weights, "f4"), expected[0], rtol=2e-6, atol=0.0)
    assert torch.equal(host(ids, "i4"), expected[1])
    for found, wanted in zip(aligned, reference.moe_align_block_size(expected[1], 24, 4), strict=True):
        assert torch.equal(host(found, "i4"), wanted)
    assert torch.equal(host(load.counts, "i4"), reference.expert_load(expected[1], 24)[0])


GROUPED = {"top_k": 2, "renormalize": True, "num_expert_group": 2, "topk_group": 1}
SHORT_FORMS = {
    "groups": (jitmoe.grouped_topk, {**GROUPED, "num_expert_group": 99}, "num_expert_group: "),
    "groups that do not divide E": (
        jitmoe.grouped_topk, {**GROUPED, "num_expert_group": 3}, "num_expert_group: expected a divisor of E = 8"),
    "groups that remain": (jitmoe.grouped_topk, {**GROUPED, "topk_group": 3}, "topk_group: "),
    "scoring": (jitmoe.grouped_topk, {**GROUPED, "scoring_func": "relu"}, "scoring_func: "),
    "factor": (jitmoe.grouped_topk, {**GROUPED, "routed_scaling_factor": "a"}, "routed_scaling_factor: "),
    "factor left out": (
        jitmoe.grouped_topk,
        {**GROUPED, "routed_scaling_factor": 0, "apply_routed_scaling_factor_on_output": False},
        "routed_scaling_factor: expected another number"),
    "factor left out, no number": (
        jitmoe.grouped_topk,
        {**GROUPED, "routed_scaling_factor": "a", "apply_routed_scaling_factor_on_output": False},
        "routed_scaling_factor: "),
    "where the factor is": (
        jitmoe.grouped_topk, {**GROUPED, "apply_routed_scaling_factor_on_output": 1},
        "apply_routed_scaling_factor_on_output: "),
    "bias": (
        jitmoe.grouped_topk, {**GROUPED, "e_score_correction_bias": torch.zeros(9)}, "e_score_correction_bias: "),
    "shared": (jitmoe.grouped_topk, {**GROUPED, "num_fused_shared_experts": -1}, "num_fused_shared_experts: "),
    "softmax, shared": (jitmoe.topk_softmax, {"top_k": 2, "num_fused_shared_experts": 0.5}, "num_fused_shared_exp"),
    "sigmoid, factor": (jitmoe.topk_sigmoid, {"top_k": 2, "routed_scaling_factor": None}, "routed_scaling_factor: "),
    "softmax, bias": (jitmoe.topk_softmax, {"top_k": 2, "correction_bias": torch.zeros(9)}, "correction_bias: "),
    "too many": (jitmoe.topk_sqrt_softplus, {"top_k": 9}, "top_k: expected at most the 8 experts to choose from"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHORT_FORMS)
def test_short_forms_name_their_own_arguments(name):
    op, arguments, text = SHORT_FORMS[name]
    with pytest.raises(ArgumentError, match=f"^{text}"):
        op(torch.zeros(5, 8), **arguments)

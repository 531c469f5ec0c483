# SPDX-License-Identifier: MIT
"""``jitmoe.explain`` says of every op what a real call of it does, and does nothing itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dpctl
import pytest
import torch
from helpers import moe

import jitmoe
from jitmoe import calls, pipeline
from jitmoe.errors import ArgumentError
from jitmoe.ops.explain import OPS
from jitmoe.pipeline import Pipeline

pytestmark = pytest.mark.device

M, E, K, H, INTER = 5, 6, 2, 64, 48


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def ids(dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(0, E, (M, K), generator=torch.Generator().manual_seed(0)).to(dtype)


LOGITS, WEIGHTS = random(M, E), torch.rand(M, K)
LAYER = (random(M, H), random(E, 2 * INTER, H), random(E, H, INTER))
SEPARATE = (random(M, H), random(E, H, INTER), random(E, H, INTER), random(E, INTER, H))
# (op, arguments, options, what its text names)
CASES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], tuple[str, ...]]] = [
    (jitmoe.fused_moe, (*LAYER, WEIGHTS, ids()), {}, ("fused_moe(M=5", "launch cpu_single(")),
    (jitmoe.fused_moe, (*LAYER, WEIGHTS, ids()), {"inplace": True}, ("launch cpu_single(",)),
    (jitmoe.fused_moe, LAYER, {"router_logits": LOGITS, "routing": jitmoe.Routing(top_k=2)},
     ("route(M=5 E=6 k=2 fp32 softmax), fused_moe(", "launch cpu_topk(", "launch cpu_single(")),
    (jitmoe.fused_moe, (*LAYER, WEIGHTS, ids()), {"renormalize": True}, ("launch adjust_routing(",)),
    (jitmoe.fused_moe, (random(1, M, H), random(E, H, 32), LOGITS), {"top_k": 3},
     ("route(M=5 E=6 k=3 fp32 none)", "launch cpu_topk(", "grouped_gemm", "launch cpu_down(")),
    (jitmoe.fused_moe_forward, (*SEPARATE, WEIGHTS, ids()), {}, ("adjust_routing(", "separate")),
    (jitmoe.grouped_gemm_moe, (random(M, H), random(E, H, 32), None, torch.ones(M, 32), WEIGHTS, ids(), K), {},
     ("launch cpu_down(",)),
    (jitmoe.route, (LOGITS, jitmoe.Routing(top_k=2, capacity_factor=1.5)), {},
     ("no expert gets more than 3 tokens", "launch cpu_topk_capped(")),
    (jitmoe.topk_softmax, (LOGITS, 2), {}, ("scoring=softmax",)),
    (jitmoe.topk_sigmoid, (LOGITS, 2, True), {}, ("scoring=sigmoid",)),
    (jitmoe.topk_sqrt_softplus, (LOGITS, 2), {"ids_dtype": "int64"}, ("scoring=sqrt_softplus", "ids_dtype=int64")),
    (jitmoe.grouped_topk, (LOGITS, 2, True, 3, 2), {}, ("num_groups=3",)),
    (jitmoe.moe_align_block_size, (ids(), E, 16), {}, ("10 pairs: one work-item", "launch cpu_align(")),
    (jitmoe.moe_sorting, (ids(), WEIGHTS, E, H, "fp32"), {}, ("has_weights=True",)),
    (jitmoe.expert_load, (ids(),), {"num_experts": E}, ("launch cpu_expert_load(",)),
    (jitmoe.activate, (random(M, 32),), {"activation": "relu2"}, ("relu2",)),
    (jitmoe.silu_and_mul_moe, (random(M, 32), random(M, 32)), {}, ("silu",)),
]  # fmt: skip


@pytest.fixture
def forbidden(monkeypatch):
    """Nothing may be prepared for running."""
    monkeypatch.setattr(Pipeline, "prepare", lambda *arguments: pytest.fail("went on to the kernels"))


def name_of(case) -> str:
    op, _, options, _ = case
    return "-".join((op.__name__, *options))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_names_the_kernels_and_leaves_all_tensors_alone(case, forbidden):
    op, arguments, options, words = case
    tensors = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
    before = [value.clone() for value in tensors]
    text = jitmoe.explain(op, *arguments, **options)
    for word in (*words, "launch ", "workspace "):
        assert word in text
    assert all(torch.equal(value, old) for value, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_says_what_a_call_does(case, monkeypatch):
    op, arguments, options, _ = case
    monkeypatch.setattr(calls, "_prepared", {})
    prepared: list[str] = []
    prepare = Pipeline.prepare

    def noted(self, problem, stream, names):
        prepared.append(pipeline.explain(problem, stream.device))
        return prepare(self, problem, stream, names)

    text = jitmoe.explain(op, *arguments, **options)
    monkeypatch.setattr(Pipeline, "prepare", noted)
    op(*(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments), **options)
    assert text == "\n".join(prepared)


def test_every_op_can_be_explained():
    public = {name: getattr(jitmoe, name) for name in jitmoe.__all__}
    with_queue = {name for name, value in public.items()
                  if inspect.isfunction(value) and "queue" in inspect.signature(value).parameters}  # fmt: skip
    assert with_queue - {"explain"} == {op.__name__ for op in OPS} == {op.__name__ for op, *_ in CASES}


def test_a_queue_is_the_one_of_the_call(forbidden):
    queue = dpctl.SyclQueue("cpu", property=["in_order"])
    assert "launch cpu_topk(" in jitmoe.explain(jitmoe.topk_softmax, LOGITS, 2, queue=queue)
    with pytest.raises(ArgumentError, match="queue"):
        jitmoe.explain(jitmoe.topk_softmax, LOGITS, 2, queue="mine")


@pytest.mark.parametrize("op", [LOGITS, jitmoe.quantize_int4, jitmoe.reference.route, "route", None])
def test_other_things_are_refused_by_name(op):
    with pytest.raises(ArgumentError, match=r"op: expected an op of jitmoe: fused_moe, .*moe_sorting"):
        jitmoe.explain(op, LOGITS)


def test_wrong_arguments_are_named_as_by_the_op(forbidden):
    with pytest.raises(ArgumentError, match="w1"):
        jitmoe.explain(jitmoe.fused_moe, *moe.make(5).changed(w1=torch.zeros(1)).tensors)
    with pytest.raises(ArgumentError, match="top_k"):
        jitmoe.explain(jitmoe.topk_softmax, LOGITS, E + 1)
    with pytest.raises(ArgumentError, match="topk_indices"):
        jitmoe.explain(jitmoe.fused_moe_forward, *SEPARATE, WEIGHTS, ids()[:3])
    with pytest.raises(TypeError, match="top_q"):
        jitmoe.explain(jitmoe.topk_softmax, LOGITS, top_q=2)


def test_calls_without_launches_are_said_to_be_so(forbidden):
    nothing = jitmoe.explain(jitmoe.topk_softmax, LOGITS[:0], 2)
    assert nothing.endswith("nothing to compute")
    logits = LOGITS.clone().requires_grad_()
    assert "by the reference: gradients are wanted" in jitmoe.explain(jitmoe.topk_softmax, logits, 2)

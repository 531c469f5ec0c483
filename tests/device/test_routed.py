# SPDX-License-Identifier: MIT
"""fused_moe calls that begin with a routing launch: router logits, renormalized weights, shared experts."""

from __future__ import annotations

import pytest
import torch
from helpers import moe
from helpers.usm import to_usm

import jitmoe
from jitmoe import reference
from jitmoe.errors import ArgumentError

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")


ROUTERS = [
    jitmoe.Routing(top_k=2),
    jitmoe.Routing(top_k=3, renormalize=True),
    jitmoe.Routing(top_k=2, topk_before_scoring=True),
    jitmoe.Routing(
        top_k=2, scoring="sigmoid", num_groups=3, topk_groups=2, group_score="top2_sum", renormalize=True,
        scaling_factor=2.5,
    ),
    jitmoe.Routing(top_k=1, scoring="sigmoid"),
]  # fmt: skip


@pytest.mark.parametrize("routing", ROUTERS, ids=str)
@pytest.mark.parametrize("m", [1, 70])
def test_router_logits_feed_the_experts(routing, m):
    call = moe.make(m, e=6)
    logits = torch.randn(m, 6, generator=torch.Generator().manual_seed(m))
    bias = torch.randn(6, generator=torch.Generator().manual_seed(1)) if routing.num_groups > 1 else None
    tensors = (call.hidden_states, call.w1, call.w2)
    result = jitmoe.fused_moe(*tensors, router_logits=logits, routing=routing, correction_bias=bias)
    weights, ids = reference.route(logits, routing, correction_bias=bias)
    moe.check(result, call.changed(topk_weights=weights, topk_ids=ids))


def test_logits_may_be_any_dlpack_object():
    call = moe.make(7, e=6)
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(7))
    arguments = {"routing": jitmoe.Routing(top_k=2)}
    tensors = (call.hidden_states, call.w1, call.w2)
    result = jitmoe.fused_moe(*tensors, router_logits=logits.numpy(), **arguments)
    assert torch.equal(result, jitmoe.fused_moe(*tensors, router_logits=logits, **arguments))


def test_shared_experts_of_a_router_are_the_last_ones():
    call = moe.make(9, e=6)
    routing = jitmoe.Routing(top_k=2, num_shared_experts=2, shared_expert_weight=0.5)
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    result = jitmoe.fused_moe(call.hidden_states, call.w1, call.w2, router_logits=logits, routing=routing)
    weights, ids = reference.route(logits, routing)
    assert ids[:, 2:].tolist() == [[4, 5]] * 9
    moe.check(result, call.changed(topk_weights=weights, topk_ids=ids))


@pytest.mark.parametrize("m", [1, 300])
@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_given_routing_is_adjusted(m, shared, gated):
    call = moe.make(m, e=5, k=3, ids_dtype=torch.int32 if gated else torch.int64)
    routed = call.topk_ids % (5 - shared)
    shared_weights = torch.rand(m, shared, generator=torch.Generator().manual_seed(3)) if gated and shared else None
    result = call.changed(topk_ids=routed).run(
        renormalize=True, num_shared_experts=shared, shared_weights=shared_weights
    )
    weights = call.topk_weights / call.topk_weights.sum(-1, keepdim=True)
    more = torch.ones(m, shared) if shared_weights is None else shared_weights
    last = (torch.arange(shared) + 5 - shared).expand(m, shared)
    expected = call.changed(topk_weights=torch.cat((weights, more), -1), topk_ids=torch.cat((routed, last), -1))
    moe.check(result, expected)


def test_ids_beyond_32_bits_stay_out_of_range():
    call = moe.make(4, ids_dtype=torch.int64)
    ids = call.topk_ids.clone()
    ids[0, 0], ids[1, 1] = 2**32, -(2**33)
    moe.check(call.changed(topk_ids=ids).run(renormalize=False, num_shared_experts=1), call.changed(
        topk_ids=torch.cat((ids, torch.full((4, 1), 3)), -1),
        topk_weights=torch.cat((call.topk_weights, torch.ones(4, 1)), -1),
    ))  # fmt: skip


def test_shared_experts_behind_an_expert_map():
    call = moe.make(6, e=4)
    expert_map = torch.tensor([2, -1, 0, 1, 3], dtype=torch.int32)  # five experts on all ranks, the last one shared
    result = call.run(num_shared_experts=1, expert_map=expert_map)
    moe.check(result, call.changed(
        topk_ids=torch.cat((call.topk_ids, torch.full((6, 1), 4)), -1),
        topk_weights=torch.cat((call.topk_weights, torch.ones(6, 1)), -1), expert_map=expert_map,
    ))  # fmt: skip


LOGITS = torch.zeros(5, 4)
REFUSED = [
    ("topk_ids", {"topk_ids": None, "renormalize": True}),
    ("topk_weights", {"router_logits": LOGITS, "routing": jitmoe.Routing(top_k=2)}),
    ("topk_weights", {"topk_weights": None, "topk_ids": None}),
    ("routing", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS}),
    ("routing", {"routing": jitmoe.Routing(top_k=2)}),
    ("renormalize", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS, "renormalize": True,
                     "routing": jitmoe.Routing(top_k=2)}),
    ("router_logits", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS[:, :3],
                       "routing": jitmoe.Routing(top_k=2)}),
    ("router_logits", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS[:4],
                       "routing": jitmoe.Routing(top_k=2)}),
    ("num_shared_experts", {"num_shared_experts": 4}),
    ("num_shared_experts", {"num_shared_experts": -1}),
    ("num_shared_experts", {"num_shared_experts": True}),
    ("shared_weights", {"shared_weights": torch.ones(5, 1)}),
    ("shared_weights", {"num_shared_experts": 1, "shared_weights": torch.ones(5, 2)}),
    ("topk_weights", {"renormalize": True, "topk_weights": torch.ones(5, 3)}),
    ("renormalize", {"renormalize": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "changes"), REFUSED)
def test_what_does_not_go_together_is_named(argument, changes):
    with pytest.raises(ArgumentError) as refused:
        moe.make(5).changed(**changes).run()
    assert refused.value.argument == argument


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


ELSEWHERE = [
    ("router_logits", {"topk_weights": None, "topk_ids": None, "router_logits": meta(5, 4),
                       "routing": jitmoe.Routing(top_k=2)}),
    ("correction_bias", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS, "correction_bias": meta(4),
                         "routing": jitmoe.Routing(top_k=2)}),
    ("topk_weights", {"topk_weights": meta(5, 2), "renormalize": True}),
    ("topk_ids", {"topk_ids": meta(5, 2, dtype=torch.int64), "num_shared_experts": 1}),
    ("shared_weights", {"shared_weights": meta(5, 1), "num_shared_experts": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "changes"), ELSEWHERE)
def test_routing_tensors_elsewhere_are_refused(argument, changes):
    with pytest.raises(ArgumentError, match="meta") as refused:
        moe.make(5).changed(**changes).run()
    assert refused.value.argument == argument


def test_routing_tensors_of_torch_beside_usm_are_refused():
    call = moe.make(5, dtype=torch.float32)
    x, w1, w2 = (to_usm(tensor) for tensor in (call.hidden_states, call.w1, call.w2))
    for argument, changes in (
        ("topk_weights", {"renormalize": True}),
        ("router_logits", {"topk_weights": None, "topk_ids": None, "router_logits": LOGITS,
                           "routing": jitmoe.Routing(top_k=2)}),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match="got torch cpu") as refused:
            call.changed(hidden_states=x, w1=w1, w2=w2, **changes).run()
        assert refused.value.argument == argument


def test_logits_of_usm_beside_torch_are_refused():
    call = moe.make(5).changed(
        topk_weights=None, topk_ids=None, router_logits=to_usm(LOGITS), routing=jitmoe.Routing(top_k=2)
    )
    with pytest.raises(ArgumentError, match=r"router_logits: expected torch cpu, .* got usm"):
        call.run()

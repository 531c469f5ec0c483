# SPDX-License-Identifier: MIT
"""Every op has a twin in jitmoe.reference that takes its arguments, and what the twins make of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import jitmoe
from jitmoe import reference
from jitmoe.errors import ArgumentError
from jitmoe.ops.explain import OPS

E, H, I, M, K = 4, 8, 6, 5, 2  # noqa: E741
GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


X, W1, W2 = normal(M, H), normal(E, 2 * I, H), normal(E, H, I)
WEIGHTS, IDS = torch.rand(M, K, generator=GENERATOR), torch.randint(0, E, (M, K), generator=GENERATOR)


def parameters(function: Any) -> list[inspect.Parameter]:
    return [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "queue"
    ]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_every_op_has_a_twin_with_the_same_arguments(op):
    assert op.__name__ in reference.__all__
    asked, taken = parameters(op), parameters(getattr(reference, op.__name__))
    assert taken[: len(asked)] == asked
    for extra in taken[len(asked) :]:
        assert extra.kind is inspect.Parameter.KEYWORD_ONLY and extra.default is None


def test_every_public_function_with_a_queue_is_an_op():
    public = {name: getattr(jitmoe, name) for name in jitmoe.__all__}
    launching = {
        name
        for name, function in public.items()
        if inspect.isfunction(function) and "queue" in inspect.signature(function).parameters
    }
    assert launching - {"explain"} == {op.__name__ for op in OPS}


def naive(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, w1: torch.Tensor = W1) -> torch.Tensor:
    y = torch.zeros_like(x)
    for t, (row, factors, experts) in enumerate(zip(x, weights, ids.tolist(), strict=True)):
        for factor, expert in zip(factors, experts, strict=True):
            gate, up = (w1[expert] @ row).chunk(2)
            y[t] += factor * (W2[expert] @ (torch.nn.functional.silu(gate) * up))
    return y


def test_given_weights_can_be_renormalized():
    expected = naive(X, WEIGHTS / WEIGHTS.sum(-1, keepdim=True), IDS)
    torch.testing.assert_close(reference.fused_moe(X, W1, W2, WEIGHTS, IDS, renormalize=True), expected)
    mapped = reference.fused_moe(
        X, W1, W2, WEIGHTS, IDS, renormalize=True, expert_map=torch.arange(E, dtype=torch.int32)
    )
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("mapped", [False, True], ids=["", "mapped"])
def test_shared_experts_are_the_last_ones(weighted, mapped):
    ids = IDS.clamp_max(E - 2)
    shared = torch.rand(M, 1, generator=GENERATOR) if weighted else None
    expert_map = torch.tensor([0, 1, 2, -1, 3], dtype=torch.int32) if mapped else None
    found = reference.fused_moe(
        X, W1, W2, WEIGHTS, ids, num_shared_experts=1, shared_weights=shared, expert_map=expert_map
    )
    last = torch.full((M, 1), E - 1)
    ones = torch.ones(M, 1) if shared is None else shared
    torch.testing.assert_close(found, naive(X, torch.cat((WEIGHTS, ones), 1), torch.cat((ids, last), 1)))


def test_logits_are_routed():
    logits, bias = normal(M, E), normal(E)
    found = reference.fused_moe(
        X, W1, W2, router_logits=logits, routing=jitmoe.Routing(top_k=K, scoring="sigmoid"), correction_bias=bias
    )
    scores = logits.sigmoid()
    ids = (scores + bias).topk(K).indices
    torch.testing.assert_close(found, naive(X, scores.gather(1, ids), ids))


def test_one_gemm_of_the_largest_routing_weights():
    tokens, matrices, routing = normal(2, 3, H), normal(E, H, 7), torch.rand(6, E, generator=GENERATOR)
    best = routing.topk(3)
    expected = torch.einsum("tj,th,tjhd->td", best.values, tokens.reshape(6, H), matrices[best.indices])
    found = reference.fused_moe(tokens, matrices, routing, top_k=3)
    torch.testing.assert_close(found, expected.reshape(2, 3, 7))
    out = torch.empty(2, 3, 7)
    assert reference.fused_moe(tokens, matrices, routing, top_k=3, out=out) is out and torch.equal(out, found)


def test_separate_k_major_weights():
    gate, up = (half.mT.contiguous() for half in W1.chunk(2, dim=1))
    given = (gate, up, W2.mT.contiguous(), WEIGHTS, IDS)
    found = reference.fused_moe_forward(X, *given, 2, False)
    torch.testing.assert_close(found, naive(X, WEIGHTS, IDS))
    own = X.clone()
    assert reference.fused_moe_forward(own, *given, inplace=True) is own
    torch.testing.assert_close(own, naive(X, WEIGHTS / WEIGHTS.sum(-1, keepdim=True), IDS))
    with pytest.raises(ArgumentError, match="topk_indices: expected top_k = 3"):
        reference.fused_moe_forward(X, *given, 3)


def test_results_go_where_they_are_asked_for():
    expected = naive(X, WEIGHTS, IDS)
    for given in ({"out": torch.empty_like(X)}, {"inplace": True}):
        own = X.clone()
        found = reference.fused_moe(own, W1, W2, WEIGHTS, IDS, **given)
        assert found is given.get("out", own)
        torch.testing.assert_close(found, expected)
    weights, ids = torch.empty(M, K), torch.empty(M, K, dtype=torch.int64)
    found = reference.route(normal(M, E), jitmoe.Routing(top_k=K), topk_weights=weights, topk_ids=ids)
    assert found[0] is weights and found[1] is ids
    d = torch.empty(M, 3)
    matrices, bias = normal(E, H, 3), normal(E, 3)
    assert reference.grouped_gemm_moe(X, matrices, bias, d, WEIGHTS, IDS, K) is None
    rows = torch.einsum("th,tjhn->tjn", X, matrices[IDS]) + bias[IDS]
    torch.testing.assert_close(d, (WEIGHTS.unsqueeze(-1) * rows).sum(1))
    again = torch.empty(M, 3)
    reference.grouped_gemm_moe(X, matrices.mT.contiguous(), bias, again, WEIGHTS, IDS, K, True)
    torch.testing.assert_close(again, d)
    gate, up = normal(M, I), normal(M, I)
    expected = torch.nn.functional.silu(gate) * up
    assert reference.silu_and_mul_moe(gate, up) is None
    torch.testing.assert_close(gate, expected)


def test_layouts_of_activations():
    gate, up = normal(M, I).bfloat16(), normal(M, I).bfloat16()
    expected = (torch.nn.functional.silu(gate.float()) * up.float()).bfloat16()
    interleaved = torch.stack((gate, up), -1).flatten(-2)
    for given in ((gate, up), (gate, up, "silu")):
        assert torch.equal(reference.activate(*given), expected)
    assert torch.equal(reference.activate(torch.cat((gate, up), -1), layout="concatenated"), expected)
    assert torch.equal(reference.activate(interleaved, layout="interleaved"), expected)
    assert torch.equal(reference.activate(gate, activation="relu2"), gate.float().relu().square().bfloat16())
    for given, layout in (((gate,), "separate"), ((gate, up), "concatenated")):
        with pytest.raises(ArgumentError, match="up"):
            reference.activate(*given, layout=layout)


def test_short_forms_of_routing():
    logits, bias = normal(M, 8), normal(8)
    for op, scores in (
        (reference.topk_softmax, logits.softmax(-1)),
        (reference.topk_sigmoid, logits.sigmoid()),
        (reference.topk_sqrt_softplus, torch.nn.functional.softplus(logits).sqrt()),
    ):
        ids = (scores + bias).topk(3).indices
        chosen = scores.gather(1, ids)
        options = {"correction_bias": bias, "routed_scaling_factor": 2.5, "num_fused_shared_experts": 1}
        weights, found = op(logits, 3, True, ids_dtype="int64", **options)
        assert found.dtype == torch.int64 and torch.equal(found, torch.cat((ids, torch.full((M, 1), 8)), 1))
        expected = torch.cat((2.5 * chosen / chosen.sum(-1, keepdim=True), torch.ones(M, 1)), 1)
        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(op(logits, 3, False)[0], scores.topk(3).values)


@pytest.mark.parametrize("on_output", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_grouped_choice(biased, on_output):
    logits, bias = normal(M, 8), normal(8) / 4 if biased else None
    scores = logits.sigmoid()
    choice = scores if bias is None else scores + bias
    groups = choice.view(M, 4, 2)
    groups = groups.sum(-1) if biased else groups.amax(-1)  # groups of two
    kept = torch.zeros(M, 4).scatter_(1, groups.topk(2).indices, 1.0).bool().repeat_interleave(2, 1)
    ids = choice.masked_fill(~kept, float("-inf")).topk(3).indices
    weights, found = reference.grouped_topk(
        logits, 3, False, 4, 2, "sigmoid", 2.5, bias, num_fused_shared_experts=1,
        apply_routed_scaling_factor_on_output=on_output,
    )  # fmt: skip
    assert torch.equal(found[:, :3], ids.int())
    torch.testing.assert_close(weights[:, :3], scores.gather(1, ids) * (2.5 if on_output else 1.0))
    torch.testing.assert_close(weights[:, 3], torch.full((M,), 1.0 if on_output else 0.4))


def test_types_have_the_names_that_ops_take():
    assert reference.moe_sorting(IDS, WEIGHTS, E, H, "bf16")[4].dtype == torch.bfloat16
    load = reference.expert_load(IDS, E)
    assert isinstance(load, jitmoe.ExpertLoad) and int(load.counts.sum()) == M * K


def test_blocks_of_quantized_inputs_come_from_the_weights():
    w1, w2 = (jitmoe.quantize_fp8(torch.randn(E, *shape), scale=(4, 4)) for shape in ((2 * 8, 8), (8, 8)))
    given = (X, w1, w2, WEIGHTS, IDS)
    found = reference.fused_moe(*given, input_quant="e4m3")
    assert torch.equal(found, reference.fused_moe(*given, input_quant="e4m3", input_block_k=4))
    assert not torch.equal(found, reference.fused_moe(*given, input_quant="e4m3", input_block_k=0))


ROUTING = jitmoe.Routing(top_k=K)
LOGITS = normal(M, E)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("topk_ids", {}),
        ("topk_weights", {"topk_ids": IDS}),
        ("routing", {"topk_weights": WEIGHTS, "topk_ids": IDS, "routing": ROUTING}),
        ("shared_weights", {"topk_weights": WEIGHTS, "topk_ids": IDS, "shared_weights": WEIGHTS}),
        ("routing", {"router_logits": LOGITS}),
        ("topk_ids", {"router_logits": LOGITS, "routing": ROUTING, "topk_ids": IDS}),
        ("renormalize", {"router_logits": LOGITS, "routing": ROUTING, "renormalize": True}),
        ("num_shared_experts", {"router_logits": LOGITS, "routing": ROUTING, "num_shared_experts": 1}),
        ("out", {"topk_weights": WEIGHTS, "topk_ids": IDS, "inplace": True, "out": X}),
        ("topk_ids", {"top_k": 2, "topk_ids": IDS}),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(name, given):
    with pytest.raises(ArgumentError) as refused:
        reference.fused_moe(X, W1, W2, **given)
    assert refused.value.argument == name

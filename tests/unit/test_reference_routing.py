# SPDX-License-Identifier: MIT
"""The twins of routing and sorting against their definition, number by number, and against torch compositions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmoe import reference
from jitmoe.problems.routing import Routing
from jitmoe.problems.sorting import max_padded_pairs

SCORES = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sqrt_softplus": lambda x: math.sqrt(math.log1p(math.exp(x))),
    "none": lambda x: x,
    "sparsemixer": lambda x: x,
}


def scores_of(row, scoring):
    if scoring == "softmax":
        e = [math.exp(x - max(row)) for x in row]
        return [x / sum(e) for x in e]
    return [SCORES[scoring](x) for x in row]


def shares(x, candidates, ids, eps):
    """Slot by slot, the part of the chosen expert in a softmax over those near it that are left."""
    left, found = list(candidates), []
    for chosen in ids:
        m = x[chosen]
        near = [x[e] for e in left if m - x[e] <= 2 * eps * max(abs(x[e]), m)]
        found.append(1 / sum(math.exp(value - m) for value in near))
        left.remove(chosen)
    return found


def naive(logits, routing, bias=None):
    """The steps of jitmoe.Routing, with sorted lists."""
    experts, slots = logits.shape[1], []
    room = [routing.capacity(*logits.shape) or 10**9] * experts
    for row in logits.tolist():
        x = [value / routing.temperature for value in row]
        scores = x if routing.topk_before_scoring else scores_of(x, routing.scoring.value)
        choice = [s + b for s, b in zip(scores, bias or [0.0] * experts, strict=True)]
        size = experts // routing.num_groups
        groups = [sorted(choice[g * size : g * size + size], reverse=True) for g in range(routing.num_groups)]
        best = 2 if routing.group_score.value == "top2_sum" else 1
        order = sorted(range(routing.num_groups), key=lambda g: -sum(groups[g][:best]))  # stable
        kept = order[: routing.topk_groups] if routing.num_groups > 1 else [0]
        candidates = [e for e in range(experts) if e // size in kept and room[e] > 0]
        ids = sorted(candidates, key=lambda e: -choice[e])[: routing.top_k]
        for e in ids:
            room[e] -= 1
        weights = [scores[e] for e in ids]
        if routing.scoring.value == "sparsemixer":
            weights = shares(x, candidates, ids, routing.jitter_eps)
        elif routing.topk_before_scoring and ids:
            weights = scores_of(weights, routing.scoring.value)
        if routing.renormalize:
            total = max(sum(weights), routing.renormalize_min) + routing.renormalize_epsilon
            weights = [w / total for w in weights]
        slots.append(
            [(e, w * routing.scaling_factor) for e, w in zip(ids, weights, strict=True)]
            + [(-1, 0.0)] * (routing.top_k - len(ids))
            + [(experts + s, routing.shared_expert_weight) for s in range(routing.num_shared_experts)]
        )
    return slots


ROUTERS = [
    (12, {"top_k": 3}),
    (12, {"top_k": 12, "renormalize": True}),
    (12, {"top_k": 3, "scoring": "sigmoid", "renormalize": True, "renormalize_epsilon": 0.25, "scaling_factor": 2.5}),
    (12, {"top_k": 2, "scoring": "sqrt_softplus", "temperature": 0.5}),
    (12, {"top_k": 2, "scoring": "none", "renormalize": True, "renormalize_min": 50.0}),
    (12, {"top_k": 4, "topk_before_scoring": True}),
    (12, {"top_k": 1, "topk_before_scoring": True, "scoring": "sigmoid"}),
    (12, {"top_k": 2, "scoring": "sparsemixer", "jitter_eps": 0.0}),
    (12, {"top_k": 2, "scoring": "sparsemixer", "jitter_eps": 0.125}),
    (12, {"top_k": 5, "scoring": "sparsemixer", "jitter_eps": 0.25, "num_groups": 4, "topk_groups": 2}),
    (12, {"top_k": 12, "scoring": "sparsemixer", "jitter_eps": 2.0, "renormalize": True}),
    (12, {"top_k": 3, "num_groups": 4, "topk_groups": 2}),
    (12, {"top_k": 3, "num_groups": 4, "topk_groups": 2, "group_score": "top2_sum", "scoring": "sigmoid"}),
    (12, {"top_k": 2, "num_shared_experts": 2, "shared_expert_weight": 0.4}),
    (6, {"top_k": 2, "capacity_factor": 1.0}),
    (6, {"top_k": 3, "capacity_factor": 0.7, "renormalize": True, "num_groups": 2, "topk_groups": 1}),
    (6, {"top_k": 3, "capacity_factor": 0.7, "topk_before_scoring": True}),
]


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize(("experts", "fields"), ROUTERS, ids=lambda value: str(value))
def test_route_is_its_definition(experts, fields, biased):
    routing = Routing(**fields)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(-6, 7, (40, experts), generator=generator).double() / 4  # ties, exact
    bias = torch.randint(-2, 3, (experts,), generator=generator).double() / 2 if biased else None
    weights, ids = reference.route(logits, routing, correction_bias=bias, compute_dtype=torch.float64)
    expected = naive(logits, routing, bias.tolist() if biased else None)
    assert ids.tolist() == [[e for e, _ in row] for row in expected]
    torch.testing.assert_close(weights, torch.tensor([[w for _, w in row] for row in expected], dtype=torch.float64))


def test_route_is_the_torch_composition_of_deepseek_v3():
    generator = torch.Generator().manual_seed(2)
    logits, bias = torch.randn(200, 256, generator=generator), torch.randn(256, generator=generator) / 10
    scores = logits.sigmoid()
    choice = scores + bias
    groups = choice.view(200, 8, 32).topk(2, dim=-1).values.sum(dim=-1).topk(4, dim=-1).indices
    mask = torch.zeros(200, 8).scatter_(1, groups, 1.0).bool().repeat_interleave(32, dim=1)
    ids = choice.masked_fill(~mask, float("-inf")).topk(8, dim=-1).indices
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5
    routing = Routing(
        top_k=8, scoring="sigmoid", num_groups=8, topk_groups=4, group_score="top2_sum",
        renormalize=True, renormalize_epsilon=1e-20, scaling_factor=2.5,
    )  # fmt: skip
    found = reference.route(logits, routing, correction_bias=bias, ids_dtype=torch.int64)
    assert torch.equal(found[1], ids)
    torch.testing.assert_close(found[0], weights)


def test_no_tokens():
    weights, ids = reference.route(torch.empty(0, 8), Routing(top_k=2, num_groups=2, topk_groups=1))
    assert weights.shape == ids.shape == (0, 2)


def naive_align(ids, num_experts, block_size, expert_map=None):
    lists = [[] for _ in range(num_experts)]
    for pair, expert in enumerate(ids.flatten().tolist()):
        if expert_map is not None:
            expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
        if 0 <= expert < num_experts:
            lists[expert].append(pair)
    places, experts = [], []
    for expert, pairs in enumerate(lists):
        blocks = -(-len(pairs) // block_size)
        places += pairs + [ids.numel()] * (blocks * block_size - len(pairs))
        experts += [expert] * blocks
    return places, experts


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 4), st.integers(1, 12), st.sampled_from([1, 2, 5, 16]), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_align_is_its_definition(tokens, top_k, experts, block_size, mapped, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts + 2, (tokens, top_k), generator=generator)
    expert_map = torch.randint(-1, experts + 1, (experts + 1,), generator=generator) if mapped else None
    expert_map = None if expert_map is None else expert_map.to(torch.int32)
    places, used = naive_align(ids, experts, block_size, expert_map)
    found = reference.moe_align_block_size(ids, experts, block_size, expert_map=expert_map)
    longest = max_padded_pairs(ids.numel(), experts, block_size)
    assert found[0].tolist() == places + [ids.numel()] * (longest - len(places))
    assert found[1].tolist() == used + [-1] * (longest // block_size - len(used))
    assert found[2].tolist() == [len(places)]
    assert all(tensor.dtype == torch.int32 for tensor in found)


def test_sorting_moves_weights_along():
    ids, weights = torch.tensor([[1, 0], [1, 5]]), torch.tensor([[0.5, 0.25], [0.125, 1.0]], dtype=torch.float16)
    found = reference.moe_sorting(ids, weights, 2, 3, torch.bfloat16, 2)
    assert found[0].tolist() == [1, 4, 0, 2, 4, 4]
    assert found[1].tolist() == [0.25, 0.0, 0.5, 0.125, 0.0, 0.0]
    assert found[2].tolist() == [0, 1, -1] and found[3].tolist() == [4]
    assert found[4].dtype == torch.bfloat16 and torch.equal(found[4], torch.zeros(2, 3, dtype=torch.bfloat16))


def test_load():
    counts, imbalance = reference.expert_load(torch.tensor([[0, 2], [2, 9], [2, -1]]), 4)
    assert counts.tolist() == [1, 0, 3, 0] and imbalance.tolist() == [3.0]
    assert reference.expert_load(torch.empty(0, 2, dtype=torch.int32), 4)[1].tolist() == [0.0]

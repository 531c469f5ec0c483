# SPDX-License-Identifier: MIT
"""Routing values: what they refuse, and the numbers that they give to plans."""

from __future__ import annotations

import dataclasses

import pytest

from jitmoe.errors import ArgumentError
from jitmoe.problems.routing import GroupScore, Routing, Scoring, TemperatureSchedule
from jitmoe.problems.sorting import max_padded_pairs

WRONG = [
    ("top_k", 0),
    ("top_k", 33),
    ("top_k", 2.0),
    ("top_k", True),
    ("scoring", "tanh"),
    ("group_score", "mean"),
    ("topk_before_scoring", 1),
    ("renormalize", None),
    ("num_groups", 0),
    ("num_groups", 64),
    ("topk_groups", 3),
    ("num_shared_experts", -1),
    ("renormalize_epsilon", -1e-9),
    ("renormalize_min", float("nan")),
    ("jitter_eps", -0.01),
    ("scaling_factor", float("inf")),
    ("shared_expert_weight", "1"),
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("capacity_factor", 0.0),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ArgumentError) as caught:
        Routing(**{"top_k": 2, "num_groups": 2, name: value})
    assert caught.value.argument == name
    assert repr(value) in caught.value.got


def test_sparsemixer_has_no_capacity():
    Routing(top_k=2, scoring="sparsemixer", num_groups=2)
    with pytest.raises(ArgumentError, match="sparsemixer") as caught:
        Routing(top_k=2, scoring="sparsemixer", capacity_factor=1.5)
    assert caught.value.argument == "capacity_factor"


def test_strings_become_members_and_numbers_floats():
    routing = Routing(top_k=2, scoring="sigmoid", group_score="top2_sum", scaling_factor=3)
    assert routing.scoring is Scoring.SIGMOID and routing.group_score is GroupScore.TOP2_SUM
    assert isinstance(routing.scaling_factor, float)
    assert routing == Routing(
        top_k=2, scoring=Scoring.SIGMOID, group_score=GroupScore.TOP2_SUM, scaling_factor=3.0
    ) and hash(routing) == hash(dataclasses.replace(routing))


@pytest.mark.parametrize(
    ("fields", "num_experts", "words"),
    [
        ({}, 0, "E = 0"),
        ({}, 1025, "1024"),
        ({"num_groups": 3}, 8, "divisor of E = 8, got 3"),
        ({"num_groups": 4, "topk_groups": 2, "group_score": "top2_sum"}, 4, "two best"),
        ({"top_k": 5, "num_groups": 4, "topk_groups": 2}, 8, "top_k: expected at most the 4 "),
        ({"top_k": 9}, 8, "at most the 8 experts to choose from, got 9"),
    ],
)
def test_objections(fields, num_experts, words):
    assert words in str(Routing(**{"top_k": 2, **fields}).objection(num_experts))


@pytest.mark.parametrize("num_experts", [1, 2, 60, 257, 1000, 1024])
def test_any_number_of_experts(num_experts):
    for top_k in range(1, min(32, num_experts) + 1):
        assert Routing(top_k=top_k).objection(num_experts) is None


def test_capacity_is_the_factor_times_the_average_rounded_up():
    assert Routing(top_k=2).capacity(100, 8) is None
    assert Routing(top_k=2, capacity_factor=1.0).capacity(100, 8) == 25
    assert Routing(top_k=2, capacity_factor=1.2).capacity(101, 8) == 31
    assert Routing(top_k=2, capacity_factor=0.5, num_shared_experts=1).num_slots == 3


def test_temperature_goes_geometrically_from_first_to_last():
    schedule = TemperatureSchedule(first=4.0, last=1.0, num_steps=4)
    assert [schedule.at(step) for step in range(-1, 6)] == pytest.approx([4.0, 4.0, 8**0.5, 2.0, 2**0.5, 1.0, 1.0])
    for wrong in ({"first": 0.0}, {"first": 2.0, "last": float("nan")}, {"first": 2.0, "num_steps": 0}, {"first": "2"}):
        with pytest.raises(ArgumentError):
            TemperatureSchedule(**wrong)


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize(("pairs", "experts"), [(0, 4), (1, 4), (7, 3), (5, 50)])
def test_padded_pairs_always_fit_and_can_reach_the_bound(pairs, experts, block_size):
    def padded(counts):
        return sum(-(-count // block_size) * block_size for count in counts)

    def splits(left, parts):
        if parts == 1:
            yield (left,)
            return
        for first in range(left + 1):
            yield from ((first, *rest) for rest in splits(left - first, parts - 1))

    used = min(experts, 4)
    assert max(padded(split) for split in splits(pairs, used)) == max_padded_pairs(pairs, used, block_size)
    assert max_padded_pairs(pairs, experts, block_size) >= max_padded_pairs(pairs, used, block_size)

# SPDX-License-Identifier: MIT
"""The device-side grouping, table by table against numpy: it is stable, and both forms give the same tables."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import torch
from helpers.xe_emulation import Case, case, run_plan, stream

from jitmoe.pipeline import Pipeline
from jitmoe.plan import xe


def tables(pipeline: Pipeline, one: Case, arch: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Runs the routing launches alone; returns (expert_offsets, sorted_pairs, blocks, block_rows)."""
    on = stream(arch)
    choice = xe.choose(one.problem, on.device, configs=())
    plan = xe.launches(one.problem, on.device, choice)
    routing = dataclasses.replace(plan, launches=plan.launches[: len(choice.route)])
    run_plan(pipeline, routing, one, on)
    start, offsets = on.workspace(1), plan.buffer_offsets()

    def buffer(name: str, count: int) -> np.ndarray:
        array = (ctypes.c_int32 * count).from_address(start + offsets[name])
        return np.array(array)

    num_blocks = int(buffer("num_blocks", 1)[0])
    experts = buffer("expert_offsets", one.problem.num_experts + 1)
    return experts, buffer("sorted_pairs", int(experts[-1])), buffer("blocks", 4 * num_blocks), choice.block_rows


def check(pipeline: Pipeline, one: Case, arch: str) -> None:
    ids = one.topk_ids.numpy().astype(np.int64).reshape(-1)
    if one.expert_map is not None:
        known = (ids >= 0) & (ids < one.expert_map.numel())
        ids = np.where(known, one.expert_map.numpy()[np.where(known, ids, 0)], -1)
    num_experts = one.problem.num_experts
    here = (ids >= 0) & (ids < num_experts)
    counts = np.bincount(ids[here], minlength=num_experts)
    offsets, pairs, blocks, rows = tables(pipeline, one, arch)
    np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(counts)]))
    order = np.argsort(np.where(here, ids, num_experts), kind="stable")
    np.testing.assert_array_equal(pairs, order[: int(here.sum())])
    expected = [
        (e, offsets[e] + done, min(rows, counts[e] - done), 0)
        for e in range(num_experts)
        for done in range(0, counts[e], rows)
    ]
    np.testing.assert_array_equal(blocks.reshape(-1, 4), np.array(expected).reshape(-1, 4))


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2"])
@pytest.mark.parametrize(
    ("m", "e", "k"), [(1, 1, 1), (3, 256, 10), (100, 7, 3), (700, 61, 4), (1500, 17, 1), (513, 1000, 8)]
)
def test_one_work_group(pipeline: Pipeline, arch: str, m: int, e: int, k: int) -> None:
    check(pipeline, case(m=m, h=64, i=64, e=e, k=k, seed=m), arch)


@pytest.mark.parametrize(("m", "e", "k"), [(1, 3, 2), (700, 61, 4), (2222, 130, 5)])
def test_three_launches(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, m: int, e: int, k: int) -> None:
    monkeypatch.setattr(xe, "MAX_ONE_GROUP_PAIRS", 0)
    check(pipeline, case(m=m, h=64, i=64, e=e, k=k, seed=m), "bmg-g21")


@pytest.mark.parametrize("limit", [0, 10**9])
def test_ids_of_other_ranks_are_dropped(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(xe, "MAX_ONE_GROUP_PAIRS", limit)
    ids = torch.randint(-2, 9, (200, 3), generator=torch.Generator().manual_seed(2))
    check(pipeline, case(m=200, h=64, i=64, e=5, k=3, ids=ids), "bmg-g21")
    expert_map = torch.tensor([4, -1, 0, 3, 9, 1], dtype=torch.int32)
    check(pipeline, case(m=200, h=64, i=64, e=5, k=3, ids=ids, expert_map=expert_map), "bmg-g21")


def test_nothing_to_group(pipeline: Pipeline) -> None:
    check(pipeline, case(m=4, h=64, i=64, e=5, k=2, ids=torch.full((4, 2), -1)), "bmg-g21")

# SPDX-License-Identifier: MIT
"""The single-launch form, emulated on the CPU device: the bits of the several launches, whatever the grid.

What this cannot show is a GPU's memory order between work-groups: a CPU's caches are coherent.
"""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import xe_emulation
from helpers.xe_emulation import Case, bind_and_run, case, error, load, run, stream, with_tile

from jitmoe import knobs, selfcheck
from jitmoe.pipeline import Pipeline, explain
from jitmoe.plan import tuned, xe, xe_single
from jitmoe.plan.launch import Plan
from jitmoe.plan.xe_specs import XeGateUp, XeSingle, XeTokens, XeWeights
from jitmoe.problems.fused_moe import FUSED_MOE, Activation, DType, GateUp, Layout
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, private_stream

NK, KN = Layout.NK, Layout.KN


def single(choice: xe.XeChoice) -> xe.XeChoice:
    """Returns ``choice`` in one launch."""
    return dataclasses.replace(choice, single=xe_single.single_kernel(choice))


def plans(one: Case, arch: str, choice: xe.XeChoice | None = None) -> tuple[Plan, Plan]:
    """Returns the plans of several launches and of one."""
    device = stream(arch).device
    choice = xe.choose(one.problem, device, configs=()) if choice is None else choice
    assert not xe.single_launch_objections(one.problem, device, choice)
    return xe.launches(one.problem, device, choice), xe.launches(one.problem, device, single(choice))


def changed(plan: Plan, groups: int | None = None, **scalars: int) -> Plan:
    """Returns the plan of a single launch with ``groups`` work-groups and other scalars."""
    (launch,) = plan.launches
    launch = dataclasses.replace(launch, scalars={**launch.scalars, **scalars})
    if groups is not None:
        launch = dataclasses.replace(launch, global_size=(groups * launch.local_size[0],))
    return dataclasses.replace(plan, launches=(launch,))


def counters_of(on: Stream, plan: Plan) -> bytes:
    return ctypes.string_at(on.counters(plan.counter_bytes), plan.counter_bytes)


def same_bits(pipeline: Pipeline, one: Case, arch: str, choice: xe.XeChoice | None = None) -> Plan:
    """Runs both forms; returns the plan of the single launch."""
    several, together = plans(one, arch, choice)
    assert len(several.launches) >= 4
    assert len(together.launches) == 1
    expected = xe_emulation.run_plan(pipeline, several, one, stream(arch))
    lost = ((one.topk_ids < 0) | (one.topk_ids >= one.problem.num_experts)).all() if one.expert_map is None else False
    if not lost:
        assert not error(expected, one)[1]
    result = xe_emulation.run_plan(pipeline, together, one, stream(arch))
    assert torch.equal(result, expected)
    assert not any(counters_of(stream(arch), together))
    return together


def _routings() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "one token": torch.tensor([[4, 59]]),
        "two experts": torch.arange(16).reshape(8, 2) % 2,
        "one expert takes all": torch.full((16, 2), 7),
        "a second row block": torch.full((16, 4), 7),
        "no valid id": torch.full((5, 2), -1),
        "other ranks' ids": torch.randint(-30, 90, (13, 2), generator=generator),
        "top-10 of 60": torch.rand(11, 60, generator=generator).topk(10).indices,
        "same expert twice": torch.tensor([[3, 3], [3, 3], [0, 3]]),
        "skewed": (torch.rand(16, 4, generator=generator) ** 6 * 60).long(),
        "several ranges of pairs": torch.randint(0, 60, (100, 5), generator=generator),
    }


@pytest.mark.parametrize("name", _routings())
def test_routings(pipeline: Pipeline, name: str) -> None:
    ids = _routings()[name]
    same_bits(pipeline, case(m=ids.shape[0], h=160, i=104, e=60, k=ids.shape[1], ids=ids), "bmg-g21")


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 13, 16])
@pytest.mark.parametrize("sizes", [(64, 64), (96, 72), (608, 40), (32, 264)])
def test_decode_shapes(pipeline: Pipeline, m: int, sizes: tuple[int, int]) -> None:
    """Tails of columns, more tiles than work-groups and fewer."""
    same_bits(pipeline, case(m=m, h=sizes[0], i=sizes[1], e=5, k=2, seed=m), "bmg-g21")


def test_numbers_of_experts(pipeline: Pipeline) -> None:
    for e, k, m in ((1, 1, 1), (1, 1, 16), (8, 8, 1), (256, 10, 3), (1000, 32, 7)):
        same_bits(pipeline, case(m=m, h=64, i=64, e=e, k=k), "bmg-g21")


# operand class: (arch, layouts, padding of rows in elements, K and N tails)
_CLASSES: dict[str, tuple[str, tuple[Layout, Layout], int, tuple[int, int]]] = {
    "kn": ("bmg-g21", (KN, KN), 8, (104, 72)),
    "kn element": ("bmg-g21", (KN, KN), 3, (99, 45)),
    "simd8": ("dg2", (NK, NK), 2, (96, 64)),
}


@pytest.mark.parametrize("kind", _CLASSES)
def test_operand_classes(pipeline: Pipeline, kind: str) -> None:
    arch, (w1, w2), padding, (h, i) = _CLASSES[kind]
    dtype = DType.FP16 if kind in ("kn", "simd8") else DType.BF16
    one = case(m=11, h=h, i=i, e=3, k=2, dtype=dtype, w1_layout=w1, w2_layout=w2, padding=padding)
    (launch,) = same_bits(pipeline, one, arch).launches
    assert isinstance(launch.spec, XeSingle)
    assert (launch.spec.pack is None) == (launch.spec.gate_up.tokens is XeTokens.GATHER) == (kind == "simd8")
    assert (launch.spec.gate_up.weights is XeWeights.ELEMENT) == (kind == "kn element")


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2"])
def test_middle_tile(pipeline: Pipeline, arch: str) -> None:
    one = case(m=41, h=160, i=168, e=2, k=2)
    device = stream(arch).device
    choice = xe.choose(one.problem, device, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    tile = next(t for t in xe.tiles(xe.architecture(arch), (choice.gate_up.weights,)) if t.name == "middle")
    same_bits(pipeline, one, arch, with_tile(choice, tile))


def test_expert_map_biases_and_interleaved_rows(pipeline: Pipeline) -> None:
    expert_map = torch.tensor([-1, 2, 0, -1, 1, 7], dtype=torch.int32)  # 7: not here either
    ids = torch.randint(-1, 8, (16, 3), generator=torch.Generator().manual_seed(1))
    oai: dict[str, Any] = {"activation": Activation.SWIGLU_OAI, "swiglu_limit": 1.5, "bias_dtype": DType.FP32}
    one = case(
        m=16, h=96, i=72, e=3, k=3, ids=ids, expert_map=expert_map, ids_dtype=DType.INT64, gate_up=GateUp.INTERLEAVED,
        **oai,
    )  # fmt: skip
    same_bits(pipeline, one, "bmg-g21")


@pytest.mark.parametrize("groups", [1, 2, 7, 64])
def test_any_grid(pipeline: Pipeline, groups: int) -> None:
    """One work-group does everything; 64 are many more than run at a time, and more than some steps have pieces."""
    one = case(m=7, h=160, i=104, e=6, k=2)
    several, together = plans(one, "bmg-g21")
    expected = xe_emulation.run_plan(pipeline, several, one, stream("bmg-g21"))
    for _ in range(5):
        plan = changed(together, groups)
        assert torch.equal(xe_emulation.run_plan(pipeline, plan, one, stream("bmg-g21")), expected)
        assert not any(counters_of(stream("bmg-g21"), plan))


def test_calls_follow_each_other_on_one_queue(pipeline: Pipeline) -> None:
    """Different problems in both forms share workspace and counters; nothing waits in between."""
    on = stream("bmg-g21")
    cases = [case(m=m, h=h, i=i, e=6, k=2, seed=m) for m, h, i in ((16, 160, 104), (1, 64, 64), (5, 608, 40))]
    expected, bound = [], []
    for one in cases:
        several, together = plans(one, "bmg-g21")
        expected.append(xe_emulation.run_plan(pipeline, several, one, on))
        for plan in (together, several):
            bind_and_run(pipeline, plan, {**one.tensors(), "out": torch.empty_like(one.x)}, on)
            kernels = {spec: load(pipeline, spec, on) for spec in plan.specs}
            bound.append(BoundPlan(plan, kernels, FUSED_MOE.tensors))
    results = []
    for turn in range(60):
        which = (turn * 7) % len(bound)
        one = cases[which // 2]
        out = torch.full_like(one.x, float("nan"))
        tensors = {**one.tensors(), "out": out}
        bound[which].submit(on, [tensors[n].data_ptr() if n in tensors else None for n in FUSED_MOE.tensors])
        results.append((which // 2, out))
    on.wait()
    for index, out in results:
        assert torch.equal(out, expected[index])


def short_of_one(on: Stream, plan: Plan) -> None:
    """Makes ``finished`` start one too low, as if one piece of work never were reported."""
    ctypes.memmove(on.counters(plan.counter_bytes) + 64, struct.pack("i", -1), 4)


@pytest.mark.parametrize("groups", [1, 3, 64])
def test_a_missing_finish_makes_nan_and_no_hang(pipeline: Pipeline, groups: int) -> None:
    one = case(m=7, h=160, i=104, e=6, k=2)
    on = stream("bmg-g21")
    several, together = plans(one, "bmg-g21")
    expected = xe_emulation.run_plan(pipeline, several, one, on)
    plan = changed(together, groups)
    short_of_one(on, plan)
    result = torch.zeros_like(one.x)
    bind_and_run(pipeline, changed(plan, max_polls=1000), {**one.tensors(), "out": result}, on)
    assert result.isnan().all()
    # The counters are clear again, so the next call is right.
    assert not any(counters_of(on, plan))
    assert torch.equal(xe_emulation.run_plan(pipeline, plan, one, on), expected)


def test_the_self_check_refuses_a_kernel_that_gives_up(pipeline: Pipeline) -> None:
    on = stream("bmg-g21")
    problem = case(m=7, h=160, i=104, e=6, k=2).problem
    choice = single(xe.choose(problem, on.device, configs=()))
    small = xe.check_problem(problem, choice)
    plan = xe.launches(small, on.device, choice)
    kernels = {spec: load(pipeline, spec, on) for spec in plan.specs}
    with private_stream(on) as own:
        assert selfcheck.check(small, plan, kernels, own)[1] == ""
        short_of_one(own, plan)
        assert "are not finite" in selfcheck.check(small, changed(plan, max_polls=1000), kernels, own)[1]


def test_a_tuned_row_takes_it_through_the_house(pipeline: Pipeline, tmp_path: Path) -> None:
    """Plan, spec, cache, self-check, launcher; explain says who asked."""
    one = case(m=3, h=96, i=64, e=4, k=2)
    on = stream("bmg-g21")
    path = tmp_path / "mine.csv"
    rows = f"{on.device.num_compute_units},16,96,64,4,2,silu,bf16,xe,8,16,32"
    path.write_text(",".join((*tuned.COLUMNS, tuned.SINGLE_LAUNCH_COLUMN)) + f"\n{rows},1\n")
    assert "single launch: unmeasured, so only where a tuned row has run_1stage = 1" in explain(one.problem, on.device)
    names = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "out")
    out = torch.full_like(one.x, float("nan"))
    with knobs.override(tuned_config=path):
        text = explain(one.problem, on.device)
        bound = pipeline.prepare(one.problem, on, names)
    assert "single launch: tuned, mine.csv:2; it has never run on a GPU" in text
    assert text.count("  launch ") == 1 and "launch xe_single(" in text
    with on.lock:
        bound.submit(on, [{**one.tensors(), "out": out}[name].data_ptr() for name in names])
    on.wait()
    assert not error(out, one)[1]
    assert torch.equal(out, run(pipeline, one, "bmg-g21")[0])
    in_place = one.x.clone()
    with on.lock:
        tensors = {**one.tensors(), "hidden_states": in_place, "out": in_place}
        bound.submit(on, [tensors[name].data_ptr() for name in names])
    on.wait()
    assert torch.equal(in_place, out)

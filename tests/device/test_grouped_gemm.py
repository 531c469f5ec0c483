# SPDX-License-Identifier: MIT
"""``grouped_gemm_moe`` against float64: CPU kernels of each instruction set, emulated Xe kernels."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from helpers import xe_emulation
from test_cpu_kernels import TARGETS, run_in_a_process

import jitmoe
from jitmoe import calls, reference, selfcheck
from jitmoe.arguments.grouped_gemm import grouped_gemm_problem
from jitmoe.device import CpuIsa
from jitmoe.ops.grouped_gemm import _GROUPED_GEMM
from jitmoe.problems.fused_moe import DType
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import stream_of

DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}
FEW, MANY = (5, 6, 3), (150, 4, 2)  # (rows, experts, top_k), see test_cpu_kernels


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


def tensors(
    shape: tuple[int, int, int], n: int, k: int, dtype: DType, *, trans_b: bool, bias: DType | None = None, gap: int = 0
) -> tuple[Any, ...]:
    """Returns (A, B, C, D, weights, ids) with ids of no expert among them; ``gap`` NaNs follow each row of A, B, D."""
    (m, e, top_k), generator = shape, torch.Generator().manual_seed(0)

    def stored(values: torch.Tensor) -> torch.Tensor:
        wide = torch.full((*values.shape[:-1], values.shape[-1] + gap), float("nan"), dtype=DTYPES[dtype])
        view = wide[..., : values.shape[-1]]
        return view.copy_(values)

    b = torch.randn(e, *((n, k) if trans_b else (k, n)), generator=generator) * k**-0.5
    c = None if bias is None else torch.randn(e, n, generator=generator).to(DTYPES[bias])
    ids = torch.randint(0, e, (m, top_k), generator=generator)
    ids[0, 0], ids[-1, -1] = e, -1
    ids[1] = -1
    ids[2] = ids[2, 0]
    weights = torch.rand(m, top_k, generator=generator)
    d = stored(torch.full((m, n), float("nan")))
    return stored(torch.randn(m, k, generator=generator)), stored(b), c, d, weights, ids


def judge(given: tuple[Any, ...], trans_b: bool) -> None:
    a, b, c, d, weights, ids = given
    expected = reference.weighted_products(a, b, c, weights, ids, trans_b=trans_b, compute_dtype=torch.float64)
    dtype = next(ours for ours, torchs in DTYPES.items() if torchs == d.dtype)
    _, wrong = selfcheck.judge_floats(d, expected, dtype)
    assert not wrong, wrong


def check(given: tuple[Any, ...], trans_b: bool) -> None:
    a, b, c, d, weights, ids = given
    assert jitmoe.grouped_gemm_moe(a, b, c, d, weights, ids, ids.shape[1], trans_b) is None
    judge(given, trans_b)


@pytest.mark.parametrize(
    ("dtype", "trans_b", "shape"),
    [
        *itertools.product([DType.BF16], [False, True], [FEW, MANY]),
        *((DType.FP16, False, MANY), (DType.FP32, True, MANY), (DType.FP32, False, FEW)),
    ],
)
def test_dtypes_layouts_and_sizes(dtype, trans_b, shape):
    for n, k in ((256, 192), (163, 101), (7, 5), (1, 1)):
        check(tensors(shape, n, k, dtype, trans_b=trans_b), trans_b)


@pytest.mark.parametrize("bias", [DType.BF16, DType.FP32], ids=lambda dtype: dtype.value)
def test_bias_and_rows_with_gaps(bias):
    given = tensors(MANY, 70, 51, DType.BF16, trans_b=True, bias=bias, gap=3)
    check(given, True)
    assert given[3]._base is not None and given[3]._base[:, 70:].isnan().all()


@pytest.mark.parametrize("rows", [8, 9, 16, 33, 47, 65])
def test_every_block_size(rows):
    """One expert with that many rows beside one with a few: all cuts into blocks, both ways of routing."""
    a, b, c, d, weights, ids = tensors((rows + 3, 2, 1), 96, 80, DType.BF16, trans_b=True)
    ids[:rows], ids[rows:] = 1, 0
    check((a, b, c, d, weights, ids), True)


def test_b_is_read_where_it_is_whatever_trans_b_says():
    a, b, c, d, weights, ids = tensors(FEW, 64, 48, DType.BF16, trans_b=True)
    check((a, b.mT, c, d, weights, ids), False)
    check((a, b.mT.contiguous().mT, c, d, weights, ids), True)


@pytest.mark.parametrize("isa", TARGETS, ids=lambda isa: isa.value)
def test_smaller_instruction_sets(isa, shared_cache_dir):
    if list(CpuIsa).index(cpu.isa_of(cpu.host_flags(), "")) <= list(CpuIsa).index(isa):
        pytest.skip(f"this CPU has no more than {isa.value}")
    run_in_a_process(
        f"import test_grouped_gemm as t; t.check_instruction_set(t.CpuIsa({isa.value!r}))",
        shared_cache_dir,
        JITMOE_STRICT="1",
        **({cpu.TARGET_VARIABLE: TARGETS[isa]} if TARGETS[isa] else {}),  # an empty value leaves no CPU device
    )


def check_instruction_set(isa: CpuIsa) -> None:
    stream = stream_of(cpu.default_queue().addressof_ref())
    stream.device = dataclasses.replace(stream.device, cpu_isa=isa)
    for dtype, trans_b, shape in ((DType.BF16, True, MANY), (DType.BF16, True, FEW), (DType.FP32, False, MANY)):
        check(tensors(shape, 163, 101, dtype, trans_b=trans_b), trans_b)


# (architecture, dtype, trans_b, gap): 2D blocks of both layouts, odd strides, dpas of 8 lanes, no dpas
XE = {
    "2D blocks": ("bmg-g21", DType.BF16, True, 8),
    "2D blocks [E, K, N]": ("bmg-g21", DType.FP16, False, 8),
    "elements": ("bmg-g21", DType.BF16, True, 1),
    "float32": ("bmg-g21", DType.FP32, False, 0),
    "8 lanes": ("dg2", DType.BF16, True, 2),
    "no dpas": ("mtl", DType.BF16, True, 0),
}


@pytest.mark.parametrize("kind", XE)
def test_xe_kernels(pipeline, kind):
    arch, dtype, trans_b, gap = XE[kind]
    bias = DType.FP32 if kind in ("2D blocks", "no dpas") else None
    n, k = (104, 72) if gap != 1 else (45, 99)
    given = tensors((37, 3, 2), n, k, dtype, trans_b=trans_b, bias=bias, gap=gap)
    _, facts = calls.adopt(_GROUPED_GEMM, given)
    problem = grouped_gemm_problem(facts, 2, trans_b, look_at_addresses=True)
    stream = xe_emulation.stream(arch)
    present = [name for name, fact in facts.items() if fact is not None]
    bound = pipeline.prepare(problem, stream, present)  # with its self-check
    bound.submit(stream, [t.data_ptr() for t in given if t is not None])
    stream.wait()
    judge(given, trans_b)


def test_a_call_without_rows_or_experts_in_range():
    a, b, c, d, weights, ids = tensors(FEW, 16, 8, DType.FP32, trans_b=False)
    check((a, b, c, d, weights, ids.fill_(-1)), False)
    assert not d.any()
    assert jitmoe.grouped_gemm_moe(a[:0], b, c, d[:0], weights[:0], ids[:0], 3) is None


def wrong_calls() -> dict[str, tuple[dict[str, Any], str]]:
    a, b, c, d, weights, ids = tensors(FEW, 16, 8, DType.BF16, trans_b=False)
    named = {"A": a, "B": b, "C": c, "D": d, "topk_weights": weights, "topk_indices": ids, "top_k": 3}
    return {
        name: ({**named, **changes}, text)
        for name, (changes, text) in {
            "no matrix": ({"A": a[0]}, r"A: expected \[M, K\] or \[B, S, K\], got shape \[8\]"),
            "dtype of B": ({"B": b.float()}, "B: expected dtype bf16, got dtype torch.float32"),
            "dtype of A": ({"A": a.double()}, "A: expected dtype bf16, fp16, fp32, got dtype torch.float64"),
            "B the other way round": ({"trans_b": True}, r"B: expected \[E, N, K\] with E, N >= 1 and K = 8"),
            "B with gaps in both": ({"B": b.repeat(1, 2, 2)[:, ::2, ::2]}, r"B: expected unit stride .*\(512, 64, 2\)"),
            "D": ({"D": d[:, 1:]}, r"D: expected \[M, N\] = \[5, 16\], got shape \[5, 15\]"),
            "D overlaps itself": ({"D": d[:1].expand(5, 16)}, "D: expected rows that do not overlap"),
            "bias": ({"C": torch.zeros(6, 8)}, r"C: expected \[6, 16\], got shape \[6, 8\]"),
            "top_k": ({"top_k": 2}, r"topk_indices: expected \[M, top_k\] = \[5, 2\], got shape \[5, 3\]"),
            "top_k no number": ({"top_k": True}, "top_k: expected a whole number from 1 to 32767, got True"),
            "weights": ({"topk_weights": weights[:, :2]}, r"topk_weights: expected \[5, 3\], like topk_indices"),
            "ids": ({"topk_indices": ids.float()}, "topk_indices: expected dtype int32, int64"),
            "flag": ({"trans_b": 1}, "trans_b: expected True or False, got 1"),
        }.items()
    }


WRONG = wrong_calls()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_say_what_was_expected(name):
    call, text = WRONG[name]
    with pytest.raises(jitmoe.ArgumentError, match=text):
        jitmoe.grouped_gemm_moe(**call)


def test_gradients_and_fallback_give_the_reference(monkeypatch, caplog):
    monkeypatch.setenv("JITMOE_STRICT", "0")
    a, b, c, d, weights, ids = tensors(FEW, 16, 8, DType.FP32, trans_b=False, bias=DType.FP32)
    jitmoe.grouped_gemm_moe(a.requires_grad_(), b, c, d, weights, ids, 3)
    assert torch.equal(d, reference.weighted_products(a, b, c, weights, ids))
    assert "gradients are wanted" in caplog.text


def test_every_combination_has_a_plan_for_every_gpu():
    from helpers.builders import gpu_device

    from jitmoe.plan import planner_for

    for arch, dtype, trans_b, bias in itertools.product(
        ("bmg-g21", "pvc", "dg2", "mtl"), DTYPES, (False, True), (None, DType.FP32)
    ):
        given = tensors((64, 4, 2), 96, 70, dtype, trans_b=trans_b, bias=bias)
        _, facts = calls.adopt(_GROUPED_GEMM, given)
        problem = grouped_gemm_problem(facts, 2, trans_b, look_at_addresses=True)
        device = gpu_device(arch)
        planner = planner_for(problem, device)
        plan = planner.launches(problem, device, planner.choose(problem, device))
        assert [launch.spec.KERNEL for launch in plan.launches][1:2] == ["xe_pack"]
        assert not [launch for launch in plan.launches if "gate_up" in launch.spec.KERNEL]

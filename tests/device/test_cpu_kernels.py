# SPDX-License-Identifier: MIT
"""The CPU kernels against float64: dtypes, storage orders, instruction sets, tails of sizes, every kind of routing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jitmoe
from jitmoe import reference, selfcheck
from jitmoe.device import CpuIsa
from jitmoe.problem import DType
from jitmoe.runtime import cpu

DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}
# (hidden, intermediate): whole vectors, tails of a vector, odd (bf16 pairs end in the middle), smaller than a vector
SIZES = ((256, 192), (200, 104), (163, 101), (7, 5))
# (tokens, experts, top_k): the routing is found by each work-item up to 64 pairs, and sorted by a launch beyond
FEW = (5, 6, 3)
MANY = (150, 4, 2)
# Instruction sets that the CPU device can be told to generate code for, if the CPU has them.
TARGETS = {"corei7": CpuIsa.GENERIC, "core-avx2": CpuIsa.AVX2, "skx": CpuIsa.AVX512}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


def tensors(shape, sizes, dtype, *, layouts=("nk", "nk"), seed=0):
    """Returns (x, w1, w2, weights, ids) with some ids that belong to nobody."""
    (m, e, k), (h, i) = shape, sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).to(DTYPES[dtype])

    w1 = normal(e, 2 * i, h, scale=h**-0.5)
    w2 = normal(e, h, i, scale=i**-0.5)
    if layouts[0] == "kn":
        w1 = w1.mT.contiguous().mT
    if layouts[1] == "kn":
        w2 = w2.mT.contiguous().mT
    ids = torch.randint(0, e, (m, k), generator=generator)
    ids[0, 0] = e
    ids[-1, -1] = -1
    return normal(m, h), w1, w2, torch.rand(m, k, generator=generator), ids


def check(arguments, dtype, **options):
    result = jitmoe.fused_moe(*arguments, **options)
    expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, **options)
    _, wrong = selfcheck.judge_floats(result, expected, dtype)
    assert not wrong, wrong
    return result


@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pairs", "many pairs"])
@pytest.mark.parametrize("layouts", [("nk", "nk"), ("kn", "kn")], ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.value)
def test_dtypes_layouts_and_sizes(dtype, layouts, shape):
    for sizes in SIZES:
        check(tensors(shape, sizes, dtype, layouts=layouts), dtype)


@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pairs", "many pairs"])
@pytest.mark.parametrize("layouts", [("nk", "kn"), ("kn", "nk")], ids="-".join)
def test_mixed_layouts(layouts, shape):
    for sizes in SIZES:
        check(tensors(shape, sizes, DType.BF16, layouts=layouts), DType.BF16)


@pytest.mark.parametrize("tokens", [*range(1, 9), 12, 15, 16, 17, 24, 25, 32, 33, 40, 41, 47, 48, 49, 63, 64, 65, 100])
def test_every_block_size(tokens):
    """One expert with that many tokens beside one with a few: all cuts into blocks, both ways of routing."""
    arguments = tensors((tokens + 3, 2, 1), (96, 80), DType.BF16)
    arguments[-1][:tokens] = 1
    arguments[-1][tokens:] = 0
    check(arguments, DType.BF16)


@pytest.mark.parametrize("tokens", [9, 200])
def test_strided_rows_padded_weights_map_and_output(tokens):
    h, i, e, k = 70, 50, 6, 3
    x, w1, w2, weights, ids = tensors((tokens, e, k), (h, i), DType.BF16)
    wide = torch.full((tokens, h + 13), float("nan"), dtype=x.dtype)
    wide[:, :h] = x
    padded = torch.full((e, 2 * i + 3, h + 5), float("nan"), dtype=x.dtype)
    padded[:, : 2 * i, :h] = w1
    all_ids = torch.randint(-1, 9, ids.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    expert_map = torch.tensor([3, -1, 0, 5, 77, 1, 2, -1, 4], dtype=torch.int32)
    out = torch.full((tokens, h + 7), float("nan"), dtype=x.dtype)
    result = jitmoe.fused_moe(
        wide[:, :h], padded[:, : 2 * i, :h], w2, weights.double(), all_ids, expert_map=expert_map, out=out[:, :h]
    )
    expected = reference.fused_moe(
        x, w1, w2, weights, all_ids.long(), expert_map=expert_map, compute_dtype=torch.float64
    )
    _, wrong = selfcheck.judge_floats(result, expected, DType.BF16)
    assert not wrong, wrong
    assert out[:, h:].isnan().all()


@pytest.mark.parametrize("shape", [FEW, (700, 8, 4)], ids=["few pairs", "many pairs"])
def test_same_bits_every_time(shape):
    arguments = tensors(shape, (192, 160), DType.BF16)
    first = jitmoe.fused_moe(*arguments)
    assert all(torch.equal(jitmoe.fused_moe(*arguments), first) for _ in range(5))


@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pairs", "many pairs"])
def test_a_token_does_not_see_its_neighbours(shape):
    """NaN and infinity of one token stay in its own row, whatever pads a block."""
    x, w1, w2, weights, ids = tensors(shape, (163, 101), DType.BF16)
    clean = jitmoe.fused_moe(x, w1, w2, weights, ids)
    x[1] = float("nan")
    x[2] = float("inf")
    dirty = jitmoe.fused_moe(x, w1, w2, weights, ids)
    others = [t for t in range(shape[0]) if t not in (1, 2)]
    assert torch.equal(dirty[others], clean[others])
    assert dirty[1].isnan().all()


@pytest.mark.parametrize("target", TARGETS)
def test_smaller_instruction_sets(target, shared_cache_dir):
    """The variants for lesser CPUs, in a process whose CPU device generates code for one."""
    if list(CpuIsa).index(cpu.isa_of(cpu.host_flags(), "")) < list(CpuIsa).index(TARGETS[target]):
        pytest.skip(f"this CPU cannot run {target}")
    environment = {**os.environ, cpu.TARGET_VARIABLE: target, "JITMOE_CACHE_DIR": str(shared_cache_dir)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", f"import test_cpu_kernels as t; t.check_instruction_set({target!r})"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def check_instruction_set(target):
    assert cpu.isa() is TARGETS[target]
    for dtype, layouts, shape in (
        (DType.BF16, ("nk", "nk"), MANY),
        (DType.BF16, ("nk", "nk"), FEW),
        (DType.FP16, ("nk", "nk"), MANY),
        (DType.FP32, ("nk", "nk"), MANY),
        (DType.FP32, ("kn", "kn"), MANY),
    ):
        for sizes in SIZES[1:3]:
            check(tensors(shape, sizes, dtype, layouts=layouts), dtype)

# SPDX-License-Identifier: MIT
"""The CPU kernels against float64: dtypes, storage orders, instruction sets, tails of sizes, every kind of routing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import instruction_sets

import jitmoe
from jitmoe import reference, selfcheck
from jitmoe.device import CpuIsa
from jitmoe.problems.fused_moe import DType
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import stream_of

DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}
# (hidden, intermediate): whole vectors, tails of a vector, odd (bf16 pairs end in the middle), smaller than a vector
SIZES = ((256, 192), (200, 104), (163, 101), (7, 5))
# (tokens, experts, top_k): the routing is found by each work-item up to 64 pairs, and sorted by a launch beyond
FEW = (5, 6, 3)
MANY = (150, 4, 2)
# What the CPU device is told, so that it generates code for less than the CPU has ("": nothing).
HALVES = pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16], ids=lambda dtype: dtype.value)
TARGETS = {CpuIsa.GENERIC: "corei7", CpuIsa.AVX2: "core-avx2", CpuIsa.AVX512: "skx", CpuIsa.AVX512_BF16: ""}


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
@HALVES
def test_columns_of_more_rows_than_take_turns(dtype, shape):
    check(tensors(shape, (900, 560), dtype, layouts=("kn", "kn")), dtype)


@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pairs", "many pairs"])
@pytest.mark.parametrize("layouts", [("nk", "kn"), ("kn", "nk")], ids="-".join)
@HALVES
def test_mixed_layouts(dtype, layouts, shape):
    for sizes in SIZES:
        check(tensors(shape, sizes, dtype, layouts=layouts), dtype)


@pytest.mark.parametrize("tokens", [*range(1, 9), 12, 15, 16, 17, 24, 25, 32, 33, 40, 41, 47, 48, 49, 63, 64, 65, 100])
@HALVES
def test_every_block_size(dtype, tokens):
    """One expert with that many tokens beside one with a few: all cuts into blocks, both ways of routing."""
    arguments = tensors((tokens + 3, 2, 1), (96, 80), dtype)
    arguments[-1][:tokens] = 1
    arguments[-1][tokens:] = 0
    check(arguments, dtype)


@pytest.mark.parametrize("tokens", [9, 200])
@HALVES
def test_strided_rows_padded_weights_map_and_output(dtype, tokens):
    h, i, e, k = 70, 50, 6, 3
    x, w1, w2, weights, ids = tensors((tokens, e, k), (h, i), dtype)
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
    _, wrong = selfcheck.judge_floats(result, expected, dtype)
    assert not wrong, wrong
    assert out[:, h:].isnan().all()


@pytest.mark.parametrize("shape", [FEW, (700, 8, 4)], ids=["few pairs", "many pairs"])
@HALVES
def test_same_bits_every_time(dtype, shape):
    arguments = tensors(shape, (192, 160), dtype)
    first = jitmoe.fused_moe(*arguments)
    assert all(torch.equal(jitmoe.fused_moe(*arguments), first) for _ in range(5))


@pytest.mark.parametrize("shape", [FEW, MANY], ids=["few pairs", "many pairs"])
@HALVES
def test_a_token_does_not_see_its_neighbours(dtype, shape):
    """NaN and infinity of one token stay in its own row, whatever pads a block."""
    x, w1, w2, weights, ids = tensors(shape, (163, 101), dtype)
    clean = jitmoe.fused_moe(x, w1, w2, weights, ids)
    x[1] = float("nan")
    x[2] = float("inf")
    dirty = jitmoe.fused_moe(x, w1, w2, weights, ids)
    others = [t for t in range(shape[0]) if t not in (1, 2)]
    assert torch.equal(dirty[others], clean[others])
    assert dirty[1].isnan().all()


def run_in_a_process(code: str, cache_dir: Path, **variables: str) -> None:
    environment = {**os.environ, "JITMOE_CACHE_DIR": str(cache_dir), **variables}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", TARGETS, ids=lambda isa: isa.value)
def test_smaller_instruction_sets(isa, shared_cache_dir):
    """The variants for lesser CPUs, in a process whose CPU device generates code for one."""
    if list(CpuIsa).index(cpu.isa_of(cpu.host_flags(), "")) <= list(CpuIsa).index(isa):
        pytest.skip(f"this CPU has no more than {isa.value}")
    run_in_a_process(
        f"import test_cpu_kernels as t; t.check_instruction_set(t.CpuIsa({isa.value!r}))",
        shared_cache_dir,
        **({cpu.TARGET_VARIABLE: TARGETS[isa]} if TARGETS[isa] else {}),  # an empty value leaves no CPU device
    )


def check_instruction_set(isa):
    stream = stream_of(cpu.default_queue().addressof_ref())
    if TARGETS[isa]:
        assert stream.device.cpu_isa is isa
    stream.device = dataclasses.replace(stream.device, cpu_isa=isa)
    for dtype, layouts, shape in (
        (DType.BF16, ("nk", "nk"), MANY),
        (DType.BF16, ("nk", "nk"), FEW),
        (DType.FP16, ("nk", "nk"), MANY),
        (DType.FP32, ("nk", "nk"), MANY),
        (DType.FP32, ("kn", "kn"), MANY),
    ):
        arguments = tensors(shape, SIZES[1], dtype, layouts=layouts)
        assert f"(isa={isa.value} " in jitmoe.explain(jitmoe.fused_moe, *arguments)
        for sizes in SIZES[1:3]:
            check(tensors(shape, sizes, dtype, layouts=layouts), dtype)
    check(tensors(MANY, SIZES[1], DType.BF16, layouts=("nk", "kn")), DType.BF16, interleaved=True)


@contextlib.contextmanager
def tiles_of(isa):
    """Plans for the tiles of ``isa``."""
    if isa not in instruction_sets.available():
        pytest.skip(f"this CPU has no {isa.value}")
    with instruction_sets.planned_for(isa):
        yield


# fp16 with amx_bf16: two bf16 each, of [N][K] weights.
@pytest.mark.parametrize(
    ("isa", "dtype", "layouts"),
    [
        (CpuIsa.AMX_BF16, DType.BF16, ("nk", "nk")),
        (CpuIsa.AMX_BF16, DType.BF16, ("kn", "nk")),
        (CpuIsa.AMX_BF16, DType.BF16, ("nk", "kn")),
        (CpuIsa.AMX_BF16, DType.FP16, ("nk", "nk")),
        (CpuIsa.AMX_FP16, DType.FP16, ("nk", "nk")),
        (CpuIsa.AMX_FP16, DType.FP16, ("kn", "nk")),
        (CpuIsa.AMX_FP16, DType.FP16, ("nk", "kn")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.value,
)
def test_tiles(isa, dtype, layouts):
    """Pieces of K, staged ends of rows and of K, blocks of tokens, experts that are cut between work-items."""
    with tiles_of(isa):
        for shape, sizes in (
            ((300, 2, 1), (4200, 50)),
            ((700, 3, 2), (96, 2100)),
            ((40, 1, 1) if dtype.value in isa.value else (70, 1, 1), (2048, 16)),  # cutting is for more than 64 pairs
            ((33, 9, 2), (33, 257)),
        ):
            arguments = tensors(shape, sizes, dtype, layouts=layouts)
            assert f"cpu_gate_up_amx(isa={isa.value} dtype={dtype.value} " in jitmoe.explain(
                jitmoe.fused_moe, *arguments
            )
            result = check(arguments, dtype)
            assert torch.equal(jitmoe.fused_moe(*arguments), result)


@pytest.mark.parametrize("isa", [CpuIsa.AMX_BF16, CpuIsa.AMX_FP16], ids=lambda isa: isa.value)
@pytest.mark.parametrize("layouts", [("nk", "nk"), ("kn", "kn")], ids="-".join)
def test_bf16_has_one_kernel_for_all_tiles(isa, layouts):
    with tiles_of(isa):
        text = jitmoe.explain(jitmoe.fused_moe, *tensors(MANY, SIZES[0], DType.BF16, layouts=layouts))
    assert "cpu_gate_up_amx(isa=amx_bf16 " in text and "cpu_down_amx(isa=amx_bf16 " in text


def whole_numbers(limit, *size):
    return torch.randint(-limit, limit + 1, size, generator=torch.Generator().manual_seed(limit)).double()


def product_of_fp16(a, b, factor):
    """Returns (factor * A B^T by the kernels, the same in float64) for A [M, K] and B [N, K] of one expert."""
    a, b = a.half(), b.half()
    d = torch.empty(a.shape[0], b.shape[0], dtype=torch.float16)
    given = (a, b[None], None, d, torch.full((a.shape[0], 1), factor), torch.zeros(a.shape[0], 1, dtype=torch.int64))
    assert "cpu_down_amx(isa=amx_fp16 " in jitmoe.explain(jitmoe.grouped_gemm_moe, *given, 1, True)
    jitmoe.grouped_gemm_moe(*given, 1, True)
    return d, factor * (a.double() @ b.double().T)


def test_tiles_of_subnormal_fp16():
    """Sums of so few bits are exact in fp32, so their rounding is all that may be seen."""
    tiny = 2.0**-24
    with tiles_of(CpuIsa.AMX_FP16):
        for a, b, factor in (
            (whole_numbers(1023, 70, 99) * tiny, whole_numbers(3, 40, 99), 2.0**8),
            (whole_numbers(3, 70, 99), whole_numbers(1023, 40, 99) * tiny, 2.0**8),
            (whole_numbers(100, 70, 99) * tiny, whole_numbers(100, 40, 99) * tiny, 2.0**36),
        ):
            result, expected = product_of_fp16(a, b, factor)
            assert expected.any() and torch.equal(result, expected.half())


def test_tiles_of_infinite_fp16():
    inf = float("inf")
    a, b = whole_numbers(5, 70, 99), whole_numbers(5, 40, 99)
    a[1, 7], a[2, 98], a[3, 0], a[3, 1], b[5, 50] = inf, -inf, inf, -inf, inf
    with tiles_of(CpuIsa.AMX_FP16):
        result, expected = product_of_fp16(a, b, 1.0)
        assert {inf, -inf} <= set(expected[1].tolist()) and expected[1].isnan().any()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num(1.0, inf, -inf), expected.half().nan_to_num(1.0, inf, -inf))


needs_tiles = pytest.mark.skipif(CpuIsa.AMX_BF16 not in instruction_sets.available(), reason="needs AMX")


@needs_tiles
@pytest.mark.parametrize("order", ["import torch; t = __import__('jitmoe.runtime.cpu').runtime.cpu; t.isa()", ""])
def test_tiles_may_be_used_by_threads_that_were_there_before_or_come_after(order, shared_cache_dir):
    code = """
import threading
{order}
from jitmoe.runtime import cpu
ready, go = threading.Barrier(3), threading.Event()
import test_cpu_kernels as t
failed = []
def use():
    ready.wait()
    go.wait()
    try:
        t.check(t.tensors(t.MANY, t.SIZES[0], t.DType.BF16), t.DType.BF16)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=use) for _ in range(2)]
for thread in threads: thread.start()
ready.wait()
assert cpu.request_tiles()
go.set()
for thread in threads: thread.join()
assert not failed, failed
"""
    run_in_a_process(code.format(order=order), shared_cache_dir, JITMOE_STRICT="1")


@needs_tiles
def test_without_permission_for_tiles_smaller_kernels_run(shared_cache_dir):
    """Linux refuses where an alternate signal stack is too small for the tile registers."""
    code = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = mmap.mmap(-1, 1 << 16)
small = Stack(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 0, 6144)
assert libc.sigaltstack(ctypes.byref(small), None) == 0, ctypes.get_errno()
from jitmoe.device import CpuIsa
from jitmoe.runtime import cpu
assert not cpu.request_tiles()
assert cpu.isa() is CpuIsa.AVX512_BF16
import test_cpu_kernels as t
t.check(t.tensors(t.MANY, t.SIZES[0], t.DType.BF16), t.DType.BF16)
"""
    run_in_a_process(code, shared_cache_dir, JITMOE_STRICT="1")

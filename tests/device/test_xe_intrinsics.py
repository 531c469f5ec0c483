# SPDX-License-Identifier: MIT
"""The portable body of every Xe intrinsic against numpy, register by register.

The expected register images are built here from the layouts that arch/*.hpp document, so a changed layout on either
side fails.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers import xe_emulation
from helpers.xe_probes import PROBES, compile_probe, probe_spec

from jitmoe.compilers.base import Artifact
from jitmoe.plan.launch import Launch, Plan
from jitmoe.runtime import loader
from jitmoe.runtime.launcher import BoundPlan

LANES = np.arange(16)


@pytest.fixture(scope="module")
def images() -> dict[str, Artifact]:
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda probe: compile_probe(probe, emulated=True), PROBES.values())
        return dict(zip(PROBES, compiled, strict=True))


def run(images: dict[str, Artifact], name: str, *arrays: Any, items: int | None = None, **scalars: int) -> None:
    """Runs probe ``name`` in one work-group over ``arrays`` in the order of its pointer arguments, in place."""
    probe = PROBES[name]
    on = xe_emulation.stream("bmg-g21")
    spec = probe_spec(probe)
    count = items or probe.simd
    launch = Launch(spec=spec, global_size=(count,), local_size=(count,), scalars=scalars)
    kernel, _ = loader.load_spirv(name, images[name].image, spec.num_parameters, on)
    names = [argument.name for argument in spec.ARGUMENTS if argument.is_pointer]
    bound = BoundPlan(Plan(launches=(launch,), buffers=()), {spec: kernel}, names)
    bound.submit(on, [array.ctypes.data for array in arrays])
    on.wait()


def bits16(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of exactly representable values."""
    if dtype == "fp16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def aligned(shape: tuple[int, ...], dtype: Any, alignment: int = 64) -> np.ndarray:
    """Zeros whose first element lies on a multiple of ``alignment`` bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + alignment, np.uint8)
    shift = -raw.ctypes.data % alignment
    return raw[shift : shift + size].view(dtype).reshape(shape)


def small_integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float64)  # products and sums are exact in every type here


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("simd", [16, 8])
def test_dpas_16_bit(images: dict[str, Artifact], dtype: str, simd: int) -> None:
    rng = np.random.default_rng(simd)
    a, b, c = small_integers(rng, 8, 16), small_integers(rng, 16, simd), small_integers(rng, 8, simd)
    a_bits, b_bits = bits16(a, dtype).astype(np.uint32), bits16(b, dtype).astype(np.uint32)
    if simd == 16:
        a_registers = np.ascontiguousarray(a_bits.T.astype(np.uint16))  # lane t, element m = A[m][t]
    else:
        a_registers = np.ascontiguousarray((a_bits[:, 0::2] | a_bits[:, 1::2] << 16).T)  # A[m][2t], A[m][2t + 1]
    b_registers = np.ascontiguousarray((b_bits[0::2] | b_bits[1::2] << 16).T)  # lane n, dword i = B[2i][n], B[2i+1][n]
    c_registers = np.ascontiguousarray(c.T.astype(np.float32))
    out = np.zeros((simd, 8), np.float32)
    run(images, f"dpas_{dtype}" + ("_simd8" if simd == 8 else ""), a_registers, b_registers, c_registers, out)
    np.testing.assert_array_equal(out.T, a @ b + c)


def test_dpas_int8(images: dict[str, Artifact]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (8, 32)), rng.integers(-128, 128, (32, 16))
    c = rng.integers(-1000, 1000, (8, 16))
    a_registers = np.ascontiguousarray(a.astype(np.int8).reshape(8, 16, 2).transpose(1, 0, 2)).view(np.int16)
    b_registers = np.ascontiguousarray(b.astype(np.int8).reshape(8, 4, 16).transpose(2, 0, 1)).view(np.int32)
    out = np.zeros((16, 8), np.int32)
    run(images, "dpas_int8", a_registers, b_registers, np.ascontiguousarray(c.T.astype(np.int32)), out)
    np.testing.assert_array_equal(out.T, a @ b + c)


def test_dpas_tf32_drops_the_low_mantissa_bits(images: dict[str, Artifact]) -> None:
    rng = np.random.default_rng(2)
    a, b = small_integers(rng, 8, 8), small_integers(rng, 8, 16)
    c = small_integers(rng, 8, 16)
    a_registers = np.zeros((16, 4), np.float32)
    for t in range(16):
        for i in range(4):
            a_registers[t, i] = a[2 * i + t // 8, t % 8] * (1 + 2.0**-12)  # the excess lies below tf32's mantissa
    out = np.zeros((16, 8), np.float32)
    run(images, "dpas_tf32", a_registers, b.T.astype(np.float32).copy(), c.T.astype(np.float32).copy(), out)
    np.testing.assert_array_equal(out.T, a @ b + c)


def surface(height: int, width: int, pitch: int) -> np.ndarray:
    """A 16-bit surface in a wider allocation; elements right of ``width`` must never be seen."""
    matrix = aligned((height, pitch), np.uint16)
    matrix[...] = 0xDEAD
    matrix[:, :width] = np.arange(height * width).reshape(height, width) % 0xD000
    return matrix


def element(matrix: np.ndarray, width: int, y: int, x: int) -> int:
    """What hardware loads: zeros outside."""
    inside = 0 <= y < matrix.shape[0] and 0 <= x < width
    return int(matrix[y, x]) if inside else 0


@pytest.mark.parametrize("rows", [8, 16, 32])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (34, 5), (-6, -3), (40, 30)])
def test_plain_load(images: dict[str, Artifact], rows: int, x: int, y: int) -> None:
    matrix, width = surface(40, 70, 96), 70
    out = np.zeros((16, 2 * rows), np.uint16)
    run(images, f"load_{rows}", matrix, out, width=140, height=40, pitch=192, x=x, y=y)
    expected = [
        [element(matrix, width, y + r, x + 16 * c + t) for c in range(2) for r in range(rows)] for t in range(16)
    ]
    np.testing.assert_array_equal(out, expected)


def test_payload_moves_by_add_and_by_constant_offsets(images: dict[str, Artifact]) -> None:
    matrix = surface(40, 96, 96)
    out = np.zeros((16, 16), np.uint16)
    run(images, "load_moved", matrix, out, width=192, height=40, pitch=192, x=2, y=1)
    expected = [
        [element(matrix, 96, 1 + 3 + 8 + r, 2 + 32 + 16 + 16 * c + t) for c in (0, 1) for r in range(8)] for t in LANES
    ]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (38, 25)])
def test_vnni_load_pairs_two_rows(images: dict[str, Artifact], blocks: int, x: int, y: int) -> None:
    matrix, width = surface(45, 60, 64), 60
    out = np.zeros((16, 16 * blocks), np.uint32)
    run(images, f"load_vnni_{blocks}", matrix, out, width=120, height=45, pitch=128, x=x, y=y)
    expected = [
        [
            element(matrix, width, y + 2 * i, x + 16 * c + n)
            | element(matrix, width, y + 2 * i + 1, x + 16 * c + n) << 16
            for c in range(blocks)
            for i in range(16)
        ]
        for n in range(16)
    ]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (12, 20)])
def test_transposed_load_gives_each_lane_a_row(images: dict[str, Artifact], x: int, y: int) -> None:
    matrix = aligned((30, 32), np.uint32)
    matrix[...] = np.arange(30 * 32).reshape(30, 32) + 1
    out = np.zeros((16, 8), np.uint32)
    run(images, "load_transposed", matrix, out, width=18 * 4, height=30, pitch=128, x=x, y=y)
    expected = [[element(matrix, 18, y + t, x + i) for i in range(8)] for t in range(16)]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (26, 9), (-4, -2)])
def test_store_drops_what_lies_outside(images: dict[str, Artifact], x: int, y: int) -> None:
    matrix = aligned((12, 40), np.uint16)
    run(images, "store_8", matrix, matrix, width=68, height=12, pitch=80, x=x, y=y)
    expected = np.zeros((12, 40), np.uint16)
    for r in range(8):
        for t in range(16):
            if 0 <= y + r < 12 and 0 <= x + t < 34:
                expected[y + r, x + t] = 100 * r + t
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("broken", ["base", "width", "pitch", "x"])
def test_illegal_surfaces_load_nan_patterns(images: dict[str, Artifact], broken: str) -> None:
    matrix = aligned((8, 128), np.uint16)
    base = matrix.reshape(-1)[16:] if broken == "base" else matrix
    out = np.zeros((16, 16), np.uint16)
    width = {"width": 66}.get(broken, 128)
    pitch = {"pitch": 136}.get(broken, 160)
    run(images, "load_8", base, out, width=width, height=8, pitch=pitch, x={"x": 1}.get(broken, 0), y=0)
    assert (out == 0x7FFF).all()


def test_prefetch_has_no_effect(images: dict[str, Artifact]) -> None:
    matrix, out = surface(8, 64, 64), np.zeros(16, np.int32)
    before = matrix.copy()
    run(images, "prefetch_32", matrix, out, width=128, height=8, pitch=128, x=0, y=0)
    np.testing.assert_array_equal(matrix, before)
    assert (out == 1).all()


def test_split_barrier_lets_everyone_pass(images: dict[str, Artifact]) -> None:
    out = np.zeros(64, np.int32)
    run(images, "split_barrier", out, out, items=64)
    assert (out == 1).all()


@pytest.mark.parametrize("simd", [8, 16])
def test_read_row_interleaves_dwords_over_lanes(images: dict[str, Artifact], simd: int) -> None:
    row = np.arange(2 * simd, dtype=np.uint32) + 7
    out = np.zeros((simd, 2), np.uint32)
    run(images, f"read_row_{simd}", row, out)
    np.testing.assert_array_equal(out, row.reshape(2, simd).T)


def test_read_lane_takes_32_bytes_from_4_byte_aligned_rows(images: dict[str, Artifact]) -> None:
    memory = np.arange(16 * 34, dtype=np.uint16)
    out = aligned((16, 8), np.uint32)
    run(images, "read_lane", memory, out)
    expected = np.stack([memory[34 * t : 34 * t + 16] for t in range(16)]).view(np.uint32)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrow_rounds_to_nearest_even(images: dict[str, Artifact], dtype: str) -> None:
    import torch

    rng = np.random.default_rng(3)
    values = np.concatenate(
        [
            rng.standard_normal(1000).astype(np.float32),
            (1 + np.arange(12) / 4096).astype(np.float32),
            np.array(
                [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-7, 3e38, 65520, 65519, 1e-42, -70000, 2.0**-25], np.float32
            ),
        ]
    )
    out = np.zeros(values.size, np.uint16)
    run(images, f"narrow_{dtype}", values, out, items=values.size)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    expected = torch.from_numpy(values).to(kind)
    got = torch.from_numpy(out.view(np.int16)).view(kind)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(0, None, None), expected.nan_to_num(0, None, None))


def test_double_becomes_float_without_fp64_instructions(images: dict[str, Artifact]) -> None:
    rng = np.random.default_rng(4)
    halfway = 1 + 2.0**-24  # between two floats: to even
    special = [0.0, -0.0, np.inf, -np.inf, 1e300, -1e39, 3.4028235e38, halfway, 1 + 3 * 2.0**-24, 2 - 2.0**-26, 1e-50]
    values = np.concatenate([rng.standard_normal(1000), np.exp(rng.uniform(-80, 80, 1000)), special, [np.nan] * 5])
    out = np.zeros(values.size, np.float32)
    run(images, "read_double", values, out, items=values.size)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, values.astype(np.float32))

# SPDX-License-Identifier: MIT
"""Checkpoint layouts, packed here by their definition, come back as the weights they were made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import jitmoe
from jitmoe import reference
from jitmoe.arguments.fused_moe import check_no_order
from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import DType

E, N, K, GROUP = 2, 24, 64, 16


def numbers(*shape: int, high: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(9)) + 0.5).half()


def packed_words(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """int32 words of eight codes of the last dimension; nibble i holds code order[i]."""
    eight = codes.unflatten(-1, (-1, 8)).long()
    words = sum(eight[..., column] << 4 * i for i, column in enumerate(order))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def group_of(g_idx: torch.Tensor, per_group: torch.Tensor) -> torch.Tensor:
    """[E, N, K] of values per group [E, groups, N]."""
    return torch.stack([values[index].T for index, values in zip(g_idx, per_group, strict=True)])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq(act_order, symmetric):
    codes, zeros, scale = numbers(E, K, N), numbers(E, K // GROUP, N, seed=1), scales(E, K // GROUP, N)
    g_idx = (torch.arange(K) // GROUP).repeat(E, 1)
    if act_order:
        g_idx = torch.stack([g_idx[e][torch.randperm(K, generator=torch.Generator().manual_seed(e))] for e in range(E)])
    zero = torch.full_like(zeros, 8) if symmetric else zeros + 1
    expected = (codes.mT - group_of(g_idx, zero)) * group_of(g_idx, scale).double()
    loaded = jitmoe.load_gptq(
        packed_words(codes.mT).mT, scale, None if symmetric else packed_words(zeros), g_idx.to(torch.int32)
    )
    assert (loaded.k_order is not None) == act_order
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), expected)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_of_8_bits(act_order):
    codes, scale = numbers(E, K, N, high=256), scales(E, K // GROUP, N)
    g_idx = (torch.arange(K) // GROUP).repeat(E, 1)
    if act_order:
        g_idx = g_idx.flip(1)
    words = packed_words(torch.stack((codes.mT & 15, codes.mT >> 4), dim=-1).flatten(-2))
    loaded = jitmoe.load_gptq(words.mT, scale, None, g_idx.to(torch.int32), num_bits=8)
    expected = (codes.mT - 128) * group_of(g_idx, scale).double()
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), expected)
    assert loaded.format.bits == 8 and (loaded.k_order is not None) == act_order


def test_the_second_format_of_gptq_stores_zero_points_as_they_are():
    codes, zeros, scale = numbers(E, K, N), numbers(E, K // GROUP, N, seed=1), scales(E, K // GROUP, N)
    loaded = jitmoe.load_gptq(packed_words(codes.mT).mT, scale, packed_words(zeros), zero_offset=0)
    assert torch.equal(loaded.zero_point, zeros.mT)


def test_awq():
    codes, zeros, scale = numbers(E, K, N), numbers(E, K // GROUP, N, seed=1), scales(E, K // GROUP, N)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    loaded = jitmoe.load_awq(packed_words(codes, order), scale, packed_words(zeros, order))
    spread = [values.repeat_interleave(GROUP, 1).mT for values in (zeros, scale)]
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), (codes.mT - spread[0]) * spread[1].double())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("n", "group"), [(N, GROUP), (20, 32), (N, K)])
def test_compressed_tensors_of_4_bits(n, group, symmetric, ordered):
    groups = K // group
    codes, zeros, scale = numbers(E, n, K), numbers(E, n, groups, seed=1), scales(E, n, groups)
    g_idx = (torch.arange(K) // group).repeat(E, 1)
    if ordered:
        g_idx[1] = g_idx[1][torch.randperm(K, generator=torch.Generator().manual_seed(1))]
    zero = torch.full_like(zeros, 8) if symmetric else zeros
    # Codes and zero points have 8 added when they are stored, which cancels out.
    expected = (codes - group_of(g_idx, zero.mT)) * group_of(g_idx, scale.mT).double()
    stored = torch.nn.functional.pad(zeros.mT, (0, -n % 8))  # eight rows per word
    packed = packed_words(codes)
    loaded = jitmoe.load_compressed_tensors(
        packed,
        scale,
        None if symmetric else packed_words(stored).mT.contiguous(),
        g_idx.to(torch.int32).index_fill(0, torch.tensor([0]), -1) if ordered else None,
    )
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), expected)
    has_order = ordered and groups > 1
    assert (loaded.k_order is not None) == has_order
    assert (loaded.data.data_ptr() == packed.data_ptr()) != has_order, "copied"


@pytest.mark.parametrize("ordered", [False, True])
def test_compressed_tensors_of_8_bits(ordered):
    codes, scale = numbers(E, N, K, high=256), scales(E, N, K // GROUP)
    g_idx = (torch.arange(K) // GROUP).repeat(E, 1)
    if ordered:
        g_idx = g_idx.flip(1)
    packed = packed_words(torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2))
    loaded = jitmoe.load_compressed_tensors(packed, scale, None, g_idx.to(torch.int32), num_bits=8)
    expected = (codes - 128) * group_of(g_idx, scale.mT).double()
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), expected)
    assert loaded.format.bits == 8 and (loaded.k_order is not None) == ordered


def test_a_part_of_the_rows_of_packed_words_stays_a_view():
    codes, scale = numbers(E, 2 * N, K), scales(E, 2 * N, 1)
    packed = packed_words(codes)[:, N:]
    loaded = jitmoe.load_compressed_tensors(packed, scale[:, N:])
    assert loaded.data.data_ptr() == packed.data_ptr()
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), (codes - 8)[:, N:] * scale[:, N:].double())


def test_fp8_blocks_with_powers_of_two():
    """As in checkpoints whose scale_fmt is ue8m0."""
    values = torch.randn(E, 256, 256).to(torch.float8_e4m3fn)
    exponents = torch.randint(120, 134, (E, 2, 2), dtype=torch.uint8)
    loaded = jitmoe.load_fp8(values, exponents.view(torch.float8_e8m0fnu))
    assert loaded.format.scale_dtype is DType.E8M0
    as_floats = jitmoe.load_fp8(values, 2.0 ** (exponents.float() - 127.0))
    assert torch.equal(reference.dequantize(loaded), reference.dequantize(as_floats))


@pytest.mark.parametrize("load", [jitmoe.load_fp8, jitmoe.load_int8])
def test_8_bits_of_every_granularity(load):
    values = torch.randn(E, 256, 384, generator=torch.Generator().manual_seed(0)) * 32
    values = values.to(torch.int8 if load is jitmoe.load_int8 else torch.float8_e4m3fn)
    plain = values.double()
    for scale, spread in (
        (torch.tensor(0.5), lambda s: s),
        (torch.rand(E), lambda s: s[:, None, None]),
        (torch.rand(E, 256), lambda s: s[:, :, None]),
        (torch.rand(E, 256, 1), lambda s: s),
        (torch.rand(E, 2, 3), lambda s: s.repeat_interleave(128, 1).repeat_interleave(128, 2)),
    ):
        loaded = load(values, scale)
        assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), plain * spread(scale.double()))
        assert loaded.data.data_ptr() == values.data_ptr(), "copied"
    groups = torch.rand(E, 256, 6)
    loaded = load(values, groups, block=(1, 64))
    expected = plain * groups.repeat_interleave(64, 2).double()
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), expected)


def test_fp8_of_transposed_weights():
    values = torch.randn(E, 256, 384, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    plain = values.double()
    scale = torch.rand(E, 3, 2)
    loaded = jitmoe.load_fp8(values.view(torch.uint8).mT.contiguous().view(torch.float8_e4m3fn), scale, k_major=True)
    spread_scale = scale.mT.repeat_interleave(128, 1).repeat_interleave(128, 2).double()
    assert torch.equal(reference.dequantize(loaded, dtype=torch.float64), plain * spread_scale)


def test_microscaling_layouts():
    made = jitmoe.quantize_mxfp4(torch.randn(E, N, K))
    expected = reference.dequantize(made)
    for blocks in (made.data, made.data.unflatten(2, (K // 32, 16))):
        assert torch.equal(reference.dequantize(jitmoe.load_mxfp4(blocks, made.scale)), expected)
    made = jitmoe.quantize_mxfp8(torch.randn(E, N, K))
    swapped = made.data.view(torch.uint8).mT.contiguous().view(torch.float8_e4m3fn)
    loaded = jitmoe.load_mxfp8(swapped, made.scale.mT.contiguous(), k_major=True)
    assert torch.equal(reference.dequantize(loaded), reference.dequantize(made))
    made = jitmoe.quantize_int4(torch.randn(E, N, K), group_size=32)
    assert torch.equal(reference.dequantize(jitmoe.load_int4(made.data, made.scale)), reference.dequantize(made))


@pytest.mark.parametrize("rows", ["ungated", "halves", "interleaved"])
def test_folding_the_order_changes_no_result(rows):
    i, h = 32, 16
    order = torch.stack([torch.randperm(i, generator=torch.Generator().manual_seed(e)) for e in range(E)]).int()
    w1 = jitmoe.quantize_int4(torch.randn(E, i if rows == "ungated" else 2 * i, h), group_size=8)
    plain = jitmoe.quantize_int4(torch.randn(E, h, i), group_size=8)

    w2 = jitmoe.QuantizedTensor(
        plain.data, plain.scale, dataclasses.replace(plain.format, has_k_order=True), None, order
    )
    x, ids, weights = torch.randn(5, h), numbers(5, 2, high=E), torch.rand(5, 2)
    options = {"activation": "relu2" if rows == "ungated" else "silu", "interleaved": rows == "interleaved"}
    expected = reference.fused_moe(x, w1, w2, weights, ids, compute_dtype=torch.float64, **options)
    folded = jitmoe.fold_k_order(w1, w2, interleaved=rows == "interleaved")
    assert folded[1].k_order is None
    result = reference.fused_moe(x, *folded, weights, ids, compute_dtype=torch.float64, **options)
    assert torch.allclose(result, expected, rtol=1e-12, atol=1e-12)


REFUSED = [
    ("qweight", lambda: jitmoe.load_gptq(torch.zeros(E, 8, N), scales(E, 4, N))),
    ("scales", lambda: jitmoe.load_gptq(torch.zeros(E, 8, N, dtype=torch.int32), scales(E, 4, N + 1))),
    ("qzeros", lambda: jitmoe.load_gptq(
        torch.zeros(E, 8, N, dtype=torch.int32), scales(E, 4, N), torch.zeros(E, 4, 2, dtype=torch.int32))),
    ("qzeros", lambda: jitmoe.load_gptq(
        torch.zeros(E, 16, N, dtype=torch.int32), scales(E, 4, N), torch.zeros(E, 4, 6, dtype=torch.int32),
        num_bits=8)),
    ("num_bits", lambda: jitmoe.load_gptq(
        torch.zeros(E, 8, N, dtype=torch.int32), scales(E, 4, N), num_bits=True)),
    ("qzeros", lambda: jitmoe.load_awq(
        torch.zeros(E, K, 3, dtype=torch.int32), scales(E, 4, N), torch.zeros(E, 4, 2, dtype=torch.int32))),
    ("g_idx", lambda: jitmoe.load_gptq(
        torch.zeros(E, 8, N, dtype=torch.int32), scales(E, 4, N), None, torch.zeros(E, K, dtype=torch.int32))),
    ("scale", lambda: jitmoe.load_fp8(torch.zeros(E, 256, 256).to(torch.float8_e4m3fn), torch.rand(E, 3, 2))),
    ("data", lambda: jitmoe.load_fp8(torch.zeros(E, 256, 256), torch.rand(E))),
    ("blocks", lambda: jitmoe.load_mxfp4(torch.zeros(E, N, 2, 8, dtype=torch.uint8), torch.zeros(E, N, 2))),
    ("data", lambda: jitmoe.load_int8(torch.zeros(E, N, K), torch.rand(E))),
    ("data", lambda: jitmoe.load_int8(torch.zeros(N, K, dtype=torch.int8), torch.rand(E))),
    ("scale", lambda: jitmoe.load_int8(torch.zeros(E, N, K, dtype=torch.int8), torch.rand(E, N, 3))),
    ("packed", lambda: jitmoe.load_compressed_tensors(torch.zeros(E, N, 8), scales(E, N, 4))),
    ("packed", lambda: jitmoe.load_compressed_tensors(torch.zeros(N, 8, dtype=torch.int32), scales(E, N, 4))),
    ("scale", lambda: jitmoe.load_compressed_tensors(torch.zeros(E, N, 8, dtype=torch.int32), scales(E, 4, N))),
    ("scale", lambda: jitmoe.load_compressed_tensors(torch.zeros(E, N, 8, dtype=torch.int32), scales(E, N, 3))),
    ("zero_point", lambda: jitmoe.load_compressed_tensors(
        torch.zeros(E, N, 8, dtype=torch.int32), scales(E, N, 4), torch.zeros(E, N, 4, dtype=torch.int32))),
    ("zero_point", lambda: jitmoe.load_compressed_tensors(
        torch.zeros(E, N, 16, dtype=torch.int32), scales(E, N, 4), torch.zeros(E, 6, 4, dtype=torch.int32),
        num_bits=8)),
    ("g_idx", lambda: jitmoe.load_compressed_tensors(
        torch.zeros(E, N, 8, dtype=torch.int32), scales(E, N, 4), None, torch.zeros(E, K, dtype=torch.int32))),
    ("num_bits", lambda: jitmoe.load_compressed_tensors(
        torch.zeros(E, N, 8, dtype=torch.int32), scales(E, N, 4), num_bits=3)),
    ("scale", lambda: jitmoe.load_int4(torch.zeros(E, N, 32, dtype=torch.uint8), torch.rand(E, N, 7))),
    ("scale", lambda: jitmoe.load_int8(torch.zeros(E, N, K, dtype=torch.int8), None)),
    ("scale", lambda: jitmoe.load_fp8(torch.zeros(E, N, K).to(torch.float8_e4m3fn), [1.0])),
    ("scale", lambda: jitmoe.load_mxfp8(torch.zeros(E, K, N).to(torch.float8_e4m3fn), None, k_major=True)),
    ("block", lambda: jitmoe.load_int8(torch.zeros(E, N, K, dtype=torch.int8), torch.rand(E), block=128)),
    ("block", lambda: jitmoe.load_int8(torch.zeros(E, N, K, dtype=torch.int8), torch.rand(E), block=(0, 128))),
    ("block", lambda: jitmoe.load_fp8(torch.zeros(E, N, K).to(torch.float8_e4m3fn), torch.rand(E), block=(128, 1.5))),
    ("data", lambda: jitmoe.load_mxfp8(
        torch.zeros(4).to(torch.float8_e4m3fn), torch.zeros(4, dtype=torch.uint8), k_major=True)),
    ("k_major", lambda: jitmoe.load_fp8(torch.zeros(E, N, K).to(torch.float8_e4m3fn), torch.rand(E), k_major=1)),
    ("zero_offset", lambda: jitmoe.load_gptq(
        torch.zeros(E, 8, N, dtype=torch.int32), scales(E, 4, N), torch.zeros(E, 4, N // 8, dtype=torch.int32),
        zero_offset=2)),
    ("scales", lambda: jitmoe.load_gptq(
        torch.zeros(E, 8, N, dtype=torch.int32), torch.zeros(E, 4, N, dtype=torch.int32))),
    ("qzeros", lambda: jitmoe.load_awq(torch.zeros(E, K, 3, dtype=torch.int32), scales(E, 4, 24), None)),
    ("w1", lambda: jitmoe.fold_k_order(torch.zeros(E, N, K), torch.zeros(E, K, N))),
    ("w2", lambda: jitmoe.row_order(jitmoe.quantize_int8(torch.rand(E, N, K)), torch.zeros(E, K, N))),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "call"), REFUSED)
def test_what_does_not_fit_is_named(argument, call):
    with pytest.raises(ArgumentError) as refused:
        call()
    assert refused.value.argument == argument


def test_numpy_arrays_do():
    words = torch.arange(E * 8 * N, dtype=torch.int32).reshape(E, 8, N)
    given = (words, scales(E, 4, N).float(), torch.zeros(E, 4, N // 8, dtype=torch.int32))
    plain, of_numpy = jitmoe.load_gptq(*given), jitmoe.load_gptq(*(tensor.numpy() for tensor in given))
    assert torch.equal(of_numpy.data, plain.data) and torch.equal(of_numpy.zero_point, plain.zero_point)


def test_parameters_are_taken_without_gradients():
    scale = torch.nn.Parameter(torch.rand(E, N, 1))
    assert not jitmoe.load_int8(torch.zeros(E, N, K, dtype=torch.int8), scale).scale.requires_grad
    gptq = torch.nn.Parameter(torch.rand(E, 4, N))
    assert not jitmoe.load_gptq(torch.zeros(E, 8, N, dtype=torch.int32), gptq).scale.requires_grad


def test_a_k_order_of_w2_is_refused_with_the_way_out():
    form = dataclasses.replace(jitmoe.quantize_int8(torch.rand(E, N, K)).format, has_k_order=True)
    with pytest.raises(ArgumentError, match=r"w2: expected none: jitmoe.fold_k_order moves it"):
        check_no_order(form)

# SPDX-License-Identifier: MIT
"""Quantizers round to the nearest code; QuantizedTensor says what does not fit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import jitmoe
from jitmoe import reference
from jitmoe.errors import ArgumentError
from jitmoe.problems.formats import WHOLE, Encoding, WeightFormat
from jitmoe.problems.fused_moe import DType

MANTISSA = {Encoding.E4M3: (3, -6), Encoding.E5M2: (2, -14), Encoding.E2M1: (1, 0)}  # bits, exponent of the subnormals


def half_step(encoding: Encoding, value: float) -> float:
    """Half the distance between the codes around ``value`` (weight / step)."""
    if encoding in (Encoding.INT8, Encoding.INT4, Encoding.UINT4):
        return 0.5
    bits, lowest = MANTISSA[encoding]
    exponent = max(lowest, math.floor(math.log2(value))) if value > 0 else lowest
    return 2.0 ** (exponent - bits - 1)


FORMATS = [
    WeightFormat(encoding=encoding, scale_dtype=scale, block_n=n, block_k=k, has_zero_point=zero)
    for encoding, scale, n, k, zero in (
        (Encoding.INT8, DType.FP32, 1, WHOLE, False),
        (Encoding.INT8, DType.BF16, 1, 32, False),
        (Encoding.E4M3, DType.FP32, WHOLE, WHOLE, False),
        (Encoding.E4M3, DType.FP32, 128, 128, False),
        (Encoding.E5M2, DType.FP32, 1, WHOLE, False),
        (Encoding.E4M3, DType.E8M0, 1, 32, False),
        (Encoding.INT4, DType.BF16, 1, 32, False),
        (Encoding.UINT4, DType.FP16, 1, 64, False),
        (Encoding.UINT4, DType.BF16, 1, 128, True),
        (Encoding.E2M1, DType.E8M0, 1, 32, False),
    )
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 2), (5, 70), (130, 160)])
def test_round_trip_is_within_half_a_step(form, n, k):
    weights = (
        torch.randn(2, n, k, generator=torch.Generator().manual_seed(n)) * torch.tensor([1e-3, 40.0])[:, None, None]
    )
    weights[0, 0, 0] = 0
    packed = jitmoe.quantize_weights(weights, form)
    assert packed.shape == (2, n, k) and packed.data.dtype in (
        torch.int8,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
    scale = reference.scales(packed.scale, form.scale_dtype)
    wrong = (reference.dequantize(packed, dtype=torch.float64) - weights.double()).abs()
    slack = 1 + 2**-7  # the step itself is rounded to the scale's dtype
    for e, row, column in ((e, row, column) for e in range(2) for row in range(n) for column in range(0, k, 7)):
        step = float(
            scale[e, row // form.block_n if form.block_n else 0, column // form.block_k if form.block_k else 0]
        )
        value = abs(float(weights[e, row, column])) / step
        bound = half_step(form.encoding, value) * slack
        if form.has_zero_point:
            bound += 0.5  # the zero point is rounded as well
        assert float(wrong[e, row, column]) <= bound * step * (1 + 1e-6)


@pytest.mark.parametrize("encoding", [Encoding.E2M1, Encoding.INT4, Encoding.UINT4, Encoding.INT8, Encoding.E4M3])
def test_values_that_a_format_holds_come_back_exactly(encoding):
    values = (
        torch.arange(-7.0, 8.0)
        if encoding is not Encoding.E2M1
        else torch.tensor([*reference.E2M1_VALUES, *(-v for v in reference.E2M1_VALUES)])
    )
    weights = torch.nn.functional.pad(values, (0, -len(values) % 16)).reshape(1, 1, -1)
    weights[..., 0] = encoding.largest  # so that the step is 1
    form = WeightFormat(encoding=encoding, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE)
    assert torch.equal(reference.dequantize(jitmoe.quantize_weights(weights, form)), weights)


def test_ties_of_fp4_go_to_the_even_code():
    middles = torch.tensor([[[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -5.0, 0.0]]])
    form = WeightFormat(encoding=Encoding.E2M1, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE)
    expected = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.0, -1.0, -4.0, 0.0]
    assert reference.dequantize(jitmoe.quantize_weights(middles, form)).flatten().tolist() == expected


def test_nibbles_are_low_first_along_k():
    form = WeightFormat(encoding=Encoding.INT4, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE)
    packed = jitmoe.quantize_weights(torch.tensor([[[7.0, -1.0, 2.0, 3.0]]]), form)
    assert packed.data.flatten().tolist() == [0xF7, 0x32]


def test_e8m0_scales_clip_nothing():
    weights = torch.randn(1, 64, 256, generator=torch.Generator().manual_seed(1)).abs() * 6
    packed = jitmoe.quantize_mxfp4(weights)
    assert packed.scale.dtype == torch.uint8
    powers = reference.scales(packed.scale, DType.E8M0)
    assert bool((weights.reshape(1, 64, 8, 32).amax(-1) <= 6 * powers).all())
    assert bool((weights.reshape(1, 64, 8, 32).amax(-1) > 3 * powers).all()), "a smaller power would have done"


def test_helpers_make_the_formats_they_are_named_after():
    weights = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert str(jitmoe.quantize_int8(weights).format) == "int8/1xall/fp32"
    assert jitmoe.quantize_fp8(weights, scale="tensor").scale.shape == (1, 1, 1)
    assert jitmoe.quantize_fp8(weights, scale="expert").scale.shape == (2, 1, 1)
    assert jitmoe.quantize_fp8(weights, encoding="e5m2").scale.shape == (2, 256, 1)
    assert jitmoe.quantize_fp8(weights, scale=(128, 128)).scale.shape == (2, 2, 1)
    assert jitmoe.quantize_int4(weights, group_size=32).scale.shape == (2, 256, 4)
    assert jitmoe.quantize_int4(weights, zero_point=True).zero_point.shape == (2, 256, 1)
    assert jitmoe.quantize_mxfp8(weights).scale.shape == (2, 256, 4)
    four_bit = jitmoe.quantize_mxfp4(weights)
    assert four_bit.num_bytes == 2 * 256 * (128 // 2 + 128 // 32)


REFUSED = [
    ("weights", lambda w: jitmoe.quantize_int8(w.int())),
    ("weights", lambda w: jitmoe.quantize_int8(w[0])),
    ("weights", lambda w: jitmoe.quantize_int4(w[..., :31])),
    ("weights", lambda w: jitmoe.quantize_int8(w / 0)),
    ("scale", lambda w: jitmoe.quantize_fp8(w, scale="group")),
    ("group_size", lambda w: jitmoe.quantize_int4(w, group_size=33)),
    ("group_size", lambda w: jitmoe.quantize_int4(w, group_size=2.0)),
    ("weights", lambda w: jitmoe.quantize_int8(w[..., :0])),
    ("form", lambda w: jitmoe.quantize_weights(w, "int8")),
    ("encoding", lambda w: jitmoe.quantize_fp8(w, encoding="e3m4")),
    ("encoding", lambda w: jitmoe.quantize_fp8(w, encoding="int8")),
    ("encoding", lambda w: jitmoe.quantize_mxfp8(w, encoding="int4")),
    ("encoding", lambda w: jitmoe.quantize_mxfp8(w, encoding=8)),
    ("scale_dtype", lambda w: jitmoe.quantize_int4(w, scale_dtype=torch.float64)),
    ("scale_dtype", lambda w: jitmoe.quantize_int4(w, scale_dtype=16)),
    ("zero_point", lambda w: jitmoe.quantize_int4(w, zero_point=8)),
    ("block_n", lambda w: jitmoe.quantize_fp8(w, scale=(1.5, 128))),
    ("scale", lambda w: jitmoe.quantize_fp8(w, scale=(1, 2, 3))),
    ("scale", lambda w: jitmoe.quantize_fp8(w, scale=["channel"])),
]


@pytest.mark.parametrize(("argument", "call"), REFUSED)
def test_bad_arguments_are_named(argument, call):
    with pytest.raises(ArgumentError) as refused:
        call(torch.randn(2, 4, 64))
    assert refused.value.argument == argument


def test_a_quantized_tensor_checks_its_parts():
    good = jitmoe.quantize_int4(torch.randn(2, 8, 64), group_size=32, zero_point=True)
    form = good.format
    for argument, parts, words in (
        ("scale", (good.data, good.scale[:, :, :1], form, good.zero_point), ["[2, 8, 1]", "[2, 8, 2]", "1 x 32"]),
        ("scale", (good.data, good.scale.double(), form, good.zero_point), ["float64", "bf16"]),
        ("zero_point", (good.data, good.scale, form), ["None", "tensor"]),
        ("zero_point", (good.data, good.scale, form, good.zero_point[:1, :4]), ["[1, 4, 2]"]),
        ("data", (good.data.float(), good.scale, form, good.zero_point), ["float32", "uint4"]),
        ("data", (good.data[0], good.scale, form, good.zero_point), ["K / 2"]),
        ("data", (good.data.mT.contiguous().mT, good.scale, form, good.zero_point), ["unit stride"]),
    ):
        with pytest.raises(ArgumentError) as refused:
            jitmoe.QuantizedTensor(*parts)
        assert refused.value.argument == argument
        assert all(word in str(refused.value) for word in words), str(refused.value)


def test_zero_points_are_from_0_to_16():
    good = jitmoe.quantize_int4(torch.randn(2, 8, 64), group_size=32, zero_point=True)
    for zero in (0, 16):
        jitmoe.QuantizedTensor(good.data, good.scale, good.format, torch.full_like(good.zero_point, zero))
    wrong = good.zero_point.clone()
    wrong[1, 7, 1] = 17
    with pytest.raises(ArgumentError, match="zero_point: expected 0 to 16, got 17"):
        jitmoe.QuantizedTensor(good.data, good.scale, good.format, wrong)


@pytest.mark.parametrize("place", [64, -1, 5], ids=["too large", "negative", "twice"])
def test_a_k_order_is_a_permutation(place):
    good = jitmoe.quantize_int8(torch.randn(2, 8, 64))
    form = dataclasses.replace(good.format, has_k_order=True)
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(e)).int() for e in range(2)])
    jitmoe.QuantizedTensor(good.data, good.scale, form, None, order)
    order[1, order[1].argmin()] = place
    with pytest.raises(ArgumentError, match="k_order: expected each of 0 to 63 once per expert"):
        jitmoe.QuantizedTensor(good.data, good.scale, form, None, order)


def test_parameters_are_quantized_without_gradients():
    weights = torch.nn.Parameter(torch.randn(2, 8, 64))
    for packed in (jitmoe.quantize_int8(weights), jitmoe.quantize_int4(weights, zero_point=True)):
        assert not packed.scale.requires_grad and not packed.data.requires_grad
    assert jitmoe.quantize_int8(weights).scale.grad_fn is None


def test_formats_are_built_of_names_and_check_them():
    plain = {"encoding": "uint4", "scale_dtype": "bf16", "block_n": 1, "block_k": 128}
    form = WeightFormat(**plain, has_zero_point=True)
    assert form.encoding is Encoding.UINT4 and form.scale_dtype is DType.BF16
    assert WeightFormat(**{**plain, "scale_dtype": torch.bfloat16}, has_zero_point=True) == form
    assert jitmoe.quantize_int4(torch.randn(1, 4, 128), zero_point=True, scale_dtype=torch.bfloat16).format == form
    for name, value in (
        ("encoding", "int5"), ("encoding", None), ("scale_dtype", "fp64"), ("scale_dtype", "int8"),
        ("scale_dtype", None), ("block_n", -1), ("block_n", True), ("block_n", "all"), ("block_k", 33),
        ("block_k", 2.0), ("has_k_order", 1), ("has_zero_point", None),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as refused:
            WeightFormat(**{**plain, name: value})
        assert refused.value.argument == name
    with pytest.raises(ArgumentError, match="has_zero_point"):
        WeightFormat(**{**plain, "encoding": "int4"}, has_zero_point=True)

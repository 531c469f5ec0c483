# SPDX-License-Identifier: MIT
"""Quantized weights and inputs on the CPU kernels, against float64 on dequantized weights and exact quantization steps.

Each case takes two formats, one per GEMM, and sizes that no block, vector or group of rows divides.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import instruction_sets

import jitmoe
from jitmoe import reference, selfcheck
from jitmoe.device import CpuIsa
from jitmoe.problems.formats import WHOLE, Encoding, WeightFormat
from jitmoe.problems.fused_moe import DType
from jitmoe.weights.quantize import quantize_weights
from jitmoe.weights.quantized import QuantizedTensor

HIDDEN, INNER, EXPERTS, TOP_K = 210, 166, 3, 2
FEW, MANY = 9, 90  # tokens: rows form; lanes form or tiles
DTYPES = {torch.bfloat16: DType.BF16, torch.float16: DType.FP16, torch.float32: DType.FP32}


def form(encoding, block_n, block_k, scale_dtype=DType.FP32, **more):
    return WeightFormat(encoding=encoding, block_n=block_n, block_k=block_k, scale_dtype=scale_dtype, **more)


# Pairs that have every encoding, block shape and scale dtype.
PAIRS = {
    "int8 per channel, e4m3 128x128": (form(Encoding.INT8, 1, WHOLE, DType.BF16), form(Encoding.E4M3, 128, 128)),
    "uint4 with zeros, mxfp4": (
        form(Encoding.UINT4, 1, 64, DType.FP16, has_zero_point=True),
        form(Encoding.E2M1, 1, 32, DType.E8M0),
    ),
    "int4 group 32, e5m2 per tensor": (form(Encoding.INT4, 1, 32, DType.FP16), form(Encoding.E5M2, WHOLE, WHOLE)),
    "mxfp8, uint4 per channel with zeros": (
        form(Encoding.E4M3, 1, 32, DType.E8M0),
        form(Encoding.UINT4, 1, WHOLE, has_zero_point=True),
    ),
    "int8 3x33, uint4 group 128": (form(Encoding.INT8, 3, 33), form(Encoding.UINT4, 1, 128, DType.BF16)),
}
ISAS = (CpuIsa.GENERIC, CpuIsa.AVX512_BF16, CpuIsa.AMX_BF16)  # AVX2 and AVX-512 are wider floats


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


@pytest.fixture(params=ISAS, ids=lambda isa: isa.value)
def isa(request):
    if request.param not in instruction_sets.available():
        pytest.skip(f"this CPU has no {request.param.value}")
    with instruction_sets.planned_for(request.param):
        yield request.param


def tensors(tokens, formats, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(tokens)

    def normal(*size, scale=1.0):
        return torch.randn(*size, generator=generator) * scale

    w1 = quantize_weights(normal(EXPERTS, 2 * INNER, HIDDEN, scale=HIDDEN**-0.5), formats[0])
    w2 = quantize_weights(normal(EXPERTS, HIDDEN, INNER, scale=INNER**-0.5), formats[1])
    ids = torch.randint(0, EXPERTS, (tokens, TOP_K), generator=generator)
    ids[0, 0], ids[-1, -1] = EXPERTS, -1
    return normal(tokens, HIDDEN).to(dtype), w1, w2, torch.rand(tokens, TOP_K, generator=generator), ids


def check(arguments, **options):
    result = jitmoe.fused_moe(*arguments, **options)
    dtype = DTYPES[result.dtype]
    blocks = {"input_block_k": arguments[1].format.block_k} if "input_quant" in options else {}
    expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, **options, **blocks)
    # A rounding in float32 may choose the other of two neighbouring codes of the intermediate: one of them is seldom
    # more than a thousandth of the result.
    looser = dtype is DType.FP32 and "input_quant" in options
    _, wrong = selfcheck.judge_floats(result, expected, DType.FP16 if looser else dtype)
    assert not wrong, wrong
    return result


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("pair", PAIRS)
def test_formats(isa, pair, tokens):
    check(tensors(tokens, PAIRS[pair]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("pair", ["int8 per channel, e4m3 128x128", "uint4 with zeros, mxfp4"])
def test_other_dtypes(pair, dtype):
    for tokens in (FEW, MANY):
        check(tensors(tokens, PAIRS[pair], dtype))


# Pairs that tiles of fp16 take: one scale for all of K, or integers with scales of fp16.
FP16_PAIRS = {
    "int8, e4m3 per channel": (form(Encoding.INT8, 1, WHOLE, DType.BF16), form(Encoding.E4M3, 1, WHOLE)),
    "uint4 group 64 with zeros, e5m2 per tensor": (
        form(Encoding.UINT4, 1, 64, DType.FP16, has_zero_point=True),
        form(Encoding.E5M2, WHOLE, WHOLE),
    ),
    "int4 group 32, int8 group 64": (form(Encoding.INT4, 1, 32, DType.FP16), form(Encoding.INT8, 1, 64, DType.FP16)),
    "e2m1, uint4 per channel with zeros": (
        form(Encoding.E2M1, 1, WHOLE),
        form(Encoding.UINT4, 1, WHOLE, has_zero_point=True),
    ),
}


@pytest.mark.parametrize("pair", FP16_PAIRS)
def test_formats_that_fit_fp16(pair):
    if CpuIsa.AMX_FP16 not in instruction_sets.available():
        pytest.skip("this CPU has no amx_fp16")
    arguments = tensors(MANY, FP16_PAIRS[pair], torch.float16)
    text = jitmoe.explain(jitmoe.fused_moe, *arguments)
    assert "cpu_gate_up_amx(isa=amx_fp16 " in text and "cpu_down_amx(isa=amx_fp16 " in text
    assert torch.equal(check(arguments), jitmoe.fused_moe(*arguments))


@pytest.mark.parametrize(
    "weights",
    [
        form(Encoding.INT8, 1, 64, DType.FP16),
        form(Encoding.E4M3, 1, WHOLE),
        form(Encoding.E5M2, 1, WHOLE),
        form(Encoding.INT4, 1, 32, DType.FP16),
        form(Encoding.UINT4, 1, WHOLE),
        form(Encoding.UINT4, 1, 64, DType.FP16),
        form(Encoding.UINT4, 1, 128, DType.FP16, has_zero_point=True),
        form(Encoding.E2M1, 1, WHOLE),
    ],
    ids=str,
)
def test_tiles_multiply_the_nearest_fp16_of_code_times_scale(weights):
    """Subnormal ones too. A scale for all of K is a power of two here, as it multiplies sums."""
    if CpuIsa.AMX_FP16 not in instruction_sets.available():
        pytest.skip("this CPU has no amx_fp16")
    x, w1, w2, topk_weights, ids = tensors(MANY, (weights, weights), torch.float16)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, w1.data.shape, generator=generator, dtype=torch.uint8)
    if weights.encoding in (Encoding.E4M3, Encoding.E5M2):
        codes[:, ::2] &= 0x87 if weights.encoding is Encoding.E4M3 else 0x83  # every second row is subnormal
        codes[(codes & 0x7F) >= (0x7F if weights.encoding is Encoding.E4M3 else 0x7C)] = 1
    if weights.block_k:
        scale = w1.scale.clone()
        scale[0] *= 2.0**-12
        scale[:, 0] *= -1
        scale[:, -1] = 0
        assert (scale[0].abs() < torch.finfo(torch.float16).smallest_normal).all() and scale[0].any()
    else:
        scale = torch.full_like(w1.scale, 2.0**-8)
        w2 = dataclasses.replace(w2, scale=torch.full_like(w2.scale, 2.0**-8))
        x *= {Encoding.E5M2: 2.0**-10, Encoding.E4M3: 2.0**-4}.get(weights.encoding, 2.0**4)  # results are fp16 numbers
    w1 = dataclasses.replace(w1, data=codes.view(w1.data.dtype), scale=scale)
    whole = [reference.dequantize(w) for w in (w1, w2)]
    rounded = [w.to(torch.float16) for w in whole]
    assert weights.block_k or all(torch.equal(r.to(w.dtype), w) for r, w in zip(rounded, whole, strict=True))
    expected = jitmoe.fused_moe(x, *rounded, topk_weights, ids)
    assert expected.isfinite().all() and expected.any()
    assert torch.equal(jitmoe.fused_moe(x, w1, w2, topk_weights, ids), expected)


@pytest.mark.parametrize(
    "weights",
    [
        form(Encoding.INT8, 1, 64),
        form(Encoding.E4M3, 128, 128),
        form(Encoding.E4M3, 1, 32, DType.E8M0),
        form(Encoding.E5M2, 1, 64, DType.BF16),
        form(Encoding.E5M2, 1, 32, DType.E8M0),
        form(Encoding.INT4, 1, 32, DType.FP16),
        form(Encoding.INT4, 1, 64, DType.E8M0),
        form(Encoding.UINT4, 1, 128),
        form(Encoding.UINT4, 1, 64, DType.E8M0),
        form(Encoding.UINT4, 1, 32, DType.FP16, has_zero_point=True),
        form(Encoding.E2M1, 1, 32, DType.E8M0),
        form(Encoding.E2M1, 1, 96),
    ],
    ids=str,
)
def test_tiles_multiply_the_nearest_bf16_of_code_times_scale(weights):
    """So every code and scale, odd ones too, give the bits that those bf16 give."""
    if CpuIsa.AMX_BF16 not in instruction_sets.available():
        pytest.skip("this CPU has no amx_bf16")
    x, w1, w2, topk_weights, ids = tensors(MANY, (weights, weights))
    x *= 1e-3  # the largest numbers of E5M2 are far from what weights are
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, w1.data.shape, generator=generator, dtype=torch.uint8)
    if weights.encoding in (Encoding.E4M3, Encoding.E5M2):  # infinities and NaN: another test's
        codes[(codes & 0x7F) >= (0x7F if weights.encoding is Encoding.E4M3 else 0x7C)] = 1
    scale = w1.scale
    if weights.scale_dtype is not DType.E8M0:
        scale = scale.clone()
        scale[:, 0] *= -1
        scale[:, -1] = 0
    if weights.scale_dtype is DType.FP32:  # exponents beyond what can be added to
        scale[0] *= 2.0**-80
    w1 = dataclasses.replace(w1, data=codes.view(w1.data.dtype), scale=scale)
    rounded = [reference.dequantize(w).to(torch.bfloat16) for w in (w1, w2)]
    expected = jitmoe.fused_moe(x, *rounded, topk_weights, ids)
    assert expected.isfinite().all() and expected.any()
    assert torch.equal(jitmoe.fused_moe(x, w1, w2, topk_weights, ids), expected)


def normal_weights(experts, rows, k, weights, generator):
    return quantize_weights(torch.randn(experts, rows, k, generator=generator) * k**-0.5, weights)


def int8_layer(tokens, hidden, inner, experts, formats, generator):
    """Arguments with int8 weights, few or many tokens per expert, some experts with none."""
    w1 = normal_weights(experts, 2 * inner, hidden, formats[0], generator)
    w2 = normal_weights(experts, hidden, inner, formats[1], generator)
    ids = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :2] % (experts - 1)
    return torch.randn(tokens, hidden, generator=generator), w1, w2, torch.rand(tokens, 2, generator=generator), ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "experts", "formats"),
    [
        (90, 210, 166, 3, (form(Encoding.INT8, 1, WHOLE), form(Encoding.INT8, 1, 128, DType.BF16))),
        (150, 4096 + 200, 80, 4, (form(Encoding.INT8, 1, 128), form(Encoding.INT8, WHOLE, WHOLE))),  # K: two pieces
        (60, 6400, 80, 4, (form(Encoding.INT8, 1, 192), form(Encoding.INT8, 3, 128, DType.E8M0))),  # of blocks too
        # More tokens of an expert than are multiplied together.
        (700, 136, 1100, 3, (form(Encoding.INT8, 128, 128), form(Encoding.INT8, 1, 192))),
        (90, 1030, 1100, 9, (form(Encoding.INT8, 1, 768, DType.FP16), form(Encoding.INT8, 1, 1024))),
    ],
    ids=str,
)
def test_int8_on_tiles(tokens, hidden, inner, experts, formats, dtype):
    """One channel is so large that the others of its block have few bits."""
    generator = torch.Generator().manual_seed(hidden)
    x, *others = int8_layer(tokens, hidden, inner, experts, formats, generator)
    x[:, 77] *= 500.0
    arguments = (x.to(dtype), *others)
    if CpuIsa.AMX_BF16 in instruction_sets.available():
        assert jitmoe.explain(jitmoe.fused_moe, *arguments).count("x_dtype=int16") == 2
    assert torch.equal(check(arguments), jitmoe.fused_moe(*arguments))


def test_int8_on_tiles_with_everything_around():
    generator = torch.Generator().manual_seed(1)
    whole = form(Encoding.INT8, 1, WHOLE)
    x, w1, w2, topk_weights, ids = int8_layer(MANY, HIDDEN, INNER, EXPERTS, (whole, whole), generator)
    arguments = (x.to(torch.bfloat16), w1, w2, topk_weights, ids)
    biases = {
        "w1_bias": torch.randn(EXPERTS, 2 * INNER, generator=generator).to(torch.bfloat16),
        "w2_bias": torch.randn(EXPERTS, HIDDEN, generator=generator).to(torch.bfloat16),
    }
    check(arguments, interleaved=True, apply_router_weight_on_input=True, **biases)
    order = torch.stack([torch.randperm(HIDDEN, generator=generator) for _ in range(EXPERTS)]).to(torch.int32)
    ordered = QuantizedTensor(w1.data, w1.scale, dataclasses.replace(w1.format, has_k_order=True), k_order=order)
    expert_map = torch.tensor([-1, 2, -1, 0, 1, -1], dtype=torch.int32)
    ids = torch.randint(0, 2 * EXPERTS, ids.shape, generator=generator)
    check((arguments[0], ordered, w2, topk_weights, ids), expert_map=expert_map, activation="gelu")


def int8_matrix(codes, generator):
    """Integers, with scales that are powers of two: whatever the order of sums, there is one result."""
    powers = torch.randint(-1, 2, (*codes.shape[:2], 1), generator=generator)
    return QuantizedTensor(codes.to(torch.int8), 2.0**powers, form(Encoding.INT8, 1, WHOLE))


def test_int8_on_tiles_is_exact_where_16_bits_are_enough():
    generator = torch.Generator().manual_seed(7)
    w1 = int8_matrix(torch.randint(-2, 3, (EXPERTS, INNER, HIDDEN), generator=generator), generator)
    w2 = int8_matrix(torch.randint(-128, 128, (EXPERTS, HIDDEN, INNER), generator=generator), generator)
    x = torch.zeros(MANY, HIDDEN)  # sums of the first GEMM: at most 8
    x.scatter_(1, torch.randint(0, HIDDEN, (MANY, 4), generator=generator), 1.0)
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    ids = torch.randint(0, EXPERTS, (MANY, TOP_K), generator=generator)
    arguments = (x.to(torch.bfloat16), w1, w2, torch.ones(MANY, TOP_K), ids)
    expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, activation="relu2")
    assert expected.any()
    assert torch.equal(jitmoe.fused_moe(*arguments, activation="relu2"), expected.to(torch.bfloat16))


def test_largest_sums_of_int8_on_tiles():
    """Every product of a block is the largest one there is: 512 of them just fit."""
    hidden = 1024
    w1 = int8_matrix(torch.full((1, INNER, hidden), -128), torch.Generator().manual_seed(0))
    w2 = int8_matrix(torch.eye(hidden, INNER)[None], torch.Generator().manual_seed(1))
    x = torch.full((MANY, hidden), -1.9921875)
    x[1::2] *= -1.0
    arguments = (x.to(torch.bfloat16), w1, w2, torch.ones(MANY, 1), torch.zeros(MANY, 1, dtype=torch.int64))
    for activation in ("relu2", "gelu"):
        gated = activation == "gelu"
        if gated:
            arguments = (arguments[0], int8_matrix(w1.data.repeat(1, 2, 1), torch.Generator()), *arguments[2:])
        expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, activation=activation)
        assert expected.any()
        assert torch.equal(jitmoe.fused_moe(*arguments, activation=activation), expected.to(torch.bfloat16))


QUANTIZED_INPUTS = {
    "int8": ("int8", form(Encoding.INT8, 1, WHOLE)),
    "e4m3 in blocks": ("e4m3", form(Encoding.E4M3, 128, 128)),
    "mxfp8": ("e4m3", form(Encoding.E4M3, 1, 32, DType.E8M0)),
    "e5m2 in blocks of 3 rows": ("e5m2", form(Encoding.E5M2, 3, 96, DType.BF16)),
    "e4m3 in blocks that tiles do not divide": ("e4m3", form(Encoding.E4M3, 128, 48)),
    "e4m3 per channel": ("e4m3", form(Encoding.E4M3, 1, WHOLE, DType.BF16)),
    "e5m2": ("e5m2", form(Encoding.E5M2, WHOLE, WHOLE)),
}
LEVELS = (CpuIsa.AVX2, CpuIsa.AVX512_BF16, CpuIsa.AMX_BF16)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("kind", QUANTIZED_INPUTS)
@pytest.mark.parametrize("level", LEVELS, ids=lambda isa: isa.value)
def test_quantized_inputs(level, kind, tokens):
    name, weights = QUANTIZED_INPUTS[kind]
    if level not in instruction_sets.available():
        pytest.skip(f"this CPU has no {level.value}")
    with instruction_sets.planned_for(level):
        check(tensors(tokens, (weights, weights)), input_quant=name)


@pytest.mark.parametrize("kind", ["int8", "e4m3 per channel", "e4m3 in blocks"])
def test_quantized_inputs_of_fp16(kind):
    name, weights = QUANTIZED_INPUTS[kind]
    check(tensors(MANY, (weights, weights), torch.float16), input_quant=name)


@pytest.mark.parametrize("block_k", [WHOLE, 64])
def test_quantized_inputs_meet_two_formats(block_k):
    formats = form(Encoding.E5M2, 1, block_k, DType.FP16), form(Encoding.E4M3, WHOLE, block_k)
    check(tensors(MANY, formats), input_quant="e4m3")


# Blocks that parts of K which are converted together (512) do not divide, one that is longer, and one that is all of K.
@pytest.mark.parametrize("block_k", [96, 128, 640, 1024])
@pytest.mark.parametrize(("tokens", "experts"), [(300, 1), (130, 2), (24, 60)])
def test_inputs_in_blocks_of_long_rows(tokens, experts, block_k):
    """Few experts with many tokens, more than are multiplied together; many with few, and some with none."""
    weights = form(Encoding.E4M3, 128, block_k)
    hidden, inner, top_k = 1000, 616, min(experts, 3)
    generator = torch.Generator().manual_seed(tokens)
    w1 = normal_weights(experts, 2 * inner, hidden, weights, generator)
    w2 = normal_weights(experts, hidden, inner, weights, generator)
    x = torch.randn(tokens, hidden, generator=generator).to(torch.bfloat16)
    # One channel is so large that its block has another scale.
    x[:, 77] *= 50.0
    ids = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :top_k]
    check((x, w1, w2, torch.rand(tokens, top_k, generator=generator), ids), input_quant="e4m3")


@pytest.mark.parametrize("isa", [CpuIsa.AVX512_BF16, CpuIsa.AMX_BF16], ids=lambda isa: isa.value)
@pytest.mark.parametrize(
    "weights",
    [form(Encoding.E4M3, 128, 128), form(Encoding.E4M3, 1, 32, DType.E8M0), form(Encoding.E5M2, 3, 96, DType.BF16)],
    ids=str,
)
def test_sums_of_blocks_are_exact(isa, weights):
    """Small integers and scales that are powers of two: whatever the order, there is one result."""
    if isa not in instruction_sets.available():
        pytest.skip(f"this CPU has no {isa.value}")
    generator = torch.Generator().manual_seed(7)

    def integers(*size):
        return torch.randint(-2, 3, size, generator=generator).float()

    def matrix(rows, k):
        packed = quantize_weights(integers(EXPERTS, rows, k), dataclasses.replace(weights, scale_dtype=DType.FP32))
        codes = integers(EXPERTS, rows, k).to(packed.data.dtype if packed.data.is_floating_point() else torch.float32)
        if not packed.data.is_floating_point():
            kinds = {Encoding.E4M3: torch.float8_e4m3fn, Encoding.E5M2: torch.float8_e5m2}
            codes = codes.to(kinds[weights.encoding]).view(packed.data.dtype)
        powers = torch.randint(-1, 2, packed.scale.shape, generator=generator)
        if weights.scale_dtype is DType.E8M0:
            scale = (powers + 127).to(torch.uint8)
        else:
            scale = (2.0**powers).to({DType.FP32: torch.float32, DType.BF16: torch.bfloat16}[weights.scale_dtype])
        return QuantizedTensor(codes, scale, weights)

    x = integers(MANY, HIDDEN).to(torch.bfloat16)
    ids = torch.randint(0, EXPERTS, (MANY, TOP_K), generator=generator)
    topk_weights = 2.0 ** torch.randint(-2, 1, (MANY, TOP_K), generator=generator)
    one = torch.ones(1)
    options = {"activation": "relu2", "input_quant": weights.encoding.value, "a1_scale": one, "a2_scale": one}
    arguments = (x, matrix(INNER, HIDDEN), matrix(HIDDEN, INNER), topk_weights, ids)
    expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, input_block_k=weights.block_k, **options)
    with instruction_sets.planned_for(isa):
        result = jitmoe.fused_moe(*arguments, **options)
    assert torch.equal(result, expected.to(torch.bfloat16))


def test_inputs_in_blocks_with_everything_around():
    """Biases, ids of other ranks, gate rows beside up rows and weights on the input."""
    weights = form(Encoding.E4M3, 128, 128)
    x, w1, w2, topk_weights, ids = tensors(MANY, (weights, weights))
    generator = torch.Generator().manual_seed(1)
    biases = {
        "w1_bias": torch.randn(EXPERTS, 2 * INNER, generator=generator).to(torch.bfloat16),
        "w2_bias": torch.randn(EXPERTS, HIDDEN, generator=generator).to(torch.bfloat16),
    }
    check((x, w1, w2, topk_weights, ids), input_quant="e4m3", interleaved=True, **biases)
    ids = torch.randint(0, 2 * EXPERTS, ids.shape, generator=generator)
    expert_map = torch.tensor([-1, 2, -1, 0, 1, -1], dtype=torch.int32)
    options = {"expert_map": expert_map, "apply_router_weight_on_input": True, "activation": "gelu"}
    check((x, w1, w2, topk_weights, ids), input_quant="e4m3", **options)


def test_int8_rows_of_odd_length():
    weights = form(Encoding.INT8, 1, WHOLE)
    x, w1, w2, topk_weights, ids = tensors(MANY, (weights, weights))
    w1 = dataclasses.replace(w1, data=w1.data[:, :, :-1].contiguous())
    w2 = dataclasses.replace(w2, data=w2.data[:, :-1].contiguous(), scale=w2.scale[:, :-1].contiguous())
    check((x[:, :-1].contiguous(), w1, w2, topk_weights, ids), input_quant="int8")


@pytest.mark.parametrize("kind", ["int8", "e4m3 in blocks"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_given_input_scales(tokens, kind):
    name, weights = QUANTIZED_INPUTS[kind]
    arguments = tensors(tokens, (weights, weights))
    per_expert = torch.tensor([0.02, 0.03, 0.04])
    check(arguments, input_quant=name, a1_scale=per_expert, a2_scale=torch.tensor([0.01]))
    check(arguments, input_quant=name, a1_scale=torch.tensor([0.025]), a2_scale=per_expert)


@pytest.mark.parametrize("kind", ["int8", "e4m3 in blocks"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_quantized_inputs_that_are_not_a_number_stay_in_their_row(tokens, kind):
    name, weights = QUANTIZED_INPUTS[kind]
    arguments = tensors(tokens, (weights, weights))
    clean = jitmoe.fused_moe(*arguments, input_quant=name)
    arguments[0][1, 5] = float("nan")
    arguments[0][2] = 0.0
    for scales in ({}, {"a1_scale": torch.tensor([0.02]), "a2_scale": torch.tensor([0.02])}):
        result = jitmoe.fused_moe(*arguments, input_quant=name, **scales)
        assert result[1].isnan().all()
        assert not result[2].any()
    others = [0, *range(3, tokens)]
    assert torch.equal(jitmoe.fused_moe(*arguments, input_quant=name)[others], clean[others])


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize(
    ("dtype", "scale_dtype"), [(torch.bfloat16, DType.FP32), (torch.float16, DType.FP16)], ids=["bf16", "fp16"]
)
def test_columns_in_the_order_of_activations(dtype, scale_dtype, tokens):
    """GPTQ's act-order: stored column c is k = order[c], and groups are of stored columns."""
    formats = (form(Encoding.UINT4, 1, 32, scale_dtype, has_zero_point=True), form(Encoding.INT4, 1, 32, scale_dtype))
    arguments = tensors(tokens, formats, dtype)
    w1 = arguments[1]
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([torch.randperm(HIDDEN, generator=generator) for _ in range(EXPERTS)]).to(torch.int32)
    ordered = QuantizedTensor(
        w1.data, w1.scale, dataclasses.replace(w1.format, has_k_order=True), w1.zero_point, k_order=order
    )
    check((arguments[0], ordered, *arguments[2:]))


@pytest.mark.parametrize(
    ("encoding", "beside"),
    [(Encoding.E4M3, 0), (Encoding.E4M3, 0x38), (Encoding.E5M2, 0), (Encoding.E5M2, 0x3C), (Encoding.INT8, 0)],
    ids=lambda value: value.value if isinstance(value, Encoding) else hex(value),
)
@pytest.mark.parametrize("tokens", [2, 40, 100])
def test_every_code_has_its_value(encoding, beside, tokens):
    """Row n of w2 is code n along K, after 32 others (0 or 1); subnormal numbers count. Infinity and NaN spread.

    Kernels convert FP8 another way where no code of a chunk is a zero, subnormal or not finite.
    """
    inner, hidden = 128, 256
    values = torch.arange(256, dtype=torch.uint8)
    codes = torch.full((1, hidden, inner), beside, dtype=torch.uint8)
    codes[0, :, 32:] = values[:, None]
    data = codes.view({Encoding.INT8: torch.int8}.get(encoding, torch.uint8))
    w2 = QuantizedTensor(data, torch.ones(1, 1, 1), form(encoding, WHOLE, WHOLE))
    x = torch.eye(hidden)[:tokens].to(torch.bfloat16)
    w1 = torch.zeros(1, inner, hidden, dtype=torch.bfloat16)
    w1[0, 40] = 1.0
    ids = torch.zeros(tokens, 1, dtype=torch.int64)
    result = jitmoe.fused_moe(x, w1, w2, torch.ones(tokens, 1), ids, activation="relu2")
    expected = reference.unpacked(values.view(torch.int8), encoding) if encoding is Encoding.INT8 else None
    if expected is None:
        kinds = {Encoding.E4M3: torch.float8_e4m3fn, Encoding.E5M2: torch.float8_e5m2}
        expected = values.view(kinds[encoding]).float()
    finite = expected.isfinite()
    for t in range(tokens):
        assert torch.equal(result[t, finite].float(), expected[finite])
        assert not result[t, ~finite].isfinite().any()


def test_padded_rows_strided_scales_and_one_scale_for_all_experts():
    arguments = list(tensors(FEW, (form(Encoding.INT4, 1, 32), form(Encoding.E4M3, 128, 128))))
    w1, w2 = arguments[1], arguments[2]
    wide = torch.full((EXPERTS, 2 * INNER + 1, HIDDEN // 2 + 5), 0x5A, dtype=torch.uint8)
    wide[:, : 2 * INNER, : HIDDEN // 2] = w1.data
    scale = w1.scale.mT.contiguous().mT
    arguments[1] = QuantizedTensor(wide[:, : 2 * INNER, : HIDDEN // 2], scale, w1.format)
    arguments[2] = QuantizedTensor(w2.data, w2.scale[:1], w2.format)
    check(tuple(arguments))


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_with_everything_around(isa, tokens):
    """Interleaved rows, biases, a limit and weights on the input, as gpt-oss has most of them."""
    weights = form(Encoding.E2M1, 1, 32, DType.E8M0)
    arguments = tensors(tokens, (weights, weights))
    generator = torch.Generator().manual_seed(1)
    check(
        arguments,
        activation="swiglu_oai",
        interleaved=True,
        swiglu_limit=0.7,
        w1_bias=torch.randn(EXPERTS, 2 * INNER, generator=generator).to(torch.bfloat16),
        w2_bias=torch.randn(EXPERTS, HIDDEN, generator=generator).to(torch.bfloat16),
        apply_router_weight_on_input=tokens == FEW,
    )


@pytest.mark.parametrize("kind", ["int8", "e4m3 in blocks"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_same_bits_every_time(tokens, kind):
    name, weights = QUANTIZED_INPUTS[kind]
    arguments = tensors(tokens, (weights, weights))
    for options in ({}, {"input_quant": name}):
        first = jitmoe.fused_moe(*arguments, **options)
        assert all(torch.equal(jitmoe.fused_moe(*arguments, **options), first) for _ in range(3))


@pytest.mark.parametrize(
    "weights",
    [
        form(Encoding.INT8, 1, WHOLE),
        form(Encoding.INT8, 1, 32),
        form(Encoding.INT8, 1, 64),
        form(Encoding.INT4, 1, 32),
        form(Encoding.E2M1, 1, 64),
        form(Encoding.E4M3, 1, 32, DType.E8M0),
        form(Encoding.E5M2, 1, 64),
    ],
    ids=str,
)
def test_long_rows_with_outliers(weights):
    """More K than fixed-point inputs are prepared at a time, one to five tokens per expert, and one channel that is
    so large that the rest of its chunk has few bits."""
    hidden, inner, experts = 4096 + 200, 48, 4
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5, hidden, generator=generator)
    x[:, 77] *= 500.0
    w1 = quantize_weights(torch.randn(experts, 2 * inner, hidden, generator=generator) * hidden**-0.5, weights)
    w2 = quantize_weights(torch.randn(experts, hidden, inner, generator=generator) * inner**-0.5, weights)
    ids = torch.tensor([[0, 1], [0, 2], [0, 2], [0, 3], [0, 3]])
    for dtype in (torch.bfloat16, torch.float16):
        check((x.to(dtype), w1, w2, torch.rand(5, 2, generator=generator), ids))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e37])
@pytest.mark.parametrize(
    ("weights", "tokens"), [(form(Encoding.INT4, 1, 32), FEW), (form(Encoding.INT8, 1, 128), MANY)], ids=str
)
def test_inputs_that_are_not_finite_stay_in_their_row(weights, tokens, bad):
    """Neither do those whose intermediate is not."""
    arguments = tensors(tokens, (weights, weights))
    clean = jitmoe.fused_moe(*arguments)
    arguments[0][1, -5] = bad
    arguments[0][2] = 0.0
    result = jitmoe.fused_moe(*arguments)
    assert not result[1].isfinite().any()
    assert not result[2].any()
    others = [0, *range(3, tokens)]
    assert torch.equal(result[others], clean[others])

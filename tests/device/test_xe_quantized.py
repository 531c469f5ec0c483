# SPDX-License-Identifier: MIT
"""The Xe kernels of quantized weights and inputs, emulated on the CPU device, against dequantized weights in float64.

Inputs and bounds are the self-check's: ids of other ranks, tokens without experts and with one twice. Every format
runs somewhere, every loader with every kind of scale block, with tails in M, N, K and in the last block of K.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.builders import moe_problem
from helpers.xe_emulation import run_problem, stream

from jitmoe.pipeline import Pipeline
from jitmoe.plan import xe
from jitmoe.plan.xe_specs import XeDown, XeGateUp, XeQuantGateUp, XeQuantize, XeWeights
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType, GateUp, MoEProblem


def form(encoding: Encoding, block_n: int, block_k: int, scale: DType = DType.FP32, **more: bool) -> WeightFormat:
    return WeightFormat(encoding=encoding, scale_dtype=scale, block_n=block_n, block_k=block_k, **more)


def problem(w1: WeightFormat, *, m: int = 19, h: int = 160, i: int = 192, dtype: DType = DType.BF16, **fields: Any):
    """Both weights in format ``w1``; only the first may have its K in another order."""
    w2 = dataclasses.replace(w1, has_k_order=False)
    one = moe_problem(dtype=dtype, w1_quant=w1.dense(1, 1), w2_quant=w2.dense(1, 1), base_alignment=64, **fields)
    return one.resized(num_tokens=m, hidden_size=h, intermediate_size=i, num_experts=3, top_k=2)


def check(pipeline: Pipeline, one: MoEProblem, arch: str, weights: XeWeights | None) -> xe.XeChoice:
    choice = xe.choose(one, stream(arch).device, configs=())
    assert getattr(choice.gate_up, "weights", None) is weights
    _, wrong = run_problem(pipeline, one, arch, choice)
    assert not wrong, wrong
    return choice


BLOCK2D, ROW, ELEMENT = XeWeights.BLOCK2D, XeWeights.ROW, XeWeights.ELEMENT
GPT_OSS = {
    "gate_up": GateUp.INTERLEAVED,
    "activation": Activation.SWIGLU_OAI,
    "swiglu_limit": 1.5,
    "w1_bias_dtype": DType.BF16,
    "w2_bias_dtype": DType.FP32,
}
_CASES: dict[str, tuple[str, XeWeights | None, MoEProblem]] = {
    "fp8 per channel": ("bmg-g21", BLOCK2D, problem(form(Encoding.E4M3, 1, 0), m=40)),
    "int8 in blocks with tails": ("bmg-g21", BLOCK2D, problem(form(Encoding.INT8, 128, 64), h=176, i=144)),
    "int4 in groups of 32": ("bmg-g21", BLOCK2D, problem(form(Encoding.INT4, 1, 32, DType.BF16), h=320, i=160)),
    "uint4 with zero points and an order of K": (
        "pvc",
        BLOCK2D,
        problem(
            form(Encoding.UINT4, 1, 64, DType.FP16, has_zero_point=True, has_k_order=True), dtype=DType.FP16, h=288
        ),
    ),
    "gpt-oss in MXFP4": ("bmg-g21", BLOCK2D, problem(form(Encoding.E2M1, 1, 32, DType.E8M0), i=320, **GPT_OSS)),
    "fp8 per tensor, odd sizes": ("bmg-g21", ELEMENT, problem(form(Encoding.E5M2, 0, 0), h=99, i=45)),
    "uint4 of odd rows": ("bmg-g21", ELEMENT, problem(form(Encoding.UINT4, 1, 32), h=98, i=46)),
    "MXFP8": ("dg2", ROW, problem(form(Encoding.E4M3, 1, 32, DType.E8M0), h=160, i=96)),
    "dg2: odd sizes": (
        "dg2",
        ELEMENT,
        problem(form(Encoding.UINT4, 1, 32, DType.FP16, has_zero_point=True), h=98, i=46),
    ),
    "any block size": ("mtl", None, problem(form(Encoding.UINT4, 3, 6, has_zero_point=True), h=50, i=34)),
    "blocks that dpas has not": ("bmg-g21", None, problem(form(Encoding.E2M1, 1, 48, DType.E8M0), h=98, i=50)),
    "INT8 W8A8": ("bmg-g21", BLOCK2D, problem(form(Encoding.INT8, 1, 0), input_quant=InputQuant.INT8)),
    "INT8 W8A8 with given scales": (
        "dg2",
        ROW,
        problem(
            form(Encoding.INT8, 1, 0),
            dtype=DType.FP16,
            input_quant=InputQuant.INT8,
            a1_scale_stride=1,
            a2_scale_stride=0,
        ),
    ),
    "FP8 W8A8 in blocks": (
        "bmg-g21",
        BLOCK2D,
        problem(form(Encoding.E4M3, 128, 128), h=320, i=272, input_quant=InputQuant.E4M3, input_block_k=128),
    ),
    "FP8 W8A8 without dpas": ("mtl", None, problem(form(Encoding.E5M2, 1, 0), h=50, i=34, input_quant=InputQuant.E5M2)),
    "fp32": ("bmg-g21", None, problem(form(Encoding.INT8, 1, 0), dtype=DType.FP32, input_quant=InputQuant.INT8)),
}


@pytest.mark.parametrize("name", _CASES)
def test_formats(pipeline: Pipeline, name: str) -> None:
    arch, weights, one = _CASES[name]
    choice = check(pipeline, one, arch, weights)
    if name == "INT8 W8A8":
        assert isinstance(choice.gate_up, XeQuantGateUp)
        assert choice.gate_up.int8_dpas


def test_prefill_tile_with_empty_sub_groups(pipeline: Pipeline) -> None:
    """Sub-groups without rows keep up with the others' barriers; ragged row blocks of 128."""
    one = problem(form(Encoding.INT4, 1, 64, DType.BF16), m=140, h=128, i=256)
    choice = check(pipeline, one, "bmg-g21", BLOCK2D)
    assert isinstance(choice.gate_up, XeGateUp)
    assert choice.gate_up.split_barrier


def test_only_one_of_the_weights_is_quantized(pipeline: Pipeline) -> None:
    both = problem(form(Encoding.E4M3, 1, 0), m=9)
    w2 = dataclasses.replace(both, w1_quant=None, w1_stride=both.hidden_size)
    w2 = dataclasses.replace(w2, w1_expert_stride=w2.w1_rows * w2.w1_stride)
    choice = check(pipeline, w2, "bmg-g21", BLOCK2D)
    assert choice.pack is None
    assert isinstance(choice.quantize_inter, XeQuantize)
    w1 = dataclasses.replace(both, w2_quant=None, w2_stride=both.intermediate_size)
    w1 = dataclasses.replace(w1, w2_expert_stride=w1.hidden_size * w1.w2_stride)
    choice = check(pipeline, w1, "bmg-g21", BLOCK2D)
    assert choice.quantize_inter is None
    assert type(choice.down) is XeDown


@pytest.mark.parametrize("scales", ["falling", "with zeros", "first zero"])
def test_scales_of_very_different_size(pipeline: Pipeline, scales: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulators live in units of the current block's scale: neither tiny nor zero scales may spoil the others."""
    from jitmoe.checks import fused_moe

    one = problem(form(Encoding.E4M3, 1, 32, DType.E8M0), m=9, h=160, i=96)
    plain = fused_moe.inputs

    def inputs(asked: MoEProblem) -> dict[str, Any]:
        tensors = plain(asked)
        for name in ("w1_scale", "w2_scale"):
            exponents = tensors[name].view(torch.uint8)
            if scales == "falling":
                exponents[..., 1:] = torch.tensor(
                    range(80, 80 - 12 * (exponents.shape[-1] - 1), -12), dtype=torch.uint8
                )
            else:  # 2^-127, what a block of zeros may have
                exponents[..., (0 if scales == "first zero" else 1) :: 2] = 0
        return tensors

    monkeypatch.setattr(fused_moe, "inputs", inputs)
    check(pipeline, one, "bmg-g21", BLOCK2D)


@pytest.mark.parametrize(
    "name", ["int8 in blocks with tails", "gpt-oss in MXFP4", "INT8 W8A8", "any block size", "dg2: odd sizes"]
)
def test_the_check_problem_runs_the_same_kernels(pipeline: Pipeline, name: str) -> None:
    arch, _, big = _CASES[name]
    device = stream(arch).device
    choice = xe.choose(big, device, configs=())
    small = xe.check_problem(big, choice)
    assert xe.launches(small, device, choice).specs == xe.launches(big, device, choice).specs
    _, wrong = run_problem(pipeline, small, arch, choice)
    assert not wrong, wrong

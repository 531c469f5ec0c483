# SPDX-License-Identifier: MIT
"""What happens around the CPU kernels' GEMMs: activations, gate/up layouts, biases, routing weights on the input."""

from __future__ import annotations

import pytest
import torch
from helpers import instruction_sets

import jitmoe
from jitmoe import reference, selfcheck
from jitmoe.device import CpuIsa
from jitmoe.problems.fused_moe import Activation, DType, GateUp

HIDDEN, INNER, EXPERTS, TOP_K = 163, 101, 3, 2  # nothing divides anything
FEW, MANY = 9, 90  # tokens: rows form; lanes form or tiles, with blocks of a few tokens too
# What multiplies and what it multiplies; the others compile the same pieces.
ISAS = {CpuIsa.AVX512_BF16: torch.bfloat16, CpuIsa.AMX_BF16: torch.bfloat16, CpuIsa.AMX_FP16: torch.float16}
# One activation each, so that all of both are run.
ACTIVATIONS = {
    GateUp.CONCATENATED: Activation.SILU,
    GateUp.INTERLEAVED: Activation.SWIGLU_OAI,
    GateUp.SEPARATE: Activation.GELU_TANH,
    GateUp.UNGATED: Activation.RELU2,
}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


@pytest.fixture(params=ISAS, ids=lambda isa: isa.value)
def dtype(request):
    """Plans for one instruction set that this CPU has; the dtype that it multiplies."""
    if request.param not in instruction_sets.available():
        pytest.skip(f"this CPU has no {request.param.value}")
    with instruction_sets.planned_for(request.param):
        yield ISAS[request.param]


def tensors(tokens, *, gate_up=GateUp.CONCATENATED, layout="nk", bias=None, dtype=torch.bfloat16):
    """Returns (arguments, options) of a call."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*size, scale=1.0):
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    def weights(n, k):
        w = normal(EXPERTS, n, k, scale=k**-0.5)
        return w.mT.contiguous().mT if layout == "kn" else w

    halves = 1 if gate_up in (GateUp.SEPARATE, GateUp.UNGATED) else 2
    ids = torch.randint(0, EXPERTS, (tokens, TOP_K), generator=generator)
    ids[0, 0], ids[-1, -1] = EXPERTS, -1
    arguments = (
        normal(tokens, HIDDEN),
        weights(halves * INNER, HIDDEN),
        weights(HIDDEN, INNER),
        torch.rand(tokens, TOP_K),
        ids,
    )
    options = {"activation": ACTIVATIONS[gate_up].value, "interleaved": gate_up is GateUp.INTERLEAVED}
    if gate_up is GateUp.SEPARATE:
        options["w1_up"] = weights(INNER, HIDDEN)
    if bias is not None:
        rows = INNER if gate_up is GateUp.UNGATED else 2 * INNER
        options["w1_bias"], options["w2_bias"] = normal(EXPERTS, rows).to(bias), normal(EXPERTS, HIDDEN).to(bias)
    return arguments, options


def check(arguments, options):
    result = jitmoe.fused_moe(*arguments, **options)
    expected = reference.fused_moe(*arguments, compute_dtype=torch.float64, **options)
    dtypes = {torch.bfloat16: DType.BF16, torch.float16: DType.FP16, torch.float32: DType.FP32}
    _, wrong = selfcheck.judge_floats(result, expected, dtypes[result.dtype])
    assert not wrong, wrong


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("layout", ["nk", "kn"])
@pytest.mark.parametrize("gate_up", GateUp, ids=lambda value: value.value)
def test_layouts_and_activations_with_everything_else(dtype, gate_up, layout, tokens):
    arguments, options = tensors(
        tokens, gate_up=gate_up, layout=layout, bias=torch.float32 if tokens == MANY else dtype, dtype=dtype
    )
    if gate_up is not GateUp.SEPARATE:
        options["swiglu_limit"] = 0.7
    check(arguments, {**options, "apply_router_weight_on_input": tokens == FEW})


def test_each_feature_alone(dtype):
    arguments, options = tensors(MANY, bias=dtype, dtype=dtype)
    check(arguments, {"w1_bias": options["w1_bias"]})
    check(arguments, {"w2_bias": options["w2_bias"]})
    check(arguments, {"swiglu_limit": 0.5})
    check(arguments, {"activation": "swiglu_oai", "swiglu_alpha": 0.6})
    check(arguments, {"apply_router_weight_on_input": True})


def test_float32_is_exact_enough():
    arguments, options = tensors(FEW, gate_up=GateUp.INTERLEAVED, bias=torch.float32, dtype=torch.float32)
    check(arguments, {**options, "swiglu_limit": 1.0, "apply_router_weight_on_input": True})


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_what_is_not_a_number_passes_the_limit(dtype, tokens):
    arguments, options = tensors(tokens, gate_up=GateUp.INTERLEAVED, dtype=dtype)
    arguments[0][1] = float("nan")
    result = jitmoe.fused_moe(*arguments, swiglu_limit=1.0, **options)
    assert result[1].isnan().all()
    assert result[2:].isfinite().all()

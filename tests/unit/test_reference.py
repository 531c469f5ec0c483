# SPDX-License-Identifier: MIT
"""The oracle against an oracle: loops over single numbers in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmoe import reference
from jitmoe.problems.fused_moe import Activation

ALPHA = 1.5
ACTIVATIONS = {
    "silu": lambda g: g / (1 + math.exp(-g)),
    "gelu": lambda g: g * 0.5 * (1 + math.erf(g / math.sqrt(2))),
    "gelu_tanh": lambda g: 0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
    "swiglu_oai": lambda g: g / (1 + math.exp(-ALPHA * g)),
    "relu2": lambda g: max(g, 0.0) ** 2,
}


def naive(
    x, w1, w2, weights, ids, activation="silu", expert_map=None, *,
    limit=None, interleaved=False, w1_bias=None, w2_bias=None, on_input=False,
):  # fmt: skip
    """The definition, number by number."""
    x, w1, w2, weights, ids = (
        t.double().tolist() if t.is_floating_point() else t.tolist() for t in (x, w1, w2, weights, ids)
    )

    def inner_value(dots, i, size):
        if len(dots) == size:  # no gate
            gate = dots[i] if limit is None else min(dots[i], limit)
            return ACTIVATIONS[activation](gate)
        gate, up = (dots[2 * i], dots[2 * i + 1]) if interleaved else (dots[i], dots[size + i])
        if limit is not None:
            gate, up = min(gate, limit), max(-limit, min(up, limit))
        return ACTIVATIONS[activation](gate) * (up + 1 if activation == "swiglu_oai" else up)

    rows = []
    for t, row in enumerate(x):
        y = [0.0] * len(row)
        for j, expert in enumerate(ids[t]):
            if expert_map is not None:
                expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
            if not 0 <= expert < len(w1):
                continue
            size = len(w2[expert][0])
            before, after = (weights[t][j], 1.0) if on_input else (1.0, weights[t][j])
            dots = [before * sum(a * b for a, b in zip(row, line, strict=True)) for line in w1[expert]]
            if w1_bias is not None:
                dots = [dot + float(bias) for dot, bias in zip(dots, w1_bias[expert], strict=True)]
            inner = [inner_value(dots, i, size) for i in range(size)]
            for h in range(len(row)):
                bias = 0.0 if w2_bias is None else float(w2_bias[expert][h])
                y[h] += after * (sum(inner[i] * w2[expert][h][i] for i in range(size)) + bias)
        rows.append(y)
    return torch.tensor(rows, dtype=torch.float64).reshape(len(x), -1)


def make(m, h, i, e, k, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    ids = torch.randint(-1, e + 1, (m, k), generator=generator)
    return normal(m, h), normal(e, 2 * i, h), normal(e, h, i), torch.rand(m, k, generator=generator), ids


def close(result, expected, tolerance=1e-12):
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return bool((result.double() - expected).abs().le(tolerance * scale).all())


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 5), h=st.integers(1, 6), i=st.integers(1, 5), e=st.integers(1, 4), k=st.integers(1, 4),
    activation=st.sampled_from([a.value for a in Activation]), seed=st.integers(0, 10**6), mapped=st.booleans(),
)  # fmt: skip
def test_against_loops(m, h, i, e, k, activation, seed, mapped):
    args = make(m, h, i, e, k, seed=seed)
    expert_map = torch.tensor([(seed + n) % (e + 2) - 1 for n in range(e)], dtype=torch.int32) if mapped else None
    result = reference.fused_moe(
        *args, activation=activation, swiglu_alpha=ALPHA, expert_map=expert_map, compute_dtype=torch.float64
    )
    assert result.dtype == torch.float64
    assert close(result, naive(*args, activation, None if expert_map is None else expert_map.tolist()))


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 4), h=st.integers(1, 5), i=st.integers(1, 4), e=st.integers(1, 3), k=st.integers(1, 3),
    activation=st.sampled_from([a.value for a in Activation]), seed=st.integers(0, 10**6),
    limit=st.sampled_from([None, 0.5, 7.0]), rows=st.sampled_from(["halves", "interleaved", "separate", "ungated"]),
    biased=st.booleans(), on_input=st.booleans(),
)  # fmt: skip
def test_features_against_loops(m, h, i, e, k, activation, seed, limit, rows, biased, on_input):
    x, w1, w2, weights, ids = make(m, h, i, e, k, seed=seed)
    if rows == "ungated":
        w1 = w1[:, :i]
    more = {}
    if biased:
        generator = torch.Generator().manual_seed(seed)
        more = {
            "w1_bias": torch.randn(w1.shape[:2], generator=generator),
            "w2_bias": torch.randn(w2.shape[:2], generator=generator),
        }
    expected = naive(
        x, w1, w2, weights, ids, activation, limit=limit, interleaved=rows == "interleaved", on_input=on_input, **more
    )
    if rows == "separate":
        w1, more["w1_up"] = w1.chunk(2, dim=1)
    result = reference.fused_moe(
        *(x, w1, w2, weights, ids), activation=activation, swiglu_alpha=ALPHA, swiglu_limit=limit,
        interleaved=rows == "interleaved", apply_router_weight_on_input=on_input, compute_dtype=torch.float64, **more,
    )  # fmt: skip
    assert close(result, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_result_dtype_and_shape_follow_the_input(dtype):
    x, w1, w2, weights, ids = make(6, 8, 4, 3, 2, dtype=dtype)
    assert reference.fused_moe(x, w1, w2, weights, ids).dtype == dtype
    batched = reference.fused_moe(x.reshape(2, 3, 8), w1, w2, weights, ids)
    assert batched.shape == (2, 3, 8)
    assert torch.equal(batched.reshape(6, 8), reference.fused_moe(x, w1, w2, weights, ids))


def test_float32_rounds_once_at_the_end():
    x, w1, w2, weights, ids = make(20, 33, 17, 3, 2, dtype=torch.bfloat16)
    exact = reference.fused_moe(x, w1, w2, weights, ids, compute_dtype=torch.float64)
    error = (reference.fused_moe(x, w1, w2, weights, ids).double() - exact).norm() / exact.norm()
    assert error < 2.0**-8


def test_rows_without_any_expert_are_zero():
    x, w1, w2, weights, ids = make(4, 8, 4, 3, 2)
    ids[1] = -1
    ids[2] = 99
    result = reference.fused_moe(x, w1, w2, weights, ids)
    assert not result[1:3].any() and result.isfinite().all()


def test_repeated_experts_add_up():
    x, w1, w2, _, _ = make(3, 8, 4, 3, 2)
    twice = reference.fused_moe(x, w1, w2, torch.full((3, 2), 0.5), torch.ones(3, 2, dtype=torch.int64))
    once = reference.fused_moe(x, w1, w2, torch.ones(3, 1), torch.ones(3, 1, dtype=torch.int64))
    assert torch.allclose(twice, once)


def test_no_tokens():
    x, w1, w2, weights, ids = make(0, 8, 4, 3, 2)
    assert reference.fused_moe(x, w1, w2, weights, ids).shape == (0, 8)


def test_int32_ids_and_other_weight_dtypes():
    x, w1, w2, weights, ids = make(5, 8, 4, 3, 2)
    base = reference.fused_moe(x, w1, w2, weights, ids)
    assert torch.equal(base, reference.fused_moe(x, w1, w2, weights.double(), ids.int()))


def test_a_nan_stays_in_its_token():
    x, w1, w2, weights, ids = make(4, 8, 4, 3, 2)
    ids[:] = torch.tensor([0, 1])
    clean = reference.fused_moe(x, w1, w2, weights, ids)
    x[2, 3] = float("nan")
    result = reference.fused_moe(x, w1, w2, weights, ids)
    assert result[2].isnan().all()
    assert torch.allclose(result[[0, 1, 3]], clean[[0, 1, 3]], rtol=1e-5, atol=1e-6)


def test_gradients_flow():
    x, w1, w2, weights, ids = (t.double() if t.is_floating_point() else t for t in make(3, 4, 3, 2, 2))
    ids.clamp_(0, 1)
    for tensor in (x, w1, w2, weights):
        tensor.requires_grad_()
    torch.autograd.gradcheck(lambda *a: reference.fused_moe(*a, ids, compute_dtype=torch.float64), (x, w1, w2, weights))


def test_unknown_activation():
    with pytest.raises(ValueError, match="swish"):
        reference.fused_moe(*make(1, 2, 2, 1, 1), activation="swish")

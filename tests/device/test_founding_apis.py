# SPDX-License-Identifier: MIT
"""``fused_moe_forward`` and the one-GEMM form of ``fused_moe``, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import moe
from helpers.usm import from_usm, to_usm

import jitmoe
from jitmoe import reference, tensors


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


def forward_arguments(m: int = 40, h: int = 72, i: int = 40, e: int = 5, k: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * shape[-2] ** -0.5).bfloat16()

    return {
        "hidden_states": normal(1, m, h)[0] * m**0.5,
        "gate_weights": normal(e, h, i),
        "up_weights": normal(e, h, i),
        "down_weights": normal(e, i, h),
        "topk_weights": torch.rand(m, k, generator=generator) + 0.1,
        "topk_indices": torch.randint(0, e, (m, k), generator=generator),
        "top_k": k,
    }


def expected_forward(given: dict[str, Any], renormalize: bool) -> torch.Tensor:
    weights = given["topk_weights"].double()
    return reference.fused_moe(
        given["hidden_states"],
        given["gate_weights"].mT,
        given["down_weights"].mT,
        weights / weights.sum(-1, keepdim=True) if renormalize else weights,
        given["topk_indices"],
        w1_up=given["up_weights"].mT,
        compute_dtype=torch.float64,
    )


@pytest.mark.parametrize("renormalize", [True, False])
def test_forward(renormalize, monkeypatch):
    given = forward_arguments()
    expected = expected_forward(given, renormalize)
    seen = []
    own = tensors.describe
    monkeypatch.setattr(tensors, "describe", lambda name, value: seen.append(own(name, value)) or own(name, value))
    result = jitmoe.fused_moe_forward(**given, renormalize=renormalize, use_grouped_topk=False)
    assert result.dtype is torch.bfloat16 and result.shape == (40, 72)
    assert moe.error(result, expected) <= 1e-2
    addresses = {given[name].data_ptr() for name in ("gate_weights", "up_weights", "down_weights")}
    assert addresses <= {info.address for info in seen}  # no copies of the weights


def test_forward_in_place_and_batches():
    given = forward_arguments()
    expected = expected_forward(given, True)
    x = given["hidden_states"].reshape(2, 20, 72)
    result = jitmoe.fused_moe_forward(**{**given, "hidden_states": x}, inplace=True)
    assert result is x
    assert moe.error(x.reshape(40, 72), expected) <= 1e-2


def test_usm_arrays_give_the_same():
    given = forward_arguments()
    arrays = {name: to_usm(value) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    assert torch.equal(from_usm(jitmoe.fused_moe_forward(**arrays)), jitmoe.fused_moe_forward(**given))
    one_gemm = one_gemm_arguments()
    result = jitmoe.fused_moe(*map(to_usm, one_gemm), top_k=3)
    assert torch.equal(from_usm(result), jitmoe.fused_moe(*one_gemm, top_k=3))
    swapped = arrays["gate_weights"].mT
    assert (swapped.shape, swapped.strides) == ((5, 40, 72), (72 * 40, 1, 40))


FORWARD_ERRORS = {
    "gate": (
        {"gate_weights": torch.zeros(5, 40, 72).bfloat16()},
        r"gate_weights: expected \[E, H, I\] = \[5, 72, 72\]",
    ),
    "up": ({"up_weights": torch.zeros(5, 72, 41).bfloat16()}, r"up_weights: expected \[E, H, I\] = \[5, 72, 40\]"),
    "down": (
        {"down_weights": torch.zeros(5, 72, 40).bfloat16()},
        r"down_weights: expected \[E, I, H\] = \[5, 40, 72\]",
    ),
    "dtype": ({"down_weights": torch.zeros(5, 40, 72)}, "down_weights: expected dtype bf16, got dtype torch.float32"),
    "top_k": ({"top_k": 3}, r"topk_indices: expected \[M, top_k\] = \[40, 3\], got shape \[40, 2\]"),
    "top_k no number": ({"top_k": 2.0}, "top_k: expected a whole number from 1 to 32767"),
    "flag": ({"use_grouped_topk": None}, "use_grouped_topk: expected True or False, got None"),
    "renormalize": ({"renormalize": 1}, "renormalize: expected True or False, got 1"),
    "rows of ids": ({"topk_weights": torch.rand(40, 3)}, r"topk_weights: expected \[40, 2\], like topk_indices"),
    "strides": (
        {"up_weights": torch.zeros(5, 40, 72).bfloat16().mT},
        r"up_weights: expected \(2880, 40, 1\), like gate_weights, got strides \(2880, 1, 72\)",
    ),
    "gaps": (
        {"down_weights": torch.zeros(5, 40, 144).bfloat16()[:, :, ::2]},
        r"down_weights: expected unit stride in the last or .*, got strides \(5760, 144, 2\)",
    ),
}


@pytest.mark.parametrize("name", FORWARD_ERRORS)
def test_forward_says_what_does_not_fit(name):
    changes, text = FORWARD_ERRORS[name]
    with pytest.raises(jitmoe.ArgumentError, match=text):
        jitmoe.fused_moe_forward(**{**forward_arguments(), **changes})


def one_gemm_arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 21, 48, generator=generator).bfloat16()
    weights = (torch.randn(8, 48, 40, generator=generator) * 48**-0.5).bfloat16()
    return tokens, weights, torch.rand(42, 8, generator=generator)


def test_one_gemm_of_the_largest_routing_weights():
    tokens, expert_weights, routing_weights = one_gemm_arguments()
    result = jitmoe.fused_moe(tokens, expert_weights, routing_weights, top_k=3)
    values, ids = routing_weights.topk(3)
    everything = torch.einsum("th,ehd->ted", tokens.flatten(0, 1).double(), expert_weights.double())
    chosen = everything.gather(1, ids.unsqueeze(-1).expand(-1, -1, 40))
    expected = (chosen * values.double().unsqueeze(-1)).sum(1).reshape(2, 21, 40)
    assert result.shape == (2, 21, 40) and result.dtype is torch.bfloat16
    assert moe.error(result, expected) <= 1e-2
    out = torch.empty_like(result)
    assert jitmoe.fused_moe(tokens, expert_weights, routing_weights, top_k=3, out=out) is out
    assert torch.equal(out, result)
    assert torch.equal(jitmoe.fused_moe(tokens[0], expert_weights, routing_weights[:21], top_k=3), result[0])


def test_one_gemm_says_what_does_not_fit():
    tokens, expert_weights, routing_weights = one_gemm_arguments()
    for arguments, options, text in (
        (
            (tokens, expert_weights, routing_weights[:5]),
            {"top_k": 3},
            r"routing_weights: expected \[B \* S, E\] = \[42, 8\]",
        ),
        (
            (tokens, expert_weights, expert_weights),
            {"top_k": 3},
            r"routing_weights: expected \[B \* S, E\] for one GEMM",
        ),
        ((tokens, expert_weights, routing_weights), {"top_k": 9}, "top_k: expected a whole number from 1 to 8, got 9"),
        ((tokens, expert_weights, routing_weights), {"top_k": 3, "activation": "gelu"}, "activation: expected none"),
        ((tokens, expert_weights, routing_weights), {"top_k": 3, "renormalize": True}, "renormalize: expected none"),
        ((tokens, expert_weights.float(), routing_weights), {"top_k": 3}, "expert_weights: expected dtype bf16"),
        ((tokens, expert_weights, routing_weights.double()), {"top_k": 3}, "routing_weights: expected dtype bf16"),
        ((tokens, expert_weights, routing_weights.mT.contiguous().mT), {"top_k": 3}, "routing_weights: .* unit stride"),
        ((tokens, expert_weights, to_usm(routing_weights)), {"top_k": 3}, "routing_weights: expected torch cpu"),
        ((tokens, torch.zeros(1200, 48, 1), torch.rand(42, 1200)), {"top_k": 3}, "expert_weights: .* 1 <= E <= 1024"),
        ((tokens, torch.zeros(0, 48, 1), torch.rand(42, 0)), {"top_k": 3}, "expert_weights: .* 1 <= E <= 1024"),
        ((tokens, expert_weights, routing_weights), {"top_k": 3, "out": tokens}, "out: expected"),
        ((tokens, expert_weights.mT, routing_weights), {"top_k": 3}, r"expert_weights: expected \[E, H, D\] .* H = 48"),
    ):
        with pytest.raises(jitmoe.ArgumentError, match=text):
            jitmoe.fused_moe(*arguments, **options)

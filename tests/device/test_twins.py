# SPDX-License-Identifier: MIT
"""One call, made of an op and of its twin with the very same arguments: kernels and plain torch give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import jitmoe
from jitmoe import reference
from jitmoe.ops.explain import OPS

E, H, I, M, K = 4, 64, 48, 5, 2  # noqa: E741
GENERATOR = torch.Generator().manual_seed(7)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


X, W1, W2 = normal(M, H), normal(E, 2 * I, H) / 8, normal(E, H, I) / 8
WEIGHTS, IDS = torch.rand(M, K, generator=GENERATOR), torch.randint(0, E, (M, K), generator=GENERATOR)
LOGITS, BIAS = normal(M, 8), normal(8) / 4
SHARED = {"routed_scaling_factor": 2.5, "num_fused_shared_experts": 1}
SIGMOID = jitmoe.Routing(top_k=K, scoring="sigmoid", renormalize=True)
GATE, UP = W1.chunk(2, dim=1)

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "given": ("fused_moe", (X, W1, W2, WEIGHTS, IDS), {}),
    "gelu, limited, ids of other ranks": (
        "fused_moe", (X, W1, W2, WEIGHTS, IDS - 1), {"activation": "gelu", "swiglu_limit": 0.5}),
    "renormalized, shared": (
        "fused_moe", (X, W1, W2, WEIGHTS, IDS), {"renormalize": True, "num_shared_experts": 1}),
    "shared with weights": (
        "fused_moe", (X, W1, W2, WEIGHTS, IDS), {"num_shared_experts": 1, "shared_weights": WEIGHTS[:, :1]}),
    "routed": (
        "fused_moe", (X, W1, W2), {"router_logits": LOGITS[:, :E], "routing": SIGMOID, "correction_bias": BIAS[:E]}),
    "one gemm": ("fused_moe", (X, W1.mT.contiguous(), LOGITS[:, :E].sigmoid()), {"top_k": 2}),
    "forward": (
        "fused_moe_forward", (X, GATE.mT.contiguous(), UP.mT.contiguous(), W2.mT.contiguous(), WEIGHTS, IDS), {}),
    "grouped gemm": (
        "grouped_gemm_moe", (X, W1, normal(E, 2 * I), torch.empty(M, 2 * I), WEIGHTS, IDS, K, True), {}),
    "route": ("route", (LOGITS, SIGMOID), {"correction_bias": BIAS, "ids_dtype": "int64"}),
    "softmax": ("topk_softmax", (LOGITS, 3, True), {"correction_bias": BIAS, **SHARED}),
    "sigmoid": ("topk_sigmoid", (LOGITS, 3, True), {"ids_dtype": torch.int64, **SHARED}),
    "sqrt softplus": ("topk_sqrt_softplus", (LOGITS, 3), SHARED),
    "groups of V2": ("grouped_topk", (LOGITS, 3, False, 4, 2), SHARED),
    "groups of V3": (
        "grouped_topk", (LOGITS, 3, True, 4, 2, "sigmoid", 2.5, BIAS),
        {"num_fused_shared_experts": 1, "apply_routed_scaling_factor_on_output": False}),
    "align": ("moe_align_block_size", (IDS, E, 4), {"expert_map": torch.tensor([1, -1, 0, 2], dtype=torch.int32)}),
    "sorting": ("moe_sorting", (IDS, WEIGHTS, E, H, "bf16", 4), {}),
    "load": ("expert_load", (IDS, E), {}),
    "activate": ("activate", (W1[0],), {"activation": "swiglu_oai", "layout": "interleaved", "limit": 1.0}),
    "silu and mul": ("silu_and_mul_moe", (GATE[0].contiguous(), UP[0].contiguous()), {}),
}  # fmt: skip


def test_every_op_is_here():
    assert {name for name, _, _ in CALLS.values()} == {op.__name__ for op in OPS}


def results(module: Any, name: str, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What a call returns, or the tensors that it has written."""
    own = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in given)
    returned = getattr(module, name)(*own, **options)
    if returned is None:
        return tuple(value for value in own if isinstance(value, torch.Tensor))
    return (returned,) if isinstance(returned, torch.Tensor) else tuple(returned)


@pytest.mark.parametrize("call", CALLS)
def test_an_op_and_its_twin_take_the_same_call(call, monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    found, expected = results(jitmoe, *CALLS[call]), results(reference, *CALLS[call])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

# SPDX-License-Identifier: MIT
"""Plain torch twins of the whole expert layer: routing, experts and shared experts in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitmoe.errors import ArgumentError
from jitmoe.problems.formats import InputQuant
from jitmoe.problems.fused_moe import SWIGLU_ALPHA, Activation
from jitmoe.problems.routing import Routing, Scoring
from jitmoe.reference.experts import adjust_routing, apply_experts, weighted_products
from jitmoe.reference.routing import route

if TYPE_CHECKING:
    import torch

    from jitmoe.weights.quantized import QuantizedTensor


def fused_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor | QuantizedTensor,
    w2: torch.Tensor | QuantizedTensor,
    topk_weights: torch.Tensor | None = None,
    topk_ids: torch.Tensor | None = None,
    *,
    router_logits: torch.Tensor | None = None,
    routing: Routing | None = None,
    correction_bias: torch.Tensor | None = None,
    renormalize: bool = False,
    num_shared_experts: int = 0,
    shared_weights: torch.Tensor | None = None,
    activation: Activation | str = "silu",
    swiglu_alpha: float = SWIGLU_ALPHA,
    swiglu_limit: float | None = None,
    interleaved: bool = False,
    w1_up: torch.Tensor | None = None,
    w1_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    apply_router_weight_on_input: bool = False,
    input_quant: InputQuant | str | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    inplace: bool = False,
    out: torch.Tensor | None = None,
    top_k: int | None = None,
    input_block_k: int | None = None,
    compute_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns y[t] = sum_j topk_weights[t, j] * (act(x[t] Wgate^T) * (x[t] Wup^T)) Wdown^T of expert topk_ids[t, j].

    The arguments of ``jitmoe.fused_moe``, which describes them, without ``queue`` and as torch tensors; and

    Args:
        input_block_k: with ``input_quant``: elements of K that share a scale, 0 for whole rows; None: as in w1.
        compute_dtype: of every intermediate; None for float32 (nothing is rounded to the weights' dtype between).

    Returns:
        The shape and dtype of ``hidden_states``; ``compute_dtype`` if that is float64. ``out`` or, with ``inplace``,
        ``hidden_states``, where given; differentiable where not.

    Raises:
        ArgumentError: arguments that do not go together.
    """
    import torch

    if inplace and out is not None:
        raise ArgumentError(argument="out", got="a tensor together with inplace=True", expected="one of the two")
    if top_k is not None:
        unwanted = {"topk_weights": topk_weights, "topk_ids": topk_ids, "router_logits": router_logits}
        _refuse("none: with top_k there is one GEMM alone", **unwanted, inplace=inplace or None)
        y: Any = _one_gemm(hidden_states, w1, w2, top_k, compute_dtype)
        return y if out is None else out.copy_(y)
    if router_logits is not None:
        unwanted = {"topk_weights": topk_weights, "topk_ids": topk_ids, "shared_weights": shared_weights}
        _refuse("None, because router_logits are given", **unwanted)
        own = {"renormalize": renormalize or None, "num_shared_experts": num_shared_experts or None}
        _refuse("none: routing has such a value of its own", **own)
        if routing is None:
            raise ArgumentError(argument="routing", got="None", expected="a Routing, because router_logits are given")
        topk_weights, topk_ids = route(
            router_logits, routing, correction_bias=correction_bias, compute_dtype=compute_dtype
        )
    else:
        _refuse("None without router_logits", routing=routing, correction_bias=correction_bias)
        if not num_shared_experts:
            _refuse("None without num_shared_experts", shared_weights=shared_weights)
        if topk_weights is None or topk_ids is None:
            name = "topk_ids" if topk_ids is None else "topk_weights"
            raise ArgumentError(argument=name, got="None", expected="[M, k], or router_logits instead")
        if renormalize or num_shared_experts:
            experts = w1.shape[0] if expert_map is None else expert_map.shape[0]
            topk_weights, topk_ids = adjust_routing(
                topk_weights,
                topk_ids,
                renormalize=renormalize,
                num_shared_experts=num_shared_experts,
                first_shared_expert=experts - num_shared_experts,
                shared_weights=shared_weights,
            )
    if input_block_k is None:
        input_block_k = 0 if input_quant is None or isinstance(w1, torch.Tensor) else w1.format.block_k
    y = apply_experts(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation=activation,
        swiglu_alpha=swiglu_alpha,
        swiglu_limit=swiglu_limit,
        interleaved=interleaved,
        w1_up=w1_up,
        w1_bias=w1_bias,
        w2_bias=w2_bias,
        apply_router_weight_on_input=apply_router_weight_on_input,
        input_quant=input_quant,
        input_block_k=input_block_k,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
        expert_map=expert_map,
        compute_dtype=compute_dtype,
    )
    if inplace:
        out = hidden_states
    return y if out is None else out.copy_(y)


def _refuse(expected: str, **named: object) -> None:
    for name, value in named.items():
        if value is not None:
            raise ArgumentError(argument=name, got="a value", expected=expected)


def _one_gemm(
    tokens: torch.Tensor, expert_weights: Any, routing_weights: Any, top_k: int, compute_dtype: torch.dtype | None
) -> torch.Tensor:
    """Returns [B, S, D]: each token times the matrices [E, H, D] of its experts with the largest routing weights."""
    router = Routing(top_k=top_k, scoring=Scoring.NONE)
    weights, ids = route(routing_weights, router, compute_dtype=compute_dtype)
    return weighted_products(tokens, expert_weights, None, weights, ids, compute_dtype=compute_dtype)


def fused_moe_forward(
    hidden_states: torch.Tensor,
    gate_weights: torch.Tensor,
    up_weights: torch.Tensor,
    down_weights: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    top_k: int = 2,
    renormalize: bool = True,
    inplace: bool = False,
    use_grouped_topk: bool = True,
) -> torch.Tensor:
    """Returns ``fused_moe`` of gate and up [E, H, I] and down [E, I, H]; see ``jitmoe.fused_moe_forward``."""
    _check_top_k(top_k, topk_indices)
    return fused_moe(
        hidden_states,
        gate_weights.mT,
        down_weights.mT,
        topk_weights,
        topk_indices,
        w1_up=up_weights.mT,
        renormalize=renormalize,
        inplace=inplace,
    )


def grouped_gemm_moe(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    D: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    top_k: int,
    trans_b: bool = False,
) -> None:
    """Writes ``weighted_products`` into D; see ``jitmoe.grouped_gemm_moe``."""
    _check_top_k(top_k, topk_indices)
    D.copy_(weighted_products(A, B, C, topk_weights, topk_indices, trans_b=trans_b))


def _check_top_k(top_k: int, topk_indices: torch.Tensor) -> None:
    if topk_indices.shape[-1] != top_k:
        got = f"{topk_indices.shape[-1]} columns"
        raise ArgumentError(argument="topk_indices", got=got, expected=f"top_k = {top_k} columns")

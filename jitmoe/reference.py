# SPDX-License-Identifier: MIT
"""Plain torch twins of the ops: the slow truth that kernels are compared with, and the fallback that replaces them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitmoe.problem import Activation

if TYPE_CHECKING:
    import torch


def activate(gate: torch.Tensor, up: torch.Tensor, activation: Activation | str) -> torch.Tensor:
    """Returns act(gate) * up, elementwise.

    silu(g) = g * sigmoid(g); gelu(g) = g * Phi(g) with the exact normal distribution function; gelu_tanh is its
    tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415).
    """
    from torch.nn import functional

    name = Activation(activation)
    if name is Activation.SILU:
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh" if name is Activation.GELU_TANH else "none") * up


def fused_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    activation: Activation | str = "silu",
    expert_map: torch.Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns y[t] = sum_j topk_weights[t, j] * (act(x[t] Wgate^T) * (x[t] Wup^T)) Wdown^T of expert topk_ids[t, j].

    Args:
        hidden_states: [M, H] or [B, S, H].
        w1: [E, 2*I, H]; rows 0..I-1 are the gate projection, rows I..2*I-1 the up projection.
        w2: [E, H, I], the down projection.
        topk_weights: [M, k], any float dtype.
        topk_ids: [M, k]; ids outside [0, E) contribute nothing.
        activation: silu, gelu or gelu_tanh.
        expert_map: [experts on all ranks] int32, local expert of each id or a number outside [0, E).
        compute_dtype: of every intermediate; None for float32 (nothing is rounded to the weights' dtype between).

    Returns:
        The shape and dtype of ``hidden_states``; ``compute_dtype`` if that is float64. Differentiable.
    """
    import torch

    activation = Activation(activation)
    compute = torch.float32 if compute_dtype is None else compute_dtype
    num_experts, hidden_size = w1.shape[0], hidden_states.shape[-1]
    x = hidden_states.reshape(-1, hidden_size)
    ids = topk_ids.to(torch.int64)
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.shape[0])
        mapped = torch.full_like(ids, -1)
        mapped[known] = expert_map.to(torch.int64)[ids[known]]
        ids = mapped
    y = torch.zeros(x.shape, dtype=compute, device=x.device)
    for expert in torch.unique(ids).tolist():
        if not 0 <= expert < num_experts:
            continue
        tokens, slots = torch.where(ids == expert)
        gate, up = (x[tokens].to(compute) @ w1[expert].to(compute).T).chunk(2, dim=-1)
        down = activate(gate, up, activation) @ w2[expert].to(compute).T
        y = y.index_add(0, tokens, down * topk_weights[tokens, slots].to(compute).unsqueeze(-1))
    result_dtype = compute if compute == torch.float64 else hidden_states.dtype
    return y.to(result_dtype).reshape(hidden_states.shape)

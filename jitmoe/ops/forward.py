# SPDX-License-Identifier: MIT
"""``fused_moe_forward``: the expert layer with separate K-major gate and up weights."""

from __future__ import annotations

import math
from typing import Any

from jitmoe import tensors
from jitmoe.arguments.common import MAX_SLOTS, check_rank, matrix_layout, shape_text
from jitmoe.errors import ArgumentError
from jitmoe.ops.fused_moe import fused_moe
from jitmoe.options import check_flag, check_whole
from jitmoe.tensors import TensorInfo

# What fused_moe calls these arguments.
_NAMES = {"w1": "gate_weights", "w1_up": "up_weights", "w2": "down_weights", "topk_ids": "topk_indices"}


def fused_moe_forward(
    hidden_states: Any,
    gate_weights: Any,
    up_weights: Any,
    down_weights: Any,
    topk_weights: Any,
    topk_indices: Any,
    top_k: int = 2,
    renormalize: bool = True,
    inplace: bool = False,
    use_grouped_topk: bool = True,
    *,
    queue: Any = None,
) -> Any:
    """Returns y[t] = sum_j w[t, j] * (silu(x[t] Wgate) * (x[t] Wup)) Wdown of expert topk_indices[t, j].

    ``fused_moe`` on transposed views: weights are read where they are.

    Args:
        hidden_states: x, [M, H] or [B, S, H], as for ``fused_moe``.
        gate_weights, up_weights: [E, H, I], same dtype and strides.
        down_weights: [E, I, H].
        topk_weights: [M, top_k], any float dtype.
        topk_indices: [M, top_k], int32 or int64; an index outside [0, E) contributes nothing.
        top_k: experts per token.
        renormalize: w = topk_weights divided by their sum over a token's experts, else w = topk_weights.
        inplace: write the result into ``hidden_states`` and return it.
        use_grouped_topk: how the experts were chosen. They are given here, so it changes nothing; ``grouped_topk`` is
            the routing that it speaks of.
        queue: as for ``fused_moe``.

    Raises:
        ArgumentError, JitMoEError: as ``fused_moe``.
    """
    check_flag("use_grouped_topk", use_grouped_topk)
    given = {
        "hidden_states": hidden_states,
        "gate_weights": gate_weights,
        "up_weights": up_weights,
        "down_weights": down_weights,
        "topk_indices": topk_indices,
    }
    adopted = {name: tensors.adopt(name, value) for name, value in given.items()}
    facts = {name: tensors.describe(name, value) for name, value in adopted.items()}
    _check_shapes(facts, top_k)
    try:
        return fused_moe(
            adopted["hidden_states"],
            adopted["gate_weights"].mT,
            adopted["down_weights"].mT,
            topk_weights,
            adopted["topk_indices"],
            w1_up=adopted["up_weights"].mT,
            renormalize=renormalize,
            inplace=inplace,
            queue=queue,
        )
    except ArgumentError as error:
        _check_strides(facts)
        raise error.renamed(_NAMES) from None


def _check_shapes(facts: dict[str, TensorInfo], top_k: object) -> None:
    """Says what is wrong with shapes in this function's terms; ``fused_moe`` checks everything else."""
    x, gate, ids = facts["hidden_states"], facts["gate_weights"], facts["topk_indices"]
    check_rank("hidden_states", x, "[M, H] or [B, S, H]", 2, 3)
    check_rank("gate_weights", gate, "[E, H, I]", 3)
    experts, _, size = gate.shape
    hidden = x.shape[-1]
    for name, shape, letters in (
        ("gate_weights", (experts, hidden, size), "[E, H, I]"),
        ("up_weights", (experts, hidden, size), "[E, H, I]"),
        ("down_weights", (experts, size, hidden), "[E, I, H]"),
    ):
        if facts[name].shape != shape:
            got = f"shape {shape_text(facts[name])}"
            raise ArgumentError(argument=name, got=got, expected=f"{letters} = {list(shape)}")
    wanted = (math.prod(x.shape[:-1]), check_whole("top_k", top_k, 1, MAX_SLOTS))
    if ids.shape != wanted:
        got = f"shape {shape_text(ids)}"
        raise ArgumentError(argument="topk_indices", got=got, expected=f"[M, top_k] = {list(wanted)}")


def _check_strides(facts: dict[str, TensorInfo]) -> None:
    """Says what is wrong with strides of the weights as they are here; ``fused_moe`` sees the transposed views."""
    for name in ("gate_weights", "up_weights", "down_weights"):
        matrix_layout(name, facts[name])
    gate, up = facts["gate_weights"], facts["up_weights"]
    if up.strides != gate.strides:
        got = f"strides {up.strides}"
        raise ArgumentError(argument="up_weights", got=got, expected=f"{gate.strides}, like gate_weights")

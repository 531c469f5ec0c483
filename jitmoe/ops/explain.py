# SPDX-License-Identifier: MIT
"""``explain``: what a call of any op would do, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jitmoe import calls
from jitmoe.errors import ArgumentError
from jitmoe.ops.activate import activate, silu_and_mul_moe
from jitmoe.ops.forward import fused_moe_forward
from jitmoe.ops.fused_moe import fused_moe
from jitmoe.ops.grouped_gemm import grouped_gemm_moe
from jitmoe.ops.routing import (
    expert_load,
    grouped_topk,
    moe_align_block_size,
    moe_sorting,
    route,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)

OPS: tuple[Callable[..., Any], ...] = (
    fused_moe,
    fused_moe_forward,
    grouped_gemm_moe,
    route,
    topk_softmax,
    topk_sigmoid,
    topk_sqrt_softplus,
    grouped_topk,
    moe_align_block_size,
    moe_sorting,
    expert_load,
    activate,
    silu_and_mul_moe,
)


def explain(op: Callable[..., Any], /, *arguments: Any, queue: Any = None, **options: Any) -> str:
    """Returns, as text, how ``op(*arguments, **options)`` would run: device, kernels, tiles, launches and reasons.

    Compiles and runs nothing; no tensor's content is read or written. ::

        print(jitmoe.explain(jitmoe.fused_moe, x, w1, w2, topk_weights, topk_ids))
        print(jitmoe.explain(jitmoe.topk_softmax, router_logits, top_k=8))

    Args:
        op: a function of jitmoe that launches kernels, such as ``jitmoe.fused_moe`` or ``jitmoe.moe_sorting``.
        arguments, options, queue: the op's own.

    Raises:
        ArgumentError: ``op`` is no such function, or it refuses an argument.
        UnsupportedProblemError: the device has no kernels for this call; the op would compute the reference.
    """
    if not any(op is known for known in OPS):
        names = ", ".join(known.__name__ for known in OPS)
        got = getattr(op, "__name__", type(op).__name__)
        raise ArgumentError(argument="op", got=got, expected=f"an op of jitmoe: {names}")
    notes = calls.Notes(queue)
    op(*arguments, **options, queue=notes)
    return "\n".join(notes.texts)

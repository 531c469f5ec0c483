# SPDX-License-Identifier: MIT
"""``grouped_gemm_moe``: one batched GEMM over experts with the weighted sum over each row's experts; also routed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jitmoe import calls, tensors
from jitmoe.arguments.common import MAX_SLOTS, Facts, check_dtype, check_rank, shape_text
from jitmoe.arguments.grouped_gemm import grouped_gemm_problem
from jitmoe.errors import ArgumentError
from jitmoe.operation import Problem
from jitmoe.ops.routing import route
from jitmoe.options import check_flag, check_whole
from jitmoe.problems.fused_moe import COMPUTE_DTYPES
from jitmoe.problems.grouped_gemm import GROUPED_GEMM
from jitmoe.problems.routing import MAX_EXPERTS, MAX_TOP_K, Routing, Scoring


class GroupedGemmOptions(NamedTuple):
    """What is not a tensor."""

    top_k: int
    trans_b: bool


def _problem(facts: Facts, options: GroupedGemmOptions, look_at_addresses: bool) -> Problem:
    return grouped_gemm_problem(facts, *options, look_at_addresses=look_at_addresses)


def _reference(named: dict[str, Any], options: GroupedGemmOptions) -> tuple[Any, ...]:
    from jitmoe import reference

    inputs = (named[name] for name in ("A", "B", "C", "topk_weights", "topk_indices"))
    return (reference.weighted_products(*inputs, trans_b=options.trans_b),)


_GROUPED_GEMM = calls.Op(operation=GROUPED_GEMM, optional=frozenset({"C"}), problem=_problem, reference=_reference)


def grouped_gemm_moe(
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    topk_weights: Any,
    topk_indices: Any,
    top_k: int,
    trans_b: bool = False,
    *,
    queue: Any = None,
) -> None:
    """Writes D[t] = sum_j topk_weights[t, j] * (A[t] B_e + C_e) of expert e = topk_indices[t, j].

    Accumulation is in float32; the sum over experts is rounded once to D's dtype. B is read where it is, whichever of
    its two matrix dimensions is dense.

    Args:
        A: [M, K] or [B, S, K], bfloat16, float16 or float32, dense rows; tensors of the kinds that ``fused_moe`` takes.
        B: [E, K, N], or [E, N, K] with ``trans_b``; same dtype. Unit stride in one of the last two dimensions.
        C: bias [E, N], same dtype or float32, dense; or None.
        D: [M, N] or [B, S, N], the output, same dtype, dense rows; must not overlap the inputs.
        topk_weights: [M, top_k], bfloat16, float16, float32 or float64.
        topk_indices: [M, top_k], int32 or int64; an index outside [0, E) contributes nothing.
        top_k: experts per row.
        trans_b: whether B is [E, N, K].
        queue: as for ``fused_moe``; so is when the result is there.

    Raises:
        ArgumentError, JitMoEError: as ``fused_moe``.
    """
    options = GroupedGemmOptions(check_whole("top_k", top_k, 1, MAX_SLOTS), check_flag("trans_b", trans_b))
    calls.run(_GROUPED_GEMM, (A, B, C, D, topk_weights, topk_indices), options, queue)


# What the two parts of ``routed_grouped_gemm`` call its arguments.
_NAMES = {
    "A": "tokens",
    "B": "expert_weights",
    "D": "out",
    **dict.fromkeys(("router_logits", "topk_weights", "topk_indices"), "routing_weights"),
}


def routed_grouped_gemm(
    tokens: Any, expert_weights: Any, routing_weights: Any, top_k: Any, out: Any, queue: Any
) -> Any:
    """Returns [B, S, D]: each token times the matrices of the ``top_k`` experts with the largest routing weights.

    Args:
        tokens: [B, S, H] or [M, H]. expert_weights: [E, H, D]. routing_weights: [B * S, E].
        out: write the result there and return it.
    """
    facts = {}
    for name, value, shape, ranks in (
        ("tokens", tokens, "[B, S, H] or [M, H]", (2, 3)),
        ("expert_weights", expert_weights, "[E, H, D] for one GEMM with top_k", (3,)),
        ("routing_weights", routing_weights, "[B * S, E] for one GEMM with top_k", (2,)),
    ):
        facts[name] = tensors.describe(name, tensors.adopt(name, value))
        check_rank(name, facts[name], shape, *ranks)
    dtype = check_dtype("tokens", facts["tokens"], COMPUTE_DTYPES)
    num_experts, hidden_size, width = facts["expert_weights"].shape
    if not 1 <= num_experts <= MAX_EXPERTS or width == 0 or not 1 <= hidden_size == facts["tokens"].shape[-1]:
        raise ArgumentError(
            argument="expert_weights",
            got=f"shape {shape_text(facts['expert_weights'])}",
            expected=f"[E, H, D] with 1 <= E <= {MAX_EXPERTS}, H = {facts['tokens'].shape[-1]} and H, D >= 1",
        )
    wanted = (math.prod(facts["tokens"].shape[:-1]), num_experts)
    if facts["routing_weights"].shape != wanted:
        got = shape_text(facts["routing_weights"])
        raise ArgumentError(argument="routing_weights", got=f"shape {got}", expected=f"[B * S, E] = {list(wanted)}")
    check_whole("top_k", top_k, 1, min(num_experts, MAX_TOP_K))
    tokens = tensors.adopt("tokens", tokens)
    if out is None:
        out = tensors.empty(tokens, (*facts["tokens"].shape[:-1], width), dtype)
    try:
        weights, ids = route(routing_weights, Routing(top_k=top_k, scoring=Scoring.NONE), queue=queue)
        grouped_gemm_moe(tokens, expert_weights, None, out, weights, ids, top_k, queue=queue)
    except ArgumentError as error:
        raise error.renamed(_NAMES) from None
    return out

# SPDX-License-Identifier: MIT
"""Routing and sorting as a caller sees them: ``route`` and its short forms, alignment, load statistics."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from jitmoe import calls, tensors
from jitmoe.arguments.common import Facts
from jitmoe.arguments.routing import (
    check_ids,
    check_logits,
    check_routing,
    load_problem,
    routing_problem,
    sort_lengths,
    sort_problem,
)
from jitmoe.errors import ArgumentError
from jitmoe.operation import Problem
from jitmoe.options import check_flag, check_number, check_whole
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, INDEX_DTYPES, DType, check_dtype_name
from jitmoe.problems.routing import DEEPSEEK_EPSILON, ROUTE, GroupScore, Routing, Scoring
from jitmoe.problems.sorting import LOAD, SORT, ExpertLoad


def _route_problem(facts: Facts, routing: Routing, look_at_addresses: bool) -> Problem:
    return routing_problem(facts, routing)


def _route_reference(named: dict[str, Any], routing: Routing) -> tuple[Any, ...]:
    from jitmoe import reference

    bias = named["correction_bias"]
    return reference.route(
        named["router_logits"], routing, correction_bias=bias, ids_dtype=str(named["topk_ids"].dtype)
    )


_ROUTE = calls.Op(
    operation=ROUTE, optional=frozenset({"correction_bias"}), problem=_route_problem, reference=_route_reference
)


def route(
    router_logits: Any,
    routing: Routing,
    *,
    correction_bias: Any = None,
    ids_dtype: Any = "int32",
    topk_weights: Any = None,
    topk_ids: Any = None,
    queue: Any = None,
) -> tuple[Any, Any]:
    """Returns (topk_weights float32 [M, slots], topk_ids [M, slots]): each token's experts, best first.

    slots = ``routing.top_k + routing.num_shared_experts``. One kernel launch; two if ``routing.capacity_factor`` is
    given. All arithmetic is in float32 in a fixed order.

    Args:
        router_logits: [M, E], bfloat16, float16 or float32, dense rows, E up to 1024. Any kind of tensor that
            ``fused_moe`` takes.
        routing: the router, see ``jitmoe.Routing``.
        correction_bias: [E], bfloat16, float16 or float32, added to the scores for the choice, not to the weights.
        ids_dtype: "int32", "int64" or torch's dtypes of these names; not looked at if ``topk_ids`` is given.
        topk_weights, topk_ids: write the result there and return them.
        queue: as for ``fused_moe``.

    Raises:
        ArgumentError, JitMoEError: as ``fused_moe``.
    """
    check_routing(routing)
    dtype = check_dtype_name("ids_dtype", ids_dtype, INDEX_DTYPES)
    router_logits = tensors.adopt("router_logits", router_logits)
    num_tokens = check_logits(tensors.describe("router_logits", router_logits))[0]
    slots = (num_tokens, routing.num_slots)
    if topk_weights is None:
        topk_weights = tensors.empty(router_logits, slots, DType.FP32)
    if topk_ids is None:
        topk_ids = tensors.empty(router_logits, slots, dtype)
    calls.run(_ROUTE, (router_logits, correction_bias, topk_weights, topk_ids), routing, queue)
    return topk_weights, topk_ids


def topk_softmax(
    router_logits: Any,
    top_k: int,
    renormalize: bool = False,
    *,
    correction_bias: Any = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: Any = "int32",
    queue: Any = None,
) -> tuple[Any, Any]:
    """Returns ``route`` with softmax over all experts before the choice (Mixtral, Qwen, OLMoE).

    Fused shared experts get weight 1; ``routed_scaling_factor`` is in the routed experts' weights.
    """
    return _topk(
        Scoring.SOFTMAX, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype, queue,
    )  # fmt: skip


def topk_sigmoid(
    router_logits: Any,
    top_k: int,
    renormalize: bool = False,
    *,
    correction_bias: Any = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: Any = "int32",
    queue: Any = None,
) -> tuple[Any, Any]:
    """Returns ``route`` with sigmoid scores (GLM 4, Kimi K2, MiniMax M2; ``top_k=1``: the sigmoid top-1 router).

    Fused shared experts get weight 1; ``routed_scaling_factor`` is in the routed experts' weights. ``renormalize`` adds
    1e-20 to the sum, as DeepSeek-V3 does.
    """
    return _topk(
        Scoring.SIGMOID, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype, queue,
    )  # fmt: skip


def topk_sqrt_softplus(
    router_logits: Any,
    top_k: int,
    renormalize: bool = True,
    *,
    correction_bias: Any = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: Any = "int32",
    queue: Any = None,
) -> tuple[Any, Any]:
    """Returns ``route`` with sqrt(softplus(x)) scores (DeepSeek-V4); otherwise like ``topk_sigmoid``."""
    return _topk(
        Scoring.SQRT_SOFTPLUS, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype, queue,
    )  # fmt: skip


_known_router = functools.lru_cache(maxsize=256, typed=True)(Routing)


def _router(**fields: Any) -> Routing:
    """Returns a router, made once: checking its numbers would cost as much as all else before a launch."""
    try:
        return _known_router(**fields)
    except TypeError:  # something that cannot be looked up; Routing says what is wrong with it
        return Routing(**fields)


# What Routing and route call the arguments of their short forms, where a router as a whole is no argument.
_NAMES = {
    "routing.top_k": "top_k",
    "scaling_factor": "routed_scaling_factor",
    "num_shared_experts": "num_fused_shared_experts",
}
_GROUPED_NAMES = {
    **_NAMES,
    "num_groups": "num_expert_group",
    "routing.num_groups": "num_expert_group",
    "topk_groups": "topk_group",
    "scoring": "scoring_func",
    "correction_bias": "e_score_correction_bias",
    "shared_expert_weight": "routed_scaling_factor",
}


def _topk(
    scoring: Scoring,
    router_logits: Any,
    top_k: int,
    renormalize: bool,
    correction_bias: Any,
    routed_scaling_factor: float,
    num_fused_shared_experts: int,
    ids_dtype: Any,
    queue: Any,
) -> tuple[Any, Any]:
    try:
        routing = _router(
            top_k=top_k,
            scoring=scoring,
            renormalize=renormalize,
            renormalize_epsilon=0.0 if scoring is Scoring.SOFTMAX else DEEPSEEK_EPSILON,
            scaling_factor=routed_scaling_factor,
            num_shared_experts=num_fused_shared_experts,
        )
        return route(router_logits, routing, correction_bias=correction_bias, ids_dtype=ids_dtype, queue=queue)
    except ArgumentError as error:
        raise error.renamed(_NAMES) from None


def grouped_topk(
    router_logits: Any,
    top_k: int,
    renormalize: bool,
    num_expert_group: int,
    topk_group: int,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: Any = None,
    *,
    num_fused_shared_experts: int = 0,
    apply_routed_scaling_factor_on_output: bool = True,
    ids_dtype: Any = "int32",
    queue: Any = None,
) -> tuple[Any, Any]:
    """Returns ``route`` with group-limited choice, as vLLM and SGLang name its arguments (DeepSeek-V2 and V3).

    A group's score is the sum of its two best choice values with a correction bias (V3), its best score without (V2).
    With ``apply_routed_scaling_factor_on_output`` the factor is in the routed weights, and fused shared experts get
    weight 1; otherwise it is left to the caller, and fused shared experts get 1 / factor.
    """
    on_output = check_flag("apply_routed_scaling_factor_on_output", apply_routed_scaling_factor_on_output)
    if not on_output and check_number("routed_scaling_factor", routed_scaling_factor) == 0:
        raise ArgumentError(
            argument="routed_scaling_factor", got="0", expected="another number: fused shared experts get 1 / it"
        )
    scoring: Any = scoring_func  # Routing says what is wrong with it
    try:
        routing = _router(
            top_k=top_k,
            scoring=scoring,
            num_groups=num_expert_group,
            topk_groups=topk_group,
            group_score=GroupScore.MAX if e_score_correction_bias is None else GroupScore.TOP2_SUM,
            renormalize=renormalize,
            renormalize_epsilon=0.0 if scoring_func == Scoring.SOFTMAX.value else DEEPSEEK_EPSILON,
            scaling_factor=routed_scaling_factor if on_output else 1.0,
            num_shared_experts=num_fused_shared_experts,
            shared_expert_weight=1.0 if on_output else 1.0 / routed_scaling_factor,
        )
        return route(router_logits, routing, correction_bias=e_score_correction_bias, ids_dtype=ids_dtype, queue=queue)
    except ArgumentError as error:
        raise error.renamed(_GROUPED_NAMES) from None


class _SortOptions(NamedTuple):
    num_experts: int
    block_size: int


def _sort_problem(facts: Facts, options: _SortOptions, look_at_addresses: bool) -> Problem:
    return sort_problem(facts, *options)


def _sort_reference(named: dict[str, Any], options: _SortOptions) -> tuple[Any, ...]:
    import torch

    from jitmoe import reference

    names = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")
    results = reference.moe_align_block_size(
        named["topk_ids"],
        *options,
        *(torch.empty(named[name].shape, dtype=torch.int32, device=named[name].device) for name in names),
        expert_map=named["expert_map"],
    )
    if named["topk_weights"] is None:
        return (*results, None, None)
    weights = reference.sorted_weights(named["topk_weights"], results[0])
    return (*results, weights, torch.zeros_like(named["output"]))


_SORT = calls.Op(
    operation=SORT,
    optional=frozenset({"expert_map", "topk_weights", "sorted_weights", "output"}),
    problem=_sort_problem,
    reference=_sort_reference,
)


def moe_align_block_size(
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Any = None,
    experts_ids: Any = None,
    num_tokens_post_pad: Any = None,
    *,
    expert_map: Any = None,
    queue: Any = None,
) -> tuple[Any, Any, Any]:
    """Returns (sorted_token_ids, experts_ids, num_tokens_post_pad), int32: pairs by expert, in blocks of one expert.

    A pair is a token's place for an expert, numbered token * k + slot. One kernel launch for few pairs, two or three
    for many (or large buffers to clear). Buffers that are not given are made, as long as any routing can need.

    Args:
        topk_ids: [M, k], int32 or int64, dense rows. Ids outside [0, E) mark experts of other ranks: left out.
        num_experts: E.
        block_size: an expert's pairs are padded to a multiple of it.
        sorted_token_ids: [at least max_padded_pairs], pairs by expert, ascending within one expert. M * k, the number
            of pairs, in all other places.
        experts_ids: [at least max_padded_pairs / block_size], the expert of each block; -1 past the last.
        num_tokens_post_pad: [1], how many places of sorted_token_ids are in use: a multiple of block_size.
        expert_map: int32, [experts on all ranks]: the local expert of each id, anything outside [0, E) for others.
        queue: as for ``fused_moe``.

    max_padded_pairs = (M * k + min(E, M * k) * (block_size - 1)), rounded down to a multiple of block_size.

    Raises:
        ArgumentError, JitMoEError: as ``fused_moe``.
    """
    options = _SortOptions(check_whole("num_experts", num_experts, 1), check_whole("block_size", block_size, 1))
    topk_ids = tensors.adopt("topk_ids", topk_ids)
    lengths = _sort_lengths(topk_ids, options)
    given = (sorted_token_ids, experts_ids, num_tokens_post_pad)
    outputs = tuple(
        tensors.empty(topk_ids, (length,), DType.INT32) if tensor is None else tensor
        for tensor, length in zip(given, lengths, strict=True)
    )
    calls.run(_SORT, (topk_ids, expert_map, None, *outputs, None, None), options, queue)
    return outputs


def _sort_lengths(topk_ids: Any, options: _SortOptions) -> tuple[int, int, int]:
    num_tokens, top_k = check_ids(tensors.describe("topk_ids", topk_ids))
    return (*sort_lengths(num_tokens * top_k, *options), 1)


def moe_sorting(
    topk_ids: Any,
    topk_weights: Any,
    num_experts: int,
    hidden_size: int,
    dtype: Any,
    block_size: int = 32,
    *,
    expert_map: Any = None,
    queue: Any = None,
) -> tuple[Any, Any, Any, Any, Any]:
    """Returns (sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, output) for an expert kernel.

    sorted_ids, sorted_expert_ids and num_valid_ids are those of ``moe_align_block_size``.

    Args:
        topk_ids: [M, k], as for ``moe_align_block_size``.
        topk_weights: [M, k], any float dtype; sorted_weights are these as float32 in their pairs' places, 0 in padding.
        num_experts: E.
        hidden_size: H; output is [M, H], zeros.
        dtype: of output: "bf16", "fp16", "fp32" or a torch dtype of these.
        block_size, expert_map, queue: as for ``moe_align_block_size``.
    """
    options = _SortOptions(check_whole("num_experts", num_experts, 1), check_whole("block_size", block_size, 1))
    width = check_whole("hidden_size", hidden_size, 1)
    output_dtype = check_dtype_name("dtype", dtype, COMPUTE_DTYPES)
    topk_ids = tensors.adopt("topk_ids", topk_ids)
    topk_weights = tensors.adopt("topk_weights", topk_weights)
    lengths = _sort_lengths(topk_ids, options)
    ids, experts, used = (tensors.empty(topk_ids, (length,), DType.INT32) for length in lengths)
    weights = tensors.empty(topk_ids, lengths[:1], DType.FP32)
    output = tensors.empty(topk_ids, (tensors.describe("topk_ids", topk_ids).shape[0], width), output_dtype)
    calls.run(_SORT, (topk_ids, expert_map, topk_weights, ids, experts, used, weights, output), options, queue)
    return ids, weights, experts, used, output


def _load_problem(facts: Facts, num_experts: int, look_at_addresses: bool) -> Problem:
    return load_problem(facts, num_experts)


def _load_reference(named: dict[str, Any], num_experts: int) -> tuple[Any, ...]:
    from jitmoe import reference

    return reference.expert_load(named["topk_ids"], num_experts)


_LOAD = calls.Op(operation=LOAD, optional=frozenset(), problem=_load_problem, reference=_load_reference)


def expert_load(topk_ids: Any, num_experts: int, *, queue: Any = None) -> ExpertLoad:
    """Returns how many pairs each expert gets, and the largest over the mean load.

    Args:
        topk_ids: [M, k], int32 or int64, dense rows; ids outside [0, E) are not counted.
        num_experts: E.
        queue: as for ``fused_moe``.
    """
    check_whole("num_experts", num_experts, 1)
    topk_ids = tensors.adopt("topk_ids", topk_ids)
    counts = tensors.empty(topk_ids, (num_experts,), DType.INT32)
    imbalance = tensors.empty(topk_ids, (1,), DType.FP32)
    calls.run(_LOAD, (topk_ids, counts, imbalance), num_experts, queue)
    return ExpertLoad(counts, imbalance)

# SPDX-License-Identifier: MIT
"""Argument checks of ``fused_moe`` calls that begin with a routing launch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jitmoe.arguments.common import MAX_SLOTS, Facts, check_dtype, check_places, check_rank, row_stride
from jitmoe.arguments.fused_moe import FusedMoEOptions, fused_moe_problem
from jitmoe.arguments.routing import check_routing, routing_problem
from jitmoe.errors import ArgumentError
from jitmoe.options import check_flag, check_whole
from jitmoe.problems.fused_moe import FUSED_MOE, INDEX_DTYPES, WEIGHT_DTYPES
from jitmoe.problems.routed import ROUTED_IDS_DTYPE, ROUTED_WEIGHTS_DTYPE, AdjustRoutingProblem, RoutedMoEProblem
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.tensors import TensorInfo, dense


class RoutedOptions(NamedTuple):
    """What is not a tensor."""

    experts: FusedMoEOptions
    routing: Routing | None  # None: weights and ids are given
    renormalize: bool
    num_shared_experts: int  # with given weights and ids


def routed_options(
    experts: FusedMoEOptions,
    topk: tuple[Any, Any],
    router_logits: Any,
    routing: object,
    correction_bias: Any,
    renormalize: object,
    num_shared_experts: object,
    shared_weights: Any,
) -> RoutedOptions:
    """Returns the options, after checking which arguments go together. ``topk`` are topk_weights and topk_ids."""
    num_shared = check_whole("num_shared_experts", num_shared_experts, 0, MAX_SLOTS)
    divides = check_flag("renormalize", renormalize)
    if router_logits is None:
        for name, value in (("routing", routing), ("correction_bias", correction_bias)):
            if value is not None:
                raise ArgumentError(argument=name, got="a value", expected="None, because there are no router_logits")
        if shared_weights is not None and num_shared == 0:
            raise ArgumentError(argument="shared_weights", got="a tensor", expected="None without num_shared_experts")
        return RoutedOptions(experts, None, divides, num_shared)
    for name, value in (("topk_weights", topk[0]), ("topk_ids", topk[1]), ("shared_weights", shared_weights)):
        if value is not None:
            raise ArgumentError(argument=name, got="a value", expected="None, because router_logits are given")
    for name, is_set in (("renormalize", divides), ("num_shared_experts", num_shared > 0)):
        if is_set:
            raise ArgumentError(argument=name, got="a value", expected=f"none: routing has a {name} of its own")
    return RoutedOptions(experts, check_routing(routing), False, 0)


def routed_moe_problem(facts: Facts, options: RoutedOptions, look_at_addresses: bool) -> RoutedMoEProblem:
    """Checks the tensors of the whole call and returns what is asked of routing and experts."""
    x, w1, expert_map = check_places(facts, "hidden_states"), facts["w1"], facts["expert_map"]
    assert w1 is not None
    num_tokens = math.prod(x.shape[:-1])
    num_experts = expert_map.shape[0] if expert_map is not None and expert_map.shape else w1.shape[0]
    routing: RoutingProblem | AdjustRoutingProblem
    if options.routing is None:
        name = "topk_ids"
        routing = _adjust_problem(facts, options, num_experts)
    else:
        name = "router_logits"
        routing = _routing_problem(facts, options.routing, num_experts)
    if routing.num_tokens != num_tokens:
        raise ArgumentError(argument=name, got=f"M = {routing.num_tokens}", expected=f"M = {num_tokens}")
    slots = routing.num_slots if isinstance(routing, AdjustRoutingProblem) else routing.routing.num_slots
    own = {name: facts[name] for name in FUSED_MOE.tensors} | _workspace(x, num_tokens, slots)
    experts = fused_moe_problem(own, options.experts, look_at_addresses=look_at_addresses)
    return RoutedMoEProblem(routing=routing, experts=experts)


def _workspace(like: TensorInfo, num_tokens: int, slots: int) -> dict[str, TensorInfo]:
    """Returns the facts of the routing's result."""
    return {
        name: dense(TensorInfo(0, (num_tokens, slots), (slots, 1), dtype, dtype.value, like.place))
        for name, dtype in (("topk_weights", ROUTED_WEIGHTS_DTYPE), ("topk_ids", ROUTED_IDS_DTYPE))
    }


def _routing_problem(facts: Facts, routing: Routing, num_experts: int) -> RoutingProblem:
    logits = facts["router_logits"]
    assert logits is not None
    given = {name: facts[name] for name in ("router_logits", "correction_bias")}
    num_tokens = logits.shape[0] if logits.shape else 0
    problem = routing_problem(given | _workspace(logits, num_tokens, routing.num_slots), routing)
    if problem.num_experts + routing.num_shared_experts != num_experts:
        shared = f" - {routing.num_shared_experts} shared experts" if routing.num_shared_experts else ""
        raise ArgumentError(
            argument="router_logits",
            got=f"E = {problem.num_experts}",
            expected=f"E = {num_experts}{shared}, as many as w1 (or expert_map) has",
        )
    return problem


def _adjust_problem(facts: Facts, options: RoutedOptions, num_experts: int) -> AdjustRoutingProblem:
    weights, ids, shared = (facts[name] for name in ("topk_weights", "topk_ids", "shared_weights"))
    for name, info in (("topk_weights", weights), ("topk_ids", ids)):
        if info is None:
            raise ArgumentError(argument=name, got="None", expected="[M, k], or router_logits instead")
        check_rank(name, info, "[M, k]", 2)
    assert weights is not None and ids is not None
    if weights.shape != ids.shape:
        raise ArgumentError(
            argument="topk_weights", got=f"shape {list(weights.shape)}", expected=f"{list(ids.shape)}, like topk_ids"
        )
    count = options.num_shared_experts
    if count >= num_experts:
        raise ArgumentError(argument="num_shared_experts", got=str(count), expected=f"fewer than E = {num_experts}")
    if shared is not None and shared.shape != (ids.shape[0], count):
        raise ArgumentError(
            argument="shared_weights", got=f"shape {list(shared.shape)}", expected=f"{[ids.shape[0], count]}"
        )
    return AdjustRoutingProblem(
        num_tokens=ids.shape[0],
        top_k=ids.shape[1],
        num_shared_experts=count,
        first_shared_expert=num_experts - count,
        renormalize=options.renormalize,
        ids_dtype=check_dtype("topk_ids", ids, INDEX_DTYPES),
        weights_dtype=check_dtype("topk_weights", weights, WEIGHT_DTYPES),
        shared_dtype=None if shared is None else check_dtype("shared_weights", shared, WEIGHT_DTYPES),
        topk_ids_row_stride=row_stride("topk_ids", ids),
        topk_weights_row_stride=row_stride("topk_weights", weights),
        shared_row_stride=0 if shared is None else row_stride("shared_weights", shared),
    )

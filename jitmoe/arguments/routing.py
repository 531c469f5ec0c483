# SPDX-License-Identifier: MIT
"""Argument checks of the routing and sorting ops: tensor facts in, a problem value out, or an ``ArgumentError``."""

from __future__ import annotations

from jitmoe.arguments.common import (
    MAX_PAIRS,
    Facts,
    check_dtype,
    check_places,
    check_rank,
    row_stride,
    shape_text,
)
from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, INDEX_DTYPES, WEIGHT_DTYPES, DType
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.problems.sorting import LoadProblem, SortProblem, max_padded_pairs
from jitmoe.tensors import TensorInfo


def _vector(name: str, info: TensorInfo, dtypes: tuple[DType, ...], expected: str) -> DType:
    """Checks a dense 1-D tensor and returns its dtype."""
    check_rank(name, info, expected, 1)
    dtype = check_dtype(name, info, dtypes)
    if info.shape[0] > 1 and info.strides[0] != 1:
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="a dense tensor")
    return dtype


def _rows(name: str, info: TensorInfo, shape: tuple[int, int], dtypes: tuple[DType, ...]) -> int:
    """Checks a [M, slots] output and returns its row stride."""
    check_dtype(name, info, dtypes)
    if info.shape != shape:
        raise ArgumentError(argument=name, got=f"shape {shape_text(info)}", expected=f"[M, slots] = {list(shape)}")
    stride = row_stride(name, info)
    if shape[0] > 1 and stride < shape[1]:
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="rows that do not overlap")
    return stride


def check_routing(routing: object) -> Routing:
    """Returns ``routing`` if it is one."""
    if not isinstance(routing, Routing):
        raise ArgumentError(argument="routing", got=type(routing).__name__, expected="a jitmoe.Routing")
    return routing


def check_logits(info: TensorInfo) -> tuple[int, int]:
    """Returns (M, E) of router_logits."""
    check_rank("router_logits", info, "[M, E]", 2)
    return info.shape[0], info.shape[1]


def routing_problem(facts: Facts, routing: Routing) -> RoutingProblem:
    """Checks the tensors of a ``route`` call and returns what is asked.

    Args:
        facts: by argument name: router_logits, correction_bias (may be None), topk_weights, topk_ids.
        routing: the router.

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    logits = check_places(facts, "router_logits")
    num_tokens, num_experts = check_logits(logits)
    dtype = check_dtype("router_logits", logits, COMPUTE_DTYPES)
    objection = routing.objection(num_experts)
    if objection is not None:
        of_routing = "" if objection.field == "router_logits" else "routing."
        raise ArgumentError(argument=of_routing + objection.field, got=objection.got, expected=objection.expected)
    if num_tokens * routing.num_slots > MAX_PAIRS:
        raise ArgumentError(
            argument="router_logits", got=f"M = {num_tokens}", expected=f"M * {routing.num_slots} slots <= {MAX_PAIRS}"
        )
    bias_dtype = None
    bias = facts["correction_bias"]
    if bias is not None:
        bias_dtype = _vector("correction_bias", bias, COMPUTE_DTYPES, f"[E] = [{num_experts}]")
        if bias.shape != (num_experts,):
            raise ArgumentError(
                argument="correction_bias", got=f"shape {shape_text(bias)}", expected=f"[E] = [{num_experts}]"
            )
    weights, ids = facts["topk_weights"], facts["topk_ids"]
    assert weights is not None and ids is not None
    slots = (num_tokens, routing.num_slots)
    return RoutingProblem(
        num_tokens=num_tokens,
        num_experts=num_experts,
        routing=routing,
        dtype=dtype,
        bias_dtype=bias_dtype,
        ids_dtype=check_dtype("topk_ids", ids, INDEX_DTYPES),
        logits_row_stride=row_stride("router_logits", logits),
        weights_row_stride=_rows("topk_weights", weights, slots, (DType.FP32,)),
        ids_row_stride=_rows("topk_ids", ids, slots, INDEX_DTYPES),
    )


def check_ids(info: TensorInfo) -> tuple[int, int]:
    """Returns (M, k) of topk_ids."""
    check_rank("topk_ids", info, "[M, k]", 2)
    if info.shape[1] < 1 or info.shape[0] * info.shape[1] > MAX_PAIRS:
        raise ArgumentError(
            argument="topk_ids",
            got=f"shape {shape_text(info)}",
            expected=f"[M, k] with k >= 1 and M * k <= {MAX_PAIRS}",
        )
    return info.shape[0], info.shape[1]


def sort_lengths(num_pairs: int, num_experts: int, block_size: int) -> tuple[int, int]:
    """Returns the lengths of sorted_token_ids and expert_ids that any routing fits in."""
    longest = max_padded_pairs(num_pairs, num_experts, block_size)
    if longest > MAX_PAIRS:
        raise ArgumentError(
            argument="block_size",
            got=f"{block_size} with {num_pairs} pairs and {num_experts} experts",
            expected=f"at most {MAX_PAIRS} padded pairs, not {longest}",
        )
    return longest, longest // block_size


def sort_problem(facts: Facts, num_experts: int, block_size: int) -> SortProblem:
    """Checks the tensors of a sorting call and returns what is asked.

    Args:
        facts: by argument name: topk_ids, expert_map, topk_weights, sorted_token_ids, expert_ids, num_tokens_post_pad,
            sorted_weights, output; expert_map may be None, and topk_weights, sorted_weights and output together.
        num_experts, block_size: whole numbers >= 1.

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    ids = check_places(facts, "topk_ids")
    num_tokens, top_k = check_ids(ids)
    ids_dtype = check_dtype("topk_ids", ids, INDEX_DTYPES)
    longest, num_blocks = sort_lengths(num_tokens * top_k, num_experts, block_size)
    num_global_experts = None
    expert_map = facts["expert_map"]
    if expert_map is not None:
        _vector("expert_map", expert_map, (DType.INT32,), "[number of experts on all ranks]")
        num_global_experts = expert_map.shape[0]
    lengths = {}
    for name, argument, least in (
        ("sorted_token_ids", "sorted_token_ids", longest),
        ("expert_ids", "experts_ids", num_blocks),  # as SGLang spells it
        ("num_tokens_post_pad", "num_tokens_post_pad", 1),
    ):
        info = facts[name]
        assert info is not None
        _vector(argument, info, (DType.INT32,), f"a 1-D tensor of at least {least}")
        if not least <= info.shape[0] <= MAX_PAIRS:
            raise ArgumentError(
                argument=argument,
                got=f"shape {shape_text(info)}",
                expected=f"at least {least} for M * k = {num_tokens * top_k}, E = {num_experts}, block {block_size}",
            )
        lengths[name] = info.shape[0]
    weights, output = facts["topk_weights"], facts["output"]
    weights_dtype, weights_row_stride, zeroed_bytes = None, 0, 0
    if weights is not None and output is not None:
        weights_dtype = check_dtype("topk_weights", weights, WEIGHT_DTYPES)
        if weights.shape != ids.shape:
            raise ArgumentError(
                argument="topk_weights",
                got=f"shape {shape_text(weights)}",
                expected=f"{shape_text(ids)}, like topk_ids",
            )
        weights_row_stride = row_stride("topk_weights", weights)
        zeroed_bytes = output.shape[0] * output.shape[1] * check_dtype("output", output, COMPUTE_DTYPES).num_bytes
    return SortProblem(
        num_tokens=num_tokens,
        top_k=top_k,
        num_experts=num_experts,
        num_global_experts=num_global_experts,
        block_size=block_size,
        ids_dtype=ids_dtype,
        ids_row_stride=row_stride("topk_ids", ids),
        num_sorted=lengths["sorted_token_ids"],
        num_blocks=lengths["expert_ids"],
        weights_dtype=weights_dtype,
        weights_row_stride=weights_row_stride,
        zeroed_bytes=zeroed_bytes,
    )


def load_problem(facts: Facts, num_experts: int) -> LoadProblem:
    """Checks the tensors of an ``expert_load`` call and returns what is asked; raises ``ArgumentError``."""
    ids = check_places(facts, "topk_ids")
    num_tokens, top_k = check_ids(ids)
    return LoadProblem(
        num_tokens=num_tokens,
        top_k=top_k,
        num_experts=num_experts,
        ids_dtype=check_dtype("topk_ids", ids, INDEX_DTYPES),
        ids_row_stride=row_stride("topk_ids", ids),
    )

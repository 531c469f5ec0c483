# SPDX-License-Identifier: MIT
"""Plain torch twins of the routing and alignment ops; public as part of ``jitmoe.reference``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitmoe.problems.routing import DEEPSEEK_EPSILON, GroupScore, Routing, Scoring
from jitmoe.problems.sorting import ExpertLoad, max_padded_pairs

if TYPE_CHECKING:
    import torch


def _scores(x: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    import torch
    from torch.nn import functional

    if scoring is Scoring.SOFTMAX:
        return torch.softmax(x, dim=-1)
    if scoring is Scoring.SIGMOID:
        return torch.sigmoid(x)
    if scoring is Scoring.SQRT_SOFTPLUS:
        return functional.softplus(x).sqrt()
    return x


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the positions of the k largest values of each row, descending, the lower index first among equal ones.

    ``torch.topk`` gives the same sets but promises no order among equal values, and keeps none on CPUs.
    """
    import torch

    return torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :k]


def route(
    router_logits: torch.Tensor,
    routing: Routing,
    *,
    correction_bias: torch.Tensor | None = None,
    ids_dtype: torch.dtype | str = "int32",
    topk_weights: torch.Tensor | None = None,
    topk_ids: torch.Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (topk_weights float32 [M, slots], topk_ids [M, slots]) as ``jitmoe.Routing`` describes it.

    Args:
        router_logits: [M, E].
        routing: the router.
        correction_bias: [E], added to the scores for the choice only.
        ids_dtype: int32 or int64.
        topk_weights, topk_ids: write the result there and return them.
        compute_dtype: None for float32; the weights are float64 if that is float64.
    """
    import torch

    compute = torch.float32 if compute_dtype is None else compute_dtype
    num_tokens, num_experts = router_logits.shape
    x = router_logits.to(compute)
    if routing.temperature != 1.0:
        x = x / routing.temperature
    scores = x if routing.chooses_by_logits else _scores(x, routing.scoring)
    choice = scores if correction_bias is None else scores + correction_bias.to(compute)
    candidates = torch.ones(num_tokens, num_experts, dtype=torch.bool, device=x.device)
    if routing.num_groups > 1:
        members = choice.reshape(num_tokens, routing.num_groups, num_experts // routing.num_groups)
        if routing.group_score is GroupScore.TOP2_SUM:
            group_scores = torch.sort(members, dim=-1, descending=True).values[..., :2].sum(dim=-1)
        else:
            group_scores = members.amax(dim=-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(1, _largest(group_scores, routing.topk_groups), True)
        candidates = kept.repeat_interleave(num_experts // routing.num_groups, dim=1)
    capacity = routing.capacity(num_tokens, num_experts)
    if capacity is None:
        ids = _best_candidates(choice, candidates, routing.top_k)
    else:
        ids = _best_with_room(choice, candidates, routing.top_k, capacity)
    empty = ids < 0
    weights = scores.gather(1, ids.clamp_min(0))
    if routing.scoring is Scoring.SPARSEMIXER:
        weights = _shares_of_the_near(x, candidates, ids, routing.jitter_eps)
    elif routing.topk_before_scoring:
        weights = _scores(weights.masked_fill(empty, float("-inf")), routing.scoring)
    weights = weights.masked_fill(empty, 0.0)
    if routing.renormalize:
        total = weights.sum(dim=-1, keepdim=True).clamp_min(routing.renormalize_min)
        weights = (weights / (total + routing.renormalize_epsilon)).masked_fill(empty, 0.0)
    weights = weights * routing.scaling_factor
    if routing.num_shared_experts:
        shared = torch.arange(num_experts, num_experts + routing.num_shared_experts, device=ids.device)
        ids = torch.cat([ids, shared.expand(num_tokens, -1)], dim=1)
        weights = torch.cat(
            [weights, weights.new_full((num_tokens, routing.num_shared_experts), routing.shared_expert_weight)], dim=1
        )
    ids = ids.to(_torch_dtype(ids_dtype))
    return (
        weights if topk_weights is None else topk_weights.copy_(weights),
        ids if topk_ids is None else topk_ids.copy_(ids),
    )


def _torch_dtype(name: torch.dtype | str) -> torch.dtype:
    """Returns the torch dtype of "int32", "bf16" and the like, or of itself."""
    import torch

    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    text = str(name).removeprefix("torch.")
    dtype: torch.dtype = getattr(torch, short.get(text, text))
    return dtype


def topk_softmax(
    router_logits: torch.Tensor,
    top_k: int,
    renormalize: bool = False,
    *,
    correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: torch.dtype | str = "int32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``route`` with softmax over all experts; the factor is in the routed weights, shared experts get 1."""
    return _topk(
        Scoring.SOFTMAX, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype,
    )  # fmt: skip


def topk_sigmoid(
    router_logits: torch.Tensor,
    top_k: int,
    renormalize: bool = False,
    *,
    correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: torch.dtype | str = "int32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``route`` with sigmoid scores; otherwise like ``topk_softmax``, but for 1e-20 added to the sum."""
    return _topk(
        Scoring.SIGMOID, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype,
    )  # fmt: skip


def topk_sqrt_softplus(
    router_logits: torch.Tensor,
    top_k: int,
    renormalize: bool = True,
    *,
    correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
    ids_dtype: torch.dtype | str = "int32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``route`` with sqrt(softplus(x)) scores; otherwise like ``topk_sigmoid``."""
    return _topk(
        Scoring.SQRT_SOFTPLUS, router_logits, top_k, renormalize, correction_bias, routed_scaling_factor,
        num_fused_shared_experts, ids_dtype,
    )  # fmt: skip


def _topk(
    scoring: Scoring,
    router_logits: torch.Tensor,
    top_k: int,
    renormalize: bool,
    correction_bias: torch.Tensor | None,
    routed_scaling_factor: float,
    num_fused_shared_experts: int,
    ids_dtype: torch.dtype | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    routing = Routing(
        top_k=top_k,
        scoring=scoring,
        renormalize=renormalize,
        renormalize_epsilon=0.0 if scoring is Scoring.SOFTMAX else DEEPSEEK_EPSILON,
        scaling_factor=routed_scaling_factor,
        num_shared_experts=num_fused_shared_experts,
    )
    return route(router_logits, routing, correction_bias=correction_bias, ids_dtype=ids_dtype)


def grouped_topk(
    router_logits: torch.Tensor,
    top_k: int,
    renormalize: bool,
    num_expert_group: int,
    topk_group: int,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: torch.Tensor | None = None,
    *,
    num_fused_shared_experts: int = 0,
    apply_routed_scaling_factor_on_output: bool = True,
    ids_dtype: torch.dtype | str = "int32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``route`` with group-limited choice; see ``jitmoe.grouped_topk``.

    Groups are scored by their two best choice values with a bias, by their best without. The factor is in the routed
    weights, or, where the caller applies it to the sum later, its inverse is the shared experts' weight.
    """
    scoring = Scoring(scoring_func)
    in_weights = apply_routed_scaling_factor_on_output
    routing = Routing(
        top_k=top_k,
        scoring=scoring,
        num_groups=num_expert_group,
        topk_groups=topk_group,
        group_score=GroupScore.MAX if e_score_correction_bias is None else GroupScore.TOP2_SUM,
        renormalize=renormalize,
        renormalize_epsilon=0.0 if scoring is Scoring.SOFTMAX else DEEPSEEK_EPSILON,
        scaling_factor=routed_scaling_factor if in_weights else 1.0,
        num_shared_experts=num_fused_shared_experts,
        shared_expert_weight=1.0 if in_weights else 1.0 / routed_scaling_factor,
    )
    return route(router_logits, routing, correction_bias=e_score_correction_bias, ids_dtype=ids_dtype)


def _shares_of_the_near(x: torch.Tensor, candidates: torch.Tensor, ids: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns each chosen expert's part in a softmax over the candidates near it that come in no earlier slot."""
    import torch

    left, shares = candidates.clone(), []
    for slot in range(ids.shape[1]):
        chosen = ids[:, slot : slot + 1]
        m = x.gather(1, chosen)
        is_far = m - x > 2 * eps * torch.maximum(x.abs(), m)
        near = x.masked_fill(is_far | ~left, float("-inf"))
        shares.append(torch.softmax(near, dim=-1).gather(1, chosen))
        left.scatter_(1, chosen, False)
    return torch.cat(shares, dim=1)


def _best_candidates(choice: torch.Tensor, candidates: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the ids of the k best candidates; what is no candidate comes after everything, -inf included."""
    order = _largest(choice, choice.shape[1])
    is_candidate = candidates.gather(1, order)
    return order.gather(1, _largest(is_candidate.to(choice.dtype), k))


def _best_with_room(choice: torch.Tensor, candidates: torch.Tensor, k: int, capacity: int) -> torch.Tensor:
    """Returns the ids when no expert may get more than ``capacity`` tokens, tokens served in order; -1 without room."""
    import torch

    ids = torch.full((choice.shape[0], k), -1, dtype=torch.int64, device=choice.device)
    room = torch.full((choice.shape[1],), capacity, dtype=torch.int64, device=choice.device)
    for token in range(choice.shape[0]):
        order = _largest(choice[token], choice.shape[1])
        chosen = order[(candidates[token] & (room > 0))[order]][:k]
        ids[token, : chosen.numel()] = chosen
        room[chosen] -= 1
    return ids


def _local_ids(topk_ids: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Returns the local expert of each pair, flat; -1 for experts that are not here."""
    import torch

    ids = topk_ids.reshape(-1).to(torch.int64)
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.shape[0])
        ids = torch.where(known, expert_map.to(torch.int64)[ids.clamp(0, max(expert_map.shape[0] - 1, 0))], -1)
    return torch.where((ids >= 0) & (ids < num_experts), ids, -1)


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: torch.Tensor | None = None,
    experts_ids: torch.Tensor | None = None,
    num_tokens_post_pad: torch.Tensor | None = None,
    *,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (sorted_token_ids, experts_ids, num_tokens_post_pad), int32, written into the buffers that were given.

    Args:
        topk_ids: [M, k]; pairs with ids outside [0, E) are left out.
        num_experts: E.
        block_size: each expert's pairs are padded to a multiple of it.
        sorted_token_ids: 1-D; pair numbers token * k + slot by expert, ascending within one expert; M * k fills the
            rest. Made with the length that any routing fits in (``jitmoe.problems.sorting.max_padded_pairs``) if None.
        experts_ids: 1-D; the expert of each block; -1 for blocks that are not used. One per block of the above if None.
        num_tokens_post_pad: [1]; used places of sorted_token_ids, a multiple of block_size.
        expert_map: [experts on all ranks] int32, local expert of each id or a number outside [0, E).
    """
    import torch

    ids = _local_ids(topk_ids, num_experts, expert_map)
    num_pairs = ids.numel()
    longest = max_padded_pairs(num_pairs, num_experts, block_size)
    if sorted_token_ids is None:
        sorted_token_ids = ids.new_empty(longest, dtype=torch.int32)
    if experts_ids is None:
        experts_ids = ids.new_empty(longest // block_size, dtype=torch.int32)
    if num_tokens_post_pad is None:
        num_tokens_post_pad = ids.new_empty(1, dtype=torch.int32)
    counts = torch.bincount(ids[ids >= 0], minlength=num_experts)
    blocks = (counts + block_size - 1) // block_size
    starts = (blocks.cumsum(0) - blocks) * block_size
    order = torch.sort(torch.where(ids >= 0, ids, num_experts), stable=True).indices[: int(counts.sum())]
    experts = ids[order]
    rank = torch.arange(order.numel(), device=ids.device) - (counts.cumsum(0) - counts)[experts]
    sorted_token_ids.fill_(num_pairs)
    sorted_token_ids[starts[experts] + rank] = order.to(torch.int32)
    experts_ids.fill_(-1)
    used = torch.repeat_interleave(torch.arange(num_experts, device=ids.device), blocks)
    experts_ids[: used.numel()] = used.to(torch.int32)
    num_tokens_post_pad.fill_(used.numel() * block_size)
    return sorted_token_ids, experts_ids, num_tokens_post_pad


def sorted_weights(topk_weights: torch.Tensor, sorted_token_ids: torch.Tensor) -> torch.Tensor:
    """Returns the float32 weight of each place, 0 in padding."""
    import torch

    weights = torch.cat([topk_weights.reshape(-1).to(torch.float32), torch.zeros(1, device=topk_weights.device)])
    return weights[sorted_token_ids.to(torch.int64)]


def moe_sorting(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    num_experts: int,
    hidden_size: int,
    dtype: torch.dtype | str,
    block_size: int = 32,
    *,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, output).

    sorted_ids, sorted_expert_ids and num_valid_ids are those of ``moe_align_block_size``; sorted_weights is the float32
    weight of each place, 0 in padding; output is [M, hidden_size] of ``dtype``, zeros.
    """
    import torch

    ids, experts, used = moe_align_block_size(topk_ids, num_experts, block_size, expert_map=expert_map)
    output = torch.zeros(topk_ids.shape[0], hidden_size, dtype=_torch_dtype(dtype), device=topk_ids.device)
    return ids, sorted_weights(topk_weights, ids), experts, used, output


def expert_load(topk_ids: torch.Tensor, num_experts: int) -> ExpertLoad:
    """Returns how many pairs each expert gets, and the largest over the mean load."""
    import torch

    ids = _local_ids(topk_ids, num_experts, None)
    counts = torch.bincount(ids[ids >= 0], minlength=num_experts)
    total = counts.sum().to(torch.float32)
    ratio = counts.max().to(torch.float32) * num_experts / total.clamp_min(1.0)
    return ExpertLoad(counts.to(torch.int32), ratio.reshape(1))

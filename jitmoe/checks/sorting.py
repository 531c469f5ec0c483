# SPDX-License-Identifier: MIT
"""The self-check of sorting by expert: bit for bit what the reference gives, everything outside untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.sorting import SortProblem
from jitmoe.tensors import torch_dtypes

SEED = 20260101
GUARD = 77  # what the bytes past the cleared ones hold


def inputs(problem: SortProblem) -> dict[str, Any]:
    """Returns host tensors: ids with experts of other ranks, experts without tokens and one with many."""
    import torch

    dtypes = torch_dtypes()
    m, k, e = problem.num_tokens, problem.top_k, problem.num_experts
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(-1, e + 2, (m, k), generator=generator)
    ids[ids == 1] = 0
    tensors = {
        "topk_ids": ids.to(dtypes[problem.ids_dtype]),
        "sorted_token_ids": torch.full((problem.num_sorted,), -7, dtype=torch.int32),
        "expert_ids": torch.full((problem.num_blocks,), -7, dtype=torch.int32),
        "num_tokens_post_pad": torch.full((1,), -7, dtype=torch.int32),
    }
    if problem.num_global_experts is not None:
        expert_map = torch.randperm(problem.num_global_experts, generator=generator).to(torch.int32)
        expert_map[0] = -1
        tensors["expert_map"] = expert_map
    if problem.weights_dtype is not None:
        tensors["topk_weights"] = torch.rand(m, k, generator=generator).to(dtypes[problem.weights_dtype])
        tensors["sorted_weights"] = torch.full((problem.num_sorted,), float("nan"))
        tensors["output"] = torch.full((problem.zeroed_bytes + 3,), GUARD, dtype=torch.uint8)
    return tensors


def judge(problem: SortProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (0 or infinity, what is wrong or "")."""
    import torch

    from jitmoe import reference

    expected = {name: inputs[name].clone() for name in ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")}
    reference.moe_align_block_size(
        inputs["topk_ids"],
        problem.num_experts,
        problem.block_size,
        *expected.values(),
        expert_map=inputs.get("expert_map"),
    )
    if problem.weights_dtype is not None:
        expected["sorted_weights"] = reference.sorted_weights(inputs["topk_weights"], expected["sorted_token_ids"])
        expected["output"] = inputs["output"].clone()
        expected["output"][: problem.zeroed_bytes] = 0
    wrong = [name for name, value in expected.items() if not torch.equal(results[name], value)]
    return (float("inf"), f"{', '.join(wrong)} differ from the reference") if wrong else (0.0, "")

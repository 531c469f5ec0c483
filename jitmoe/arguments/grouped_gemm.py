# SPDX-License-Identifier: MIT
"""Argument checks of ``grouped_gemm_moe``."""

from __future__ import annotations

import dataclasses
import math

from jitmoe.arguments.common import (
    MAX_PAIRS,
    MAX_SLOTS,
    Facts,
    base_alignment,
    check_bias,
    check_dtype,
    check_places,
    check_rank,
    matrix_layout,
    row_stride,
    shape_text,
)
from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import (
    COMPUTE_DTYPES,
    INDEX_DTYPES,
    WEIGHT_DTYPES,
)
from jitmoe.problems.grouped_gemm import GroupedGemmProblem


def grouped_gemm_problem(tensors: Facts, top_k: int, trans_b: bool, *, look_at_addresses: bool) -> GroupedGemmProblem:
    """Checks the tensors of a ``grouped_gemm_moe`` call against each other and returns what is asked.

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    a, b, d = tensors["A"], tensors["B"], tensors["D"]
    weights, ids = tensors["topk_weights"], tensors["topk_indices"]
    assert a is not None and b is not None and d is not None and weights is not None and ids is not None
    b_shape = "[E, N, K]" if trans_b else "[E, K, N]"
    check_rank("A", a, "[M, K] or [B, S, K]", 2, 3)
    check_rank("B", b, b_shape, 3)
    check_rank("topk_weights", weights, "[M, top_k]", 2)
    check_rank("topk_indices", ids, "[M, top_k]", 2)
    dtype = check_dtype("A", a, COMPUTE_DTYPES)
    check_dtype("B", b, (dtype,))
    check_dtype("D", d, (dtype,))
    ids_dtype, weights_dtype = (
        check_dtype("topk_indices", ids, INDEX_DTYPES),
        check_dtype("topk_weights", weights, WEIGHT_DTYPES),
    )
    check_places(tensors, "A")
    if not trans_b:  # from here on B is [E, N, K]
        (experts, rows, columns), (to_expert, to_row, to_column) = b.shape, b.strides
        swapped = dataclasses.replace(b, shape=(experts, columns, rows), strides=(to_expert, to_column, to_row))
    else:
        swapped = b
    num_tokens, k = math.prod(a.shape[:-1]), a.shape[-1]
    num_experts, n, b_k = swapped.shape
    if k == 0:
        raise ArgumentError(argument="A", got=f"shape {shape_text(a)}", expected="K >= 1")
    if num_experts == 0 or n == 0 or b_k != k:
        raise ArgumentError(
            argument="B",
            got=f"shape {shape_text(b)}",
            expected=f"{b_shape} with E, N >= 1 and K = {k} (trans_b={trans_b})",
        )
    if d.shape != (*a.shape[:-1], n):
        raise ArgumentError(argument="D", got=f"shape {shape_text(d)}", expected=f"[M, N] = {[*a.shape[:-1], n]}")
    if ids.shape != (num_tokens, top_k):
        raise ArgumentError(
            argument="topk_indices", got=f"shape {shape_text(ids)}", expected=f"[M, top_k] = [{num_tokens}, {top_k}]"
        )
    if weights.shape != ids.shape:
        raise ArgumentError(
            argument="topk_weights",
            got=f"shape {shape_text(weights)}",
            expected=f"{shape_text(ids)}, like topk_indices",
        )
    if top_k > MAX_SLOTS or num_tokens * top_k > MAX_PAIRS:
        raise ArgumentError(
            argument="topk_indices",
            got=f"{num_tokens} x {top_k} (row, expert) pairs",
            expected=f"top_k <= {MAX_SLOTS} and at most {MAX_PAIRS} pairs",
        )
    d_row_stride = row_stride("D", d)
    if num_tokens > 1 and d_row_stride < n:
        raise ArgumentError(argument="D", got=f"strides {d.strides}", expected="rows that do not overlap")
    try:
        layout, b_stride = matrix_layout("B", swapped)
    except ArgumentError as error:  # tells the caller's strides, not those of the swapped view
        raise ArgumentError(argument="B", got=f"strides {b.strides}", expected=error.expected) from None
    return GroupedGemmProblem(
        num_tokens=num_tokens,
        n=n,
        k=k,
        num_experts=num_experts,
        top_k=top_k,
        dtype=dtype,
        topk_ids_dtype=ids_dtype,
        topk_weights_dtype=weights_dtype,
        layout=layout,
        a_row_stride=row_stride("A", a),
        d_row_stride=d_row_stride,
        b_expert_stride=swapped.strides[0],
        b_stride=b_stride,
        topk_ids_row_stride=row_stride("topk_indices", ids),
        topk_weights_row_stride=row_stride("topk_weights", weights),
        bias_dtype=check_bias("C", tensors["C"], (num_experts, n), dtype),
        base_alignment=base_alignment([t.address for t in (a, b, d)]) if look_at_addresses else 1,
    )

# SPDX-License-Identifier: MIT
"""``grouped_gemm_moe``: one batched GEMM over experts with the weighted sum over each row's experts."""

from __future__ import annotations

from typing import Any, NamedTuple

from jitmoe import arguments, calls
from jitmoe.errors import ArgumentError
from jitmoe.grouped_problem import GROUPED_GEMM
from jitmoe.operation import Problem


class GroupedGemmOptions(NamedTuple):
    """What is not a tensor."""

    top_k: int
    trans_b: bool


def _problem(facts: calls.Facts, options: GroupedGemmOptions, look_at_addresses: bool) -> Problem:
    return arguments.grouped_gemm_problem(facts, *options, look_at_addresses=look_at_addresses)


def _reference(named: dict[str, Any], options: GroupedGemmOptions) -> tuple[Any, ...]:
    from jitmoe import reference

    inputs = (named[name] for name in ("A", "B", "C", "topk_weights", "topk_indices"))
    return (reference.grouped_gemm_moe(*inputs, trans_b=options.trans_b),)


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
        A: [M, K], bfloat16, float16 or float32, dense rows; tensors of the kinds that ``fused_moe`` takes.
        B: [E, K, N], or [E, N, K] with ``trans_b``; same dtype. Unit stride in one of the last two dimensions.
        C: bias [E, N], same dtype or float32, dense; or None.
        D: [M, N], the output, same dtype, dense rows; must not overlap the inputs.
        topk_weights: [M, top_k], bfloat16, float16, float32 or float64.
        topk_indices: [M, top_k], int32 or int64; an index outside [0, E) contributes nothing.
        top_k: experts per row.
        trans_b: whether B is [E, N, K].
        queue: as for ``fused_moe``; so is when the result is there.

    Raises:
        ArgumentError: an argument does not fit; nothing has run.
        JitMoEError: with ``JITMOE_STRICT=1``, whatever kept the kernels from being used.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise ArgumentError(argument="top_k", got=repr(top_k), expected="a whole number >= 1")
    options = GroupedGemmOptions(top_k, arguments.check_flag("trans_b", trans_b))
    calls.run(_GROUPED_GEMM, (A, B, C, D, topk_weights, topk_indices), options, queue)

# SPDX-License-Identifier: MIT
"""The calls that a model is made of, and the kernels that each needs for which numbers of tokens."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from jitmoe.device import Device, DeviceKind
from jitmoe.models import MoEModel
from jitmoe.operation import Problem
from jitmoe.plan import plan_for
from jitmoe.plan.launch import Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routed import ROUTED_IDS_DTYPE, ROUTED_WEIGHTS_DTYPE
from jitmoe.spec import KernelSpec

MAX_TOKENS = 16384  # of the default token counts; servers split longer prefills
DENSE_TOKENS = 256  # up to here every count is looked at
STEPS_PER_OCTAVE = 32  # and from here this many per doubling, so that no planner bucket is stepped over
GPU_ALIGNMENT = 64  # bytes; what allocators give at least, and what 2D block loads need

OPS = (
    "fused_moe",
    "route",
    "moe_align_block_size",
    "moe_sorting",
    "expert_load",
    "activate",
    "grouped_gemm_moe",
)
DEFAULT_OPS = ("fused_moe", "route")  # what a model's layer is made of; fused_moe needs no sorting by others


def default_token_counts() -> tuple[int, ...]:
    """Returns the token counts to look at: all small ones, then a fine geometric series up to ``MAX_TOKENS``."""
    counts = set(range(1, DENSE_TOKENS + 1))
    step = 0
    while (value := round(DENSE_TOKENS * 2 ** (step / STEPS_PER_OCTAVE))) <= MAX_TOKENS:
        counts.add(value)
        step += 1
    return tuple(sorted(counts))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring token counts that one set of kernels serves, and the call that stands for them."""

    first: int
    last: int
    problem: Problem
    plan: Plan
    asked: tuple[int, ...] = ()  # the counts in it that were asked for one by one

    @property
    def tokens(self) -> str:
        if self.asked:
            return ",".join(map(str, self.asked))
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """What callers pass."""

    ids: tuple[DType, ...]  # topk_ids, given or asked for
    weights: tuple[DType, ...]  # topk_weights
    logits: tuple[DType, ...]  # router_logits


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one op with one choice of dtypes."""

    op: str
    dtypes: str  # in words
    buckets: tuple[Bucket, ...]

    @property
    def specs(self) -> tuple[KernelSpec, ...]:
        """The kernels of all buckets, each once."""
        return tuple(dict.fromkeys(spec for bucket in self.buckets for spec in bucket.plan.specs))


def calls_of(
    device: Device, model: MoEModel, ops: Sequence[str], dtypes: Dtypes, tokens: Sequence[int], *, exact: bool = True
) -> tuple[Calls, ...]:
    """Returns what a model's calls need on a device.

    Args:
        device: where.
        model: the layer. Without its ``routing`` nothing of routing is returned.
        ops: of ``OPS``. "fused_moe" stands for calls with given weights and ids, for those that route first, which is
            ``route`` and then the experts, and for both with the model's shared experts as the last ones.
        dtypes: what callers pass.
        tokens: numbers of tokens, ascending.
        exact: these numbers alone; otherwise they are samples of a range.

    Raises:
        UnsupportedProblemError: a call has no kernels on this device.
    """
    alignment = 1 if device.kind is DeviceKind.CPU else GPU_ALIGNMENT
    return tuple(
        Calls(op, words, buckets_of(device, problem, tokens, exact=exact))
        for op, words, problem in _problems(model, ops, dtypes, alignment)
    )


_Problems = Iterator[tuple[str, str, Callable[[int], Problem]]]  # (op, dtypes in words, problem of M tokens)


def _problems(model: MoEModel, ops: Sequence[str], dtypes: Dtypes, alignment: int) -> _Problems:
    problem: Callable[[int], Problem]
    has_router = model.router.routing is not None
    given = tuple(itertools.product(dtypes.ids, dtypes.weights))
    route_ids = dtypes.ids if "route" in ops else ()
    if "fused_moe" in ops:
        yield from _experts(model, given, alignment)
        routed = (ROUTED_IDS_DTYPE, ROUTED_WEIGHTS_DTYPE)  # what experts behind another launch read
        if has_router and routed not in given:
            yield from _experts(model, (routed,), alignment)
        if model.num_shared_experts:
            yield from _experts(model.with_shared_experts(), (routed,), alignment)
            for i, w in given:
                problem = partial(model.adjust_problem, ids_dtype=i, weights_dtype=w)
                yield "fused_moe with num_shared_experts", f"ids {i.value}, weights {w.value}", problem
        route_ids = (ROUTED_IDS_DTYPE, *route_ids)
    if has_router:
        for i, x in itertools.product(dict.fromkeys(route_ids), dtypes.logits):
            problem = partial(model.routing_problem, logits_dtype=x, ids_dtype=i)
            yield "route", f"logits {x.value}, ids {i.value}", problem
    if "moe_align_block_size" in ops:
        for i in dtypes.ids:
            yield "moe_align_block_size", f"ids {i.value}", partial(model.align_problem, ids_dtype=i)
    if "moe_sorting" in ops:
        for i, w in given:
            problem = partial(model.sort_problem, ids_dtype=i, weights_dtype=w)
            yield "moe_sorting", f"ids {i.value}, weights {w.value}", problem
    if "expert_load" in ops:
        for i in dtypes.ids:
            yield "expert_load", f"ids {i.value}", partial(model.load_problem, ids_dtype=i)
    if "activate" in ops:
        yield "activate", model.dtype.value, model.activate_problem
    if "grouped_gemm_moe" in ops:
        for i, w in given:
            problem = partial(model.product_problem, topk_ids_dtype=i, topk_weights_dtype=w, base_alignment=alignment)
            yield "grouped_gemm_moe", f"ids {i.value}, weights {w.value}", problem


def _experts(layer: MoEModel, given: Sequence[tuple[DType, DType]], alignment: int) -> _Problems:
    for i, w in given:
        problem = partial(layer.problem, topk_ids_dtype=i, topk_weights_dtype=w, base_alignment=alignment)
        yield "fused_moe", f"ids {i.value}, weights {w.value}", problem


def buckets_of(
    device: Device, problem: Callable[[int], Problem], tokens: Sequence[int], *, exact: bool = True
) -> tuple[Bucket, ...]:
    """Returns the buckets of ``tokens`` (ascending) on a device; raises ``UnsupportedProblemError``.

    Unless ``exact``, the counts are samples of a range and each bucket reaches to the next.
    """

    def bucket(num_tokens: int) -> Bucket:
        one = problem(num_tokens)
        return Bucket(num_tokens, num_tokens, one, plan_for(one, device), (num_tokens,) if exact else ())

    buckets: list[Bucket] = []
    for num_tokens in tokens:
        new = bucket(num_tokens)
        if buckets and buckets[-1].plan.specs == new.plan.specs:
            buckets[-1] = dataclasses.replace(buckets[-1], last=num_tokens, asked=buckets[-1].asked + new.asked)
            continue
        if buckets and not exact:
            old = buckets[-1]
            while new.first - old.last > 1:  # the planner's border lies between two of the counts
                middle = bucket((old.last + new.first) // 2)
                if middle.plan.specs == new.plan.specs:
                    new = middle
                else:
                    old = dataclasses.replace(old, last=middle.first)
            buckets[-1] = old
            new = dataclasses.replace(new, last=num_tokens)
        buckets.append(new)
    return tuple(buckets)

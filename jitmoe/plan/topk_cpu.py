# SPDX-License-Identifier: MIT
"""The plan for routing on CPU devices: one launch; a second one in order for capped routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import CpuIsa, Device
from jitmoe.plan.launch import Buffer, Launch, Plan
from jitmoe.plan.topk_specs import TOPK_ARGUMENTS, TopKConstants, topk_constants, topk_scalars
from jitmoe.problems.routing import RoutingProblem
from jitmoe.spec import Argument, KernelSpec, arguments

MIN_TOKENS_PER_ITEM = 16  # some microseconds: less would be lost on handing out the work-items
ITEMS_PER_CORE = 4  # balance what other programs take away


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTopK(KernelSpec, TopKConstants):
    """Experts and weights of each token."""

    KERNEL: ClassVar[str] = "cpu_topk"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(TOPK_ARGUMENTS + ", out room, int32 tokens_per_item")

    isa: CpuIsa


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTopKCapped(CpuTopK):
    """Moves tokens away from full experts, in order."""

    KERNEL: ClassVar[str] = "cpu_topk_capped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTopKChoice:
    """The kernels of one call and why."""

    topk: CpuTopK
    capped: CpuTopKCapped | None
    tokens_per_item: int
    reasons: tuple[str, ...]


def choose(problem: RoutingProblem, device: Device) -> CpuTopKChoice:
    """Returns the kernels for the device's instruction set."""
    isa = device.cpu_isa if device.cpu_isa is not None else CpuIsa.GENERIC
    isa = isa.at_most(CpuIsa.AVX512)  # nothing here multiplies 16-bit numbers: one binary for all AVX-512
    constants = topk_constants(problem)
    items = ITEMS_PER_CORE * max(1, device.num_compute_units)
    tokens_per_item = max(MIN_TOKENS_PER_ITEM, -(-problem.num_tokens // items))
    reasons = [f"instruction set {isa.value}; {tokens_per_item} tokens per work-item"]
    if problem.capacity is not None:
        reasons.append(f"no expert gets more than {problem.capacity} tokens: a second launch serves tokens in order")
    return CpuTopKChoice(
        topk=CpuTopK(isa=isa, **constants),
        capped=CpuTopKCapped(isa=isa, **constants) if problem.capacity is not None else None,
        tokens_per_item=tokens_per_item,
        reasons=tuple(reasons),
    )


def launches(problem: RoutingProblem, device: Device, choice: CpuTopKChoice) -> Plan:
    """Returns the launches."""
    scalars = {**topk_scalars(problem), "tokens_per_item": choice.tokens_per_item}
    items = -(-problem.num_tokens // choice.tokens_per_item)
    steps = [Launch(spec=choice.topk, global_size=(items,), local_size=(1,), scalars=scalars)]
    if choice.capped is not None:
        steps.append(Launch(spec=choice.capped, global_size=(1,), local_size=(1,), scalars=scalars))
    return Plan(
        launches=tuple(steps), buffers=(Buffer("room", 4 * problem.num_experts),), decisions=tuple(choice.reasons)
    )


def check_problem(problem: RoutingProblem, choice: CpuTopKChoice) -> RoutingProblem:
    """Returns a small problem for the same kernels."""
    return problem.small(num_tokens=2 * MIN_TOKENS_PER_ITEM + 5)

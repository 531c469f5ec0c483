# SPDX-License-Identifier: MIT
"""The plan for routing on Intel GPUs: one launch; a second one in order for capped routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.plan.architectures import architecture, resident_groups
from jitmoe.plan.launch import Launch, Plan
from jitmoe.plan.topk_specs import TOPK_ARGUMENTS, TopKConstants, topk_constants, topk_scalars
from jitmoe.plan.xe_specs import XeSpec
from jitmoe.problems.routing import RoutingProblem
from jitmoe.spec import Argument, arguments

SUB_GROUPS = 8  # per work-group; tokens are independent, so small work-groups spread best


@dataclass(frozen=True, slots=True, kw_only=True)
class XeTopK(XeSpec, TopKConstants):
    """Experts and weights of each token."""

    KERNEL: ClassVar[str] = "xe_topk"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(TOPK_ARGUMENTS + ", int32 num_experts")

    sub_groups: int  # per work-group


@dataclass(frozen=True, slots=True, kw_only=True)
class XeTopKCapped(XeTopK):
    """Moves tokens away from full experts, in order."""

    KERNEL: ClassVar[str] = "xe_topk_capped"


@dataclass(frozen=True, slots=True, kw_only=True)
class XeTopKChoice:
    """The kernels of one call and why."""

    topk: XeTopK
    capped: XeTopKCapped | None
    reasons: tuple[str, ...]


def choose(problem: RoutingProblem, device: Device) -> XeTopKChoice:
    """Returns the kernels for the device's sub-group size."""
    arch = architecture(device.arch)
    constants = {"simd": arch.simd, "sub_groups": SUB_GROUPS, **topk_constants(problem)}
    reasons = [f"{arch.name}: one sub-group of {arch.simd} per token"]
    if problem.capacity is not None:
        reasons.append(f"no expert gets more than {problem.capacity} tokens: a second launch serves tokens in order")
    return XeTopKChoice(
        topk=XeTopK(**constants),
        capped=XeTopKCapped(**constants) if problem.capacity is not None else None,
        reasons=tuple(reasons),
    )


def launches(problem: RoutingProblem, device: Device, choice: XeTopKChoice) -> Plan:
    """Returns the launches."""
    scalars = {**topk_scalars(problem), "num_experts": problem.num_experts}
    simd = choice.topk.simd
    resident = resident_groups(device, architecture(device.arch), SUB_GROUPS, choice.topk.large_grf)
    groups = min(resident, -(-problem.num_tokens // SUB_GROUPS))
    local_size = SUB_GROUPS * simd
    steps = [Launch(spec=choice.topk, global_size=(groups * local_size,), local_size=(local_size,), scalars=scalars)]
    if choice.capped is not None:
        steps.append(Launch(spec=choice.capped, global_size=(simd,), local_size=(simd,), scalars=scalars))
    return Plan(launches=tuple(steps), buffers=(), decisions=choice.reasons)


def check_problem(problem: RoutingProblem, choice: XeTopKChoice) -> RoutingProblem:
    """Returns a small problem for the same kernels."""
    return problem.small(num_tokens=37)

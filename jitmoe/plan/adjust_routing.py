# SPDX-License-Identifier: MIT
"""The plan for given routing on every device: one small launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device, DeviceKind
from jitmoe.plan.launch import Launch, Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routed import AdjustRoutingProblem
from jitmoe.spec import Argument, KernelSpec, arguments

CPU_TOKENS_PER_ITEM = 256  # some microseconds of work; handing out a work-item costs a tenth of that
GPU_LOCAL_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustRouting(KernelSpec):
    """Weights divided by their sum, shared experts appended."""

    KERNEL: ClassVar[str] = "adjust_routing"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in topk_weights, in topk_ids, in shared_weights, out weights, out ids, int32 num_tokens, int32 top_k,
        int32 num_shared, int32 first_shared, int32 tokens_per_item, int64 topk_weights_row_stride,
        int64 topk_ids_row_stride, int64 shared_row_stride"""
    )

    ids_dtype: DType
    weights_dtype: DType
    renormalize: bool
    has_shared_weights: bool
    shared_dtype: DType


def choose(problem: AdjustRoutingProblem, device: Device) -> AdjustRouting:
    """Returns the kernel."""
    return AdjustRouting(
        ids_dtype=problem.ids_dtype,
        weights_dtype=problem.weights_dtype,
        renormalize=problem.renormalize,
        has_shared_weights=problem.shared_dtype is not None,
        shared_dtype=problem.shared_dtype or DType.FP32,
    )


def launches(problem: AdjustRoutingProblem, device: Device, choice: AdjustRouting) -> Plan:
    """Returns the launch."""
    on_cpu = device.kind is DeviceKind.CPU
    local_size = 1 if on_cpu else GPU_LOCAL_SIZE
    tokens_per_item = CPU_TOKENS_PER_ITEM if on_cpu else 1
    items = -(-problem.num_tokens // tokens_per_item)
    launch = Launch(
        spec=choice,
        global_size=(-(-items // local_size) * local_size,),
        local_size=(local_size,),
        scalars={
            "num_tokens": problem.num_tokens,
            "top_k": problem.top_k,
            "num_shared": problem.num_shared_experts,
            "first_shared": problem.first_shared_expert,
            "tokens_per_item": tokens_per_item,
            "topk_weights_row_stride": problem.topk_weights_row_stride,
            "topk_ids_row_stride": problem.topk_ids_row_stride,
            "shared_row_stride": problem.shared_row_stride,
        },
    )
    what = ["weights divided by their sum"] if problem.renormalize else []
    if problem.num_shared_experts:
        what.append(f"{problem.num_shared_experts} shared experts from id {problem.first_shared_expert} appended")
    return Plan(launches=(launch,), buffers=(), decisions=("given routing: " + ", ".join(what),))


def check_problem(problem: AdjustRoutingProblem, choice: AdjustRouting) -> AdjustRoutingProblem:
    """Returns a problem of more than one work-item."""
    return problem.resized(num_tokens=CPU_TOKENS_PER_ITEM + 21)

# SPDX-License-Identifier: MIT
"""The plan for load statistics on CPU devices: one work-item counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.plan.launch import Launch, Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.sorting import LoadProblem
from jitmoe.spec import Argument, KernelSpec, arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuExpertLoad(KernelSpec):
    """Pairs per expert."""

    KERNEL: ClassVar[str] = "cpu_expert_load"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(
        """in topk_ids, out counts, out imbalance, int32 num_tokens, int32 top_k, int32 num_experts,
        int64 topk_ids_row_stride"""
    )

    ids_dtype: DType


def choose(problem: LoadProblem, device: Device) -> CpuExpertLoad:
    """Returns the only kernel."""
    return CpuExpertLoad(ids_dtype=problem.ids_dtype)


def launches(problem: LoadProblem, device: Device, choice: CpuExpertLoad) -> Plan:
    """Returns the launch."""
    scalars = {
        "num_tokens": problem.num_tokens,
        "top_k": problem.top_k,
        "num_experts": problem.num_experts,
        "topk_ids_row_stride": problem.ids_row_stride,
    }
    return Plan(
        launches=(Launch(spec=choice, global_size=(1,), local_size=(1,), scalars=scalars),),
        buffers=(),
        decisions=("one work-item counts",),
    )


def check_problem(problem: LoadProblem, choice: CpuExpertLoad) -> LoadProblem:
    """Returns a small problem."""
    return dataclasses.replace(problem, num_tokens=37, num_experts=11, ids_row_stride=problem.top_k)

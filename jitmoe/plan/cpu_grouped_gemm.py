# SPDX-License-Identifier: MIT
"""The plan for ``grouped_gemm_moe`` on CPU devices: ``fused_moe``'s, with pack in the place of gate_up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jitmoe.device import CpuIsa, Device
from jitmoe.plan import cpu
from jitmoe.plan.cpu_specs import CpuDownSpec, CpuPackSpec
from jitmoe.plan.launch import Launch, Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.grouped_gemm import ALIASES, GroupedGemmProblem
from jitmoe.rounding import align_up

UNITS_STEP = 16  # ranges of K are whole vectors of units


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGroupedGemmChoice:
    """Kernels for one problem on one CPU."""

    moe: cpu.CpuChoice
    pack: CpuPackSpec
    range_units: int  # of K, one work-item's


def choose(problem: GroupedGemmProblem, device: Device) -> CpuGroupedGemmChoice:
    """Returns the kernels of the second half of ``fused_moe``, and how the rows of A come to them."""
    moe = dataclasses.replace(cpu.choose(problem.second_half(), device), single=None)
    down = moe.down
    wanted = max(1, cpu.ITEMS_PER_CORE * device.num_compute_units // cpu.max_groups(problem.second_half()))
    pack = CpuPackSpec(
        isa=down.isa,
        dtype=problem.dtype,
        w2_layout=down.w2_layout,
        tiles=not isinstance(down, CpuDownSpec),
        few_pairs=down.few_pairs,
        ids_dtype=down.ids_dtype,
        has_expert_map=down.has_expert_map,
    )
    return CpuGroupedGemmChoice(
        moe=moe, pack=pack, range_units=align_up(-(-_num_units(problem.k, pack) // wanted), UNITS_STEP)
    )


def _num_units(k: int, pack: CpuPackSpec) -> int:
    """Returns the units of a row, each a pair of 16-bit numbers or one float (cpu/simd.hpp)."""
    has_pairs = pack.tiles or (pack.dtype is DType.BF16 and pack.isa is CpuIsa.AVX512_BF16)
    return align_up(-(-k // 2) if has_pairs else k, UNITS_STEP)


def launches(problem: GroupedGemmProblem, device: Device, choice: CpuGroupedGemmChoice) -> Plan:
    """Returns route (if there are many pairs), pack and down."""
    whole = cpu.launches(problem.second_half(), device, choice.moe)
    num_ranges = -(-_num_units(problem.k, choice.pack) // choice.range_units)
    scalars = {
        **whole.launches[0].scalars,
        "range_units": choice.range_units,
        "num_ranges": num_ranges,
        "x_row_stride": problem.a_row_stride,
    }
    items = cpu.max_groups(problem.second_half()) * num_ranges
    pack = Launch(spec=choice.pack, global_size=(items,), local_size=(1,), scalars=scalars, aliases=ALIASES)
    steps = [
        pack if launch.spec == choice.moe.gate_up else dataclasses.replace(launch, aliases=ALIASES)
        for launch in whole.launches
    ]
    needed = {argument.name for step in steps for argument in step.spec.ARGUMENTS}
    return Plan(
        launches=tuple(steps),
        buffers=tuple(buffer for buffer in whole.buffers if buffer.name in needed),
        decisions=(
            *(decision for decision in whole.decisions if not decision.startswith("gate_up:")),
            f"pack: {num_ranges} range(s) of {choice.range_units} units of K for each expert with rows",
        ),
    )


def check_problem(problem: GroupedGemmProblem, choice: CpuGroupedGemmChoice) -> GroupedGemmProblem:
    """Returns a problem with full, partial and tiny blocks, and tails in every dimension."""
    small = cpu.check_problem(problem.second_half(), choice.moe)
    return problem.resized(
        num_tokens=small.num_tokens,
        n=small.hidden_size,
        k=2 * choice.range_units + 37,
        num_experts=small.num_experts,
        top_k=small.top_k,
    )

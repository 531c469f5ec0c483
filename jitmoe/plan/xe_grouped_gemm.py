# SPDX-License-Identifier: MIT
"""The plan for ``grouped_gemm_moe`` on Intel GPUs: ``fused_moe``'s, with pack in the place of gate_up.

pack copies rows of A in the order of the sorted pairs, K padded with zeros: what gate_up would have left for down.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jitmoe.device import Device
from jitmoe.plan import xe
from jitmoe.plan.architectures import architecture
from jitmoe.plan.launch import Launch, Plan
from jitmoe.plan.xe_specs import XePack
from jitmoe.problems.grouped_gemm import ALIASES, GroupedGemmProblem

PACK_BYTES = 2  # xe_pack copies 16-bit elements: an element of 4 bytes is two of them


@dataclass(frozen=True, slots=True, kw_only=True)
class XeGroupedGemmChoice:
    """Kernels for one problem on one GPU."""

    moe: xe.XeChoice
    pack: XePack


def choose(problem: GroupedGemmProblem, device: Device) -> XeGroupedGemmChoice:
    """Returns the kernels of the second half of ``fused_moe``, and the copy of A's rows."""
    pieces = problem.dtype.num_bytes // PACK_BYTES
    aligned = all(size * pieces % 8 == 0 for size in (problem.a_row_stride, problem.k))
    return XeGroupedGemmChoice(
        moe=dataclasses.replace(xe.choose(problem.second_half(), device), single=None),
        pack=XePack(simd=architecture(device.arch).simd, wide=aligned and problem.base_alignment % 16 == 0),
    )


def launches(problem: GroupedGemmProblem, device: Device, choice: XeGroupedGemmChoice) -> Plan:
    """Returns route, pack, and per chunk of output columns down and combine."""
    whole = xe.launches(problem.second_half(), device, dataclasses.replace(choice.moe, pack=choice.pack))
    pieces = problem.dtype.num_bytes // PACK_BYTES
    pack_scalars = {
        "hidden_size": problem.k * pieces,
        "packed_pitch": -(-problem.k // xe.K_STEP) * xe.K_STEP * pieces,
        "x_row_stride": problem.a_row_stride * pieces,
    }

    def here(launch: Launch) -> Launch:
        if launch.spec != choice.pack:
            return dataclasses.replace(launch, aliases=ALIASES)
        aliases = {**ALIASES, "packed_x": "inter"}
        return dataclasses.replace(launch, scalars={**launch.scalars, **pack_scalars}, aliases=aliases)

    return Plan(
        launches=tuple(here(launch) for launch in whole.launches if launch.spec != choice.moe.gate_up),
        buffers=tuple(buffer for buffer in whole.buffers if buffer.name != "packed_x"),
        decisions=(
            "rows of A: packed in the order of the pairs",
            *(
                decision
                for decision in whole.decisions
                if not decision.startswith(("w1:", "tokens:", "single launch:"))
            ),
        ),
    )


def check_problem(problem: GroupedGemmProblem, choice: XeGroupedGemmChoice) -> GroupedGemmProblem:
    """Returns a small problem for the kernels of ``choice``: several blocks, full and not, tails where allowed."""
    small = xe.check_problem(problem.second_half(), choice.moe)
    step = 8 if choice.pack.wide else 1
    return problem.resized(
        num_tokens=small.num_tokens,
        n=small.hidden_size,
        k=-(-small.intermediate_size // step) * step,
        num_experts=small.num_experts,
        top_k=small.top_k,
    )

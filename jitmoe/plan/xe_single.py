# SPDX-License-Identifier: MIT
"""The single-launch form of ``fused_moe`` on Intel GPUs: which calls can have it, who asks for it, and its kernel.

The kernel does what the launches of ``plan.xe`` do, as steps that wait for each other (scheduler/tickets.hpp). It is
taken where a tuned row asks for it: nobody has measured it on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitmoe.device import Device, DeviceKind
from jitmoe.plan.tuned import SINGLE_LAUNCH_COLUMN, TunedConfig
from jitmoe.plan.xe_specs import XeDown, XeGateUp, XePack, XeRoute, XeSingle
from jitmoe.problems.fused_moe import MoEProblem

if TYPE_CHECKING:
    from jitmoe.plan.xe import XeChoice

MAX_PAIRS = 4096  # that one work-group routes while all others wait; a guess: 32 rounds of 128 work-items
MAX_SUB_GROUPS = 8  # per work-group: the decode and the middle tile
# Looks at the counter before a work-group gives up. One is a round trip to the last-level cache: with 0.5 us (a guess)
# two seconds, a hundred times what the largest call of MAX_PAIRS takes to read its weights. On the CPU device a look
# takes nanoseconds, and other processes may stop a thread for long.
MAX_POLLS = 1 << 22
EMULATED_MAX_POLLS = 1 << 29


def objections(problem: MoEProblem, device: Device, choice: XeChoice, num_chunks: int) -> list[str]:
    """Returns why one launch cannot do what ``choice`` does in several; none if it can.

    Args:
        num_chunks: column chunks that the output goes in.
    """
    found = []
    if problem.w1_quant is not None or problem.w2_quant is not None:
        found.append("quantized weights need their inputs made in steps that it does not have")
    elif (type(choice.gate_up), type(choice.down)) != (XeGateUp, XeDown):
        found.append("it is made of the dpas kernels of impl xe")
    if problem.num_pairs > MAX_PAIRS:
        found.append(f"{problem.num_pairs} pairs exceed the {MAX_PAIRS} that it routes")
    if len(choice.route) > 1:
        found.append(f"routing takes {len(choice.route)} launches")
    if num_chunks > 1:
        found.append(f"the output goes in {num_chunks} column chunks")
    if found:
        return found
    kernel = single_kernel(choice)
    sub_groups = kernel.local_size // kernel.simd
    if sub_groups > MAX_SUB_GROUPS:
        found.append(f"{sub_groups} sub-groups in a work-group exceed {MAX_SUB_GROUPS}: a tile for many tokens")
    if kernel.local_mem_bytes > device.local_mem_bytes:
        found.append(f"{kernel.local_mem_bytes} B of SLM exceed the device's {device.local_mem_bytes}")
    return found


def single_kernel(choice: XeChoice) -> XeSingle:
    """Returns the kernel that does the work of those of ``choice``, which are the dpas kernels of impl xe."""
    (route,), pack, gate_up, down = choice.route, choice.pack, choice.gate_up, choice.down
    assert isinstance(route, XeRoute) and (pack is None or isinstance(pack, XePack))
    assert isinstance(gate_up, XeGateUp) and isinstance(down, XeDown)
    return XeSingle(
        simd=gate_up.simd,
        route=route,
        pack=pack,
        gate_up=gate_up,
        down=down,
        combine=choice.combine,
    )


def decide(row: TunedConfig | None, found: list[str]) -> tuple[bool, str]:
    """Returns whether to take the single launch, and the reason.

    Args:
        row: the tuned row that the plan follows, if any.
        found: the objections.
    """
    refusal = f"cannot be had ({'; '.join(found)})"
    if row is not None and row.single_launch:
        if found:
            return False, f"single launch: {row.origin} asks for it, but it {refusal}"
        return True, f"single launch: tuned, {row.origin}; it has never run on a GPU"
    if found:
        return False, f"single launch: {refusal}"
    return False, f"single launch: unmeasured, so only where a tuned row has {SINGLE_LAUNCH_COLUMN} = 1"


def max_polls(device: Device) -> int:
    """Returns how often a work-group looks before it gives up."""
    return EMULATED_MAX_POLLS if device.kind is DeviceKind.XE_EMULATED else MAX_POLLS

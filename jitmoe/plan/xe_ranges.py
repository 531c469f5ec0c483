# SPDX-License-Identifier: MIT
"""Launches of kernels that work on ranges of pairs (kernel/route_group.hpp): one work-group, or three launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jitmoe.device import Device
from jitmoe.plan.launch import Launch
from jitmoe.plan.xe_specs import XeSpec

ROUTE_LOCAL_SIZE = 512  # work-items; a guess: enough sub-groups to hide the latency of the ids, fewer to synchronise
ROUTE_PAIRS_PER_RANGE = 64  # at least, or ranges are merged
MAX_ONE_GROUP_PAIRS = 32768  # more are routed by three launches; a guess: 64 rounds of 512 work-items
MAX_ROUTE_RANGES = 512


def launch(spec: XeSpec, groups: int, local_size: int, **scalars: float) -> Launch:
    """Returns a launch of ``groups`` work-groups with those of ``scalars`` that the kernel takes."""
    needed = {argument.name for argument in spec.ARGUMENTS if not argument.is_pointer}
    return Launch(
        spec=spec,
        global_size=(groups * local_size,),
        local_size=(local_size,),
        scalars={name: value for name, value in scalars.items() if name in needed},
    )


def range_count(num_pairs: int, device: Device, steps: Sequence[XeSpec]) -> int:
    """Returns how many ranges the pairs are cut into: one sub-group each."""
    wanted = max(1, num_pairs // ROUTE_PAIRS_PER_RANGE)
    if len(steps) == 1:
        return min(wanted, min(ROUTE_LOCAL_SIZE, device.max_work_group_size) // steps[0].simd)
    return min(wanted, MAX_ROUTE_RANGES)


def range_launches(steps: Sequence[XeSpec], scalars: Mapping[str, int], num_ranges: int) -> list[Launch]:
    """Returns the launch of the only step, or those of count, scan and (if there is one) place."""
    scalars = {**scalars, "num_ranges": num_ranges}
    if len(steps) == 1:
        return [launch(steps[0], 1, num_ranges * steps[0].simd, **scalars)]
    count, scan, *place = steps
    local_size = 8 * count.simd  # small work-groups: the ranges spread over the Xe-cores
    groups = -(-num_ranges * count.simd // local_size)
    return [
        launch(count, groups, local_size, **scalars),
        launch(scan, 1, ROUTE_LOCAL_SIZE, **scalars),
        *(launch(spec, groups, local_size, **scalars) for spec in place),
    ]

# SPDX-License-Identifier: MIT
"""The plan of experts behind a routing launch: both plans in order; the routing's result stays in the workspace."""

from __future__ import annotations

import dataclasses
from typing import Any

from jitmoe.device import Device
from jitmoe.plan import planner_for
from jitmoe.plan.launch import Buffer, Plan
from jitmoe.problems.routed import ROUTED_IDS_DTYPE, ROUTED_WEIGHTS_DTYPE, AdjustRoutingProblem, RoutedMoEProblem

_WEIGHTS, _IDS = "routed_weights", "routed_ids"


def choose(problem: RoutedMoEProblem, device: Device) -> tuple[Any, Any]:
    """Returns the choices of both parts."""
    return (
        planner_for(problem.routing, device).choose(problem.routing, device),
        planner_for(problem.experts, device).choose(problem.experts, device),
    )


def launches(problem: RoutedMoEProblem, device: Device, choice: tuple[Any, Any]) -> Plan:
    """Returns the routing's launches, then the experts' reading its result."""
    first = planner_for(problem.routing, device).launches(problem.routing, device, choice[0])
    second = planner_for(problem.experts, device).launches(problem.experts, device, choice[1])
    given = isinstance(problem.routing, AdjustRoutingProblem)
    written = {"weights": _WEIGHTS, "ids": _IDS} if given else {"topk_weights": _WEIGHTS, "topk_ids": _IDS}
    read = {"topk_weights": _WEIGHTS, "topk_ids": _IDS}
    pairs = problem.experts.num_pairs
    results = (
        Buffer(_WEIGHTS, ROUTED_WEIGHTS_DTYPE.num_bytes * pairs),
        Buffer(_IDS, ROUTED_IDS_DTYPE.num_bytes * pairs),
    )
    return Plan(
        launches=(
            *(dataclasses.replace(launch, aliases=written) for launch in first.launches),
            *(dataclasses.replace(launch, aliases={**launch.aliases, **read}) for launch in second.launches),
        ),
        buffers=(*first.buffers, *second.buffers, *results),
        counters=(*first.counters, *second.counters),
        decisions=(*first.decisions, *second.decisions),
    )

# SPDX-License-Identifier: MIT
"""Problem values of ``fused_moe`` calls that begin with a routing launch, and of that launch for given routing.

The routing launch writes weights and ids into the workspace, where the expert launches read them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jitmoe.device import DeviceKind
from jitmoe.operation import Operation
from jitmoe.problems.fused_moe import FUSED_MOE, DType, MoEProblem

if TYPE_CHECKING:
    from jitmoe.problems.routing import RoutingProblem

# What the routing launch writes into the workspace.
ROUTED_WEIGHTS_DTYPE = DType.FP32
ROUTED_IDS_DTYPE = DType.INT32

_EVERYWHERE = tuple(DeviceKind)

ADJUST_ROUTING = Operation(
    name="adjust_routing",
    tensors=("topk_weights", "topk_ids", "shared_weights", "weights", "ids"),
    outputs=("weights", "ids"),
    planners=dict.fromkeys(_EVERYWHERE, "jitmoe.plan.adjust_routing"),
    check="jitmoe.checks.adjust_routing",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustRoutingProblem:
    """Weights divided by their sum if asked, shared experts appended. Strides are in elements."""

    OPERATION: ClassVar[Operation] = ADJUST_ROUTING

    num_tokens: int  # M
    top_k: int  # k, given slots
    num_shared_experts: int  # slots that are appended
    first_shared_expert: int  # id of the first of them
    renormalize: bool
    ids_dtype: DType
    weights_dtype: DType
    shared_dtype: DType | None  # of shared_weights; None: their weight is 1
    topk_ids_row_stride: int
    topk_weights_row_stride: int
    shared_row_stride: int

    @property
    def is_empty(self) -> bool:
        return self.num_tokens == 0

    @property
    def num_slots(self) -> int:
        return self.top_k + self.num_shared_experts

    def resized(self, *, num_tokens: int) -> AdjustRoutingProblem:
        """Returns the same kind of problem with another number of densely packed tokens."""
        return dataclasses.replace(
            self,
            num_tokens=num_tokens,
            topk_ids_row_stride=self.top_k,
            topk_weights_row_stride=self.top_k,
            shared_row_stride=self.num_shared_experts,
        )

    def __str__(self) -> str:
        shared = f" + {self.num_shared_experts} shared" if self.num_shared_experts else ""
        return f"adjust_routing(M={self.num_tokens} k={self.top_k}{shared}{' renormalize' if self.renormalize else ''})"


ROUTED_MOE = Operation(
    name="fused_moe with routing",
    tensors=(*FUSED_MOE.tensors, "router_logits", "correction_bias", "shared_weights"),
    outputs=FUSED_MOE.outputs,
    planners=dict.fromkeys(_EVERYWHERE, "jitmoe.plan.routed"),
    check="",  # its parts are checked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedMoEProblem:
    """A routing problem and the expert problem that reads its result."""

    OPERATION: ClassVar[Operation] = ROUTED_MOE

    routing: RoutingProblem | AdjustRoutingProblem
    experts: MoEProblem

    @property
    def parts(self) -> tuple[RoutingProblem | AdjustRoutingProblem, MoEProblem]:
        return self.routing, self.experts

    @property
    def is_empty(self) -> bool:
        return self.experts.is_empty

    def __str__(self) -> str:
        return f"{self.routing}, {self.experts}"

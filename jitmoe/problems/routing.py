# SPDX-License-Identifier: MIT
"""How a router's logits become experts and weights: a frozen value per router, and the problem value of ``route``.

Letters: M tokens, E experts, k experts per token, G groups of E / G neighbouring experts.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

from jitmoe.device import DeviceKind
from jitmoe.errors import ArgumentError
from jitmoe.operation import Operation
from jitmoe.options import check_flag, check_member, check_number, check_whole
from jitmoe.problems.fused_moe import DType

MAX_EXPERTS = 1024  # of the top-k kernels: a token's choice values are kept in registers or in the L1 cache
MAX_TOP_K = 32  # one bit or lane per slot
MAX_GROUPS = 32  # one bit per group
DEEPSEEK_EPSILON = 1e-20  # what DeepSeek-V3's own code adds to the sum of sigmoid weights


class Scoring(str, Enum):
    """The function from logits to scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt_softplus"  # sqrt(log(1 + exp(x))), DeepSeek-V4
    SPARSEMIXER = "sparsemixer"  # a softmax of its own for each slot, over the experts near its choice (Phi-3.5-MoE)
    NONE = "none"  # the logits are scores already


class GroupScore(str, Enum):
    """The score of a group of experts."""

    MAX = "max"  # its best expert's choice value (DeepSeek-V2)
    TOP2_SUM = "top2_sum"  # the sum of its two best (DeepSeek-V3)


class Objection(NamedTuple):
    """Why logits cannot be routed: ``field``, of ``Routing`` or router_logits, is ``got`` instead of ``expected``."""

    field: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """One router: which experts a token gets, and with which weights. All arithmetic is in float32.

    The steps for each token, x its logits, in this order:

    1. ``x / temperature``
    2. scores = ``scoring(x)``, softmax over all E; with ``topk_before_scoring``, and for sparsemixer, scores = x here
    3. choice values = scores + correction bias (where one is given)
    4. with ``num_groups`` > 1: a group's score is the ``group_score`` of its choice values; only experts of the best
       ``topk_groups`` groups remain
    5. ids = the ``top_k`` largest choice values, descending
    6. weights = their scores (without the bias); with ``topk_before_scoring``: ``scoring`` of the k chosen x, softmax
       over these k; for sparsemixer the weight of slot j is its expert's part in a softmax over those experts e of the
       remaining groups that no earlier slot has and that are near:
       ``m - x[e] <= 2 * jitter_eps * max(abs(x[e]), m)``, m the x of slot j's expert
    7. ``renormalize``: weights / (max(sum of the weights, ``renormalize_min``) + ``renormalize_epsilon``)
    8. weights * ``scaling_factor``
    9. ids E, E+1, ... of ``num_shared_experts`` fused shared experts are appended, with ``shared_expert_weight``

    Among equal values, groups' and experts', the lower index comes first. -inf is an ordinary smallest value.

    Attributes:
        top_k: k, at most 32.
        scoring: see ``Scoring``; a string will do.
        topk_before_scoring: choose on the logits, score the chosen (gpt-oss, Granite: softmax; Llama 4: sigmoid).
        num_groups: G, at most 32, a divisor of E.
        topk_groups: groups that remain.
        group_score: see ``GroupScore``; TOP2_SUM needs two experts per group.
        renormalize: divide the weights by their sum.
        renormalize_epsilon: added to the sum (DeepSeek-V3: 1e-20).
        renormalize_min: lower bound of the sum (Ernie 4.5: moe_norm_min).
        jitter_eps: of sparsemixer, >= 0 (transformers: router_jitter_noise).
        scaling_factor: of the routed experts' weights (DeepSeek: routed_scaling_factor).
        temperature: > 0; below 1 sharpens.
        num_shared_experts: shared experts that the call computes as experts E, E+1, ... of its weights.
        shared_expert_weight: their weight. 1 where ``scaling_factor`` is in the routed weights; where a caller scales
            the whole result afterwards, leave ``scaling_factor`` at 1 and give 1 / that factor here.
        capacity_factor: None: a token's experts depend on the token alone. A number c: no expert gets more than
            ceil(c * M * k / E) tokens. Tokens are served in order, and each takes its best experts (of the remaining
            groups) among those with room, at that moment. Where fewer than k have room, the last slots stay empty:
            id -1, weight 0. 1.2 is a usual number. Not with sparsemixer, whose weights depend on who else is there.
    """

    top_k: int
    scoring: Scoring = Scoring.SOFTMAX
    topk_before_scoring: bool = False
    num_groups: int = 1
    topk_groups: int = 1
    group_score: GroupScore = GroupScore.MAX
    renormalize: bool = False
    renormalize_epsilon: float = 0.0
    renormalize_min: float = 0.0
    jitter_eps: float = 0.01
    scaling_factor: float = 1.0
    temperature: float = 1.0
    num_shared_experts: int = 0
    shared_expert_weight: float = 1.0
    capacity_factor: float | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("scoring", check_member("scoring", self.scoring, Scoring))
        put("group_score", check_member("group_score", self.group_score, GroupScore))
        check_flag("topk_before_scoring", self.topk_before_scoring)
        check_flag("renormalize", self.renormalize)
        check_whole("top_k", self.top_k, 1, MAX_TOP_K)
        check_whole("num_groups", self.num_groups, 1, MAX_GROUPS)
        check_whole("topk_groups", self.topk_groups, 1, self.num_groups)
        check_whole("num_shared_experts", self.num_shared_experts, 0, MAX_TOP_K)
        for name in ("renormalize_epsilon", "renormalize_min", "jitter_eps"):
            put(name, check_number(name, getattr(self, name), least=0))
        for name in ("scaling_factor", "shared_expert_weight"):
            put(name, check_number(name, getattr(self, name)))
        put("temperature", check_number("temperature", self.temperature, above=0))
        if self.capacity_factor is not None:
            put("capacity_factor", check_number("capacity_factor", self.capacity_factor, above=0))
            if self.scoring is Scoring.SPARSEMIXER:
                raise ArgumentError(
                    argument="capacity_factor", got=repr(self.capacity_factor), expected="None with sparsemixer"
                )

    @property
    def chooses_by_logits(self) -> bool:
        """Whether experts are chosen first and their logits scored afterwards."""
        return self.topk_before_scoring or self.scoring is Scoring.SPARSEMIXER

    @property
    def num_slots(self) -> int:
        """Columns of the result: k and the shared experts."""
        return self.top_k + self.num_shared_experts

    def objection(self, num_experts: int) -> Objection | None:
        """Returns why ``num_experts`` logits cannot be routed this way, None if they can."""
        if not 1 <= num_experts <= MAX_EXPERTS:
            return Objection("router_logits", f"E = {num_experts}", f"1 to {MAX_EXPERTS} experts")
        if num_experts % self.num_groups:
            return Objection("num_groups", str(self.num_groups), f"a divisor of E = {num_experts}")
        group_size = num_experts // self.num_groups
        if self.num_groups > 1 and self.group_score is GroupScore.TOP2_SUM and group_size < 2:
            return Objection(
                "num_groups", str(self.num_groups), "groups with two best experts (group_score = top2_sum)"
            )
        remaining = self.topk_groups * group_size
        if self.top_k > remaining:
            return Objection("top_k", str(self.top_k), f"at most the {remaining} experts to choose from")
        return None

    def capacity(self, num_tokens: int, num_experts: int) -> int | None:
        """Returns the most tokens that an expert may get, None without a limit."""
        if self.capacity_factor is None:
            return None
        return math.ceil(self.capacity_factor * num_tokens * self.top_k / num_experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureSchedule:
    """A temperature that goes from ``first`` to ``last`` over ``num_steps`` calls, geometrically.

    High temperatures even out softmax weights, so that near-ties are broken less sharply while a router settles.
    ``dataclasses.replace(routing, temperature=schedule.at(step))`` costs no compilation: kernels take the temperature
    as an argument.
    """

    first: float
    last: float = 1.0
    num_steps: int = 1

    def __post_init__(self) -> None:
        check_number("first", self.first, above=0)
        check_number("last", self.last, above=0)
        check_whole("num_steps", self.num_steps, 1)

    def at(self, step: int) -> float:
        """Returns the temperature of call number ``step``, counted from 0; ``last`` from ``num_steps`` on."""
        done = min(max(step / self.num_steps, 0.0), 1.0)
        return float(self.first ** (1.0 - done) * self.last**done)


ROUTE = Operation(
    name="route",
    tensors=("router_logits", "correction_bias", "topk_weights", "topk_ids"),
    outputs=("topk_weights", "topk_ids"),
    planners={
        DeviceKind.CPU: "jitmoe.plan.topk_cpu",
        DeviceKind.GPU: "jitmoe.plan.topk_xe",
        DeviceKind.XE_EMULATED: "jitmoe.plan.topk_xe",
    },
    check="jitmoe.checks.route",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingProblem:
    """One ``route`` call. Strides are in elements."""

    OPERATION: ClassVar[Operation] = ROUTE

    num_tokens: int  # M
    num_experts: int  # E
    routing: Routing
    dtype: DType  # of the logits
    bias_dtype: DType | None  # of the correction bias; None without one
    ids_dtype: DType  # of the result's ids
    logits_row_stride: int
    weights_row_stride: int
    ids_row_stride: int

    @property
    def is_empty(self) -> bool:
        return self.num_tokens == 0

    @property
    def capacity(self) -> int | None:
        return self.routing.capacity(self.num_tokens, self.num_experts)

    def small(self, *, num_tokens: int) -> RoutingProblem:
        """Returns a problem for a self-check: densely packed, the same kernels, all numbers tame and with an effect."""
        routing = dataclasses.replace(
            self.routing,
            renormalize_epsilon=0.125,
            renormalize_min=0.25,
            jitter_eps=0.2357,  # no two logits on the inputs' grid are exactly this far apart
            scaling_factor=2.5,
            temperature=1.0 if self.routing.temperature == 1.0 else 1.5,
            capacity_factor=None if self.routing.capacity_factor is None else 0.75,
        )
        return dataclasses.replace(
            self,
            num_tokens=num_tokens,
            routing=routing,
            logits_row_stride=self.num_experts,
            weights_row_stride=routing.num_slots,
            ids_row_stride=routing.num_slots,
        )

    def __str__(self) -> str:
        r = self.routing
        groups = f" {r.topk_groups}/{r.num_groups} groups {r.group_score.value}" if r.num_groups > 1 else ""
        order = "topk-" if r.topk_before_scoring else ""
        cap = f" capacity {self.capacity}" if r.capacity_factor is not None else ""
        return (
            f"route(M={self.num_tokens} E={self.num_experts} k={r.top_k} {self.dtype.value} {order}{r.scoring.value}"
            f"{' biased' if self.bias_dtype is not None else ''}{groups}{cap})"
        )

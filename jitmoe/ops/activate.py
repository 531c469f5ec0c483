# SPDX-License-Identifier: MIT
"""The activation between the two GEMMs as an op of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from jitmoe import calls, tensors
from jitmoe.arguments.activate import activate_problem, activated
from jitmoe.arguments.common import Facts
from jitmoe.errors import ArgumentError
from jitmoe.operation import Problem
from jitmoe.options import check_member, check_number
from jitmoe.problems.activate import ACTIVATE
from jitmoe.problems.fused_moe import SWIGLU_ALPHA, Activation, GateUp


class _Options(NamedTuple):
    activation: Activation
    gate_up: GateUp
    alpha: float
    limit: float | None


def _problem(facts: Facts, options: _Options, look_at_addresses: bool) -> Problem:
    return activate_problem(facts, *options)


def _reference(named: dict[str, Any], options: _Options) -> tuple[Any, ...]:
    from jitmoe import reference

    activation, layout, alpha, limit = options
    return (reference.activate(named["gate"], named["up"], activation, layout=layout, alpha=alpha, limit=limit),)


_ACTIVATE = calls.Op(operation=ACTIVATE, optional=frozenset({"up"}), problem=_problem, reference=_reference)


def activate(
    gate: Any,
    up: Any = None,
    activation: str = "silu",
    *,
    layout: str | None = None,
    alpha: float = SWIGLU_ALPHA,
    limit: float | None = None,
    out: Any = None,
    queue: Any = None,
) -> Any:
    """Returns act(gate) * up, elementwise, in float32 and rounded once.

    Args:
        gate: [*, I], bfloat16, float16 or float32; rows dense and evenly spaced. With layout "concatenated" or
            "interleaved": both halves, [*, 2I].
        up: like ``gate``; only with layout "separate".
        activation: "silu", "gelu", "gelu_tanh", "relu2" (max(x, 0)^2) or "swiglu_oai"
            (gate * sigmoid(alpha * gate) * (up + 1)).
        layout: "separate" (gate and up are two tensors), "concatenated" (g0 g1 ... u0 u1 ...), "interleaved"
            (g0 u0 g1 u1 ...) or "ungated" (act(gate), no up). None: separate with ``up``, ungated without.
        alpha: of "swiglu_oai".
        limit: L > 0: gate = min(gate, L) and up = clamp(up, -L, L) come first; None: no clamping.
        out: write the result there and return it: [*, I], dtype of ``gate``. May be ``gate`` itself where it has that
            shape; must not overlap the inputs otherwise.
        queue: as for ``fused_moe``.

    Raises:
        ArgumentError, JitMoEError: as ``fused_moe``.
    """
    if layout is None:
        gate_up = GateUp.UNGATED if up is None else GateUp.SEPARATE
    else:
        gate_up = check_member("layout", layout, GateUp)
    if (up is not None) != (gate_up is GateUp.SEPARATE):
        got = f"{'no tensor' if up is None else 'a tensor'} with layout {gate_up.value}"
        raise ArgumentError(argument="up", got=got, expected="a tensor with layout separate, none otherwise")
    options = _Options(
        check_member("activation", activation, Activation),
        gate_up,
        check_number("alpha", alpha),
        None if limit is None else check_number("limit", limit, above=0),
    )
    gate = tensors.adopt("gate", gate)
    if out is None:
        facts = tensors.describe("gate", gate)
        dtype, shape = activated(facts, gate_up)
        out = tensors.empty(gate, shape, dtype)
    calls.run(_ACTIVATE, (gate, up, out), options, queue)
    return out


def silu_and_mul_moe(gate_output: Any, up_output: Any, *, queue: Any = None) -> None:
    """Writes silu(gate_output) * up_output into ``gate_output``; both [*, I]. Raises as ``activate``."""
    gate_output = tensors.adopt("gate_output", gate_output)
    try:
        activate(gate_output, up_output, layout="separate", out=gate_output, queue=queue)
    except ArgumentError as error:
        raise error.renamed({"gate": "gate_output", "up": "up_output", "out": "gate_output"}) from None

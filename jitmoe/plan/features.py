# SPDX-License-Identifier: MIT
"""What the expert kernels cannot do yet: such calls are computed by the reference, which says so."""

from __future__ import annotations

from jitmoe.errors import UnsupportedProblemError
from jitmoe.problem import Activation, GateUp, MoEProblem

_ACTIVATIONS = (Activation.SILU, Activation.GELU, Activation.GELU_TANH)


def check(problem: MoEProblem) -> None:
    """Raises ``UnsupportedProblemError`` with every feature of ``problem`` that the kernels lack."""
    lacking = {
        f"activation {problem.activation.value}": problem.activation not in _ACTIVATIONS,
        f"gate and up rows {problem.gate_up.value}": problem.gate_up is not GateUp.CONCATENATED,
        "a limit of the activation": problem.swiglu_limit is not None,
        "biases": problem.w1_bias_dtype is not None or problem.w2_bias_dtype is not None,
        "routing weights on the input": problem.router_weight_on_input,
        "quantized weights": problem.w1_quant is not None or problem.w2_quant is not None,
        "quantized inputs": problem.input_quant is not None,
    }
    reasons = tuple(f"the kernels have no {what}" for what, is_asked in lacking.items() if is_asked)
    if reasons:
        raise UnsupportedProblemError(problem=str(problem), reasons=reasons)

# SPDX-License-Identifier: MIT
"""What the expert kernels cannot do yet: such calls are computed by the reference, which says so."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from jitmoe.errors import UnsupportedProblemError
from jitmoe.problem import Activation, GateUp, MoEProblem

_ACTIVATIONS = (Activation.SILU, Activation.GELU, Activation.GELU_TANH)


class Feature(str, Enum):
    """Parts of a problem that a plan module has to name to be given them."""

    ACTIVATION = "activation"
    GATE_UP = "gate_up"
    LIMIT = "limit"
    BIAS = "bias"
    WEIGHT_ON_INPUT = "weight_on_input"
    QUANTIZED_WEIGHTS = "quantized_weights"
    QUANTIZED_INPUTS = "quantized_inputs"


# What does not touch the GEMMs' operands.
PLAIN = (Feature.ACTIVATION, Feature.GATE_UP, Feature.LIMIT, Feature.BIAS, Feature.WEIGHT_ON_INPUT)


def check(problem: MoEProblem, supported: Collection[Feature] = ()) -> None:
    """Raises ``UnsupportedProblemError`` with every feature of ``problem`` that the kernels lack."""
    asked = {
        Feature.ACTIVATION: (f"activation {problem.activation.value}", problem.activation not in _ACTIVATIONS),
        Feature.GATE_UP: (
            f"gate and up rows {problem.gate_up.value}",
            problem.gate_up is not GateUp.CONCATENATED,
        ),
        Feature.LIMIT: ("a limit of the activation", problem.swiglu_limit is not None),
        Feature.BIAS: ("biases", problem.w1_bias_dtype is not None or problem.w2_bias_dtype is not None),
        Feature.WEIGHT_ON_INPUT: ("routing weights on the input", problem.router_weight_on_input),
        Feature.QUANTIZED_WEIGHTS: (
            "quantized weights",
            problem.w1_quant is not None or problem.w2_quant is not None,
        ),
        Feature.QUANTIZED_INPUTS: ("quantized inputs", problem.input_quant is not None),
    }
    reasons = tuple(
        f"the kernels have no {what}"
        for feature, (what, is_asked) in asked.items()
        if is_asked and feature not in supported
    )
    if reasons:
        raise UnsupportedProblemError(problem=str(problem), reasons=reasons)

# SPDX-License-Identifier: MIT
"""Fused Mixture-of-Experts kernels for Intel hardware that compile themselves on first use.

Importing does nothing: no device is queried, no folder made, no compiler looked for.
"""

__version__ = "0.1.0"

from jitmoe import reference
from jitmoe.errors import ArgumentError, JitMoEError
from jitmoe.ops.activate import activate, silu_and_mul_moe
from jitmoe.ops.explain import explain
from jitmoe.ops.forward import fused_moe_forward
from jitmoe.ops.fused_moe import fused_moe
from jitmoe.ops.grouped_gemm import grouped_gemm_moe
from jitmoe.ops.routing import (
    expert_load,
    grouped_topk,
    moe_align_block_size,
    moe_sorting,
    route,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)
from jitmoe.problems.formats import Encoding, WeightFormat
from jitmoe.problems.routing import GroupScore, Routing, Scoring, TemperatureSchedule
from jitmoe.problems.sorting import ExpertLoad
from jitmoe.tensors import UsmArray
from jitmoe.weights.checkpoints import (
    fold_k_order,
    load_awq,
    load_compressed_tensors,
    load_fp8,
    load_gptq,
    load_int4,
    load_int8,
    load_mxfp4,
    load_mxfp8,
    row_order,
)
from jitmoe.weights.quantize import (
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    quantize_mxfp4,
    quantize_mxfp8,
    quantize_weights,
)
from jitmoe.weights.quantized import QuantizedTensor

__all__ = [
    "ArgumentError",
    "Encoding",
    "ExpertLoad",
    "GroupScore",
    "JitMoEError",
    "QuantizedTensor",
    "Routing",
    "Scoring",
    "TemperatureSchedule",
    "UsmArray",
    "WeightFormat",
    "__version__",
    "activate",
    "expert_load",
    "explain",
    "fold_k_order",
    "fused_moe",
    "fused_moe_forward",
    "grouped_gemm_moe",
    "grouped_topk",
    "load_awq",
    "load_compressed_tensors",
    "load_fp8",
    "load_gptq",
    "load_int4",
    "load_int8",
    "load_mxfp4",
    "load_mxfp8",
    "moe_align_block_size",
    "moe_sorting",
    "quantize_fp8",
    "quantize_int4",
    "quantize_int8",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_weights",
    "reference",
    "route",
    "row_order",
    "silu_and_mul_moe",
    "topk_sigmoid",
    "topk_softmax",
    "topk_sqrt_softplus",
]

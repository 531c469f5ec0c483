# SPDX-License-Identifier: MIT
"""Plain torch twins of the ops: the slow truth that kernels are compared with, and the fallback that replaces them.

Each op of jitmoe has a twin of the same name here that takes the same arguments, in the same order, but for ``queue``,
as torch tensors on any one device. The other functions are what the twins are made of.
"""

from __future__ import annotations

from jitmoe.reference.experts import (
    E2M1_VALUES,
    activate,
    adjust_routing,
    apply_experts,
    dequantize,
    round_input,
    scales,
    silu_and_mul_moe,
    unpacked,
    weighted_products,
)
from jitmoe.reference.layer import fused_moe, fused_moe_forward, grouped_gemm_moe
from jitmoe.reference.routing import (
    expert_load,
    grouped_topk,
    moe_align_block_size,
    moe_sorting,
    route,
    sorted_weights,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)

__all__ = [
    "E2M1_VALUES",
    "activate",
    "adjust_routing",
    "apply_experts",
    "dequantize",
    "expert_load",
    "fused_moe",
    "fused_moe_forward",
    "grouped_gemm_moe",
    "grouped_topk",
    "moe_align_block_size",
    "moe_sorting",
    "round_input",
    "route",
    "scales",
    "silu_and_mul_moe",
    "sorted_weights",
    "topk_sigmoid",
    "topk_softmax",
    "topk_sqrt_softplus",
    "unpacked",
    "weighted_products",
]

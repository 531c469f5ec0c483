# SPDX-License-Identifier: MIT
"""Plain torch twins of the ops: the slow truth that kernels are compared with, and the fallback that replaces them."""

from __future__ import annotations

from jitmoe.reference.experts import (
    E2M1_VALUES,
    activate,
    adjust_routing,
    dequantize,
    fused_moe,
    grouped_gemm_moe,
    round_input,
    scales,
    unpacked,
)
from jitmoe.reference.routing import expert_load, moe_align_block_size, moe_sorting, route, sorted_weights

__all__ = [
    "E2M1_VALUES",
    "activate",
    "adjust_routing",
    "dequantize",
    "expert_load",
    "fused_moe",
    "grouped_gemm_moe",
    "moe_align_block_size",
    "moe_sorting",
    "round_input",
    "route",
    "scales",
    "sorted_weights",
    "unpacked",
]

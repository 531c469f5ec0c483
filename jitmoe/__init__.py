# SPDX-License-Identifier: MIT
"""Fused Mixture-of-Experts kernels for Intel hardware that compile themselves on first use.

Importing does nothing: no device is queried, no folder made, no compiler looked for.
"""

__version__ = "0.1.0"

from jitmoe import reference
from jitmoe.api import explain, fused_moe
from jitmoe.errors import ArgumentError, JitMoEError
from jitmoe.formats import Encoding, WeightFormat
from jitmoe.quantized import QuantizedTensor
from jitmoe.tensors import UsmArray

__all__ = [
    "ArgumentError",
    "Encoding",
    "JitMoEError",
    "QuantizedTensor",
    "UsmArray",
    "WeightFormat",
    "__version__",
    "explain",
    "fused_moe",
    "reference",
]

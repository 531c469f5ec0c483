# SPDX-License-Identifier: MIT
"""Fused Mixture-of-Experts kernels for Intel hardware that compile themselves on first use."""

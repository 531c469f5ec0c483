# SPDX-License-Identifier: MIT
"""Quantized expert weights: the tensors, making them, taking them from checkpoint layouts."""

# SPDX-License-Identifier: MIT
"""The public functions: one module per op."""

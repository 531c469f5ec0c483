# SPDX-License-Identifier: MIT
"""Argument checks: tensor facts in, a problem value out, or an ``ArgumentError`` that names the argument."""

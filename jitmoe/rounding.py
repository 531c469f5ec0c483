# SPDX-License-Identifier: MIT
"""Whole numbers rounded up."""

from __future__ import annotations


def ceil_div(value: int, step: int) -> int:
    """Returns how many steps hold ``value``."""
    return -(-value // step)


def align_up(value: int, step: int) -> int:
    """Returns the smallest multiple of ``step`` that is not less than ``value``."""
    return ceil_div(value, step) * step

# SPDX-License-Identifier: MIT
"""Compilers behind one small contract (``base.Compiler``). None of them knows that a disk cache exists."""

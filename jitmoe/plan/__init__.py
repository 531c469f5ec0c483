# SPDX-License-Identifier: MIT
"""Pure decisions: from (problem, device) to kernels, launches and workspace. No torch, no ctypes, no subprocess."""

# SPDX-License-Identifier: MIT
"""The command-line tools: jitmoe-warmup, jitmoe-cache, jitmoe-info. Thin programs over the package's functions."""

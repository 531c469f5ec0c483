# SPDX-License-Identifier: MIT
"""The kernel cache: moves bytes and strings, and does not know that compilers, devices or kernels exist."""

from jitmoe.cache.entry import Entry
from jitmoe.cache.key import CacheKey
from jitmoe.cache.layers import Cache, open_cache

__all__ = ["Cache", "CacheKey", "Entry", "open_cache"]

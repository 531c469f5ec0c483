# SPDX-License-Identifier: MIT
"""Which compilers can be used here, in order of preference, and what was found where."""

from __future__ import annotations

from jitmoe.compilers.base import Compiler
from jitmoe.compilers.icpx import find_icpx
from jitmoe.compilers.sycl_jit import find_sycl_jit


def find_compilers(choice: str, runtime_soname: str = "") -> tuple[tuple[Compiler, ...], tuple[str, ...]]:
    """Returns (usable compilers, preferred first; what each place held).

    Args:
        choice: "auto", or the name of the only one to use.
        runtime_soname: the libsycl that artifacts with a runtime ABI have to match; empty: any.
    """
    compilers: list[Compiler] = []
    searched = []
    if choice in ("auto", "icpx"):
        icpx, found = find_icpx()
        if icpx is not None and runtime_soname and icpx.runtime_abi != runtime_soname:
            found += f": it links {icpx.runtime_abi}, this process runs {runtime_soname}"
            icpx = None
        searched.append(found)
        if icpx is not None:
            compilers.append(icpx)
    if choice in ("auto", "sycl-jit"):
        library, found = find_sycl_jit()
        searched.append(found)
        if library is not None:
            compilers.append(library)
    return tuple(compilers), tuple(searched)

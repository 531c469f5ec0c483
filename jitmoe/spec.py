# SPDX-License-Identifier: MIT
"""One value, one binary: a ``KernelSpec`` holds everything that changes a compiled kernel, and nothing else.

A kernel family is one frozen dataclass derived from ``KernelSpec``. Its fields become the ``Config`` struct of the
rendered source and, through that source, the cache key; its class attributes say which header implements it and
which arguments the entry point takes. So a field cannot be forgotten in either place. A kernel that does the work of
others has their specs as fields; ``gate_up`` becomes a struct ``GateUpConfig`` inside its ``Config``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal, Union, cast, get_args

ArgumentKind = Literal["in", "out", "int32", "int64", "float32"]  # in: const void*, out: void* (also read)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an entry point. ``name`` is also the field of the kernel's ``Args`` struct in C++."""

    name: str
    kind: ArgumentKind

    @property
    def is_pointer(self) -> bool:
        return self.kind in ("in", "out")


def arguments(text: str) -> tuple[Argument, ...]:
    """Parses ``"in x, out y, int32 num_tokens"``."""
    parsed = []
    for part in text.replace("\n", " ").split(","):
        kind, name = part.split()
        if kind not in get_args(ArgumentKind):
            raise ValueError(f"unknown argument kind {kind!r} in {part!r}")
        parsed.append(Argument(name, cast(ArgumentKind, kind)))
    return tuple(parsed)


Constant = Union[bool, int, Enum, "KernelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """Base of all kernel families."""

    HEADERS: ClassVar[str] = ""  # another package whose headers the kernel includes (compilers/packages.py)
    KERNEL: ClassVar[str]  # function template jitmoe::kernel::<KERNEL> in <jitmoe/kernel/<KERNEL>.hpp>
    ARGUMENTS: ClassVar[tuple[Argument, ...]]
    DIMENSIONS: ClassVar[int] = 1  # of the nd_range
    SUB_GROUP_SIZE: ClassVar[int] = 0  # 0: the compiler's choice
    WORK_GROUP_SIZE: ClassVar[int] = 0  # 0: given at launch; 1: explicit vectors in single work-items (CPU)

    def constants(self) -> Iterator[tuple[str, Constant]]:
        """Yields (name, value) of each ``Config`` member in declaration order; fields that are None have none."""
        for spec_field in dataclasses.fields(self):
            value = getattr(self, spec_field.name)
            if value is not None:
                yield spec_field.name, value

    @property
    def entry_name(self) -> str:
        """The entry point's C name."""
        return f"jitmoe_{self.KERNEL}"

    @property
    def is_for_cpus(self) -> bool:
        """Whether it uses explicit vectors in work-groups of one work-item, and takes its arguments as one struct.

        Each argument that is set costs the CPU device's runtime 0.1 us (scalars) to 0.5 us (pointers). GPU kernels keep
        theirs apart: that a pointer argument points to global memory is known to the compiler, of one in a struct not.
        """
        return self.WORK_GROUP_SIZE == 1

    @property
    def num_parameters(self) -> int:
        """How many arguments the entry point has for the runtime."""
        return 1 if self.is_for_cpus else len(self.ARGUMENTS)

    @property
    def large_grf(self) -> bool:
        """Whether a GPU driver has to build this kernel in 256-GRF mode (a load-time option, not in the image)."""
        return False

    def __str__(self) -> str:
        values = " ".join(f"{n}={v.value if isinstance(v, Enum) else v}" for n, v in self.constants())
        return f"{self.KERNEL}({values})"

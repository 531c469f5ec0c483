# SPDX-License-Identifier: MIT
"""spec -> translation unit, and the digest of the packaged headers. Pure text; no compiler is known here."""

from __future__ import annotations

import functools
import hashlib
from enum import Enum
from pathlib import Path

from jitmoe.spec import Argument, Constant, KernelSpec

INCLUDE_DIR = Path(__file__).resolve().parent / "sycl_src"

_CPP_TYPES = {
    "in": "const void*",
    "out": "void*",
    "int32": "jitmoe::int32",
    "int64": "jitmoe::int64",
    "float32": "float",
}


def _cpp_constant(name: str, value: Constant) -> str:
    if isinstance(value, KernelSpec):
        words = "".join(word.capitalize() for word in name.split("_"))
        return _cpp_struct(f"{words}Config", value).replace("\n", "\n  ") + ";"
    if isinstance(value, Enum):
        return f"[[maybe_unused]] static constexpr auto {name} = jitmoe::{type(value).__name__}::{value.value};"
    if isinstance(value, bool):
        return f"[[maybe_unused]] static constexpr bool {name} = {str(value).lower()};"
    return f"[[maybe_unused]] static constexpr jitmoe::int32 {name} = {value};"


def _cpp_struct(name: str, spec: KernelSpec) -> str:
    members = "\n".join(f"  {_cpp_constant(member, value)}" for member, value in spec.constants())
    return f"struct {name} {{\n{members}\n}}"


def _cpp_parameter(argument: Argument) -> str:
    return f"{_CPP_TYPES[argument.kind]} {argument.name}"


def _cpp_arguments(spec: KernelSpec) -> str:
    """Returns the struct that kernels for CPUs take: one slot of 8 bytes per argument, as the launcher fills them."""
    members = "\n".join(f"  alignas(8) {_cpp_parameter(argument)};" for argument in spec.ARGUMENTS)
    return f"struct Arguments {{\n{members}\n}};\n\n"


def render(spec: KernelSpec) -> str:
    """Returns the translation unit of ``spec``: one ``Config`` struct and one extern "C" entry point."""
    arguments, parameters, prefix = "", ",\n    ".join(map(_cpp_parameter, spec.ARGUMENTS)), ""
    if spec.is_for_cpus:
        arguments, parameters, prefix = _cpp_arguments(spec), "Arguments arguments", "arguments."
    initializers = ", ".join(f".{argument.name} = {prefix}{argument.name}" for argument in spec.ARGUMENTS)
    properties = [f"JITMOE_ND_RANGE({spec.DIMENSIONS})"]
    if spec.SUB_GROUP_SIZE:
        properties.append(f"JITMOE_SUB_GROUP_SIZE({spec.SUB_GROUP_SIZE})")
    if spec.WORK_GROUP_SIZE:
        properties.append(f"JITMOE_WORK_GROUP_SIZE_{spec.DIMENSIONS}D({spec.WORK_GROUP_SIZE})")
    return f"""\
// {spec}
#include <jitmoe/entry.hpp>
#include <jitmoe/kernel/{spec.KERNEL}.hpp>

namespace {{
{_cpp_struct("Config", spec)};
}}  // namespace

{arguments}extern "C" {" ".join(properties)}
void {spec.entry_name}(
    {parameters}) {{
  jitmoe::kernel::{spec.KERNEL}<Config>({{{initializers}}});
}}
"""


@functools.cache
def header_digest() -> str:
    """Returns a SHA-256 over every packaged header (relative path and content, sorted, length-framed)."""
    digest = hashlib.sha256(usedforsecurity=False)
    for path in sorted(INCLUDE_DIR.rglob("*.hpp")):
        for part in (path.relative_to(INCLUDE_DIR).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()

# SPDX-License-Identifier: MIT
"""The programs in tools/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name: str) -> ModuleType:
    """Returns tools/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


isa_report = load_tool("isa_report")


def control_barriers(spirv: bytes) -> int:
    """Counts OpControlBarrier (224): barriers of work-groups and of sub-groups."""
    words = memoryview(spirv).cast("I")
    position, found = 5, 0  # after the header
    while position < len(words):
        found += words[position] & 0xFFFF == 224
        position += words[position] >> 16
    return found

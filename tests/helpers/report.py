# SPDX-License-Identifier: MIT
"""tools/isa_report.py as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[2] / "tools"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("isa_report", TOOLS / "isa_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["isa_report"] = module
    spec.loader.exec_module(module)
    return module


isa_report = _load()

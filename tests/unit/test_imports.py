# SPDX-License-Identifier: MIT
"""Which way imports point, and that importing jitmoe does nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jitmoe

PACKAGE = Path(jitmoe.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "sycl_src" not in path.parts
}


def imported(path: Path, *, at_import_only: bool = False) -> set[str]:
    """Returns the modules that a file imports, anywhere or only when it is imported itself."""

    def walk(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            if at_import_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if at_import_only and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            yield from walk(child)

    names: set[str] = set()
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def uses(module: str, forbidden: str, *, at_import_only: bool = False) -> bool:
    names = imported(MODULES[module], at_import_only=at_import_only)
    return any(name == forbidden or name.startswith(forbidden + ".") for name in names)


def modules_in(*folders: str) -> list[str]:
    return [name for name in MODULES if any(name == folder or name.startswith(folder + ".") for folder in folders)]


# (who, what they must not import anywhere, not even inside functions)
_WORLD = ["ctypes", "subprocess", "torch", "dpctl"]
_STAGES = ["jitmoe.cache", "jitmoe.compilers", "jitmoe.runtime", "jitmoe.pipeline"]
_VALUES = ["jitmoe.spec", "jitmoe.device", "jitmoe.problems", "jitmoe.source", "jitmoe.plan"]
RULES = [
    (["jitmoe.cache"], [*_VALUES, *_STAGES[1:], *_WORLD]),
    (["jitmoe.compilers"], ["jitmoe.cache", "jitmoe.runtime", "jitmoe.pipeline", "jitmoe.plan", "torch", "dpctl"]),
    (["jitmoe.plan"], [*_STAGES, *_WORLD, "jitmoe.tensors"]),
    (
        ["jitmoe.problems", "jitmoe.options", "jitmoe.operation", "jitmoe.device", "jitmoe.spec", "jitmoe.source"],
        [*_STAGES, *_WORLD],
    ),
    (["jitmoe.errors"], [*_STAGES, *_VALUES, *_WORLD, "jitmoe.knobs"]),
    (["jitmoe.runtime"], ["jitmoe.cache", "jitmoe.compilers", "jitmoe.pipeline", "torch", "subprocess"]),
    (["jitmoe.reference"], ["jitmoe.pipeline", "jitmoe.runtime", "jitmoe.cache", "ctypes"]),
    (["jitmoe.arguments"], ["jitmoe.pipeline", "jitmoe.cache", "jitmoe.compilers", *_WORLD]),
]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [(module, forbidden) for folders, forbidden in RULES for module in modules_in(*folders)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_import_direction(module, forbidden):
    assert [name for name in forbidden if uses(module, name)] == []


def test_only_the_stages_that_the_pipeline_wires_see_cache_and_compilers_together():
    both = [name for name in MODULES if uses(name, "jitmoe.cache") and uses(name, "jitmoe.compilers")]
    assert [name for name in both if not name.startswith("jitmoe.cli")] == [
        "jitmoe.builder",
        "jitmoe.kernels",
        "jitmoe.pipeline",
    ]


def test_only_knobs_reads_jitmoe_variables():
    for name, path in MODULES.items():
        if name in ("jitmoe.knobs",) or name.startswith("jitmoe.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Subscript)) else ""
            assert not (text.startswith(("os.environ", "os.getenv")) and "JITMOE_" in text), (name, text)


@pytest.mark.parametrize("heavy", ["torch", "dpctl", "numpy", "filelock", "platformdirs"])
def test_heavy_packages_are_imported_inside_functions_only(heavy):
    assert [name for name in MODULES if uses(name, heavy, at_import_only=True)] == []


_IMPORT_PROBE = """
import json, os, sys, threading
before_env = dict(os.environ)
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        opened.append([str(args[0]), args[1]])
    elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "os.posix_spawn", "socket.connect",
                   "ctypes.dlopen"):
        opened.append([event, str(args[0])])
import ctypes  # dlopens itself
sys.addaudithook(hook)
import jitmoe
print(json.dumps({
    "events": opened,
    "environment": dict(os.environ) == before_env,
    "threads": threading.active_count(),
    "modules": [name for name in ("torch", "dpctl", "numpy", "filelock") if name in sys.modules],
}))
"""


def test_importing_jitmoe_does_nothing(tmp_path):
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ.get("PATH", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(PACKAGE.parent),
    }
    answer = subprocess.run(
        [sys.executable, "-c", _IMPORT_PROBE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen = json.loads(answer.stdout)
    assert seen == {"events": [], "environment": True, "threads": 1, "modules": []}
    assert answer.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_public_names_exist():
    for name in jitmoe.__all__:
        assert getattr(jitmoe, name) is not None

# SPDX-License-Identifier: MIT
"""Every ``JITMOE_*`` environment variable: name, type, default and meaning, read once into one frozen value.

Nothing else in the package reads a ``JITMOE_*`` variable. ``current()`` reads the environment at its first call;
tests swap the value with ``override()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jitmoe.errors import ArgumentError

logger = logging.getLogger("jitmoe")


def _knob(variable: str, default: Any, help: str) -> Any:
    return field(default=default, metadata={"variable": variable, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """The settings of one process. Each field's metadata names its variable and says what it means."""

    cache_dir: Path | None = _knob(
        "JITMOE_CACHE_DIR", None, "folder of the kernel cache (default: the user's cache folder)"
    )
    cache_readonly_dirs: tuple[Path, ...] = _knob(
        "JITMOE_CACHE_READONLY_DIRS", (), "cache folders that are only read, before the writable one, separated by ':'"
    )
    compiler: str = _knob("JITMOE_COMPILER", "auto", "auto, icpx or sycl-jit")
    impl: str = _knob("JITMOE_IMPL", "auto", "GPU kernels: auto (xe, or what a tuned row says), xe or cutlass")
    strict: bool = _knob("JITMOE_STRICT", False, "1: raise instead of falling back to the reference")
    disable_jit: bool = _knob("JITMOE_DISABLE_JIT", False, "1: never compile; a missing kernel is an error")
    compile_timeout_s: float = _knob("JITMOE_COMPILE_TIMEOUT", 300.0, "seconds that one compilation may take")
    lock_timeout_s: float = _knob(
        "JITMOE_LOCK_TIMEOUT", 60.0, "seconds to wait for another process that builds the same kernel"
    )
    tuned_config: Path | None = _knob(
        "JITMOE_TUNED_CONFIG", None, "CSV file of measured GPU tiles that override the planner's"
    )
    jobs: int = _knob("JITMOE_JOBS", 0, "compilations at once (0: by cores and free memory; MAX_JOBS is honoured too)")


_PREFIX = "JITMOE_"
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
COMPILER_CHOICES = ("auto", "icpx", "sycl-jit")
IMPL_CHOICES = ("auto", "xe", "cutlass")


def _parse(variable: str, text: str, default: Any) -> Any:
    def wrong(expected: str) -> ArgumentError:
        return ArgumentError(argument=f"environment variable {variable}", got=repr(text), expected=expected)

    def path(text: str) -> Path:
        try:
            return Path(text).expanduser()
        except RuntimeError:  # ~ of a user without a home
            raise wrong("a path whose ~ can be resolved") from None

    if variable == "JITMOE_CACHE_READONLY_DIRS":
        return tuple(path(part) for part in text.split(os.pathsep) if part)
    if variable in ("JITMOE_CACHE_DIR", "JITMOE_TUNED_CONFIG"):
        return path(text) if text else None
    choices = {"JITMOE_COMPILER": COMPILER_CHOICES, "JITMOE_IMPL": IMPL_CHOICES}.get(variable)
    if choices is not None:
        if text not in choices:
            raise wrong(f"one of {', '.join(choices)}")
        return text
    if isinstance(default, bool):
        if text.lower() not in _TRUE | _FALSE:
            raise wrong("0 or 1")
        return text.lower() in _TRUE
    try:
        number = type(default)(text)
    except ValueError:
        raise wrong("a number") from None
    if not 0 <= number < math.inf:
        raise wrong("a finite number >= 0")
    if variable == "JITMOE_COMPILE_TIMEOUT" and number == 0:
        raise wrong("a finite number > 0")
    return number


def read(environment: Mapping[str, str]) -> Knobs:
    """Returns the knobs that ``environment`` asks for; raises ``ArgumentError`` on a value it cannot read."""
    values: dict[str, Any] = {}
    for knob in dataclasses.fields(Knobs):
        variable = knob.metadata["variable"]
        if variable in environment:
            values[knob.name] = _parse(variable, environment[variable].strip(), knob.default)
    if not values.get("jobs") and environment.get("MAX_JOBS", "").isdecimal():
        values["jobs"] = int(environment["MAX_JOBS"])
    return Knobs(**values)


def unknown(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the ``JITMOE_*`` variables that are no knobs, each with the knob that may be meant, or ""."""
    known = [knob.metadata["variable"].removeprefix(_PREFIX) for knob in dataclasses.fields(Knobs)]
    found = {}
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX)
        if name != variable and name not in known:
            import difflib  # here, because hardly any environment needs it

            near = difflib.get_close_matches(name.upper(), known, n=1)
            found[variable] = _PREFIX + near[0] if near else ""
    return found


_current: Knobs | None = None


def current() -> Knobs:
    """Returns the knobs of this process, read from the environment at the first call, which also names misspelt ones.

    A variable that resembles no knob may be somebody else's (Kubernetes makes JITMOE_SERVICE_HOST for a service called
    jitmoe), so only jitmoe-info speaks of it.
    """
    global _current
    if _current is None:
        _current = read(os.environ)
        for variable, meant in unknown(os.environ).items():
            if meant:
                logger.warning("jitmoe: nothing reads the environment variable %s; did you mean %s?", variable, meant)
    return _current


@contextlib.contextmanager
def override(**values: Any) -> Iterator[Knobs]:
    """Changes knobs for a ``with`` block (tests and tools)."""
    global _current
    before = current()
    _current = dataclasses.replace(before, **values)
    try:
        yield _current
    finally:
        _current = before

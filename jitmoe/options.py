# SPDX-License-Identifier: MIT
"""Checks of arguments that are no tensors: numbers, flags, names. Each returns the value or refuses it by name."""

from __future__ import annotations

import math
from enum import Enum
from typing import TypeVar

from jitmoe.errors import ArgumentError

Member = TypeVar("Member", bound=Enum)


def check_whole(name: str, value: object, first: int, last: int = 2**31 - 1) -> int:
    """Returns ``value`` if it is a whole number from ``first`` to ``last``: sizes are int32 on the device."""
    if not isinstance(value, int) or isinstance(value, bool) or not first <= value <= last:
        raise ArgumentError(argument=name, got=repr(value), expected=f"a whole number from {first} to {last}")
    return value


def check_number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    """Returns a finite number as float, larger than ``above`` or at least ``least``."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if not is_number or (above is not None and number <= above) or (least is not None and number < least):
        bound = ("" if above is None else f" > {above:g}") + ("" if least is None else f" >= {least:g}")
        raise ArgumentError(argument=name, got=repr(value), expected=f"a finite number{bound}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise ArgumentError(argument=name, got=repr(value), expected="True or False")
    return value


def check_member(name: str, value: object, kind: type[Member], *, also: str = "") -> Member:
    """Returns the member of ``kind`` with that value; ``also`` is what else a caller could give."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(member.value) for member in kind)
        raise ArgumentError(argument=name, got=repr(value), expected=f"{also}one of {known}") from None

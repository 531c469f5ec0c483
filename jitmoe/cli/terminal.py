# SPDX-License-Identifier: MIT
"""What the tools share at the terminal: sizes, ages, tables, a progress display, warnings, and how a program ends."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from jitmoe.errors import JitMoEError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def format_size(num_bytes: int) -> str:
    """Returns e.g. "812 B", "3.4 KB", "1.2 MB" (powers of 1024)."""
    value = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1024 or unit == "GB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def parse_size(text: str) -> int:
    """Returns the bytes of "500M", "1.5G", "300000", "64 KiB" (powers of 1024); for argparse."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500M, 1.5G or a number of bytes")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def format_age(seconds: float) -> str:
    """Returns how long ago something was, in words."""
    if seconds < _MINUTE:
        return "just now"
    for limit, unit, name in (
        (2 * _HOUR, _MINUTE, "minutes"),
        (2 * _DAY, _HOUR, "hours"),
        (float("inf"), _DAY, "days"),
    ):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name} ago"
    raise AssertionError


def count(number: int, what: str, plural: str = "") -> str:
    """Returns "1 entry", "3 entries"."""
    return f"{number} {what if number == 1 else plural or what + 's'}"


def text_table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), right: Sequence[int] = (), indent: int = 2
) -> str:
    """Returns aligned columns; ``right`` lists the columns that are right-aligned."""
    if not rows:
        return ""
    shown = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    lines = []
    for row in shown:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def shorten(text: str, stream: TextIO | None = None) -> str:
    """Cuts each line at the terminal's width; text that goes to a file or a pipe stays whole."""
    stream = stream if stream is not None else sys.stdout
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(line if len(line) <= width else line[: width - 1] + "\u2026" for line in text.splitlines())


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=False, default=str))


class Progress:
    """Progress of ``total`` steps: one redrawn line on a terminal, one line per step elsewhere. Thread-safe."""

    BAR = 24  # characters

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self._stream = stream if stream is not None else sys.stdout
        self.is_live = self._stream.isatty()
        self._done = 0
        self._label = ""
        self._lock = threading.Lock()

    def start(self, label: str) -> None:
        """Says what is being worked on."""
        with self._lock:
            self._label = label
            self._draw()

    def step(self, line: str) -> None:
        """Counts one step; ``line`` says what was done."""
        with self._lock:
            self._done += 1
            if self.is_live:
                self._label = line
                self._draw()
            else:
                width = len(str(self.total))
                print(f"[{self._done:>{width}}/{self.total}] {line}", file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        with self._lock:
            self._erase()
            print(text, file=self._stream, flush=True)
            self._draw()

    def close(self) -> None:
        """Removes the bar."""
        with self._lock:
            self._erase()
            self.is_live = False

    def _draw(self) -> None:
        if not self.is_live:
            return
        filled = self.BAR * self._done // max(self.total, 1)
        line = f"[{'#' * filled}{'.' * (self.BAR - filled)}] {self._done}/{self.total}  {self._label}"
        self._stream.write("\r\033[K" + line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()

    def _erase(self) -> None:
        if self.is_live:
            self._stream.write("\r\033[K")
            self._stream.flush()


class _Warnings(logging.Handler):
    """Shows the package's warnings once each, on stderr or through a progress bar."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.show: Callable[[str], None] | None = None
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text in self._seen:
            return
        self._seen.add(text)
        if self.show is not None:
            self.show(f"warning: {text}")
        else:
            warn(text)


_warnings = _Warnings()


@contextlib.contextmanager
def progress(total: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yields a ``Progress``; warnings pass through its bar, so that they do not tear it."""
    display = Progress(total, stream)
    _warnings.show = display.message if display.is_live else None
    try:
        yield display
    finally:
        _warnings.show = None
        display.close()


def confirm(question: str) -> bool:
    """Asks on the terminal; anything but y or yes means no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def is_interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def fail(message: object) -> None:
    """Prints an error the way all tools do."""
    print(f"error: {message}", file=sys.stderr)


def warn(message: object) -> None:
    """Prints a warning the way all tools do."""
    print(f"warning: {message}", file=sys.stderr)


def run(program: Callable[[], int]) -> int:
    """Runs a tool and turns what ends it into an exit code: errors of ours and of the system, Ctrl-C."""
    logger = logging.getLogger("jitmoe")
    logger.addHandler(_warnings)
    logger.propagate = False
    try:
        code = program()
        sys.stdout.flush()
        return code
    except JitMoEError as error:
        fail(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_CLOSED_PIPE
    except OSError as error:
        fail(f"{error.filename or 'output'}: {error.strerror or error}")  # print names no file
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return EXIT_FAILED
    finally:
        logger.removeHandler(_warnings)
        logger.propagate = True


def _discard_output() -> None:
    """Python flushes stdout again at exit; it must not find the closed pipe or the full disk a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def now() -> float:
    return time.time()

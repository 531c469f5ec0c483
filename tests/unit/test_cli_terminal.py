# SPDX-License-Identifier: MIT
"""What the tools share: sizes, ages, tables, progress, and how a program ends."""

from __future__ import annotations

import argparse
import io
import logging
import subprocess
import sys

import pytest

from jitmoe.cli import terminal
from jitmoe.errors import ToolchainNotFoundError


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (812, "812 B"), (3482, "3.4 KB"), (512 << 10, "512 KB"), (5 << 40, "5120 GB")]
)
def test_format_size(num_bytes, text):
    assert terminal.format_size(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("500M", 500 << 20), ("1.5G", 3 << 29), ("300000", 300000), ("64 KiB", 64 << 10), ("2gb", 2 << 30), ("0", 0)],
)
def test_parse_size(text, num_bytes):
    assert terminal.parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "M", "-1", "5 apples", "1e9"])
def test_parse_size_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        terminal.parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "just now"), (600, "10 minutes ago"), (7201, "2 hours ago"), (864000, "10 days ago")]
)
def test_format_age(seconds, text):
    assert terminal.format_age(seconds) == text


def test_table_aligns_and_leaves_no_trailing_space():
    table = terminal.text_table([["a", "1", ""], ["bbb", "22", "x"]], header=("NAME", "N", ""), right=(1,), indent=0)
    assert table.splitlines() == ["NAME   N", "a      1", "bbb   22  x"]


def test_lines_are_cut_on_terminals_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert terminal.shorten("x" * 20, FakeTerminal()) == "x" * 9 + "\u2026"
    assert terminal.shorten("x" * 20, io.StringIO()) == "x" * 20


def test_progress_prints_lines_where_nobody_watches():
    stream = io.StringIO()
    with terminal.progress(10, stream) as display:
        display.start("working")
        display.step("one")
        display.step("two")
    assert stream.getvalue() == "[ 1/10] one\n[ 2/10] two\n"


def test_progress_redraws_one_line_on_a_terminal():
    stream = FakeTerminal()
    with terminal.progress(2, stream) as display:
        display.step("one")
        display.step("two")
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\033[K")


def test_warnings_are_shown_once_and_do_not_tear_the_bar(capsys):
    stream = FakeTerminal()

    def program() -> int:
        with terminal.progress(1, stream):
            logging.getLogger("jitmoe.cache").warning("disk is full")
            logging.getLogger("jitmoe.cache").warning("disk is full")
        logging.getLogger("jitmoe").warning("something else")
        return 0

    assert terminal.run(program) == 0
    assert stream.getvalue().count("warning: disk is full\n") == 1
    assert capsys.readouterr().err == "warning: something else\n"


def test_our_errors_become_a_message_and_exit_code_1(capsys):
    def program() -> int:
        raise ToolchainNotFoundError(searched=("icpx: not on PATH",))

    assert terminal.run(program) == terminal.EXIT_FAILED
    assert capsys.readouterr().err.startswith("error: no SYCL compiler found")


def test_ctrl_c_ends_with_130(capsys):
    def program() -> int:
        raise KeyboardInterrupt

    assert terminal.run(program) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 10000], ids=["at the end", "on the way"])
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(lines):
    program = f"import sys; from jitmoe.cli.terminal import run; sys.exit(run(lambda: print('line\\n' * {lines}) or 0))"
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            (sys.executable, "-c", program), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert finished.returncode == terminal.EXIT_FAILED
    assert finished.stderr == "error: output: No space left on device\n"


def test_errors_of_the_system_name_their_file(capsys, tmp_path):
    assert terminal.run(lambda: len((tmp_path / "nothing").read_bytes())) == terminal.EXIT_FAILED
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'}: No such file or directory\n"

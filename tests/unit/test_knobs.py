# SPDX-License-Identifier: MIT
"""Every JITMOE_* variable: parsing, refusals, scoping."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jitmoe import knobs
from jitmoe.errors import ArgumentError
from jitmoe.knobs import Knobs


def test_an_empty_environment_gives_the_defaults():
    assert knobs.read({}) == Knobs()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("JITMOE_CACHE_DIR", "/a/b", "cache_dir", Path("/a/b")),
        ("JITMOE_CACHE_DIR", "", "cache_dir", None),
        ("JITMOE_CACHE_DIR", "  /a/b ", "cache_dir", Path("/a/b")),
        ("JITMOE_CACHE_DIR", "~/x", "cache_dir", Path("/home/u/x")),
        ("JITMOE_CACHE_READONLY_DIRS", "/a:/b", "cache_readonly_dirs", (Path("/a"), Path("/b"))),
        ("JITMOE_CACHE_READONLY_DIRS", ":/a::", "cache_readonly_dirs", (Path("/a"),)),
        ("JITMOE_CACHE_READONLY_DIRS", "", "cache_readonly_dirs", ()),
        ("JITMOE_COMPILER", "icpx", "compiler", "icpx"),
        ("JITMOE_COMPILER", "sycl-jit", "compiler", "sycl-jit"),
        ("JITMOE_STRICT", "1", "strict", True),
        ("JITMOE_STRICT", "True", "strict", True),
        ("JITMOE_STRICT", "on", "strict", True),
        ("JITMOE_STRICT", "0", "strict", False),
        ("JITMOE_STRICT", "", "strict", False),
        ("JITMOE_STRICT", "no", "strict", False),
        ("JITMOE_DISABLE_JIT", "yes", "disable_jit", True),
        ("JITMOE_COMPILE_TIMEOUT", "2.5", "compile_timeout_s", 2.5),
        ("JITMOE_LOCK_TIMEOUT", "0", "lock_timeout_s", 0.0),
        ("JITMOE_TUNED_CONFIG", "/t.csv", "tuned_config", Path("/t.csv")),
        ("JITMOE_JOBS", "3", "jobs", 3),
    ],
)
def test_values(variable, text, field, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    assert getattr(knobs.read({variable: text}), field) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("JITMOE_COMPILER", "gcc"),
        ("JITMOE_COMPILER", ""),
        ("JITMOE_STRICT", "maybe"),
        ("JITMOE_DISABLE_JIT", "2"),
        ("JITMOE_COMPILE_TIMEOUT", "soon"),
        ("JITMOE_COMPILE_TIMEOUT", "-1"),
        ("JITMOE_COMPILE_TIMEOUT", "0"),
        ("JITMOE_COMPILE_TIMEOUT", "nan"),
        ("JITMOE_COMPILE_TIMEOUT", "inf"),
        ("JITMOE_LOCK_TIMEOUT", "-0.5"),
        ("JITMOE_LOCK_TIMEOUT", "nan"),
        ("JITMOE_JOBS", "1.5"),
        ("JITMOE_JOBS", "-2"),
    ],
)
def test_refusals_name_the_variable_and_what_was_expected(variable, text):
    with pytest.raises(ArgumentError) as refused:
        knobs.read({variable: text})
    assert variable in str(refused.value)
    assert repr(text) in str(refused.value)
    assert refused.value.expected


def test_a_home_that_does_not_exist_is_named(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ArgumentError, match="JITMOE_CACHE_DIR"):
        knobs.read({"JITMOE_CACHE_DIR": "~/cache"})


@pytest.mark.parametrize(
    ("environment", "jobs"),
    [
        ({"MAX_JOBS": "5"}, 5),
        ({"MAX_JOBS": "5", "JITMOE_JOBS": "2"}, 2),
        ({"MAX_JOBS": "5", "JITMOE_JOBS": "0"}, 5),
        ({"MAX_JOBS": "many"}, 0),
        ({"MAX_JOBS": "²"}, 0),
        ({"MAX_JOBS": ""}, 0),
    ],
)
def test_max_jobs_is_honoured_but_not_ours_to_refuse(environment, jobs):
    assert knobs.read(environment).jobs == jobs


def test_every_field_has_a_variable_and_a_meaning():
    variables = [field.metadata["variable"] for field in dataclasses.fields(Knobs)]
    assert len(set(variables)) == len(variables)
    assert all(variable.startswith("JITMOE_") for variable in variables)
    assert all(len(field.metadata["help"]) > 10 for field in dataclasses.fields(Knobs))


def test_the_environment_is_read_once(monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    assert knobs.current().strict
    monkeypatch.setenv("JITMOE_STRICT", "0")
    assert knobs.current().strict


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("JITMOE_STRICKT", "JITMOE_STRICT"),
        ("JITMOE_CACHE", "JITMOE_CACHE_DIR"),
        ("JITMOE_DISABLEJIT", "JITMOE_DISABLE_JIT"),
        ("JITMOE_jobs", "JITMOE_JOBS"),
        ("JITMOE_SERVICE_HOST", ""),
        ("JITMOE_PORT_8000_TCP", ""),
    ],
)
def test_variables_that_nothing_reads_are_found_with_the_nearest_name(variable, meant):
    assert knobs.unknown({variable: "1", "JITMOE_STRICT": "1", "PATH": "/bin"}) == {variable: meant}


def test_a_misspelt_variable_is_named_once_and_a_foreign_one_is_not(monkeypatch, caplog):
    monkeypatch.setenv("JITMOE_STRICKT", "1")
    monkeypatch.setenv("JITMOE_SERVICE_HOST", "10.0.0.1")
    knobs.current()
    knobs.current()
    assert [record.getMessage() for record in caplog.records] == [
        "jitmoe: nothing reads the environment variable JITMOE_STRICKT; did you mean JITMOE_STRICT?"
    ]


def test_override_is_scoped_even_when_the_block_raises():
    before = knobs.current()
    with pytest.raises(ZeroDivisionError), knobs.override(strict=True) as changed:
        assert changed.strict and knobs.current() is changed
        raise ZeroDivisionError
    assert knobs.current() is before

# SPDX-License-Identifier: MIT
"""What the documentation names exists."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from jitmoe.cli.devices import CPU_NAMES
from jitmoe.knobs import Knobs

TOP = Path(__file__).resolve().parents[2]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("variable", [knob.metadata["variable"] for knob in dataclasses.fields(Knobs)])
def test_the_readme_lists_every_knob(variable):
    assert f"| `{variable}` |" in (TOP / "README.md").read_text()


def test_the_readme_lists_no_knob_that_does_not_exist():
    known = {knob.metadata["variable"] for knob in dataclasses.fields(Knobs)}
    assert set(re.findall(r"JITMOE_[A-Z_]+", (TOP / "README.md").read_text())) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_project_lead_somewhere(document):
    for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_are_named_exist(document):
    for name in re.findall(
        r"`((?:jitmoe|plan|cache|runtime|compilers|cli|tools|tests)/[\w/.-]+\.(?:py|hpp))`", document.read_text()
    ):
        assert (TOP / name).exists() or (TOP / "jitmoe" / name).exists(), name


def test_tools_can_be_started_as_their_usage_says():
    for tool in sorted((TOP / "tools").iterdir()):
        if tool.is_dir():
            continue
        has_starter = tool.suffix == ".py" and tool.with_name(tool.stem.replace("_", "-")).exists()
        is_command = tool.read_text().startswith("#!") and os.access(tool, os.X_OK)
        assert is_command != has_starter, tool.name


def test_the_docs_name_every_device_of_the_warm_up():
    text = (TOP / "docs" / "cli.md").read_text()
    assert all(f"`{name}`" in text for name in CPU_NAMES)

# SPDX-License-Identifier: MIT
"""What the documentation names exists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

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

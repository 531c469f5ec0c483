# SPDX-License-Identifier: MIT
"""docs/coverage.md has a row for every op and format, every device in it, and no hole."""

from __future__ import annotations

import pytest
from helpers.report import load_tool

from jitmoe.plan.architectures import ARCHITECTURES
from jitmoe.problems.formats import Encoding, InputQuant
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.problems.routing import RoutingProblem, Scoring

coverage = load_tool("coverage_table")
CASES = coverage.cases()
ROWS = {
    tuple(cell.strip() for cell in line.strip("|").split("|"))[:2]: line
    for line in (coverage.DOCUMENT.read_text().splitlines() if coverage.DOCUMENT.exists() else [])
    if line.startswith("|")
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.variant}")
def test_every_case_has_a_row_without_a_hole(case):
    row = ROWS[case.op, case.variant]
    assert "**" not in row and "| |" not in row
    assert row.count("| yes ") + row.count("| yes|") == len(ARCHITECTURES)


def test_every_device_has_a_column():
    titles = next(line for line in ROWS.values() if line.startswith("| op |"))
    for arch in ARCHITECTURES:
        assert f" {arch} |" in titles


def values(field: str) -> set[object]:
    problems = [getattr(case.problem, "experts", case.problem) for case in CASES]
    return {getattr(problem, field) for problem in problems if isinstance(problem, MoEProblem)}


def test_the_cases_leave_out_nothing_that_a_problem_can_ask_for():
    assert values("activation") == set(Activation)
    assert values("gate_up") == set(GateUp)
    assert values("w1_layout") == set(Layout)
    assert {DType.BF16, DType.FP16, DType.FP32} <= values("dtype")
    assert {InputQuant.INT8, InputQuant.E4M3, InputQuant.E5M2} <= values("input_quant")
    formats = [quant.format for quant in values("w1_quant") if quant is not None]
    assert {form.encoding for form in formats} == set(Encoding)
    assert {32, 64, 128} <= {form.block_k for form in formats}
    assert any(form.has_zero_point for form in formats) and any(form.has_k_order for form in formats)
    routers = [case.problem.routing for case in CASES if isinstance(case.problem, RoutingProblem)]
    assert {router.scoring for router in routers} == set(Scoring)

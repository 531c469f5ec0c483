# SPDX-License-Identifier: MIT
"""What the self-check accepts: no norm may hide a wrong element, and nothing passes by being NaN."""

from __future__ import annotations

import pytest
import torch
from helpers.builders import moe_problem

from jitmoe import selfcheck
from jitmoe.checks import fused_moe as fused_moe_check
from jitmoe.problems.fused_moe import DType, Layout

DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}


def expectation() -> torch.Tensor:
    return torch.randn(32, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_passes(dtype):
    error, wrong = selfcheck.judge_floats(expectation().to(DTYPES[dtype]), expectation(), dtype)
    assert wrong == "" and 0 < error < selfcheck.TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_larger_error_is_named_with_its_size(dtype):
    off = expectation() * (1 + 2 * selfcheck.TOLERANCES[dtype])
    _, wrong = selfcheck.judge_floats(off.float(), expectation(), dtype)
    assert "relative error" in wrong and "exceeds" in wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 95, 1700, 32 * 96 - 1])
def test_one_wrong_element_is_named(dtype, place):
    result = expectation().to(DTYPES[dtype])
    result.view(-1)[place] += 20 * selfcheck.TOLERANCES[dtype]
    _, wrong = selfcheck.judge_floats(result, expectation(), dtype)
    assert f"element {place} is" in wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_passes(value):
    result = expectation().float()
    result[3, 4] = value
    error, wrong = selfcheck.judge_floats(result, expectation(), DType.FP32)
    assert "1 of 3072 elements are not finite" in wrong
    assert error == float("inf")


def test_a_kernel_that_does_nothing_fails():
    for content in (torch.zeros(32, 96), torch.full((32, 96), float("nan"))):
        assert selfcheck.judge_floats(content, expectation(), DType.FP32)[1]


def test_an_expectation_of_zero_takes_zeros_only():
    zero = torch.zeros(4, 4, dtype=torch.float64)
    error, wrong = selfcheck.judge_floats(torch.zeros(4, 4), zero, DType.FP32)
    assert wrong == "" and error == 0.0
    assert selfcheck.judge_floats(torch.full((4, 4), 1e-3), zero, DType.FP32)[1]


@pytest.mark.parametrize("mapped", [None, 9])
@pytest.mark.parametrize("layout", list(Layout))
def test_inputs_hold_every_routing_case(mapped, layout):
    problem = moe_problem(num_tokens=9, num_experts=5, top_k=3, num_global_experts=mapped, w1_layout=layout)
    tensors = fused_moe_check.inputs(problem)
    ids = tensors["topk_ids"]
    assert ids.shape == (9, 3)
    assert int(ids[0, 0]) >= 5, "an expert of another rank"
    assert (ids[1] == -1).all(), "a token without any expert"
    assert (ids[2] == ids[2, 0]).all(), "one expert in every slot"
    assert tensors["out"].isnan().all()
    assert tensors["w1"].shape == (5, 64, 64)
    assert ("expert_map" in tensors) == (mapped is not None)
    again = fused_moe_check.inputs(problem)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors if name != "out")

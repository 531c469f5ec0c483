# SPDX-License-Identifier: MIT
"""Activations as an op of their own, on the CPU device and on emulated GPUs, against float64."""

from __future__ import annotations

import pytest
import torch
from helpers.routing import run

import jitmoe
from jitmoe import reference, selfcheck
from jitmoe.errors import ArgumentError
from jitmoe.pipeline import default
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.fused_moe import Activation, DType, GateUp
from jitmoe.tensors import torch_dtypes

# every activation, dtype and layout at least once, few kernels
CASES = [
    (Activation.SILU, DType.BF16, GateUp.SEPARATE, None),
    (Activation.SILU, DType.FP32, GateUp.CONCATENATED, 2.0),
    (Activation.GELU, DType.FP16, GateUp.CONCATENATED, None),
    (Activation.GELU_TANH, DType.FP32, GateUp.SEPARATE, None),
    (Activation.SWIGLU_OAI, DType.BF16, GateUp.INTERLEAVED, 3.0),
    (Activation.RELU2, DType.FP16, GateUp.UNGATED, None),
]
SIZES = [(1, 1), (3, 67), (5, 700), (300, 130)]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")


@pytest.mark.parametrize("device", ["cpu", "bmg-g21"])
@pytest.mark.parametrize(
    ("activation", "dtype", "gate_up", "limit"), CASES, ids=lambda value: getattr(value, "value", "")
)
def test_is_its_twin(activation: Activation, dtype: DType, gate_up: GateUp, limit: float | None, device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for rows, columns in SIZES:
        wide = (4 * torch.randn(rows, gate_up.rows(columns) + 5, generator=generator)).to(torch_dtypes()[dtype])
        gate = wide[:, 2:-3]
        up = gate.flip(0).contiguous() if gate_up is GateUp.SEPARATE else None
        out = torch.full((rows, columns + 3), float("nan"), dtype=gate.dtype)
        problem = ActivateProblem(
            num_rows=rows, num_columns=columns, dtype=dtype, activation=activation, gate_up=gate_up, alpha=1.3,
            limit=limit, gate_row_stride=wide.stride(0), up_row_stride=columns, out_row_stride=columns + 3,
        )  # fmt: skip
        run(default(), problem, device, gate=gate, up=up, out=out)
        ups = None if up is None else up.double()
        expected = reference.activate(gate.double(), ups, activation, layout=gate_up, alpha=1.3, limit=limit)
        _, wrong = selfcheck.judge_floats(out[:, :columns], expected, dtype)
        assert not wrong, (rows, columns, wrong)
        assert bool(out[:, columns:].isnan().all())


def test_in_place_any_rank_and_no_rows() -> None:
    gate, up = torch.randn(2, 3, 40).bfloat16(), torch.randn(2, 3, 40).bfloat16()
    expected = reference.activate(gate.double(), up.double(), "silu")
    assert jitmoe.silu_and_mul_moe(gate, up) is None
    assert not selfcheck.judge_floats(gate, expected, DType.BF16)[1]
    both = torch.randn(4, 2, 100).bfloat16()[..., 7:87]
    result = jitmoe.activate(both, layout="concatenated")
    assert result.shape == (4, 2, 40)
    assert not selfcheck.judge_floats(result, reference.activate(*both.double().chunk(2, -1), "silu"), DType.BF16)[1]
    assert jitmoe.activate(torch.empty(0, 8), layout="interleaved").shape == (0, 4)
    assert jitmoe.activate(torch.tensor([-1.0, 2.0]), activation="relu2").tolist() == [0.0, 4.0]


ERRORS = [
    ({"gate": torch.zeros(4, 8, dtype=torch.int32)}, "gate"),
    ({"gate": torch.zeros(8, 4).T}, "gate"),
    ({"gate": torch.zeros(3, 4, 8)[:, 1:]}, "up"),
    ({"up": torch.zeros(4, 7)}, "up"),
    ({"up": torch.zeros(4, 8).bfloat16()}, "up"),
    ({"up": None, "layout": "separate"}, "up"),
    ({"layout": "concatenated"}, "up"),
    ({"layout": "stacked"}, "layout"),
    ({"gate": torch.zeros(4, 7), "up": None, "layout": "interleaved"}, "gate"),
    ({"activation": "tanh"}, "activation"),
    ({"limit": 0.0}, "limit"),
    ({"alpha": float("nan")}, "alpha"),
    ({"out": torch.zeros(4, 9)}, "out"),
    ({"out": torch.zeros(1, 8).expand(4, 8)}, "out"),
]


@pytest.mark.parametrize(("wrong", "name"), ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_arguments(wrong: dict, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        jitmoe.activate(**{"gate": torch.zeros(4, 8), "up": torch.zeros(4, 8), **wrong})
    assert caught.value.argument == name


@pytest.mark.parametrize(
    ("gate", "up", "text"),
    [
        (torch.zeros(4, 8), None, "up_output: expected a tensor"),
        (torch.zeros(4, 8), torch.zeros(4, 7), r"up_output: expected \[4, 8\]"),
        (torch.zeros(4, 8), torch.zeros(4, 8, device="meta"), "up_output: "),
        (torch.zeros(4, 8).int(), torch.zeros(4, 8), "gate_output: expected dtype"),
        (torch.zeros(1, 8).expand(4, 8), torch.zeros(4, 8), "gate_output: expected rows that do not overlap"),
        (None, torch.zeros(4, 8), "gate_output: "),
    ],
)
def test_in_place_refusals_speak_of_its_own_arguments(gate, up, text) -> None:
    with pytest.raises(ArgumentError, match=text):
        jitmoe.silu_and_mul_moe(gate, up)

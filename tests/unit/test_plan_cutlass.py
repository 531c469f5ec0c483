# SPDX-License-Identifier: MIT
"""Which calls CuTe's kernels take, why others are refused, and who chooses the implementation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.builders import moe_problem

from jitmoe import knobs, pipeline
from jitmoe.device import DeviceKind
from jitmoe.errors import UnsupportedProblemError
from jitmoe.plan import cutlass, gpu, tuned, xe
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.cutlass import CutlassDown, CutlassGateUp
from jitmoe.plan.tuned import TunedConfig
from jitmoe.plan.xe_specs import XeGateUp, XePack, XeTokens, XeWeights
from jitmoe.problems.fused_moe import DType, Layout, MoEProblem

BMG = offline_device("bmg-g21")


def problem(**changes: Any) -> MoEProblem:
    base: dict[str, Any] = {"num_tokens": 64, "hidden_size": 2048, "intermediate_size": 768, "num_experts": 128}
    return moe_problem(**{**base, "top_k": 8, "base_alignment": 64, "dtype": DType.BF16, **changes})


def refusal(one: MoEProblem, device: Any = BMG) -> str:
    with pytest.raises(UnsupportedProblemError) as caught:
        cutlass.choose(one, device, configs=())
    return str(caught.value)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16])
@pytest.mark.parametrize("arch", [name for name, arch in ARCHITECTURES.items() if arch.has_block2d])
def test_kernels_of_gpus_with_2d_blocks(arch: str, dtype: DType, layout: Layout) -> None:
    for num_tokens in (1, 512, 8192):
        one = problem(num_tokens=num_tokens, dtype=dtype, w1_layout=layout, w2_layout=layout)
        choice = cutlass.choose(one, offline_device(arch), configs=())
        assert isinstance(choice.gate_up, CutlassGateUp) and isinstance(choice.down, CutlassDown)
        assert isinstance(choice.pack, XePack)
        for spec in (choice.gate_up, choice.down):
            assert (spec.weights, spec.tokens) == (XeWeights.BLOCK2D, XeTokens.BLOCK2D)
            assert spec.large_grf  # asm operands of the smaller tiles do not fit 128 registers either
        # The same tiles and launches as with the default kernels.
        usual = xe.choose(one, offline_device(arch), configs=())
        assert choice.block_rows == usual.block_rows
        names = [launch.spec.KERNEL for launch in cutlass_launches(one, arch)]
        assert names[-3:] != [] and "cutlass_gate_up" in names and "xe_combine" in names


def cutlass_launches(one: MoEProblem, arch: str) -> Any:
    device = offline_device(arch)
    return xe.launches(one, device, cutlass.choose(one, device, configs=())).launches


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("dg2", {}, "dg2 has no 2D block loads with dpas at sub-group size 16"),
        ("mtl", {}, "mtl has no 2D block loads with dpas at sub-group size 16"),
        ("bmg-g21", {"dtype": DType.FP32}, "fp32 has no exact dpas"),
        ("bmg-g21", {"base_alignment": 32}, "addresses are multiples of 32 B, not of 64 B"),
        ("bmg-g21", {"hidden_size": 2049}, "the row pitch is 4098 B, not a multiple of 16 B"),
        ("bmg-g21", {"intermediate_size": 769}, "w2: 16-bit loads"),
    ],
)
def test_refusals_say_why(arch: str, changes: dict[str, Any], reason: str) -> None:
    text = refusal(problem(**changes), offline_device(arch))
    assert reason in text
    assert "impl='cutlass'" in text


def test_an_emulated_gpu_gets_the_same_kernels_with_portable_atoms() -> None:
    device = dataclasses.replace(BMG, kind=DeviceKind.XE_EMULATED)
    native, emulated = cutlass.choose(problem(), BMG, configs=()), cutlass.choose(problem(), device, configs=())
    assert isinstance(emulated.gate_up, CutlassGateUp) and emulated.gate_up.emulated
    assert dataclasses.replace(emulated.gate_up, emulated=False) == native.gate_up


def test_the_self_check_problem_asks_for_the_same_kernels() -> None:
    for layout in Layout:
        one = problem(w1_layout=layout, w2_layout=layout)
        choice = cutlass.choose(one, BMG, configs=())
        small = gpu.check_problem(one, choice)
        again = cutlass.choose(small, BMG, configs=())
        assert (again.gate_up.weights, again.down.weights) == (choice.gate_up.weights, choice.down.weights)  # type: ignore[union-attr]
        plan = gpu.launches(small, BMG, choice)
        assert {"xe_pack", "cutlass_gate_up", "cutlass_down"} <= {spec.KERNEL for spec in plan.specs}


# Who chooses


def row(impl: str, num_tokens: int = 64) -> TunedConfig:
    text = ",".join(tuned.COLUMNS) + f"\n160,{num_tokens},2048,768,128,8,silu,bf16,{impl},0,128,128\n"
    (config,) = tuned.parse(text, "tuned.csv")
    return config


@pytest.mark.parametrize(
    ("wanted", "rows", "impl", "reason"),
    [
        ("auto", [], "xe", "the default"),
        ("xe", [row("cutlass")], "xe", "JITMOE_IMPL"),
        ("cutlass", [], "cutlass", "JITMOE_IMPL"),
        ("auto", [row("cutlass")], "cutlass", "tuned, tuned.csv:2"),
        ("auto", [row("cutlass", 4096), row("xe", 128)], "xe", "the default"),
        ("auto", [row("ck_2stages")], "xe", "the default"),
    ],
)
def test_who_chooses(wanted: str, rows: list[TunedConfig], impl: str, reason: str) -> None:
    found, why = gpu.implementation(problem(), BMG, rows, wanted)
    assert found == impl
    assert reason in why


def test_a_tuned_row_that_cannot_be_had_says_so() -> None:
    one = problem(base_alignment=2)
    impl, why = gpu.implementation(one, BMG, [row("cutlass")], "auto")
    assert impl == "xe"
    assert "tuned.csv:2 asks for cutlass, which cannot be had" in why and "2 B" in why


def test_a_tuned_row_chooses_the_tile_of_its_own_implementation() -> None:
    choice = cutlass.choose(problem(num_tokens=1), BMG, configs=[row("cutlass")])
    assert choice.block_rows == 128
    assert xe.choose(problem(num_tokens=1), BMG, configs=[row("cutlass")]).block_rows == 16


def test_explain_shows_the_implementation() -> None:
    assert "impl xe: the default" in pipeline.explain(problem(), BMG)
    with knobs.override(impl="cutlass"):
        text = pipeline.explain(problem(), BMG)
    assert "impl cutlass: asked for (JITMOE_IMPL)" in text
    assert "launch cutlass_gate_up(" in text


def test_nothing_falls_back_silently_when_the_implementation_was_asked_for() -> None:
    with knobs.override(impl="cutlass"), pytest.raises(UnsupportedProblemError, match="impl='cutlass'"):
        gpu.choose(problem(dtype=DType.FP32), BMG)


def test_specs_of_both_implementations_never_share_a_binary() -> None:
    spec = cutlass.choose(problem(), BMG, configs=()).gate_up
    values = {name: getattr(spec, name) for name, _ in spec.constants()}
    assert str(XeGateUp(**values)) != str(spec)
    assert XeGateUp(**values) != spec

# SPDX-License-Identifier: MIT
"""The plan for Intel GPUs as a pure function: operand classes, tiles, limits, grids, tuned rows."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from jitmoe.device import Device
from jitmoe.errors import ArgumentError, UnsupportedProblemError
from jitmoe.plan import cutlass, plan_for, tuned, xe, xe_grouped_gemm, xe_single
from jitmoe.plan.architectures import ARCHITECTURES, architecture, offline_device
from jitmoe.plan.xe_specs import (
    TICKETS_COUNTER_BYTES,
    TICKETS_LOCAL_BYTES,
    XeCombine,
    XeDown,
    XeGateUp,
    XeGemm,
    XePack,
    XeSingle,
    XeTokens,
    XeVectorGateUp,
    XeWeights,
)
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType, Layout, MoEProblem
from jitmoe.problems.grouped_gemm import GroupedGemmProblem
from jitmoe.problems.routed import RoutedMoEProblem
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.source import INCLUDE_DIR, render

BMG = offline_device("bmg-g21")


def problem(m: int = 1, h: int = 2048, i: int = 768, e: int = 128, k: int = 8, **changes: Any) -> MoEProblem:
    layout = changes.get("w1_layout", Layout.NK)
    values: dict[str, Any] = {
        "num_tokens": m,
        "hidden_size": h,
        "intermediate_size": i,
        "num_experts": e,
        "top_k": k,
        "dtype": DType.BF16,
        "activation": Activation.SILU,
        "topk_ids_dtype": DType.INT64,
        "topk_weights_dtype": DType.FP32,
        "w1_layout": layout,
        "w2_layout": layout,
        "num_global_experts": None,
        "x_row_stride": h,
        "out_row_stride": h,
        "w1_expert_stride": 2 * i * h,
        "w1_stride": h if layout is Layout.NK else 2 * i,
        "w2_expert_stride": i * h,
        "w2_stride": i if layout is Layout.NK else h,
        "topk_ids_row_stride": k,
        "topk_weights_row_stride": k,
        "base_alignment": 64,
    }
    return MoEProblem(**{**values, **changes})


def gemm(one: MoEProblem, device: Device = BMG, **options: Any) -> XeGateUp:
    choice = xe.choose(one, device, **{"configs": (), **options})
    assert isinstance(choice.gate_up, XeGateUp)
    return choice.gate_up


@pytest.mark.parametrize(
    ("m", "rows", "slices", "large"),
    [
        (1, 16, 8, True),
        (128, 16, 8, True),
        (129, 32, 1, False),
        (512, 32, 1, False),
        (513, 128, 1, True),
        (8192, 128, 1, True),
    ],
)
def test_tile_follows_the_mean_rows_per_expert(m: int, rows: int, slices: int, large: bool) -> None:
    spec = gemm(problem(m=m))
    assert (spec.block_rows, spec.k_slices, spec.large_grf) == (rows, slices, large)


def test_few_active_experts_count_alone() -> None:
    assert gemm(problem(m=4, k=1, e=128)).block_rows == 16  # four pairs, at most four experts: one row each
    assert gemm(problem(m=4096, k=1, e=1)).block_rows == 128


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, XeWeights.BLOCK2D),
        ({"base_alignment": 32}, XeWeights.ELEMENT),
        ({"w1_stride": 2052}, XeWeights.ELEMENT),  # pitch 4104 B, not a multiple of 16
        ({"w1_stride": 2056, "w1_expert_stride": 2056 * 1536}, XeWeights.BLOCK2D),
        ({"w1_expert_stride": 2 * 768 * 2048 + 8}, XeWeights.ELEMENT),
        ({"h": 2049, "w1_stride": 2056, "w1_expert_stride": 2056 * 1536}, XeWeights.ELEMENT),  # odd row width
        ({"h": 30, "w1_stride": 32, "w1_expert_stride": 32 * 1536}, XeWeights.ELEMENT),  # narrower than 64 B
        ({"w1_layout": Layout.KN}, XeWeights.BLOCK2D),
        ({"w1_layout": Layout.KN, "i": 769, "w1_stride": 1544, "w1_expert_stride": 1544 * 2048}, XeWeights.ELEMENT),
    ],
)
def test_weights_class(changes: dict[str, Any], expected: XeWeights) -> None:
    assert xe.weights_class(problem(**changes), architecture("bmg-g21"), "w1")[0] is expected


def test_weights_class_of_dg2() -> None:
    dg2 = architecture("dg2")
    assert xe.weights_class(problem(), dg2, "w1")[0] is XeWeights.ROW
    assert xe.weights_class(problem(), dg2, "w2")[0] is XeWeights.ROW
    assert xe.weights_class(problem(i=776), dg2, "w2")[0] is XeWeights.ELEMENT
    assert xe.weights_class(problem(w1_layout=Layout.KN), dg2, "w1")[0] is XeWeights.ELEMENT


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, XeTokens.GATHER),
        ({"h": 2056}, XeTokens.BLOCK2D),
        ({"x_row_stride": 2049}, XeTokens.BLOCK2D),
        ({"base_alignment": 2}, XeTokens.BLOCK2D),
        ({"w1_layout": Layout.KN}, XeTokens.BLOCK2D),
    ],
)
def test_tokens_are_packed_only_where_they_cannot_be_gathered(changes: dict[str, Any], expected: XeTokens) -> None:
    one = problem(**changes)
    choice = xe.choose(one, BMG, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert choice.gate_up.tokens is expected
    assert (choice.pack is None) == (expected is XeTokens.GATHER)
    names = {buffer.name: buffer.num_bytes for buffer in xe.launches(one, BMG, choice).buffers}
    assert (names["packed_x"] > 0) == (choice.pack is not None)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "unknown"])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("m", [1, 300, 5000])
def test_nothing_is_refused_and_no_limit_is_broken(arch: str, dtype: DType, layout: Layout, m: int) -> None:
    device = dataclasses.replace(offline_device("mtl"), arch=arch) if arch == "unknown" else offline_device(arch)
    one = problem(m=m, dtype=dtype, w1_layout=layout)
    choice = xe.choose(one, device, configs=())
    plan = xe.launches(one, device, choice)
    assert isinstance(choice.gate_up, XeGemm) == (architecture(arch).has_dpas and dtype is not DType.FP32)
    for launch in plan.launches:
        assert launch.local_size[0] <= device.max_work_group_size
        assert launch.global_size[0] % launch.local_size[0] == 0
        assert set(launch.scalars) == {a.name for a in launch.spec.ARGUMENTS if not a.is_pointer}
        if isinstance(launch.spec, XeGemm):
            assert launch.spec.local_mem_bytes <= device.local_mem_bytes
            assert not xe.tile_objections(launch.spec, device, architecture(arch))
            assert render(launch.spec).count("JITMOE_SUB_GROUP_SIZE") == 1
    pointers = {a.name for spec in plan.specs for a in spec.ARGUMENTS if a.is_pointer}
    assert pointers - set(one.OPERATION.tensors) <= {buffer.name for buffer in plan.buffers}


def test_a_device_with_little_slm_and_small_work_groups_gets_a_smaller_tile() -> None:
    device = dataclasses.replace(BMG, max_work_group_size=128, local_mem_bytes=8 << 10)
    choice = xe.choose(problem(m=8192), device, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert choice.gate_up.local_size == 128
    text = "\n".join(choice.reasons)
    assert "tile prefill rejected: 256 work-items exceed the device's 128" in text
    assert "tile decode rejected: 28672 B of SLM exceed the device's 8192" in text


def test_no_fitting_tile_is_an_error_with_all_reasons() -> None:
    device = dataclasses.replace(BMG, max_work_group_size=32)
    with pytest.raises(UnsupportedProblemError) as caught:
        xe.choose(problem(), device, configs=())
    assert all(name in str(caught.value) for name in ("decode", "middle", "prefill"))


def test_sizes_beyond_the_counters_are_refused_with_numbers() -> None:
    with pytest.raises(UnsupportedProblemError, match=r"exceeds 2\^31 - 1"):
        xe.choose(problem(m=2**28, k=8), BMG, configs=())


def test_specs_do_not_depend_on_m_e_and_k_within_a_tile() -> None:
    def specs(**sizes: int) -> tuple[Any, ...]:
        one = problem(**sizes)
        return xe.launches(one, BMG, xe.choose(one, BMG, configs=())).specs

    assert specs(m=1) == specs(m=64) == specs(m=3, e=60, k=4) == specs(m=2, h=4096, i=1536)


def test_wide_outputs_are_chunked_to_bound_the_workspace() -> None:
    one = problem(m=16384, h=7168, i=2048, e=256)
    plan = xe.launches(one, BMG, xe.choose(one, BMG, configs=()))
    partial = next(buffer for buffer in plan.buffers if buffer.name == "partial")
    assert partial.num_bytes <= xe.PARTIAL_BYTES
    combines = [launch for launch in plan.launches if isinstance(launch.spec, XeCombine)]
    columns = [(launch.scalars["first_column"], launch.scalars["num_columns"]) for launch in combines]
    assert columns[0][0] == 0
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(columns))
    assert sum(columns[-1]) == 7168
    assert len([launch for launch in plan.launches if isinstance(launch.spec, XeDown)]) == len(combines)


def test_grid_fills_the_device_but_not_more() -> None:
    def groups(m: int, device: Device) -> int:
        one = problem(m=m)
        plan = xe.launches(one, device, xe.choose(one, device, configs=()))
        launch = next(launch for launch in plan.launches if isinstance(launch.spec, XeGateUp))
        return launch.global_size[0] // launch.local_size[0]

    assert groups(8192, BMG) == 160 * 4 // 16  # 160 engines, 4 threads each in 256-GRF mode, 16 sub-groups per group
    assert groups(8192, offline_device("pvc")) == 1024 * 4 // 16
    assert groups(1, BMG) == 160 * 4 // 8


def test_tuned_row_overrides_the_heuristic() -> None:
    text = (
        "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,impl,splitK,pad_m,pad_n,us\n"
        "160,4,2048,768,128,8,SiLu,bf16,xe,0,32,128,10.5\n"
        "160,16,2048,768,128,8,SiLu,bf16,xe,8,16,32,9.0\n"
        "160,64,2048,768,128,8,SiLu,bf16,xe,0,7,7,9.0\n"
        "160,4,2048,768,128,8,SiLu,bf16,ck_2stages,0,128,128,1\n"
        "160,4,2048,768,128,8,SiLu,fp8,xe,0,128,128,1\n"
    )
    configs = tuned.parse(text, "tuned.csv")
    assert len(configs) == 4  # fp8 is not ours
    assert gemm(problem(m=1), configs=configs).block_rows == 32
    assert gemm(problem(m=16), configs=configs).block_rows == 16
    assert "tuned, tuned.csv:2" in "\n".join(xe.choose(problem(m=2), BMG, configs=configs).reasons)
    ignored = xe.choose(problem(m=64), BMG, configs=configs)
    assert "tuned.csv:4 ignored: no tile with pad_m/pad_n/splitK 7/7/1" in "\n".join(ignored.reasons)
    assert gemm(problem(m=1), offline_device("pvc"), configs=configs).block_rows == 16  # other compute units
    assert gemm(problem(m=1, k=4), configs=configs).block_rows == 16


def test_tuned_file_comes_from_the_knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(",".join(tuned.COLUMNS) + "\n160,8,2048,768,128,8,silu,bf16,xe,0,128,128\n")
    monkeypatch.setenv("JITMOE_TUNED_CONFIG", str(path))
    assert gemm(problem(m=1), configs=None).block_rows == 128


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no column cu_num"),
        (",".join(tuned.COLUMNS) + "\nx,1,1,1,1,1,silu,bf16,xe,0,1,1\n", "whole numbers"),
    ],
)
def test_unreadable_tuned_configs_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        tuned.parse(text, "bad.csv")


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
@pytest.mark.parametrize("sizes", [(2048, 768), (2056, 776), (2050, 770), (2049, 769)])
@pytest.mark.parametrize("m", [1, 300, 5000])
def test_check_problem_keeps_every_spec(arch: str, layout: Layout, sizes: tuple[int, int], m: int) -> None:
    device = offline_device(arch)
    one = problem(m=m, h=sizes[0], i=sizes[1], w1_layout=layout)
    choice = xe.choose(one, device, configs=())
    small = xe.check_problem(one, choice)
    assert xe.launches(small, device, choice).specs == xe.launches(one, device, choice).specs
    again = xe.choose(small, device, configs=())
    for name in ("gate_up", "down"):
        mine, theirs = getattr(choice, name), getattr(again, name)
        for field in ("weights", "tokens", "wide", "layout"):
            # What the small problem would get by itself needs at least as much as what it is given.
            assert getattr(theirs, field, None) == getattr(mine, field, None) or getattr(mine, field) in (
                XeWeights.ELEMENT,
                XeTokens.BLOCK2D,
                XeTokens.PACKED,
                False,
            )
    assert small.num_pairs > choice.block_rows
    assert small.num_pairs * small.hidden_size * small.intermediate_size < 50e6  # runs in milliseconds


@pytest.mark.parametrize("enum", [XeWeights, XeTokens])
def test_enums_mirror_the_header(enum: Any) -> None:
    text = (INCLUDE_DIR / "jitmoe/arch/choices.hpp").read_text()
    body = re.search(rf"enum class {enum.__name__} {{(.*?)}};", text, re.DOTALL)
    assert body is not None
    assert re.findall(r"^\s*(\w+),", body.group(1), re.MULTILINE) == [member.value for member in enum]


def test_vector_kernels_read_wide_only_where_rows_are_aligned() -> None:
    mtl = offline_device("mtl")

    def wide(**changes: Any) -> bool:
        gate_up = xe.choose(problem(**changes), mtl, configs=()).gate_up
        assert isinstance(gate_up, XeVectorGateUp)
        return gate_up.wide

    assert wide()
    assert not wide(h=2049)
    assert not wide(base_alignment=2)
    assert not wide(w1_layout=Layout.KN)
    assert wide(h=2049, dtype=DType.FP32, base_alignment=4)


def test_every_probed_gpu_is_in_the_table() -> None:
    from jitmoe.runtime import probe

    assert set(probe._ARCHITECTURES.values()) | {name for _, name in probe._NAME_PARTS} <= set(ARCHITECTURES)
    assert architecture(probe.UNKNOWN_GPU).name == probe.UNKNOWN_GPU


@pytest.mark.parametrize("sizes", [(2048, 768), (2050, 770)])
@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
@pytest.mark.parametrize("block_k", [0, 32, 48, 128])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_check_problem_keeps_every_spec_of_quantized_weights(
    encoding: Encoding, block_k: int, arch: str, sizes: tuple[int, int]
) -> None:
    quant = WeightFormat(encoding=encoding, scale_dtype=DType.FP32, block_n=1, block_k=block_k)
    one = problem(w1_quant=quant.dense(1, 1), w2_quant=quant.dense(1, 1))
    one = one.resized(num_tokens=300, hidden_size=sizes[0], intermediate_size=sizes[1], num_experts=16, top_k=4)
    device = offline_device(arch)
    choice = xe.choose(one, device, configs=())
    assert isinstance(choice.gate_up, XeGemm) == (arch != "mtl" and block_k != 48)
    small = xe.check_problem(one, choice)
    assert xe.launches(small, device, choice).specs == xe.launches(one, device, choice).specs
    for name, k in (("w1", small.hidden_size), ("w2", small.intermediate_size)):
        assert k * encoding.bits % 8 == 0
        assert k > block_k
        if (
            isinstance(choice.gate_up, XeGemm)
            and xe.weights_class(one, architecture(arch), name)[0] is XeWeights.BLOCK2D
        ):
            assert xe.weights_class(small, architecture(arch), name)[0] is XeWeights.BLOCK2D


def test_what_quantized_kernels_cannot_do_is_refused() -> None:
    quant = WeightFormat(
        encoding=Encoding.E4M3, scale_dtype=DType.FP32, block_n=128, block_k=128, has_k_order=True
    ).dense(1, 1)
    one = problem(w1_quant=quant, w2_quant=quant, input_quant=InputQuant.E4M3, input_block_k=128)
    with pytest.raises(UnsupportedProblemError, match="k_order"):
        xe.choose(one, BMG, configs=())
    with pytest.raises(UnsupportedProblemError, match="quantized weights in both"):
        xe.choose(problem(w1_quant=quant, input_quant=InputQuant.E4M3), BMG, configs=())


# One launch


def asking(one: MoEProblem, device: Device = BMG, value: str = "1") -> tuple[tuned.TunedConfig, ...]:
    """Rows that ask for one launch with the decode tile, or the middle one for more than 128 tokens."""
    small = xe.tiles(architecture(device.arch), (XeWeights.BLOCK2D,))[0 if one.num_tokens <= 128 else 1]
    row = f"{device.num_compute_units},{one.num_tokens},{one.hidden_size},{one.intermediate_size},{one.num_experts}"
    row += f",{one.top_k},silu,{one.dtype.value},xe,{small.k_slices},{small.block_rows},{small.block_columns},{value}"
    return tuned.parse(",".join((*tuned.COLUMNS, "run_1stage")) + f"\n{row}\n", "mine.csv")


@pytest.mark.parametrize("arch", [name for name, arch in ARCHITECTURES.items() if arch.has_dpas])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("m", [1, 16, 512])
def test_a_tuned_row_asks_for_one_launch(arch: str, layout: Layout, m: int) -> None:
    device, one = offline_device(arch), problem(m=m, w1_layout=layout)
    choice = xe.choose(one, device, configs=asking(one, device))
    assert choice.reasons[-1] == "single launch: tuned, mine.csv:2; it has never run on a GPU"
    several = xe.launches(one, device, dataclasses.replace(choice, single=None))
    plan = xe.launches(one, device, choice)
    (launch,) = plan.launches
    assert isinstance(launch.spec, XeSingle)
    # The same kernels and the same memory, and the counters.
    spec = launch.spec
    parts = [spec.route, *filter(None, (spec.pack,)), spec.gate_up, spec.down, spec.combine]
    assert parts == [step.spec for step in several.launches]
    assert isinstance(spec.pack, XePack) == (spec.gate_up.tokens is not XeTokens.GATHER)
    assert plan.buffers == several.buffers
    assert (several.counter_bytes, [buffer.name for buffer in plan.counters]) == (0, ["counters"])
    assert plan.counter_bytes >= TICKETS_COUNTER_BYTES
    assert set(launch.scalars) == {a.name for a in spec.ARGUMENTS if not a.is_pointer}
    for step, which in ((several.launches[-3], "w1"), (several.launches[-2], "w2")):
        for name, value in step.scalars.items():
            mine = f"{which}_{name[2:]}" if name in ("w_stride", "w_expert_stride") else name
            assert launch.scalars.get(mine, value) == value, name
    assert launch.scalars["num_ranges"] <= spec.local_size // spec.simd
    groups = launch.global_size[0] // launch.local_size[0]
    resident = device.num_compute_units * (4 if spec.large_grf else 8) // (spec.local_size // spec.simd)
    assert groups == resident or (m == 1 and groups < resident)  # one token has fewer tiles than pvc holds
    names = {a.name for a in spec.ARGUMENTS if a.is_pointer} - set(one.OPERATION.tensors)
    assert names <= {buffer.name for buffer in (*plan.buffers, *plan.counters)}
    # The self-check runs it, too.
    small = xe.check_problem(one, choice)
    assert xe.launches(small, device, choice).specs == (spec,)


def test_nobody_gets_one_launch_unasked() -> None:
    one = problem()
    for configs in ((), asking(one, value="0"), asking(one, value="")):
        choice = xe.choose(one, BMG, configs=configs)
        assert choice.single is None
        assert choice.reasons[-1] == "single launch: unmeasured, so only where a tuned row has run_1stage = 1"
    with pytest.raises(ArgumentError, match="whole numbers"):
        asking(one, value="yes")


QUANT = WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=1, block_k=0).dense(1, 1)


@pytest.mark.parametrize(
    ("one", "device", "reason"),
    [
        (problem(w1_quant=QUANT, w2_quant=QUANT), BMG, "quantized weights"),
        (problem(dtype=DType.FP32), BMG, "made of the dpas kernels of impl xe"),
        (problem(), offline_device("mtl"), "made of the dpas kernels of impl xe"),
        (problem(m=512, e=8), BMG, "16 sub-groups in a work-group exceed 8"),
        (problem(m=1024, e=512), BMG, "8192 pairs exceed the 4096"),
        (problem(m=8192, e=512), BMG, "routing takes 3 launches"),
        (problem(m=64, h=2**21, e=512), BMG, "the output goes in 16 column chunks"),
        (problem(), dataclasses.replace(BMG, local_mem_bytes=28672), "28736 B of SLM exceed the device's 28672"),
    ],
)
def test_one_launch_is_refused_with_numbers(one: MoEProblem, device: Device, reason: str) -> None:
    choice = xe.choose(one, device, configs=())
    assert reason in choice.reasons[-1] and choice.reasons[-1].startswith("single launch: cannot be had (")
    row = asking(problem())[0]
    is_single, why = xe_single.decide(row, xe.single_launch_objections(one, device, choice))
    assert not is_single
    assert why.startswith("single launch: mine.csv:2 asks for it, but it cannot be had (") and reason in why


def test_cute_s_kernels_are_not_in_one_launch() -> None:
    choice = cutlass.choose(problem(), BMG, configs=())
    assert choice.single is None
    assert "made of the dpas kernels of impl xe" in choice.reasons[-1]


def test_counters_of_a_chain_and_of_another_op(monkeypatch: pytest.MonkeyPatch) -> None:
    one = problem(m=4, topk_ids_dtype=DType.INT32)
    monkeypatch.setattr(tuned, "configured", lambda: asking(one))
    routing = RoutingProblem(
        num_tokens=4, num_experts=128, routing=Routing(top_k=8), dtype=DType.BF16, bias_dtype=None,
        ids_dtype=DType.INT32, logits_row_stride=128, weights_row_stride=8, ids_row_stride=8,
    )  # fmt: skip
    plan = plan_for(RoutedMoEProblem(routing=routing, experts=one), BMG)
    assert [launch.spec.KERNEL for launch in plan.launches] == ["xe_topk", "xe_single"]
    assert set(plan.counter_offsets()) == {"counters"}
    # The second half of a layer is another op, whatever a row says of the layer.
    gemm = GroupedGemmProblem(
        num_tokens=4, n=2048, k=768, num_experts=128, top_k=8, dtype=DType.BF16, topk_ids_dtype=DType.INT32,
        topk_weights_dtype=DType.FP32, layout=Layout.NK, a_row_stride=768, d_row_stride=2048,
        b_expert_stride=768 * 2048, b_stride=768, topk_ids_row_stride=8, topk_weights_row_stride=8, base_alignment=64,
    )  # fmt: skip
    assert xe.choose(gemm.second_half(), BMG).single is not None
    second = xe_grouped_gemm.launches(gemm, BMG, xe_grouped_gemm.choose(gemm, BMG))
    assert len(second.launches) == 4 and second.counters == ()
    assert not any("single launch" in decision for decision in second.decisions)


def test_ticket_sizes_mirror_the_header() -> None:
    text = (INCLUDE_DIR / "jitmoe/scheduler/tickets.hpp").read_text()
    sizes = dict(re.findall(r"constexpr int32 (k\w+Bytes) = ([\d *]+);", text))
    assert {name: eval(value) for name, value in sizes.items()} == {
        "kCounterBytes": TICKETS_COUNTER_BYTES,
        "kLocalBytes": TICKETS_LOCAL_BYTES,
    }

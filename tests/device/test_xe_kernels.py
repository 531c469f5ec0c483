# SPDX-License-Identifier: MIT
"""The Xe kernels, emulated on the CPU device, against float64: every tile, operand class and routing.

Shapes are small but leave no sub-group without work: row blocks are filled to the last sub-group and have tails. Unused
storage and the whole workspace are NaN beforehand.
"""

from __future__ import annotations

import dataclasses
import mmap

import pytest
import torch
from helpers import xe_emulation
from helpers.xe_emulation import case, error, run, stream, with_tile

from jitmoe.device import DeviceKind
from jitmoe.pipeline import Pipeline, explain
from jitmoe.plan import xe
from jitmoe.plan.xe_specs import XeDown, XeGateUp, XeTokens, XeWeights
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout

NK, KN = Layout.NK, Layout.KN
_MAP_NORESERVE = 0x4000  # Linux on x86; Python names it from 3.13 on


def check(pipeline: Pipeline, one: xe_emulation.Case, arch: str, choice: xe.XeChoice | None = None) -> torch.Tensor:
    result, _ = run(pipeline, one, arch, choice)
    _, wrong = error(result, one)
    assert not wrong, wrong
    return result


# operand class: (arch, layout, padding of rows in elements, K and N tails)
_CLASSES = {
    "block2d gather": ("bmg-g21", NK, 0, (160, 104)),
    "block2d packed": ("bmg-g21", NK, 8, (168, 104)),
    "element nk": ("bmg-g21", NK, 1, (99, 45)),
    "block2d kn": ("bmg-g21", KN, 8, (104, 72)),
    "element kn": ("bmg-g21", KN, 3, (99, 45)),
    "simd8 row": ("dg2", NK, 2, (96, 64)),
    "simd8 element nk": ("dg2", NK, 1, (67, 35)),
    "simd8 element kn": ("dg2", KN, 0, (67, 35)),
}
_EXPECTED = {
    "block2d gather": (XeWeights.BLOCK2D, XeTokens.GATHER),
    "block2d packed": (XeWeights.BLOCK2D, XeTokens.BLOCK2D),
    "element nk": (XeWeights.ELEMENT, XeTokens.BLOCK2D),
    "block2d kn": (XeWeights.BLOCK2D, XeTokens.BLOCK2D),
    "element kn": (XeWeights.ELEMENT, XeTokens.BLOCK2D),
    "simd8 row": (XeWeights.ROW, XeTokens.GATHER),
    "simd8 element nk": (XeWeights.ELEMENT, XeTokens.PACKED),
    "simd8 element kn": (XeWeights.ELEMENT, XeTokens.PACKED),
}


@pytest.mark.parametrize("tile_name", ["decode", "middle", "prefill"])
@pytest.mark.parametrize("kind", _CLASSES)
def test_every_tile_of_every_operand_class(pipeline: Pipeline, kind: str, tile_name: str) -> None:
    arch, layout, padding, (h, i) = _CLASSES[kind]
    dtype = DType.FP16 if tile_name == "middle" else DType.BF16
    small = case(m=3, h=h, i=i, e=3, k=2, dtype=dtype, w1_layout=layout, w2_layout=layout, padding=padding)
    device = stream(arch).device
    choice = xe.choose(small.problem, device, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert (choice.gate_up.weights, choice.gate_up.tokens) == _EXPECTED[kind]
    classes = (choice.gate_up.weights, choice.down.weights)
    tile = next(t for t in xe.tiles(xe.architecture(arch), classes) if t.name == tile_name)
    # Expert 0: one full block and a second one of 3 rows; expert 1: no row; expert 2: the rest, not full.
    rows = tile.block_rows + 3
    ids = torch.full((rows, 2), -1)
    ids[:, 0] = 0
    ids[: tile.block_rows - 5, 1] = 2
    one = case(m=rows, h=h, i=i, e=3, k=2, dtype=dtype, w1_layout=layout, w2_layout=layout, padding=padding, ids=ids)
    check(pipeline, one, arch, with_tile(choice, tile))


@pytest.mark.parametrize(
    ("arch", "alignment", "x_padding", "expected"),
    [
        ("bmg-g21", 4, 0, (XeWeights.ELEMENT, XeTokens.GATHER)),
        ("bmg-g21", 64, 1, (XeWeights.BLOCK2D, XeTokens.BLOCK2D)),
        ("dg2", 2, 0, (XeWeights.ELEMENT, XeTokens.PACKED)),
        ("dg2", 4, 1, (XeWeights.ROW, XeTokens.PACKED)),
    ],
)
def test_operand_classes_mix(
    pipeline: Pipeline, arch: str, alignment: int, x_padding: int, expected: tuple[XeWeights, XeTokens]
) -> None:
    one = case(m=19, h=96, i=64, e=3, k=2)
    stored = torch.full((19, 96 + x_padding), float("nan"), dtype=one.x.dtype)
    stored[:, :96] = one.x
    one.x = stored[:, :96]
    one.problem = dataclasses.replace(one.problem, base_alignment=alignment, x_row_stride=96 + x_padding)
    choice = xe.choose(one.problem, stream(arch).device, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert (choice.gate_up.weights, choice.gate_up.tokens) == expected
    check(pipeline, one, arch, choice)


@pytest.mark.parametrize("layouts", [(NK, KN), (KN, NK)])
def test_layouts_of_both_weights_may_differ(pipeline: Pipeline, layouts: tuple[Layout, Layout]) -> None:
    check(pipeline, case(m=21, h=96, i=64, e=3, k=2, w1_layout=layouts[0], w2_layout=layouts[1]), "pvc")


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("arch", ["lnl-m", "mtl"])
def test_activations(pipeline: Pipeline, arch: str, activation: Activation) -> None:
    check(pipeline, case(m=9, h=64, i=48, e=3, k=2, activation=activation), arch)


_GPT_OSS = {"activation": Activation.SWIGLU_OAI, "swiglu_limit": 1.5, "bias_dtype": DType.FP32}


@pytest.mark.parametrize(("layout", "padding"), [(NK, 8), (NK, 1), (KN, 8), (KN, 3)])
@pytest.mark.parametrize("gate_up", list(GateUp))
@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
def test_gate_and_up_layouts_with_biases(
    pipeline: Pipeline, arch: str, gate_up: GateUp, layout: Layout, padding: int
) -> None:
    """Two row blocks, and columns that fill neither a tile nor the second block of an ungated one."""
    shape = {"h": 96, "i": 72} if padding == 8 else {"h": 35, "i": 41}
    one = case(
        m=21, e=2, k=2, w1_layout=layout, w2_layout=layout, padding=padding, gate_up=gate_up, **shape, **_GPT_OSS
    )
    check(pipeline, one, arch)


@pytest.mark.parametrize("layout", [NK, KN])
@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
def test_router_weight_on_input(pipeline: Pipeline, arch: str, layout: Layout) -> None:
    """Applied before the bias and nowhere else; a nonlinear activation tells the places apart."""
    one = case(
        m=21,
        h=96,
        i=72,
        e=2,
        k=1,
        w1_layout=layout,
        w2_layout=layout,
        bias_dtype=DType.BF16,
        router_weight_on_input=True,
        weights_dtype=DType.BF16,
        gate_up=GateUp.UNGATED,
        activation=Activation.RELU2,
    )
    check(pipeline, one, arch)


def test_prefill_tiles_of_interleaved_and_ungated_weights(pipeline: Pipeline) -> None:
    for gate_up, layout in ((GateUp.INTERLEAVED, KN), (GateUp.INTERLEAVED, NK), (GateUp.UNGATED, NK)):
        rows = 133
        one = case(
            m=rows, h=96, i=264, e=2, k=1, w1_layout=layout, gate_up=gate_up, ids=torch.zeros(rows, 1), **_GPT_OSS
        )
        choice = xe.choose(one.problem, stream("bmg-g21").device, configs=())
        assert isinstance(choice.gate_up, XeGateUp)
        assert choice.gate_up.split_barrier
        check(pipeline, one, "bmg-g21", choice)


@pytest.mark.parametrize("layout", [NK, KN])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32])
@pytest.mark.parametrize("sizes", [(64, 48), (67, 35)])
def test_vector_kernels(pipeline: Pipeline, layout: Layout, dtype: DType, sizes: tuple[int, int]) -> None:
    one = case(m=37, h=sizes[0], i=sizes[1], e=3, k=2, dtype=dtype, w1_layout=layout, w2_layout=layout, padding=1)
    check(pipeline, one, "mtl")


def test_fp32_takes_the_vector_kernels_on_every_gpu(pipeline: Pipeline) -> None:
    one = case(m=17, h=64, i=48, e=3, k=2, dtype=DType.FP32)
    for arch in ("bmg-g21", "dg2", "unknown"):
        check(pipeline, one, arch)


@pytest.mark.parametrize("weights_dtype", [DType.BF16, DType.FP16, DType.FP32, DType.FP64])
@pytest.mark.parametrize("ids_dtype", [DType.INT32, DType.INT64])
def test_routing_dtypes(pipeline: Pipeline, weights_dtype: DType, ids_dtype: DType) -> None:
    check(pipeline, case(m=9, h=64, i=64, e=3, k=2, weights_dtype=weights_dtype, ids_dtype=ids_dtype), "bmg-g31")


def _routings() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(33, 60, generator=generator)
    return {
        "one token": torch.tensor([[4, 59]]),
        "one expert takes all": torch.full((70, 2), 7),
        "no valid id": torch.full((5, 2), -1),
        "other ranks' ids": torch.randint(-30, 90, (33, 2), generator=generator),
        "top-10 of 60": scores.topk(10).indices,
        "same expert twice": torch.tensor([[3, 3], [3, 3], [0, 3]]),
        "skewed": (torch.rand(65, 2, generator=generator) ** 6 * 60).long(),
    }


@pytest.mark.parametrize("name", _routings())
def test_ragged_routings(pipeline: Pipeline, name: str) -> None:
    ids = _routings()[name]
    one = case(m=ids.shape[0], h=64, i=64, e=60, k=ids.shape[1], ids=ids)
    result = check(pipeline, one, "bmg-g21") if name != "no valid id" else run(pipeline, one, "bmg-g21")[0]
    lost = ((ids < 0) | (ids >= 60)).all(dim=1)
    assert (result[lost] == 0).all()


@pytest.mark.parametrize(("e", "k", "m"), [(1, 1, 1), (1, 1, 130), (2, 2, 16), (8, 3, 1), (128, 8, 7), (256, 10, 3)])
def test_numbers_of_experts_and_choices(pipeline: Pipeline, e: int, k: int, m: int) -> None:
    check(pipeline, case(m=m, h=64, i=64, e=e, k=k), "pvc")


def test_expert_map(pipeline: Pipeline) -> None:
    expert_map = torch.tensor([-1, 2, 0, -1, 1, 7], dtype=torch.int32)  # 7: not here either
    ids = torch.randint(-1, 8, (40, 3), generator=torch.Generator().manual_seed(1))
    one = case(m=40, h=64, i=64, e=3, k=3, ids=ids, expert_map=expert_map)
    for arch in ("bmg-g21", "dg2"):
        check(pipeline, one, arch)


def test_three_launches_group_like_one(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(m=333, h=64, i=64, e=13, k=5)
    together = check(pipeline, one, "bmg-g21")
    monkeypatch.setattr(xe, "MAX_ONE_GROUP_PAIRS", 1000)
    choice = xe.choose(one.problem, stream("bmg-g21").device, configs=())
    assert len(choice.route) == 3
    assert torch.equal(check(pipeline, one, "bmg-g21", choice), together)


def test_wide_outputs_go_in_column_chunks(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in Layout:
        one = case(m=20, h=608, i=64, e=3, k=2, w2_layout=layout)
        whole = check(pipeline, one, "bmg-g21")
        with monkeypatch.context() as patch:
            patch.setattr(xe, "PARTIAL_BYTES", 20 * 2 * 4 * 256)
            result, plan = run(pipeline, one, "bmg-g21")
        downs = [launch for launch in plan.launches if isinstance(launch.spec, XeDown)]
        assert [launch.scalars["first_column"] for launch in downs] == [0, 256, 512]
        assert torch.equal(result, whole)


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
def test_offsets_beyond_32_bits(pipeline: Pipeline, arch: str) -> None:
    """Experts and token rows 2^31 elements apart, in memory that is reserved and hardly ever touched."""
    far = 2**31 + 1024
    one = case(m=3, h=64, i=64, e=2, k=2, ids=torch.tensor([[1, 0], [0, 1], [1, 1]]))
    memory = mmap.mmap(-1, 2 * (far + (1 << 20)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)

    def spread(values: torch.Tensor, start: int, stride: int) -> torch.Tensor:
        view = flat[start:].as_strided(values.shape, (stride, *values.stride()[1:]))
        return view.copy_(values)

    one.w1, one.w2 = spread(one.w1, 0, far), spread(one.w2, 1 << 16, far)
    one.x = spread(one.x, 1 << 17, far // 2)
    one.problem = dataclasses.replace(one.problem, w1_expert_stride=far, w2_expert_stride=far, x_row_stride=far // 2)
    check(pipeline, one, arch)


def test_no_tokens_launch_nothing() -> None:
    one = case(m=0, h=64, i=64, e=3, k=2)
    device = stream("bmg-g21").device
    assert xe.launches(one.problem, device, xe.choose(one.problem, device, configs=())).launches == ()


def test_every_run_gives_the_same_bits(pipeline: Pipeline) -> None:
    one = case(m=50, h=96, i=64, e=4, k=3)
    first = check(pipeline, one, "bmg-g21")
    for _ in range(5):
        assert torch.equal(run(pipeline, one, "bmg-g21")[0], first)


def test_slices_of_k_change_only_the_rounding(pipeline: Pipeline) -> None:
    one = case(m=5, h=320, i=288, e=2, k=2)
    choice = xe.choose(one.problem, stream("bmg-g21").device, configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert choice.gate_up.k_slices == 8  # 10 and 9 K steps: some slices get two, some none
    for slices in (1, 3):
        fields = {"k_slices": slices}
        other = dataclasses.replace(
            choice,
            gate_up=dataclasses.replace(choice.gate_up, **fields),
            down=dataclasses.replace(choice.down, **fields),
        )
        check(pipeline, one, "bmg-g21", other)
    check(pipeline, one, "bmg-g21")


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
def test_one_way_through_the_house(pipeline: Pipeline, arch: str) -> None:
    """Plan, specs, cache, self-check and launcher as on a GPU."""
    one = case(m=33, h=96, i=64, e=4, k=2)
    on = stream(arch)
    assert on.device.kind is DeviceKind.XE_EMULATED
    names = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "expert_map", "out")
    bound = pipeline.prepare(one.problem, on, names)

    def call(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        tensors = (x, one.w1, one.w2, one.topk_weights, one.topk_ids, None, out)
        with on.lock:
            bound.submit(on, [None if tensor is None else tensor.data_ptr() for tensor in tensors])
        on.wait()
        return out

    result = call(one.x, torch.full_like(one.x, float("nan")))
    assert not error(result, one)[1]
    in_place = one.x.clone()
    assert torch.equal(call(in_place, in_place), result)
    assert "emulated" in explain(one.problem, on.device)


@pytest.mark.parametrize("arch", ["bmg-g21", "dg2", "mtl"])
@pytest.mark.parametrize("layout", [NK, KN])
@pytest.mark.parametrize("sizes", [(2048, 768), (2056, 776), (2049, 769)])
def test_the_check_problem_runs_the_same_kernels(
    pipeline: Pipeline, arch: str, layout: Layout, sizes: tuple[int, int]
) -> None:
    """The self-check's small problem has to be one that the chosen kernels may be given."""
    big = case(m=1, h=64, i=64, e=2, k=2, w1_layout=layout, w2_layout=layout).problem.resized(
        num_tokens=1, hidden_size=sizes[0], intermediate_size=sizes[1], num_experts=4, top_k=2
    )
    device = stream(arch).device
    choice = xe.choose(big, device, configs=())
    small = xe.check_problem(big, choice)
    one = case(
        m=small.num_tokens,
        h=small.hidden_size,
        i=small.intermediate_size,
        e=small.num_experts,
        k=small.top_k,
        w1_layout=layout,
        w2_layout=layout,
    )
    assert dataclasses.replace(one.problem, topk_ids_dtype=small.topk_ids_dtype) == small
    assert xe.launches(small, device, choice).specs == xe.launches(big, device, choice).specs
    check(pipeline, one, arch, choice)

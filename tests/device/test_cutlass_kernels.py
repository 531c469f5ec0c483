# SPDX-License-Identifier: MIT
"""The kernels written with CuTe, executed on the CPU device with portable atoms, against float64.

CuTe's tensors, coordinates, fragments, TiledMMA and gemm are those of the GPU kernels; the atoms' assembly is not.
"""

from __future__ import annotations

import pytest
import torch
from helpers.xe_emulation import case, error, run, stream, with_tile

from jitmoe import knobs
from jitmoe.compilers.sycl_tla import find_sycl_tla
from jitmoe.pipeline import Pipeline, explain
from jitmoe.plan import cutlass, xe
from jitmoe.plan.cutlass import CutlassDown, CutlassGateUp
from jitmoe.plan.xe_specs import XeWeights
from jitmoe.problems.fused_moe import DType, GateUp, Layout


@pytest.fixture(autouse=True)
def needs_sycl_tla() -> None:
    found, words = find_sycl_tla()
    if found is None:
        pytest.skip(words)


@pytest.mark.parametrize(
    ("tile_name", "layout", "dtype", "gate_up", "bias"),
    [
        ("decode", Layout.NK, DType.FP16, GateUp.CONCATENATED, None),
        ("middle", Layout.KN, DType.BF16, GateUp.INTERLEAVED, DType.FP32),
        ("prefill", Layout.NK, DType.BF16, GateUp.SEPARATE, None),
    ],
)
def test_every_tile(
    pipeline: Pipeline, tile_name: str, layout: Layout, dtype: DType, gate_up: GateUp, bias: DType | None
) -> None:
    device = stream("bmg-g21").device
    tile = next(t for t in xe.tiles(xe.architecture("bmg-g21"), (XeWeights.BLOCK2D,)) if t.name == tile_name)
    # Expert 0: one full block and a second one of 3 rows; expert 1: no row; expert 2: the rest, not full.
    rows = tile.block_rows + 3
    ids = torch.full((rows, 2), -1)
    ids[:, 0] = 0
    ids[: tile.block_rows - 5, 1] = 2
    one = case(
        m=rows, h=168, i=104, e=3, k=2, ids=ids, padding=8, dtype=dtype,
        w1_layout=layout, w2_layout=layout, gate_up=gate_up, bias_dtype=bias,
    )  # fmt: skip
    choice = with_tile(cutlass.choose(one.problem, device, configs=()), tile)
    assert isinstance(choice.gate_up, CutlassGateUp) and isinstance(choice.down, CutlassDown)
    result, _ = run(pipeline, one, "bmg-g21", choice)
    _, wrong = error(result, one)
    assert not wrong, wrong


def test_the_knob_leads_through_the_self_check(pipeline: Pipeline) -> None:
    """The kernels of the decode case above, by the way of a call: plan, cache, self-check, launcher."""
    one = case(m=5, h=168, i=104, e=3, k=2, padding=8, dtype=DType.FP16)
    on = stream("bmg-g21")
    out = torch.full_like(one.x, float("nan"))
    tensors = {**one.tensors(), "out": out}
    with knobs.override(impl="cutlass"):
        bound = pipeline.prepare(one.problem, on, tuple(tensors))
        assert "launch cutlass_gate_up(" in explain(one.problem, on.device)
    with on.lock:
        bound.submit(on, [tensor.data_ptr() for tensor in tensors.values()])
    on.wait()
    _, wrong = error(out, one)
    assert not wrong, wrong

# SPDX-License-Identifier: MIT
"""Native code of the kernels written with CuTe: nothing merged away, no spills, fragments as CuTe lays them out."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys

import pytest
from helpers.report import isa_report

from jitmoe.builder import compile_request
from jitmoe.compilers.base import Artifact, CompileRequest, HeaderPackage
from jitmoe.compilers.ocloc import Ocloc, find_ocloc
from jitmoe.compilers.sycl_jit import MEMORY_PER_JOB_BYTES, find_sycl_jit
from jitmoe.compilers.sycl_tla import COPY_HEADER, find_sycl_tla
from jitmoe.plan import cutlass
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.cutlass import CutlassDown, CutlassGateUp
from jitmoe.plan.xe_specs import XeGemm
from jitmoe.problems.fused_moe import DType, Layout

BLOCK2D_GPUS = [name for name, arch in ARCHITECTURES.items() if arch.has_block2d]


@pytest.fixture(scope="module")
def package() -> HeaderPackage:
    found, words = find_sycl_tla()
    if found is None:
        pytest.skip(words)
    return found


@pytest.fixture(scope="module")
def ocloc() -> Ocloc:
    found, words = find_ocloc()
    if found is None:
        pytest.skip(words)
    return found


def compile_(request: CompileRequest) -> Artifact:
    compiler, words = find_sycl_jit()
    assert compiler is not None, words
    return compiler.compile(request, build_key="", timeout_s=300.0)


def kernels(num_tokens: int, layout: Layout, dtype: DType = DType.BF16) -> tuple[CutlassGateUp, CutlassDown]:
    one = isa_report.moe_problem(
        num_tokens=num_tokens, hidden_size=2048, intermediate_size=768, layout=layout, dtype=dtype
    )
    choice = cutlass.choose(one, offline_device("bmg-g21"), configs=())
    assert isinstance(choice.gate_up, CutlassGateUp) and isinstance(choice.down, CutlassDown)
    return choice.gate_up, choice.down


def expected_loads(spec: XeGemm) -> int:
    """Messages with a result per K step of 32: two weight blocks; token blocks of 16 x 16 (nk) or all rows (kn)."""
    return 2 + (2 * spec.tile_rows // 16 if spec.layout is Layout.NK else 1)


def look(spec: XeGemm, image: Artifact, arch: str, ocloc: Ocloc) -> list[str]:
    """Returns what is wrong with the machine code of ``spec`` for ``arch``."""
    row = isa_report.measure(spec, arch, image.image, image.seconds, ocloc)
    wanted = {
        "objections": ((), row.objections),
        "GRF": (256, row.grf),
        "dpas per K step": (spec.tile_rows * 2 * spec.tile_columns * 32 // (8 * 16 * 16), row.loop_dpas),
        "loads per K step": (expected_loads(spec), row.loop_loads),
        "split barriers": (int(spec.split_barrier), row.loop_barriers),
        "prefetches": (3 if spec.sub_groups_m == 1 else 2, row.loop_prefetches),
    }
    return [f"{arch} {spec}: {what} {b}, expected {a}" for what, (a, b) in wanted.items() if a != b]


_PEAK = """\
import pickle, resource, sys
from jitmoe.compilers.sycl_jit import find_sycl_jit
find_sycl_jit()[0].compile(pickle.load(sys.stdin.buffer), build_key="", timeout_s=300.0)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def test_a_compilation_takes_no_more_memory_than_the_jobs_are_planned_with(package: HeaderPackage) -> None:
    """In a process of its own, whose only child is the compiler's."""
    request = compile_request(kernels(8192, Layout.NK)[0], arch="")
    command = [sys.executable, "-c", _PEAK]
    done = subprocess.run(command, input=pickle.dumps(request), capture_output=True, check=True)
    assert int(done.stdout) <= MEMORY_PER_JOB_BYTES


@pytest.mark.ocloc
def test_prefill_kernel_on_every_gpu(package: HeaderPackage, ocloc: Ocloc) -> None:
    """32 dpas per K step; sycl-tla's own MoE example: 84 instructions on bmg, 116 on pvc, without gate/up fusion."""
    gate_up, _ = kernels(8192, Layout.NK)
    request = compile_request(gate_up, arch="")
    image = compile_(request)
    assert [problem for arch in BLOCK2D_GPUS for problem in look(gate_up, image, arch, ocloc)] == []
    for arch, limit in (("bmg-g21", 84), ("pvc", 116)):
        row = isa_report.measure(gate_up, arch, image.image, image.seconds, ocloc)
        assert row.loop_instructions < limit


@pytest.mark.ocloc
def test_accumulators_are_tied_and_start_at_zero(package: HeaderPackage, ocloc: Ocloc) -> None:
    """dpas by inline asm: result and addend must be one register, set to zero before the loop."""
    _, down = kernels(1, Layout.KN, DType.FP16)
    image = compile_(compile_request(down, arch=""))
    assert look(down, image, "bmg-g21", ocloc) == []
    native = ocloc.compile(image.image, kernel=down.entry_name, arch="bmg-g21", large_grf=True, assembly=True)
    instructions, loop = isa_report.parse_assembly(native.assembly)
    first = next(position for position, line in enumerate(instructions) if "dpas." in line)
    operands = [
        re.search(r"dpas\.8x8 \(16\|M0\)\s+r(\d+):f\s+r(\d+):f\s+r\d+:hf\s+r\d+", line)
        for line in loop.instructions
        if "dpas." in line
    ]
    assert all(match is not None and match[1] == match[2] for match in operands)
    accumulators = {int(match[1]) + i for match in operands if match is not None for i in range(8)}
    assert len(accumulators) == down.accumulator_registers
    zeroed = {
        int(match[1])
        for line in instructions[:first]
        if (match := re.search(r"\bmov \(16\|M0\)\s+r(\d+)\.0<1>:\w+\s+(?:0x0|0):\w+", line))
    }
    assert accumulators <= zeroed


@pytest.mark.ocloc
def test_without_the_overlay_loads_are_lost(package: HeaderPackage, ocloc: Ocloc) -> None:
    """Why the copy header is shadowed. If this fails, compiler or sycl-tla are mended and the overlay can go."""
    gate_up, _ = kernels(8192, Layout.NK)
    original = (package.folder / COPY_HEADER).read_text()
    overlay = tuple((name, original if name == COPY_HEADER else text) for name, text in package.overlay)
    request = compile_request(gate_up, arch="")
    image = compile_(dataclasses.replace(request, headers=dataclasses.replace(package, overlay=overlay)))
    row = isa_report.measure(gate_up, "bmg-g21", image.image, image.seconds, ocloc)
    assert row.loop_loads is None or row.loop_loads < expected_loads(gate_up)


# CuTe's own layout algebra, asked at compile time: where does element v of lane t come from, where is it wanted?
_LAYOUTS = """\
#include <jitmoe/entry.hpp>
#include <jitmoe/mainloop/cutlass.hpp>

namespace {
struct Config {
  static constexpr int simd = 16, tile_rows = 32, tile_columns = 32, sub_groups_m = 4, sub_groups_n = 4;
  static constexpr bool emulated = false;
  static constexpr auto dtype = jitmoe::DType::bf16;
  static constexpr auto layout = jitmoe::Layout::LAYOUT;
  static constexpr auto weights = jitmoe::XeWeights::block2d;
  static constexpr auto tokens = jitmoe::XeTokens::block2d;
};
using Loop = jitmoe::mainloop::Cutlass<Config>;

template <class Op, bool x_is_k> auto copied_layout() {
  using Stride = cute::conditional_t<x_is_k, cute::Stride<int, cute::_1>, cute::Stride<cute::_1, int>>;
  return cute::make_block_2d_copy<Loop::Element>(Op{}, Stride{});
}
}  // namespace
"""


@pytest.mark.parametrize("layout", [layout.value for layout in Layout])
def test_fragments_need_no_reorder(layout: str, package: HeaderPackage) -> None:
    """The copies' (lane, value) layouts, composed over a step's blocks, equal those that the MMA atoms ask for."""
    checks = """
extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16) void jitmoe_layouts(int* out) {
  // One atom each: A holds kM x 32 as (8 x 16 blocks down M, then along K), B holds 32 x kN or 16 x 16.
  constexpr auto mma_a = typename Loop::Mma::AtomLayoutA_TV{};  // (T, V) -> (M, K) of 8 x 16, M fastest
  constexpr auto mma_b = typename Loop::Mma::AtomLayoutB_TV{};  // (T, V) -> (N, K) of 16 x 16, N fastest
  using CopyA = decltype(copied_layout<Loop::CopyA, true>());
  using CopyB = decltype(copied_layout<Loop::CopyB, Loop::kWeightsAreA>());
  constexpr auto copy_a = typename CopyA::TiledLayout_TV{};  // (T, V) -> (row, k) of kM x 32, row fastest
  constexpr auto copy_b = typename CopyB::TiledLayout_TV{};  // (T, V) -> (row, k) of the atom, row fastest
  constexpr int rows_b = Loop::kWeightsAreA ? 16 : Loop::kN, depth_b = Loop::kWeightsAreA ? 16 : 32;
  static_assert([&] {
    for (int t = 0; t < 16; ++t)
      for (int h = 0; h < 2; ++h)
        for (int j = 0; j < Loop::kM / 8; ++j)
          for (int v = 0; v < 8; ++v) {
            const int wanted = mma_a(t, v), m = wanted % 8 + 8 * j, k = wanted / 8 + 16 * h;
            if (int(copy_a(t, v + 8 * j + Loop::kM * h)) != m + Loop::kM * k) return false;
          }
    return true;
  }());
  static_assert([&] {
    for (int t = 0; t < 16; ++t)
      for (int h = 0; h < depth_b / 16; ++h)
        for (int i = 0; i < rows_b / 16; ++i)
          for (int v = 0; v < 16; ++v) {
            const int wanted = mma_b(t, v), n = wanted % 16 + 16 * i, k = wanted / 16 + 16 * h;
            if (int(copy_b(t, v + 32 * i + 16 * h)) != n + rows_b * k) return false;
          }
    return true;
  }());
  out[0] = 1;
}
"""
    source = _LAYOUTS.replace("LAYOUT", layout) + checks
    request = CompileRequest(
        kernel="jitmoe_layouts", spec=f"layouts({layout})", source=source, arch="", large_grf=False, headers=package
    )
    assert compile_(request).image


@pytest.mark.ocloc
def test_middle_kernel(package: HeaderPackage, ocloc: Ocloc) -> None:
    """All kernels, tiles and activations are in docs/isa-report.md; tools/isa-report fails on spills."""
    gate_up, _ = kernels(512, Layout.KN)
    image = compile_(compile_request(gate_up, arch=""))
    assert [problem for arch in ("bmg-g21", "pvc") for problem in look(gate_up, image, arch, ocloc)] == []

# SPDX-License-Identifier: MIT
"""Reports the machine code of every Xe kernel that the plan can choose, for every GPU of the table, without a GPU.

Each kernel is compiled as at run time (SYCL to SPIR-V), then by ocloc for each GPU; the numbers are counted from the
native assembly. "Main loop" is the innermost loop with dpas; a K step is 32 elements. Usage: tools/isa-report --help
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jitmoe.builder import compile_request
from jitmoe.compilers.base import PACKAGE_PLACEHOLDER, Artifact, CompileRequest, HeaderPackage
from jitmoe.compilers.ocloc import NativeKernel, Ocloc, find_ocloc
from jitmoe.compilers.sycl_jit import SyclJit, find_sycl_jit
from jitmoe.compilers.sycl_tla import COPY_HEADER, find_sycl_tla
from jitmoe.errors import CompileError
from jitmoe.operation import Problem
from jitmoe.plan import cutlass, planner_for, xe, xe_single
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.topk_xe import XeTopK
from jitmoe.plan.xe_specs import (
    QuantConstants,
    XeGemm,
    XeSingle,
    XeSpec,
    XeVectorDown,
    XeVectorGateUp,
)
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.problems.routing import GroupScore, Routing, RoutingProblem, Scoring
from jitmoe.problems.sorting import LoadProblem, SortProblem, max_padded_pairs

# The anchor: one work-group's part of sycl-tla's MoE grouped GEMM (its example 12, no activation, no gate/up fusion),
# from the installed package, with sub-groups of 32 x 64, a K step of 32 and weights [E][N][K] as ours.
ANCHOR_NAME = "sycl-tla example 12"
ANCHOR_GPUS = ("bmg-g21", "pvc", "cri")
ANCHOR_KERNEL = "jitmoe_anchor"
_ANCHOR_SOURCE = """\
#include <sycl/sycl.hpp>
#include <jitmoe/entry.hpp>
#include <cute/util/xe_split_barrier.hpp>
#include <moe_gemms.hpp>
#include <jitmoe/arch/convert.hpp>

// What the conversion to bfloat16 would leave unresolved.
extern "C" SYCL_EXTERNAL unsigned short __devicelib_ConvertFToBF16INTEL(const float& value) noexcept {
  return __spirv_ConvertFToBF16INTEL(value);
}

using Element = cute::bfloat16_t;
using Tile = cute::Layout<cute::Shape<cute::_256, cute::_128, cute::_32>>;
using SubGroups = cute::Layout<cute::Shape<cute::_8, cute::_2, cute::_1>, cute::Stride<cute::_2, cute::_1, cute::_0>>;
using Mma = cute::TiledMMAHelper<cute::MMA_Atom<cute::XE_DPAS_TT<8, float, Element>>, Tile, SubGroups>::TiledMMA;

extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16)
void jitmoe_anchor(const void* x, const void* w, void* out, int m, int n, int k, int wg_m, int wg_n) {
  const auto tensor = [](auto* data, int rows, int columns) {
    return cute::make_tensor(cute::make_gmem_ptr(data), cute::make_shape(rows, columns),
                             cute::make_stride(columns, cute::_1{}));
  };
  auto result = tensor(static_cast<Element*>(out), m, n);
  MoE::moe_gemm<void, void, void>(tensor(static_cast<const Element*>(x), m, k),
                                  tensor(static_cast<const Element*>(w), n, k), result,
                                  cute::make_coord(wg_m, wg_n, cute::_, 0), Mma{});
}
"""
# Split barriers as assembly: the SPIR-V extension for them ends the compiler library's process.
_ANCHOR_BARRIERS = """\
#pragma once
enum SPIRVScope { ScopeCrossDevice, ScopeDevice, ScopeWorkgroup, ScopeSubgroup, ScopeInvocation };
namespace cute {
inline void barrier_arrive(SPIRVScope, int = 0) { asm volatile("sbarrier.signal"); }
inline void barrier_wait(SPIRVScope, int = 0) { asm volatile("sbarrier.wait"); }
}
"""

T = TypeVar("T")
# Of CuTe's kernels, whose epilogues are those of ours, and of single launches, which have the code of several kernels.
SOME_ACTIVATIONS = (Activation.SILU, Activation.GELU)

_NOT_CODE = ("//", ".")
# "load.ugm", "load_block2d.ugm"; on Xe3 "send.ugm" and on cri "sendg.ugm" with the message in the comment
_LOAD = r"^(?:\([^)]*\)\s*)?(?:load\S*|sendg?\.\w+(?=.*//.*\bload))"
_JUMP = re.compile(r"\b(?:jmpi|while|goto|brc|brd)\b.*?\b(\w+)\s*(?://.*|\{.*)?$")


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of one loop."""

    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.instructions)

    @property
    def dpas(self) -> int:
        return self.count(r"\bdpas\.")

    @property
    def prefetches(self) -> int:
        return self.count(_LOAD + r"\s+\([^)]*\)\s+null\b")

    @property
    def loads(self) -> int:
        """Load messages with a result."""
        return self.count(_LOAD) - self.prefetches

    @property
    def barriers(self) -> int:
        return self.count(r"\bsync\.bar\b")


def parse_assembly(text: str) -> tuple[tuple[str, ...], Loop | None]:
    """Returns all instructions of a kernel's assembly dump and its innermost loop with dpas (the shortest such)."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[Loop] = []
    for raw in text.splitlines():
        line = raw.strip()
        label = re.match(r"^(\w+):", raw)
        if label:
            labels[label.group(1)] = len(instructions)
        elif line and not line.startswith(_NOT_CODE):
            instructions.append(line)
            jump = _JUMP.search(line)
            if jump and jump.group(1) in labels:
                loop = Loop(tuple(instructions[labels[jump.group(1)] :]))
                if loop.dpas:
                    loops.append(loop)
    main = min(loops, key=lambda loop: len(loop.instructions)) if loops else None
    return tuple(instructions), main


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel on one GPU."""

    kernel: str
    configuration: str
    arch: str
    grf: int
    spill_bytes: int
    instructions: int
    loop_instructions: int | None
    loop_dpas: int | None
    loop_loads: int | None
    loop_prefetches: int | None
    loop_barriers: int | None
    sycl_seconds: float
    ocloc_seconds: float
    objections: tuple[str, ...]

    @property
    def dpas_share(self) -> float | None:
        if not self.loop_instructions or self.loop_dpas is None:
            return None
        return self.loop_dpas / self.loop_instructions


def describe(spec: XeSpec) -> str:
    """Returns the part of a spec that tells kernels of one family apart, in a few words."""
    if isinstance(spec, XeGemm):
        tile = f"{spec.tile_rows}x({spec.tile_columns}+{spec.tile_columns})"
        groups = f"{spec.sub_groups_m}x{spec.sub_groups_n}x{spec.k_slices}"
        operands = f"{spec.layout.value} {spec.weights.value}/{spec.tokens.value}"
        extra = f" {spec.activation.value}" if hasattr(spec, "activation") else ""
        return f"{tile} {groups} {operands} {spec.dtype.value}{extra}{_codes(spec)}"
    if isinstance(spec, XeSingle):
        packed = " packed" if spec.pack is not None else ""
        return f"{describe(spec.gate_up)} then {spec.down.layout.value} {spec.down.weights.value}{packed}"
    if isinstance(spec, (XeVectorGateUp, XeVectorDown)):
        extra = f" {spec.activation.value}" if isinstance(spec, XeVectorGateUp) else ""
        wide = " wide" if spec.wide else ""
        return f"{spec.tile_rows} rows {spec.layout.value}{wide} {spec.dtype.value}{extra}{_codes(spec)}"
    if isinstance(spec, XeTopK):
        order = "topk-" if spec.topk_before_scoring else ""
        groups = f" {spec.topk_groups}/{spec.num_groups} groups" if spec.num_groups > 1 else ""
        return f"E{spec.num_experts} k{spec.top_k} {order}{spec.scoring.value}{groups} {spec.dtype.value}"
    return " ".join(str(getattr(value, "value", value)) for _, value in spec.constants())


def _codes(spec: XeSpec) -> str:
    """Returns how a kernel's weights and inputs are quantized."""
    if not isinstance(spec, QuantConstants):
        return ""
    zero = " zero-point" if spec.has_zero_point else ""
    integers = " int8-dpas" if getattr(spec, "int8_dpas", False) else ""
    blocks = f"{spec.block_k or 'all'}" + (f"/{spec.x_block_k}" if spec.x_block_k else "")
    return f" {spec.encoding.value}/{blocks}/{spec.scale_dtype.value}{zero}{integers}"


def measure(spec: XeSpec, arch: str, spirv: bytes, sycl_seconds: float, ocloc: Ocloc) -> Row:
    """Returns the row of ``spec``'s image on ``arch``."""
    native = ocloc.compile(spirv, kernel=spec.entry_name, arch=arch, large_grf=spec.large_grf, assembly=True)
    return row_of(native, spec.KERNEL, describe(spec), sycl_seconds)


def row_of(native: NativeKernel, kernel: str, configuration: str, sycl_seconds: float) -> Row:
    """Returns the row of one kernel's machine code."""
    instructions, loop = parse_assembly(native.assembly)
    return Row(
        kernel=kernel,
        configuration=configuration,
        arch=native.arch,
        grf=int(native.facts.get("grf_count", "0")),
        spill_bytes=native.spill_bytes,
        instructions=len(instructions),
        loop_instructions=len(loop.instructions) if loop else None,
        loop_dpas=loop.dpas if loop else None,
        loop_loads=loop.loads if loop else None,
        loop_prefetches=loop.prefetches if loop else None,
        loop_barriers=loop.barriers if loop else None,
        sycl_seconds=round(sycl_seconds, 3),
        ocloc_seconds=round(native.seconds, 3),
        objections=native.objections,
    )


def anchor_rows(arches: Iterable[str], package: HeaderPackage, sycl: SyclJit, ocloc: Ocloc) -> list[Row]:
    """Returns the anchor's rows; its one compilation takes half a minute and 1.6 GB."""
    copies = tuple(one for one in package.overlay if one[0] == COPY_HEADER)  # everything else as the package has it
    beside = tuple(
        part
        for name in ("tools/util/include", "examples/12_xe20_moe_gemm_cute_interface")
        for part in ("-isystem", f"{PACKAGE_PLACEHOLDER}/../{name}")
    )
    headers = dataclasses.replace(
        package,
        overlay=(*copies, ("cute/util/xe_split_barrier.hpp", _ANCHOR_BARRIERS)),
        defines=(*package.defines, *beside),
    )
    request = CompileRequest(
        kernel=ANCHOR_KERNEL, spec=ANCHOR_NAME, source=_ANCHOR_SOURCE, arch="", large_grf=True, headers=headers
    )
    image = sycl.compile(request, build_key="", timeout_s=300)
    rows = []
    for arch in arches:
        native = ocloc.compile(image.image, kernel=ANCHOR_KERNEL, arch=arch, large_grf=True, assembly=True)
        rows.append(row_of(native, ANCHOR_NAME, "32x64 8x2x1 nk block2d/block2d bf16", image.seconds))
    return rows


def representative_problems(arch: str) -> Iterator[MoEProblem]:
    """Yields problems whose plans on ``arch`` hold every kernel and tile configuration that the plan can choose."""
    tokens = {"decode": 1, "middle": 512, "prefill": 8192}
    shapes = {"aligned": (2048, 768), "K tail": (2056, 776), "odd": (2049, 769)}
    for layout in Layout:
        for hidden_size, intermediate_size in shapes.values():
            for num_tokens in tokens.values():
                for dtype in (DType.BF16, DType.FP16, DType.FP32):
                    for activation in Activation:
                        yield moe_problem(
                            num_tokens=num_tokens,
                            hidden_size=hidden_size,
                            intermediate_size=intermediate_size,
                            dtype=dtype,
                            activation=activation,
                            layout=layout,
                        )
    for hidden_size, intermediate_size in ((2048, 768), (2050, 770)):
        for num_tokens in tokens.values():
            for quant, input_quant in QUANTIZED:
                yield moe_problem(
                    num_tokens=num_tokens,
                    hidden_size=hidden_size,
                    intermediate_size=intermediate_size,
                    quant=quant,
                    input_quant=input_quant,
                )


def _format(encoding: Encoding, block_n: int, block_k: int, scale: DType, zero_point: bool = False) -> WeightFormat:
    return WeightFormat(
        encoding=encoding, block_n=block_n, block_k=block_k, scale_dtype=scale, has_zero_point=zero_point
    )


# Each way to convert codes and each way to apply scales, with and without rounded inputs.
QUANTIZED: tuple[tuple[WeightFormat, InputQuant | None], ...] = (
    (_format(Encoding.E4M3, 1, 0, DType.FP32), None),
    (_format(Encoding.E4M3, 128, 128, DType.FP32), None),
    (_format(Encoding.E4M3, 128, 128, DType.FP32), InputQuant.E4M3),
    (_format(Encoding.E4M3, 1, 32, DType.E8M0), None),
    (_format(Encoding.E5M2, 0, 0, DType.FP32), None),
    (_format(Encoding.INT8, 1, 0, DType.FP32), None),
    (_format(Encoding.INT8, 1, 0, DType.FP32), InputQuant.INT8),
    (_format(Encoding.INT4, 1, 128, DType.BF16), None),
    (_format(Encoding.INT4, 1, 32, DType.BF16), None),
    (_format(Encoding.UINT4, 1, 128, DType.FP16, zero_point=True), None),
    (_format(Encoding.E2M1, 1, 32, DType.E8M0), None),
)


def moe_problem(
    *,
    num_tokens: int,
    hidden_size: int,
    intermediate_size: int,
    dtype: DType = DType.BF16,
    activation: Activation = Activation.SILU,
    layout: Layout = Layout.NK,
    num_experts: int = 128,
    top_k: int = 8,
    quant: WeightFormat | None = None,
    input_quant: InputQuant | None = None,
) -> MoEProblem:
    """Returns a problem with densely packed tensors; ``quant``: of both weights."""
    return MoEProblem(
        num_tokens=num_tokens, hidden_size=1, intermediate_size=1, num_experts=1, top_k=1, dtype=dtype,
        activation=activation, topk_ids_dtype=DType.INT64, topk_weights_dtype=DType.FP32, w1_layout=layout,
        w2_layout=layout, num_global_experts=None, x_row_stride=1, out_row_stride=1, w1_expert_stride=2, w1_stride=1,
        w2_expert_stride=1, w2_stride=1, topk_ids_row_stride=1, topk_weights_row_stride=1, base_alignment=64,
        w1_quant=None if quant is None else quant.dense(1, 1),
        w2_quant=None if quant is None else quant.dense(1, 1),
        input_quant=input_quant,
        input_block_k=0 if quant is None or input_quant is None else quant.block_k,
    ).resized(
        num_tokens=num_tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_experts=num_experts,
        top_k=top_k,
    )  # fmt: skip


def around_problems() -> Iterator[Problem]:
    """Yields problems of the ops around the experts: routers from small to largest, sorting, load, activations."""
    deepseek = Routing(
        top_k=8, scoring=Scoring.SIGMOID, num_groups=8, topk_groups=4, group_score=GroupScore.TOP2_SUM, renormalize=True
    )
    largest = Routing(top_k=32, num_groups=32, topk_groups=16, group_score=GroupScore.TOP2_SUM, renormalize=True)
    routers = {
        256: deepseek,
        128: Routing(top_k=8, renormalize=True),
        32: Routing(top_k=4, topk_before_scoring=True),
        16: Routing(top_k=2, scoring=Scoring.SPARSEMIXER),
        512: Routing(top_k=10, capacity_factor=1.2),
        1000: dataclasses.replace(largest, num_groups=20, topk_groups=7, scoring=Scoring.SQRT_SOFTPLUS),
        1024: dataclasses.replace(largest, capacity_factor=1.2, temperature=0.7),
    }
    for experts, routing in routers.items():
        yield RoutingProblem(
            num_tokens=4096,
            num_experts=experts,
            routing=routing,
            dtype=DType.BF16,
            bias_dtype=DType.FP32 if routing.num_groups > 1 else None,
            ids_dtype=DType.INT32,
            logits_row_stride=experts,
            weights_row_stride=routing.num_slots,
            ids_row_stride=routing.num_slots,
        )
    for tokens, global_experts, weights in ((512, None, None), (512, 512, DType.FP64), (32768, None, DType.BF16)):
        longest = max_padded_pairs(8 * tokens, 256, 128)
        yield SortProblem(
            num_tokens=tokens,
            top_k=8,
            num_experts=256,
            num_global_experts=global_experts,
            block_size=128,
            ids_dtype=DType.INT32,
            ids_row_stride=8,
            num_sorted=longest,
            num_blocks=longest // 128,
            weights_dtype=weights,
            weights_row_stride=0 if weights is None else 8,
            zeroed_bytes=0 if weights is None else tokens * 4096,
        )
    for tokens in (512, 32768):
        yield LoadProblem(num_tokens=tokens, top_k=8, num_experts=256, ids_dtype=DType.INT64, ids_row_stride=8)
    for dtype, activation, gate_up, limit in (
        (DType.BF16, Activation.SILU, GateUp.CONCATENATED, None),
        (DType.FP16, Activation.GELU, GateUp.SEPARATE, None),
        (DType.BF16, Activation.SWIGLU_OAI, GateUp.INTERLEAVED, 7.0),
        (DType.FP32, Activation.RELU2, GateUp.UNGATED, None),
    ):
        yield ActivateProblem(
            num_rows=512,
            num_columns=768,
            dtype=dtype,
            activation=activation,
            gate_up=gate_up,
            alpha=1.702,
            limit=limit,
            gate_row_stride=gate_up.rows(768),
            up_row_stride=768,
            out_row_stride=768,
        )


def around_specs(arch: str) -> list[XeSpec]:
    """Returns the distinct kernels of these problems' plans on ``arch``."""
    device = offline_device(arch)
    found: dict[XeSpec, None] = {}
    for one in around_problems():
        planner = planner_for(one, device)
        for spec in planner.launches(one, device, planner.choose(one, device)).specs:
            if not isinstance(spec, XeSpec):
                raise TypeError(f"{spec} is no Xe kernel")
            found[spec] = None
    return list(found)


def specs_for(arch: str, problems: Iterable[MoEProblem], *, cute: bool = False) -> list[XeSpec]:
    """Returns the distinct kernels of the plans for ``problems`` on ``arch``, in several launches and in one.

    Args:
        cute: also those written with CuTe.
    """
    device = offline_device(arch)
    found: dict[XeSpec, None] = {}
    for one in problems:
        choices = [xe.choose(one, device, configs=())]
        if cute and one.activation in SOME_ACTIVATIONS and not cutlass.objections(one, device):
            choices.append(cutlass.choose(one, device, configs=()))
        for choice in choices:
            for spec in xe.launches(one, device, choice).specs:
                if not isinstance(spec, XeSpec):
                    raise TypeError(f"{spec} is no Xe kernel")
                found[spec] = None
        some = one.activation in SOME_ACTIVATIONS and one.dtype is DType.BF16
        if some and not xe.single_launch_objections(one, device, choices[0]):
            found[xe_single.single_kernel(choices[0])] = None
    return list(found)


def report(arches: Iterable[str], sycl: SyclJit, ocloc: Ocloc, *, jobs: int, dtypes: set[str], cute: bool) -> list[Row]:
    """Returns a row per kernel and GPU; ``jobs`` compilations at once, progress on stderr."""
    users: dict[XeSpec, list[str]] = {}
    for arch in arches:
        problems = [p for p in representative_problems(arch) if p.dtype.value in dtypes]
        for spec in (*specs_for(arch, problems, cute=cute), *around_specs(arch)):
            users.setdefault(spec, []).append(arch)

    def translate(spec: XeSpec) -> Artifact:
        return sycl.compile(compile_request(spec, arch=""), build_key="", timeout_s=300)

    with ThreadPoolExecutor(jobs) as pool:
        images = dict(zip(users, _progress(pool.map(translate, users), len(users), "SPIR-V"), strict=True))

    def work(spec: XeSpec) -> list[Row]:
        return [measure(spec, arch, images[spec].image, images[spec].seconds, ocloc) for arch in users[spec]]

    with ThreadPoolExecutor(jobs) as pool:
        found = _progress(pool.map(work, users), len(users), "machine code")
        return [row for rows in found for row in rows]


def _progress(results: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields the results; says on stderr how many of ``total`` there are."""
    for number, result in enumerate(results, 1):
        print(f"\r{number}/{total} kernels to {what}", end="", file=sys.stderr, flush=True)
        yield result
    print(file=sys.stderr)


def as_table(rows: Iterable[Row]) -> str:
    """Returns rows as a Markdown table."""
    titles = ["kernel", "configuration", "GPU", "GRF", "spill B", "instr", "loop", "dpas", "share", "ld", "pf", "bar"]
    titles += ["SYCL s", "ocloc s"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        numbers = [row.loop_instructions, row.loop_dpas, row.loop_loads, row.loop_prefetches, row.loop_barriers]
        loop, dpas, loads, prefetches, barriers = ("-" if number is None else str(number) for number in numbers)
        share = "-" if row.dpas_share is None else f"{row.dpas_share:.3f}"
        lines.append(
            f"| {row.kernel} | {row.configuration} | {row.arch} | {row.grf} | {row.spill_bytes} | {row.instructions} "
            f"| {loop} | {dpas} | {share} | {loads} | {prefetches} | {barriers} "
            f"| {row.sycl_seconds:.2f} | {row.ocloc_seconds:.2f} |"
        )
    return "\n".join(lines)


def _is_listed(row: Row) -> bool:
    """Whether the document lists the row: bf16 and silu stand for the others, which share their main loops."""
    words = row.configuration.split()
    return not {"fp16", "gelu", "gelu_tanh", "relu2", "swiglu_oai"} & set(words)


def as_document(rows: list[Row], anchors: list[Row], sycl: SyclJit, ocloc: Ocloc) -> str:
    """Returns the report as a Markdown document."""
    bad = [row for row in rows if row.objections]
    gpus = sorted({row.arch for row in rows})
    main = [
        row
        for row in rows
        if row.arch in ANCHOR_GPUS and _is_listed(row) and row.configuration.startswith("32x(32+32) 4x4x1 nk block2d")
    ]
    ours = "\n".join(
        f"| {row.kernel} | {row.configuration} | {row.arch} | {row.loop_instructions} | {row.loop_dpas} "
        f"| {row.dpas_share:.3f} | {row.loop_loads} | {row.sycl_seconds:.2f} |"
        for row in (*anchors, *main)
    )
    problems = "".join(f"\n- {r.kernel} {r.configuration} {r.arch}: {'; '.join(r.objections)}" for r in bad)
    listed = [row for row in rows if _is_listed(row)]
    return f"""\
# Machine code of the Xe kernels

Written by `tools/isa-report --output docs/isa-report.md`; do not edit. Compilers: intel-sycl-rt {sycl.version},
ocloc {ocloc.version}. No GPU took part: these are counts of native instructions, not run times.

{len(rows)} compilations of {len({(r.kernel, r.configuration) for r in rows})} kernels for {", ".join(gpus)}.
Spilled bytes in total: {sum(row.spill_bytes for row in rows)}.
Objections (spills, private memory, stack calls, retried compilations): {problems or "none"}.

Columns: configuration = tokens x (columns + columns) per sub-group, sub-groups along M x N x K slices, weight layout,
how weights / tokens are read; loop = instructions of the innermost loop with dpas, for one K step of 32 (64 of 4-bit
codes; scale blocks that are longer end outside of it); share = dpas per instruction; ld, pf = load and prefetch
messages; bar = barrier waits; SYCL s = seconds from source to SPIR-V; ocloc s = seconds to machine
code; as many at once as there are cores. On dg2 and arl-h ocloc adds dpas
without an operand (a workaround), so loops there show more than their 8, 16 or 32.

## Prefill tile beside sycl-tla's MoE GEMM

The anchor is a plain grouped GEMM (no gate/up fusion, no gather, no activation) of the same sub-group tile, compiled
from the installed package with its block 2D messages made volatile (docs/xe-kernels.md says why).

| kernel | configuration | GPU | loop | dpas | share | ld | SYCL s |
|---|---|---|---|---|---|---|---|
{ours}

## Kernels

{len(listed)} of the {len(rows)} compilations: without fp16 and with silu only, as the others share these main loops.

{as_table(listed)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", action="append", metavar="GPU", help="only this GPU (may be repeated)")
    parser.add_argument("--dtype", action="append", choices=["bf16", "fp16", "fp32"], help="only this dtype")
    parser.add_argument("--output", type=Path, help="write a Markdown document here instead of a table to stdout")
    parser.add_argument("--json", type=Path, help="also write the rows as JSON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at once")
    arguments = parser.parse_args()
    unknown = [arch for arch in arguments.device or () if arch not in ARCHITECTURES]
    if unknown:
        parser.error(f"unknown GPU {', '.join(unknown)}; known: {', '.join(ARCHITECTURES)}")
    sycl, sycl_words = find_sycl_jit()
    ocloc, ocloc_words = find_ocloc()
    if sycl is None or ocloc is None:
        print("\n".join(words for found, words in ((sycl, sycl_words), (ocloc, ocloc_words)) if found is None))
        return 1
    package, package_words = find_sycl_tla()
    if package is None:
        print(f"without the kernels written with CuTe: {package_words}", file=sys.stderr)
    try:
        rows = report(
            arguments.device or ARCHITECTURES,
            sycl,
            ocloc,
            jobs=arguments.jobs,
            dtypes=set(arguments.dtype or ("bf16", "fp16", "fp32")),
            cute=package is not None,
        )
        wanted = [arch for arch in ANCHOR_GPUS if arch in (arguments.device or ARCHITECTURES)]
        anchors = anchor_rows(wanted, package, sycl, ocloc) if package is not None and arguments.output else []
    except CompileError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    if arguments.output:
        arguments.output.write_text(as_document(rows, anchors, sycl, ocloc))
    else:
        print(as_table(rows))
    return 1 if any(row.objections for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

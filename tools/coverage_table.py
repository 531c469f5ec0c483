# SPDX-License-Identifier: MIT
"""Runs every op in every format on the CPU device and emulated, compiles it for every GPU, and writes the table of it.

A cell of the CPU device and of the emulated GPU is the self-check of the planned kernels: the relative error against
the reference. A cell of a GPU is what ocloc made of the kernels that the plan asks for there: "yes", or what is wrong.

usage: tools/coverage-table --output docs/coverage.md      (needs ocloc; about 25 minutes)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isa_report import moe_problem

from jitmoe import selfcheck
from jitmoe.builder import Builder
from jitmoe.compilers.base import ArtifactKind
from jitmoe.compilers.ocloc import Ocloc, find_ocloc
from jitmoe.device import Device
from jitmoe.errors import JitMoEError
from jitmoe.kernels import KernelStore
from jitmoe.operation import Problem, parts_of
from jitmoe.plan import planner_for, xe, xe_single
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.xe import XeChoice
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.formats import WHOLE, Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.problems.grouped_gemm import GroupedGemmProblem
from jitmoe.problems.routed import AdjustRoutingProblem, RoutedMoEProblem
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.problems.sorting import LoadProblem, SortProblem, max_padded_pairs
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import Stream, private_stream, stream_of
from jitmoe.spec import KernelSpec

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
EMULATED_ARCHES = ("bmg-g21", "dg2")  # sub-groups of 16 with 2D block loads, and of 8 without


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    op: str
    variant: str
    problem: Problem
    single_launch: bool = False  # as if a tuned row asked for it; where it cannot be had, several launches


# Formats by the names that users know, as SCOPE lists them.
FORMATS = {
    "INT8 per channel": WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE),
    "INT8 group 128": WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.BF16, block_n=1, block_k=128),
    "FP8 e4m3 per expert": WeightFormat(encoding=Encoding.E4M3, scale_dtype=DType.FP32, block_n=WHOLE, block_k=WHOLE),
    "FP8 e4m3 per channel": WeightFormat(encoding=Encoding.E4M3, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE),
    "FP8 e4m3 128x128": WeightFormat(encoding=Encoding.E4M3, scale_dtype=DType.FP32, block_n=128, block_k=128),
    "FP8 e5m2 per channel": WeightFormat(encoding=Encoding.E5M2, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE),
    "FP8 e5m2 128x128": WeightFormat(encoding=Encoding.E5M2, scale_dtype=DType.FP32, block_n=128, block_k=128),
    **{
        f"INT4 group {group}": WeightFormat(encoding=Encoding.INT4, scale_dtype=DType.BF16, block_n=1, block_k=group)
        for group in (32, 64, 128)
    },
    "INT4 AWQ (zero points)": WeightFormat(
        encoding=Encoding.UINT4, scale_dtype=DType.FP16, block_n=1, block_k=128, has_zero_point=True
    ),
    "INT4 GPTQ symmetric": WeightFormat(encoding=Encoding.UINT4, scale_dtype=DType.FP16, block_n=1, block_k=64),
    "INT4 GPTQ g_idx": WeightFormat(
        encoding=Encoding.UINT4, scale_dtype=DType.FP16, block_n=1, block_k=64, has_zero_point=True, has_k_order=True
    ),
    "MXFP4": WeightFormat(encoding=Encoding.E2M1, scale_dtype=DType.E8M0, block_n=1, block_k=32),
    "MXFP8": WeightFormat(encoding=Encoding.E4M3, scale_dtype=DType.E8M0, block_n=1, block_k=32),
}
INPUTS = {
    "INT8 W8A8, per token": ("INT8 per channel", InputQuant.INT8, None),
    "INT8 W8A8, given scales": ("INT8 per channel", InputQuant.INT8, 0),
    "FP8 e4m3 W8A8, per token": ("FP8 e4m3 per channel", InputQuant.E4M3, None),
    "FP8 e4m3 W8A8, 128x128": ("FP8 e4m3 128x128", InputQuant.E4M3, None),
    "FP8 e4m3 W8A8, per expert, given scales": ("FP8 e4m3 per expert", InputQuant.E4M3, 1),
    "FP8 e5m2 W8A8, per token": ("FP8 e5m2 per channel", InputQuant.E5M2, None),
}


def experts(**changes: Any) -> MoEProblem:
    """Returns an expert problem of ordinary sizes; plans turn it into a small one for the check."""
    for name in ("w1_quant", "w2_quant"):
        if name in changes:
            changes[name] = changes[name].dense(1, 1)
    sizes = {"num_tokens": 64, "hidden_size": 512, "intermediate_size": 256, "num_experts": 16, "top_k": 2}
    return replace(moe_problem(**sizes), **changes).resized(**sizes)


def expert_cases() -> Iterator[Case]:
    """Yields the rows of ``fused_moe``."""
    name = "fused_moe"
    for dtype in (DType.BF16, DType.FP16, DType.FP32):
        for layout, words in ((Layout.NK, "[E, N, K]"), (Layout.KN, "[E, K, N]")):
            yield Case(
                name, f"{dtype.value}, weights {words}", experts(dtype=dtype, w1_layout=layout, w2_layout=layout)
            )
    kn = {"w1_layout": Layout.KN, "w2_layout": Layout.KN}
    for words, changes in (
        ("bf16", {}),
        ("fp16, [E, K, N]", {"dtype": DType.FP16, **kn}),
        ("expert map", {"num_global_experts": 32}),
    ):
        yield Case(name, f"one launch asked for, {words}", experts(**changes), single_launch=True)
    biased = {"w1_bias_dtype": DType.BF16, "w2_bias_dtype": DType.BF16}
    oai = {"activation": Activation.SWIGLU_OAI, "swiglu_limit": 7.0, "gate_up": GateUp.INTERLEAVED}
    for words, changes in (
        ("gelu", {"activation": Activation.GELU}),
        ("gelu_tanh", {"activation": Activation.GELU_TANH}),
        ("silu with a limit", {"swiglu_limit": 1.0}),
        ("relu2 without gate", {"activation": Activation.RELU2, "gate_up": GateUp.UNGATED}),
        ("separate gate and up, [E, K, N]", {"gate_up": GateUp.SEPARATE, **kn}),
        ("biases", biased),
        ("gpt-oss: swiglu_oai, interleaved, biases", {**oai, **biased}),
        ("gpt-oss, [E, K, N]", {**oai, **biased, **kn}),
        ("routing weight on the input", {"router_weight_on_input": True}),
        ("expert map", {"num_global_experts": 32}),
    ):
        yield Case(name, words, experts(**changes))
    for words, form in FORMATS.items():
        second = replace(form, has_k_order=False)
        for dtype in (DType.BF16, DType.FP16):
            yield Case(name, f"{words} weights, {dtype.value}", experts(dtype=dtype, w1_quant=form, w2_quant=second))
    mxfp4 = FORMATS["MXFP4"]
    yield Case(name, "gpt-oss MXFP4", experts(**oai, **biased, w1_quant=mxfp4, w2_quant=mxfp4))
    yield Case(name, "MXFP4 weights, expert map", experts(w1_quant=mxfp4, w2_quant=mxfp4, num_global_experts=32))
    for words, (format_name, quant, stride) in INPUTS.items():
        form = FORMATS[format_name]
        scales = {} if stride is None else {"a1_scale_stride": stride, "a2_scale_stride": stride}
        problem = experts(w1_quant=form, w2_quant=form, input_quant=quant, input_block_k=form.block_k, **scales)
        yield Case(name, words, problem)


def routers() -> dict[str, Routing]:
    """Returns the routers of model families, in words."""
    return {
        "softmax, top-k": Routing(top_k=4),
        "softmax, top-k, renormalized": Routing(top_k=4, renormalize=True),
        "top-k, softmax (gpt-oss)": Routing(top_k=4, topk_before_scoring=True),
        "sigmoid": Routing(top_k=4, scoring="sigmoid", renormalize=True),
        "sigmoid top-1 (Llama 4)": Routing(top_k=1, scoring="sigmoid", topk_before_scoring=True),
        "groups by their best (DeepSeek-V2)": Routing(top_k=4, num_groups=4, topk_groups=2, scaling_factor=16.0),
        "groups by their two best, bias (DeepSeek-V3)": Routing(
            top_k=4, scoring="sigmoid", num_groups=4, topk_groups=2, group_score="top2_sum", renormalize=True,
            renormalize_epsilon=1e-20, scaling_factor=2.5,
        ),
        "sqrt-softplus, bias": Routing(top_k=4, scoring="sqrt_softplus", renormalize=True),
        "sparsemixer (Phi-3.5-MoE)": Routing(top_k=2, scoring="sparsemixer"),
        "given weights": Routing(top_k=4, scoring="none"),
        "temperature, shared expert": Routing(top_k=4, temperature=0.5, num_shared_experts=1),
        "capped": Routing(top_k=4, capacity_factor=1.2),
    }  # fmt: skip


def routing_problem(routing: Routing, dtype: DType, num_experts: int, *, biased: bool) -> RoutingProblem:
    """Returns a problem with densely packed tensors."""
    return RoutingProblem(
        num_tokens=100,
        num_experts=num_experts,
        routing=routing,
        dtype=dtype,
        bias_dtype=DType.FP32 if biased else None,
        ids_dtype=DType.INT32,
        logits_row_stride=num_experts,
        weights_row_stride=routing.num_slots,
        ids_row_stride=routing.num_slots,
    )


def other_cases() -> Iterator[Case]:
    """Yields the rows of all other ops."""
    for words, routing in routers().items():
        for dtype in (DType.BF16, DType.FP32):
            problem = routing_problem(routing, dtype, 24, biased="bias" in words)
            yield Case("route", f"{words}, {dtype.value}", problem)
    for num_experts in (1000, 1024):
        problem = routing_problem(Routing(top_k=32), DType.FP16, num_experts, biased=False)
        yield Case("route", f"{num_experts} experts, k = 32, fp16", problem)
    slots = 2
    for words, routing_part in (
        ("router logits", routing_problem(Routing(top_k=slots), DType.BF16, 16, biased=False)),
        (
            "given routing renormalized, shared expert",
            AdjustRoutingProblem(
                num_tokens=100, top_k=slots - 1, num_shared_experts=1, first_shared_expert=15, renormalize=True,
                ids_dtype=DType.INT64, weights_dtype=DType.BF16, shared_dtype=DType.FP32, topk_ids_row_stride=slots - 1,
                topk_weights_row_stride=slots - 1, shared_row_stride=1,
            ),
        ),
    ):  # fmt: skip
        part = replace(experts(topk_ids_dtype=DType.INT32), num_tokens=100)
        yield Case("fused_moe", words, RoutedMoEProblem(routing=routing_part, experts=part))
    for ids_dtype in (DType.INT32, DType.INT64):
        weighted = {"weights_dtype": DType.FP32, "weights_row_stride": 4, "zeroed_bytes": 4096}
        for name, words, changes in (
            ("moe_align_block_size", ids_dtype.value, {}),
            ("moe_align_block_size", f"{ids_dtype.value}, expert map", {"num_global_experts": 24}),
            ("moe_sorting", ids_dtype.value, weighted),
        ):
            yield Case(name, words, sort_problem(ids_dtype, **changes))
        yield Case(
            "expert_load",
            ids_dtype.value,
            LoadProblem(num_tokens=100, top_k=4, num_experts=12, ids_dtype=ids_dtype, ids_row_stride=4),
        )
    for activation in Activation:
        for gate_up, words in ((GateUp.CONCATENATED, "[*, 2I]"), (GateUp.SEPARATE, "gate, up"), (GateUp.UNGATED, "x")):
            problem = ActivateProblem(
                num_rows=50, num_columns=90, dtype=DType.BF16, activation=activation, gate_up=gate_up, alpha=1.702,
                limit=7.0, gate_row_stride=180, up_row_stride=180, out_row_stride=90,
            )  # fmt: skip
            yield Case("activate", f"{activation.value}, limit, {words}, bf16", problem)
    for dtype in (DType.BF16, DType.FP16, DType.FP32):
        for layout, words in ((Layout.NK, "trans_b"), (Layout.KN, "[E, K, N]")):
            problem = GroupedGemmProblem(
                num_tokens=64, n=256, k=512, num_experts=8, top_k=2, dtype=dtype, topk_ids_dtype=DType.INT32,
                topk_weights_dtype=DType.FP32, layout=layout, a_row_stride=512, d_row_stride=256,
                b_expert_stride=256 * 512, b_stride=512 if layout is Layout.NK else 256, topk_ids_row_stride=2,
                topk_weights_row_stride=2, bias_dtype=dtype, base_alignment=64,
            )  # fmt: skip
            yield Case("grouped_gemm_moe", f"{dtype.value}, {words}, bias", problem)


def sort_problem(ids_dtype: DType, **changes: Any) -> SortProblem:
    """Returns a problem with densely packed ids."""
    pairs, experts_here, block = 400, 12, 16
    padded = max_padded_pairs(pairs, experts_here, block)
    base = SortProblem(
        num_tokens=100, top_k=4, num_experts=experts_here, num_global_experts=None, block_size=block,
        ids_dtype=ids_dtype, ids_row_stride=4, num_sorted=padded, num_blocks=padded // block,
    )  # fmt: skip
    return replace(base, **changes)


def cases() -> list[Case]:
    """Returns every row."""
    return [*expert_cases(), *other_cases()]


def chosen(case: Case, problem: Problem, device: Device) -> Any:
    """Returns the planner's choice for a part of the case."""
    choice = planner_for(problem, device).choose(problem, device)
    is_for_xe = isinstance(choice, XeChoice) and isinstance(problem, MoEProblem)
    if case.single_launch and is_for_xe and not xe.single_launch_objections(problem, device, choice):
        return replace(choice, single=xe_single.single_kernel(choice))
    return choice


def check(case: Case, builder: Builder, store: KernelStore, stream: Stream) -> str:
    """Returns the error of the self-check of the case's kernels on the stream's device, or what is wrong."""
    device = stream.device
    worst = 0.0
    for problem in parts_of(case.problem):
        planner = planner_for(problem, device)
        try:
            choice = chosen(case, problem, device)
            specs = planner.launches(problem, device, choice).specs
            small = planner.check_problem(problem, choice)
            plan = planner.launches(small, device, choice)
            kernels = builder.obtain(specs, device, lambda spec, entry: store.load(spec, entry, stream))
            with private_stream(stream) as own:
                error, wrong = selfcheck.check(small, plan, kernels, own)
        except JitMoEError as refused:
            return "**no**: " + str(refused).replace("\n", " ")[:300]
        if wrong:
            return f"**wrong**: {wrong}"
        worst = max(worst, error)
    return f"{worst:.1e}"


def compile_for(case: Case, device: Device, builder: Builder, ocloc: Ocloc, known: dict[Any, str]) -> str:
    """Returns "yes" if every kernel of the case becomes machine code for ``device`` without objections."""
    wrong = []
    for problem in parts_of(case.problem):
        planner = planner_for(problem, device)
        try:
            specs = planner.launches(problem, device, chosen(case, problem, device)).specs
            images = builder.obtain(specs, device, lambda spec, entry: entry.files[ArtifactKind.SPIRV.value])
            for spec, image in images.items():
                if (spec, device.arch) not in known:
                    known[spec, device.arch] = _machine_code(spec, image, device.arch, ocloc)
                wrong.append(known[spec, device.arch])
        except JitMoEError as refused:
            return "**no**: " + str(refused).replace("\n", " ")[:300]
    return "; ".join(dict.fromkeys(filter(None, wrong))) or "yes"


def _machine_code(spec: KernelSpec, image: bytes, arch: str, ocloc: Ocloc) -> str:
    native = ocloc.compile(image, kernel=spec.entry_name, arch=arch, large_grf=spec.large_grf, assembly=True)
    return "; ".join(native.objections)


def run(wanted: list[Case], jobs: int) -> tuple[list[list[str]], list[str]]:
    """Returns the cells of each case and the column titles; progress on stderr."""
    ocloc, words = find_ocloc()
    if ocloc is None:
        raise SystemExit(f"{words}\nrun tools/get-ocloc")
    builder = Builder()
    store = KernelStore(builder)
    queue = cpu.default_queue().addressof_ref()
    streams = [stream_of(queue), *(stream_of(queue, emulated_arch=arch) for arch in EMULATED_ARCHES)]
    isa = streams[0].device.cpu_isa
    titles = [f"CPU ({isa.value if isa else '?'})", *(f"emulated {arch}" for arch in EMULATED_ARCHES), *ARCHITECTURES]
    known: dict[Any, str] = {}
    found = []
    with ThreadPoolExecutor(jobs) as pool:
        for number, case in enumerate(wanted, 1):
            print(f"\r{number}/{len(wanted)} {case.op} {case.variant:60}", end="", file=sys.stderr, flush=True)
            cells = [check(case, builder, store, stream) for stream in streams]
            devices = [offline_device(arch) for arch in ARCHITECTURES]
            cells += pool.map(lambda device, case=case: compile_for(case, device, builder, ocloc, known), devices)
            found.append(cells)
    print(file=sys.stderr)
    return found, titles


def as_document(wanted: list[Case], cells: list[list[str]], titles: list[str]) -> str:
    """Returns the table as a Markdown document."""
    lines = [f"| op | what | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    lines += [f"| {case.op} | {case.variant} | {' | '.join(row)} |" for case, row in zip(wanted, cells, strict=True)]
    table = "\n".join(lines)
    return f"""\
# What runs where

Written by `tools/coverage-table --output docs/coverage.md`; do not edit.

CPU and emulated columns: the kernels ran, and this is their relative error against the reference (float64; quantized
inputs with the same quantization steps). GPU columns: "yes" says that ocloc made machine code of every kernel without
spills, stack calls or retries. No GPU took part.

{table}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="write a Markdown document here instead of stdout")
    parser.add_argument("--only", default="", metavar="WORDS", help="only rows that contain this text")
    parser.add_argument("--jobs", type=int, default=2, help="GPUs that are compiled for at once")
    arguments = parser.parse_args()
    wanted = [case for case in cases() if arguments.only in f"{case.op} {case.variant}"]
    cells, titles = run(wanted, arguments.jobs)
    text = as_document(wanted, cells, titles)
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text)
    holes = [f"{case.op} {case.variant}" for case, row in zip(wanted, cells, strict=True) if "**" in "".join(row)]
    print("\n".join(["holes:", *holes]) if holes else "no holes", file=sys.stderr)
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())

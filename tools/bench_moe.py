#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""fused_moe beside its peers: interleaved rounds, medians, correctness, each time as a share of the machine's limit.

usage: tools/bench_moe.py --models qwen3-30b-a3b olmoe --tokens 1 16 1024 --routings uniform zipf hot --json out.json

The limit of a cell is the larger of (bytes of the touched weights / measured read bandwidth) and (operations / measured
peak of the dot product), both measured by kernels of jitmoe in the same run; on XPU there is none. A peer is
``module:function``: the function gets (x, w1, w2, topk_weights, topk_ids) and returns a function without arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import jitmoe
from jitmoe import pipeline, reference
from jitmoe.compilers.base import ArtifactKind
from jitmoe.device import CpuIsa
from jitmoe.models import find_model
from jitmoe.plan.launch import Launch, Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.runtime import cpu, loader
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import stream_of
from jitmoe.spec import Argument, KernelSpec, arguments

Call = Callable[[], torch.Tensor]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCES = {"bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-5}
CHECKED_TOKENS = 8  # rows compared with float64: the reference takes seconds for all of them
ZIPF_EXPONENT = 1.0
SETTLE_SECONDS = 0.03  # OpenMP threads of torch spin for up to 12 ms after an operation before they sleep
WAKE_SECONDS = 0.02  # of calls until cores that were idle run at full speed (virtual machines: some milliseconds)


# peers


def eager(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
    """The loop over experts that a model runs in eager mode."""

    def call() -> torch.Tensor:
        y = torch.zeros_like(x)
        for expert in topk_ids.unique().tolist():
            tokens, slots = torch.where(topk_ids == expert)
            gate, up = (x[tokens] @ w1[expert].T).chunk(2, dim=-1)
            down = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
            y.index_add_(0, tokens, down * topk_weights[tokens, slots].to(down.dtype).unsqueeze(-1))
        return y

    return call


def compiled(*tensors: Any) -> Call:
    """torch.compile of the eager loop."""
    call: Call = torch.compile(eager(*tensors))
    return call


def grouped(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
    """What transformers' grouped_mm backend does: sort by expert, two grouped products, sum over slots."""

    def call() -> torch.Tensor:
        order = topk_ids.flatten().argsort()
        ends = torch.bincount(topk_ids.flatten(), minlength=w1.shape[0]).cumsum(0).to(torch.int32)
        rows = x[order // topk_ids.shape[1]]
        gate, up = torch._grouped_mm(rows, w1.mT, offs=ends).chunk(2, dim=-1)
        down = torch._grouped_mm(torch.nn.functional.silu(gate) * up, w2.mT, offs=ends)
        weighted = (down * topk_weights.flatten()[order].to(down.dtype).unsqueeze(-1))[order.argsort()]
        result: torch.Tensor = weighted.view(*topk_ids.shape, -1).sum(1)
        return result

    return call


_zentorch_weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def zentorch(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
    """AMD's plug-in, on copies: it repacks the weights that it is given in place."""
    importlib.import_module("zentorch")
    copies = _zentorch_weights.get(w1.data_ptr())
    if copies is None:
        _zentorch_weights.clear()
        copies = _zentorch_weights.setdefault(w1.data_ptr(), (w1.clone(), w2.clone()))
    out, ids, weights = torch.empty_like(x), topk_ids.to(torch.int32), topk_weights.to(torch.float32)

    def call() -> torch.Tensor:
        torch.ops.zentorch.zentorch_fused_moe(out, x, *copies, None, None, weights, ids, False, "silu")
        return out

    return call


def ours(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
    return lambda: jitmoe.fused_moe(x, w1, w2, topk_weights, topk_ids)


def transformers_experts(implementation: str) -> Callable[..., Call]:
    """The experts of transformers' Qwen3-MoE on these very weights, by one of its implementations."""

    def peer(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
        modeling = importlib.import_module("transformers.models.qwen3_moe.modeling_qwen3_moe")
        config = importlib.import_module("transformers").Qwen3MoeConfig(
            num_experts=w1.shape[0], hidden_size=w1.shape[2], moe_intermediate_size=w2.shape[2], hidden_act="silu"
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts = modeling.Qwen3MoeExperts(config)
        experts.gate_up_proj = torch.nn.Parameter(w1, requires_grad=False)
        experts.down_proj = torch.nn.Parameter(w2, requires_grad=False)
        weights = topk_weights.to(x.dtype)

        def call() -> torch.Tensor:
            result: torch.Tensor = experts(x, topk_ids, weights)
            return result

        return call

    return peer


_own_weights: dict[tuple[int, Callable[..., Any]], list[Any]] = {}


def quantized_by_expert(quantize: Callable[[torch.Tensor], Any], weights: torch.Tensor) -> Any:
    """Quantized weights, made an expert at a time: fp32 copies of all may not fit."""
    parts = [quantize(weights[expert : expert + 1]) for expert in range(weights.shape[0])]

    def joined(name: str) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([tensor.view(torch.uint8) for tensor in tensors]).view(tensors[0].dtype)

    return dataclasses.replace(parts[0], data=joined("data"), scale=joined("scale"))


def own(quantize: Callable[[torch.Tensor], Any], **options: Any) -> Callable[..., Call]:
    """jitmoe itself with these weights in another format."""

    def peer(x: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Call:
        key = (w1.data_ptr(), quantize)
        if key not in _own_weights:
            _own_weights[key] = [quantized_by_expert(quantize, w) for w in (w1, w2)]
        q1, q2 = _own_weights[key]
        return lambda: jitmoe.fused_moe(x, q1, q2, topk_weights, topk_ids, **options)

    return peer


QUANTIZED = {
    "jitmoe_int8": own(jitmoe.quantize_int8),
    "jitmoe_int8_w8a8": own(jitmoe.quantize_int8, input_quant="int8"),
    "jitmoe_fp8": own(jitmoe.quantize_fp8),
    "jitmoe_int4": own(jitmoe.quantize_int4),
    "jitmoe_mxfp4": own(jitmoe.quantize_mxfp4),
    "jitmoe_mxfp8": own(jitmoe.quantize_mxfp8),
}
PEERS = {
    **QUANTIZED,
    "eager": eager,
    "compile": compiled,
    "grouped": grouped,
    "zentorch": zentorch,
    "hf_eager": transformers_experts("eager"),
    "hf_grouped_mm": transformers_experts("grouped_mm"),
    "hf_batched_mm": transformers_experts("batched_mm"),
}


def find_peer(name: str) -> Callable[..., Call]:
    if name in PEERS:
        return PEERS[name]
    module, _, function = name.partition(":")
    found: Callable[..., Call] = getattr(importlib.import_module(module), function)
    return found


# limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRead(KernelSpec):
    """Reads memory."""

    KERNEL: ClassVar[str] = "cpu_probe_read"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments("in data, out out, int64 bytes")

    isa: CpuIsa
    streams: int
    prefetch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDot(KernelSpec):
    """Multiplies and adds in registers."""

    KERNEL: ClassVar[str] = "cpu_probe_dot"
    WORK_GROUP_SIZE: ClassVar[int] = 1
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments("out out, int32 steps")

    isa: CpuIsa
    dtype: DType


_TARGETS = {CpuIsa.AVX512: "skx", CpuIsa.AVX2: "core-avx2", CpuIsa.GENERIC: "corei7"}


def use_isa(name: str | None) -> CpuIsa:
    """Makes the CPU device one of this instruction set, or leaves it what it is; returns its instruction set.

    To be called before the runtime has started: its code generator is told once.
    """
    wanted = CpuIsa(name) if name else None
    if wanted in _TARGETS:
        os.environ[cpu.TARGET_VARIABLE] = _TARGETS[wanted]
    stream = stream_of(cpu.default_queue().addressof_ref())
    best = stream.device.cpu_isa or CpuIsa.GENERIC
    if wanted is None:
        return best
    order = list(CpuIsa)
    if order.index(wanted) > order.index(best):
        raise SystemExit(f"--isa {wanted.value}: this CPU has {best.value}")
    stream.device = dataclasses.replace(stream.device, cpu_isa=wanted)
    return wanted


class Limits:
    """Read bandwidth (bytes/s) and dot-product peak (operations/s) of the CPU, measured when asked for."""

    READ_GROUPS, READ_BYTES = 128, 4 << 20
    READ_WAYS = ((1, 0), (4, 0), (16, 0), (4, 1024))  # (streams, bytes asked for ahead)
    DOT_GROUPS = 64
    # Of one step of cpu_probe_dot.hpp: 12 registers, or 4 products of tiles (16 x 16 x 32).
    DOT_STEPS, DOT_CHAINS = 200_000, 12  # some 10 ms: a launch takes 0.2-0.3 ms
    TILE_STEPS, TILE_OPERATIONS = 40000, 4 * 2 * 16 * 16 * 32

    def __init__(self, dtype: str, isa: CpuIsa) -> None:
        self._stream = stream_of(cpu.default_queue().addressof_ref())
        self._data = torch.ones(self.READ_GROUPS * self.READ_BYTES // 4, dtype=torch.int32)
        self._out = torch.empty(self.READ_GROUPS, dtype=torch.int32)
        self._reads = [
            self._bind(
                ProbeRead(isa=isa, streams=streams, prefetch_bytes=ahead), self.READ_GROUPS, bytes=self.READ_BYTES
            )
            for streams, ahead in self.READ_WAYS
        ]
        with_tiles = isa.has_tiles if dtype == "bf16" else dtype == "fp16" and isa is CpuIsa.AMX_FP16
        steps = self.TILE_STEPS if with_tiles else self.DOT_STEPS
        self._dot = self._bind(ProbeDot(isa=isa, dtype=DType(dtype)), self.DOT_GROUPS, steps=steps)
        lanes = {CpuIsa.GENERIC: 4, CpuIsa.AVX2: 8}.get(isa, 16)
        pairs = 2 if dtype == "bf16" and isa is CpuIsa.AVX512_BF16 else 1
        per_step = self.TILE_OPERATIONS if with_tiles else self.DOT_CHAINS * lanes * pairs * 2
        self._operations = self.DOT_GROUPS * steps * per_step

    def _bind(self, spec: KernelSpec, groups: int, **scalars: int) -> BoundPlan:
        entry = pipeline.default().build([spec], self._stream.device)[spec]
        image = entry.files[ArtifactKind.SPIRV.value]
        kernel, _ = loader.load_spirv(spec.entry_name, image, spec.num_parameters, self._stream, is_vectorized=True)
        launch = Launch(spec=spec, global_size=(groups,), local_size=(1,), scalars=scalars)
        return BoundPlan(Plan(launches=(launch,), buffers=()), {spec: kernel}, ("data", "out"))

    def _seconds(self, bound: BoundPlan) -> float:
        started = time.perf_counter()
        bound.submit(self._stream, (self._data.data_ptr(), self._out.data_ptr()))
        self._stream.wait()
        return time.perf_counter() - started

    def read_seconds_per_byte(self) -> list[float]:
        """Of each way to read."""
        return [self._seconds(read) / (self.READ_GROUPS * self.READ_BYTES) for read in self._reads]

    def dot_seconds_per_operation(self) -> float:
        return self._seconds(self._dot) / self._operations


# cells


def route(routing: str, m: int, e: int, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (weights fp32, ids int64) [m, k], each row without repeated ids."""
    probability = torch.ones(e)
    if routing == "zipf":
        probability = 1.0 / torch.arange(1, e + 1) ** ZIPF_EXPONENT
    # Gumbel noise and top-k: sampling without replacement by these probabilities
    noise = -torch.log(-torch.log(torch.rand(m, e, generator=generator).clamp(1e-9, 1 - 1e-7)))
    scores = probability.log() + noise
    if routing == "hot":
        scores[:, 0] = math.inf
    ids = scores.topk(k).indices
    return torch.softmax(torch.randn(m, k, generator=generator), -1), ids


def measure(
    calls: dict[str, Call], before: dict[str, Callable[[], object]], limits: Limits | None, seconds: float
) -> tuple[dict[str, float], float, float]:
    """Times all calls in turn, and the limits, until about ``seconds`` have passed (3 rounds at least).

    What is in ``before`` runs right before the call of that name, and is not timed.

    Returns:
        (median seconds of each call, seconds per byte read, seconds per operation), the latter two 0 without limits
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    reads: list[list[float]] = []
    dots: list[float] = []
    ends = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 3 or time.perf_counter() < ends:
        for name, call in calls.items():
            before[name]()
            started = time.perf_counter()
            call()
            if torch.xpu.is_available():
                torch.xpu.synchronize()
            times[name].append(time.perf_counter() - started)
        if limits is not None:
            time.sleep(SETTLE_SECONDS)
            reads.append(limits.read_seconds_per_byte())
            dots.append(limits.dot_seconds_per_operation())
    medians = {name: statistics.median(values) for name, values in times.items()}
    if not reads:
        return medians, 0.0, 0.0
    return medians, min(map(statistics.median, zip(*reads, strict=True))), statistics.median(dots)


def _wake(gap: float, call: Call) -> None:
    """Lets the threads of others fall asleep, and wakes a peer's own, as the layers before would have."""
    time.sleep(gap)
    ends = time.perf_counter() + WAKE_SECONDS
    while time.perf_counter() < ends:
        call()


def run_cell(
    tensors: tuple[Any, ...],
    peers: Sequence[str],
    other_routing: tuple[Any, Any],
    limits: Limits | None,
    seconds: float,
    between: Callable[[], object] | None,
    gap: float,
) -> dict[str, Any]:
    """Times each peer on ``tensors``: after ``gap`` seconds and calls with ``other_routing``, or after ``between``."""
    x, w1, w2, weights, ids = tensors
    calls: dict[str, Call] = {}
    before: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    rows = slice(0, min(CHECKED_TOKENS, x.shape[0]))
    expected = reference.fused_moe(x[rows], w1, w2, weights[rows], ids[rows], compute_dtype=torch.float64)
    for name in ("jitmoe", *peers):
        try:
            peer = ours if name == "jitmoe" else find_peer(name)
            call, other = peer(*tensors), peer(x, w1, w2, *other_routing)
            result = call()[rows].double().cpu()
            other()
        except Exception as error:  # a peer that cannot do this cell is a gap in the table, not the end of it
            print(f"  {name}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            continue
        errors[name] = float((result - expected.cpu()).norm() / expected.norm())
        calls[name] = call
        before[name] = functools.partial(_wake, gap, other) if between is None else between
    medians, read, dot = measure(calls, before, limits, seconds)
    touched = len(ids.unique()) * (w1[0].numel() + w2[0].numel()) * w1.element_size()
    operations = 2 * ids.numel() * (w1[0].numel() + w2[0].numel())
    cell: dict[str, Any] = {"milliseconds": {name: medians[name] * 1e3 for name in calls}, "error": errors}
    if limits is not None:
        limit = max(touched * read, operations * dot)
        cell["read_gb_s"] = 1e-9 / read
        cell["peak_gflop_s"] = 1e-9 / dot
        cell["bound_by"] = "memory" if touched * read >= operations * dot else "compute"
        cell["share"] = {name: limit / medians[name] for name in calls}
    cell["gb_s"] = touched / medians["jitmoe"] * 1e-9
    cell["gflop_s"] = operations / medians["jitmoe"] * 1e-9
    return cell


def text_of(cell: dict[str, Any], tolerance: float) -> str:
    parts = []
    for name, milliseconds in cell["milliseconds"].items():
        share = f" {cell['share'][name] * 100:.0f}%" if "share" in cell else ""
        error = cell["error"][name]
        wrong = "" if error <= tolerance else f" error {error:.0e}" if name in QUANTIZED else f" WRONG {error:.0e}"
        parts.append(f"{name} {milliseconds:.3f} ms{share}{wrong}")
    limits = ""
    if "read_gb_s" in cell:
        limits = f" | read {cell['read_gb_s']:.1f} GB/s, peak {cell['peak_gflop_s']:.0f}, {cell['bound_by']}"
    return " | ".join(parts) + limits


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Writes a heat map of jitmoe's share of the limit: a row per model and routing, a column per token count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(dict.fromkeys(f"{c['model']} {c['dtype']} {c['routing']}" for c in cells))
    columns = list(dict.fromkeys(c["tokens"] for c in cells))
    shares = [[math.nan] * len(columns) for _ in rows]
    for c in cells:
        shares[rows.index(f"{c['model']} {c['dtype']} {c['routing']}")][columns.index(c["tokens"])] = c["share"][
            "jitmoe"
        ]
    figure, axes = pyplot.subplots(figsize=(2 + len(columns), 1.5 + 0.45 * len(rows)), layout="constrained")
    axes.imshow(shares, cmap="RdYlGn", vmin=0.3, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(columns)), [f"M={m}" for m in columns])
    axes.set_yticks(range(len(rows)), rows)
    for r, row in enumerate(shares):
        for column, share in enumerate(row):
            axes.text(column, r, "" if math.isnan(share) else f"{share * 100:.0f}%", ha="center", va="center")
    axes.set_title("jitmoe: share of the measured limit")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["qwen3-30b-a3b"], help="names of jitmoe's table, or config.json"
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--routings", nargs="+", choices=["uniform", "zipf", "hot"], default=["uniform"])
    parser.add_argument("--peers", nargs="*", default=["eager"], help=f"{', '.join(PEERS)} or module:function")
    parser.add_argument("--device", choices=["cpu", "xpu"], default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring per cell")
    parser.add_argument(
        "--gap",
        type=float,
        default=1e3 * SETTLE_SECONDS,
        help="milliseconds of sleep before the calls with another routing that precede each timed call",
    )
    parser.add_argument(
        "--between",
        action="store_true",
        help="before each timed call, instead, torch multiplies x [M, H] by [H, H]",
    )
    parser.add_argument(
        "--isa", choices=[isa.value for isa in CpuIsa], help="use the kernels, and the limit, of less than the CPU has"
    )
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--png", type=Path, help="draw the share of the limit here (needs matplotlib)")
    options = parser.parse_args()
    cells: list[dict[str, Any]] = []
    isa = use_isa(options.isa) if options.device == "cpu" else CpuIsa.GENERIC
    for dtype in options.dtypes:
        limits = Limits(dtype, isa) if options.device == "cpu" else None
        for name in options.models:
            model = find_model(name)
            h, i, e, k = model.hidden_size, model.intermediate_size, model.num_experts, model.top_k
            generator = torch.Generator().manual_seed(0)
            w1 = torch.empty(e, 2 * i, h, dtype=DTYPES[dtype])
            w2 = torch.empty(e, h, i, dtype=DTYPES[dtype])
            for expert in range(e):  # expert by expert: a whole fp32 copy may not fit
                w1[expert] = torch.randn(2 * i, h, generator=generator) * h**-0.5
                w2[expert] = torch.randn(h, i, generator=generator) * i**-0.5
            w1, w2 = w1.to(options.device), w2.to(options.device)
            for routing in options.routings:
                for m in options.tokens:
                    x = torch.randn(m, h, generator=generator).to(DTYPES[dtype])
                    (weights, ids), other = (
                        tuple(t.to(options.device) for t in route(routing, m, e, k, generator)) for _ in range(2)
                    )
                    tensors = (x.to(options.device), w1, w2, weights, ids)
                    between = None
                    if options.between:
                        square = torch.randn(h, h, generator=generator).to(x.dtype).to(options.device)
                        between = functools.partial(torch.matmul, tensors[0], square)
                    gap = options.gap * 1e-3
                    cell = run_cell(tensors, options.peers, other, limits, options.seconds, between, gap)
                    print(f"{model.name} {dtype} {routing} M={m}: {text_of(cell, TOLERANCES[dtype])}", flush=True)
                    cells.append({"model": model.name, "dtype": dtype, "routing": routing, "tokens": m} | cell)
            _zentorch_weights.clear()
            _own_weights.clear()
    if "eager" in options.peers:
        ratios = [
            c["milliseconds"]["eager"] / c["milliseconds"]["jitmoe"] for c in cells if "eager" in c["milliseconds"]
        ]
        print(f"geometric mean of eager / jitmoe: {math.exp(statistics.fmean(map(math.log, ratios))):.2f}")
    if options.json:
        options.json.write_text(json.dumps(cells, indent=1) + "\n")
    if options.png and cells and "share" in cells[0]:
        draw(cells, options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())

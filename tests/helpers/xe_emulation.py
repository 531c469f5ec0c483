# SPDX-License-Identifier: MIT
"""Runs Xe kernels with portable intrinsics on the CPU device, through the same pipeline as on a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from jitmoe import reference, selfcheck
from jitmoe.compilers.base import ArtifactKind
from jitmoe.pipeline import Pipeline
from jitmoe.plan import xe
from jitmoe.plan.launch import Plan
from jitmoe.problem import FUSED_MOE, Activation, DType, Layout, MoEProblem
from jitmoe.runtime import cpu, loader
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, stream_of
from jitmoe.spec import KernelSpec

TORCH_DTYPES = {
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP32: torch.float32,
    DType.FP64: torch.float64,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
}


def stream(arch: str) -> Stream:
    """Returns a stream on the CPU device that plans like the GPU ``arch``."""
    return stream_of(cpu.default_queue().addressof_ref(), emulated_arch=arch)


@dataclasses.dataclass(kw_only=True)
class Case:
    """Host tensors of one call; weights are stored as their layouts say."""

    x: torch.Tensor
    w1: torch.Tensor  # [E, 2I, H] or [E, H, 2I]
    w2: torch.Tensor  # [E, H, I] or [E, I, H]
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    expert_map: torch.Tensor | None
    problem: MoEProblem

    def expected(self) -> torch.Tensor:
        """The float64 result."""
        nk = (self.problem.w1_layout is Layout.NK, self.problem.w2_layout is Layout.NK)
        return reference.fused_moe(
            self.x,
            self.w1 if nk[0] else self.w1.mT,
            self.w2 if nk[1] else self.w2.mT,
            self.topk_weights,
            self.topk_ids,
            activation=self.problem.activation,
            expert_map=self.expert_map,
            compute_dtype=torch.float64,
        )


def case(
    *,
    m: int,
    h: int,
    i: int,
    e: int,
    k: int,
    dtype: DType = DType.BF16,
    activation: Activation = Activation.SILU,
    w1_layout: Layout = Layout.NK,
    w2_layout: Layout = Layout.NK,
    ids_dtype: DType = DType.INT32,
    weights_dtype: DType = DType.FP32,
    ids: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    padding: int = 0,
    seed: int = 0,
) -> Case:
    """Returns random tensors; ``ids`` [m, k] or uniform routing; rows of x and weights get ``padding`` extra elements,
    filled with NaN, which no kernel may use."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, scale: float) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * scale
        stored = torch.full((*shape[:-1], shape[-1] + padding), float("nan"), dtype=TORCH_DTYPES[dtype])
        # 64-byte aligned storage, as device allocations have it; torch's CPU allocator gives that too.
        view = stored[..., : shape[-1]]
        view.copy_(values)
        assert stored.data_ptr() % 64 == 0
        return view

    x = tensor(m, h, scale=1.0)
    w1 = tensor(*((e, 2 * i, h) if w1_layout is Layout.NK else (e, h, 2 * i)), scale=h**-0.5)
    w2 = tensor(*((e, h, i) if w2_layout is Layout.NK else (e, i, h)), scale=i**-0.5)
    if ids is None:
        ids = torch.randint(0, e, (m, k), generator=generator)
    topk_ids = ids.to(TORCH_DTYPES[ids_dtype])
    topk_weights = torch.rand(m, k, generator=generator).to(TORCH_DTYPES[weights_dtype])
    problem = MoEProblem(
        num_tokens=m,
        hidden_size=h,
        intermediate_size=i,
        num_experts=e,
        top_k=k,
        dtype=dtype,
        activation=activation,
        topk_ids_dtype=ids_dtype,
        topk_weights_dtype=weights_dtype,
        w1_layout=w1_layout,
        w2_layout=w2_layout,
        num_global_experts=None if expert_map is None else expert_map.numel(),
        x_row_stride=x.stride(0),
        out_row_stride=h,
        w1_expert_stride=w1.stride(0),
        w1_stride=w1.stride(1),
        w2_expert_stride=w2.stride(0),
        w2_stride=w2.stride(1),
        topk_ids_row_stride=k,
        topk_weights_row_stride=k,
        base_alignment=64,
    )
    return Case(x=x, w1=w1, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids, expert_map=expert_map, problem=problem)


_kernels: dict[tuple[str, int], loader.Kernel] = {}


def load(pipeline: Pipeline, spec: KernelSpec, on: Stream) -> loader.Kernel:
    """Returns the kernel of ``spec``, compiled, cached and loaded once per process."""
    entry = pipeline.build([spec], on.device)[spec]
    place = (entry.key.digest, on.context_id)
    if place not in _kernels:
        image = entry.files[ArtifactKind.SPIRV.value]
        _kernels[place], _ = loader.load_spirv(spec.entry_name, image, len(spec.ARGUMENTS), on)
    return _kernels[place]


def run_plan(pipeline: Pipeline, plan: Plan, case: Case, on: Stream) -> torch.Tensor:
    """Builds, loads and runs ``plan`` without the self-check; workspace and output start full of NaNs."""
    out = torch.full((case.problem.num_tokens, case.problem.hidden_size), float("nan"), dtype=case.x.dtype)
    size = max(plan.workspace_bytes, 1)
    ctypes.memset(on.workspace(size), 0xFF, size)
    pipeline.build(plan.specs, on.device)  # in parallel
    with ThreadPoolExecutor(2) as pool:
        kernels = dict(zip(plan.specs, pool.map(lambda spec: load(pipeline, spec, on), plan.specs), strict=True))
    tensors = [case.x, case.w1, case.w2, case.topk_weights, case.topk_ids, case.expert_map, out]
    addresses = [None if t is None else t.data_ptr() for t in tensors]
    BoundPlan(plan, kernels, FUSED_MOE.tensors).submit(on, addresses)
    on.wait()
    return out


def run(pipeline: Pipeline, case: Case, arch: str, choice: xe.XeChoice | None = None) -> tuple[torch.Tensor, Plan]:
    """Returns the emulated result for ``case`` on ``arch`` and its plan; ``choice`` overrides the planner's."""
    on = stream(arch)
    if choice is None:
        choice = xe.choose(case.problem, on.device, configs=())
    plan = xe.launches(case.problem, on.device, choice)
    return run_plan(pipeline, plan, case, on), plan


def with_tile(choice: xe.XeChoice, tile: xe.Tile) -> xe.XeChoice:
    """Returns ``choice`` with another tile in both GEMMs."""
    fields: dict[str, Any] = {f.name: getattr(tile, f.name) for f in dataclasses.fields(tile) if f.name != "name"}
    return dataclasses.replace(
        choice,
        gate_up=dataclasses.replace(choice.gate_up, **fields),
        down=dataclasses.replace(choice.down, **fields),
    )


def error(result: torch.Tensor, case: Case) -> tuple[float, str]:
    """Returns (relative Frobenius error against float64, what is wrong or "")."""
    return selfcheck.judge_floats(result, case.expected(), case.problem.dtype)

# SPDX-License-Identifier: MIT
"""Runs Xe kernels with portable intrinsics on the CPU device, through the same pipeline as on a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from jitmoe import reference, selfcheck
from jitmoe.checks import fused_moe
from jitmoe.compilers.base import ArtifactKind
from jitmoe.pipeline import Pipeline
from jitmoe.plan import xe
from jitmoe.plan.launch import Plan
from jitmoe.problems.fused_moe import FUSED_MOE, Activation, DType, GateUp, Layout, MoEProblem
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
    w1: torch.Tensor  # [E, rows, H] or [E, H, rows]
    w2: torch.Tensor  # [E, H, I] or [E, I, H]
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    expert_map: torch.Tensor | None
    problem: MoEProblem
    w1_up: torch.Tensor | None = None
    w1_bias: torch.Tensor | None = None
    w2_bias: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the call by the names of the operation, without those that are absent."""
        named = {
            "hidden_states": self.x,
            **{n: getattr(self, n) for n in ("w1", "w2", "topk_weights", "topk_ids", "expert_map")},
            **{n: getattr(self, n) for n in ("w1_up", "w1_bias", "w2_bias")},
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def expected(self) -> torch.Tensor:
        """The float64 result."""
        one = self.problem

        def rows(weights: torch.Tensor | None, layout: Layout) -> Any:
            return weights if layout is Layout.NK or weights is None else weights.mT

        return reference.fused_moe(
            self.x,
            rows(self.w1, one.w1_layout),
            rows(self.w2, one.w2_layout),
            self.topk_weights,
            self.topk_ids,
            activation=one.activation,
            swiglu_alpha=one.swiglu_alpha,
            swiglu_limit=one.swiglu_limit,
            interleaved=one.gate_up is GateUp.INTERLEAVED,
            w1_up=rows(self.w1_up, one.w1_layout),
            w1_bias=self.w1_bias,
            w2_bias=self.w2_bias,
            apply_router_weight_on_input=one.router_weight_on_input,
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
    gate_up: GateUp = GateUp.CONCATENATED,
    bias_dtype: DType | None = None,
    **fields: Any,
) -> Case:
    """Returns random tensors; ``ids`` [m, k] or uniform routing; rows of x and weights get ``padding`` extra elements,
    filled with NaN, which no kernel may use; ``fields`` are further ones of the problem."""
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
    rows = i if gate_up in (GateUp.SEPARATE, GateUp.UNGATED) else 2 * i
    shape = (e, rows, h) if w1_layout is Layout.NK else (e, h, rows)
    w1 = tensor(*shape, scale=h**-0.5)
    w2 = tensor(*((e, h, i) if w2_layout is Layout.NK else (e, i, h)), scale=i**-0.5)
    if ids is None:
        ids = torch.randint(0, e, (m, k), generator=generator)
    topk_ids = ids.to(TORCH_DTYPES[ids_dtype])
    topk_weights = torch.rand(m, k, generator=generator).to(TORCH_DTYPES[weights_dtype])
    w1_up = tensor(*shape, scale=h**-0.5) if gate_up is GateUp.SEPARATE else None
    w1_bias, w2_bias = None, None
    if bias_dtype is not None:
        w1_rows = i if gate_up is GateUp.UNGATED else 2 * i
        w1_bias = torch.randn(e, w1_rows, generator=generator).to(TORCH_DTYPES[bias_dtype])
        w2_bias = torch.randn(e, h, generator=generator).to(TORCH_DTYPES[bias_dtype])
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
        gate_up=gate_up,
        w1_bias_dtype=bias_dtype,
        w2_bias_dtype=bias_dtype,
        **fields,
    )
    return Case(
        x=x,
        w1=w1,
        w2=w2,
        topk_weights=topk_weights,
        topk_ids=topk_ids,
        expert_map=expert_map,
        problem=problem,
        w1_up=w1_up,
        w1_bias=w1_bias,
        w2_bias=w2_bias,
    )


_kernels: dict[tuple[str, int], loader.Kernel] = {}


def load(pipeline: Pipeline, spec: KernelSpec, on: Stream) -> loader.Kernel:
    """Returns the kernel of ``spec``, compiled, cached and loaded once per process."""
    entry = pipeline.build([spec], on.device)[spec]
    place = (entry.key.digest, on.context_id)
    if place not in _kernels:
        image = entry.files[ArtifactKind.SPIRV.value]
        _kernels[place], _ = loader.load_spirv(
            spec.entry_name, image, spec.num_parameters, on, is_vectorized=spec.is_for_cpus
        )
    return _kernels[place]


def run_plan(pipeline: Pipeline, plan: Plan, case: Case, on: Stream) -> torch.Tensor:
    """Builds, loads and runs ``plan`` without the self-check; workspace and output start full of NaNs."""
    out = torch.full((case.problem.num_tokens, case.problem.hidden_size), float("nan"), dtype=case.x.dtype)
    bind_and_run(pipeline, plan, {**case.tensors(), "out": out}, on)
    return out


def run_problem(
    pipeline: Pipeline, problem: MoEProblem, arch: str, choice: xe.XeChoice | None = None
) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "") of the emulated kernels for the self-check's inputs."""
    on = stream(arch)
    chosen = xe.choose(problem, on.device, configs=()) if choice is None else choice
    plan = xe.launches(problem, on.device, chosen)
    # torch's allocations on the CPU are 64 B aligned, as device allocations are.
    inputs = fused_moe.inputs(problem)
    bind_and_run(pipeline, plan, inputs, on)
    return fused_moe.judge(problem, inputs, {"out": inputs["out"]})


def bind_and_run(pipeline: Pipeline, plan: Plan, tensors: Mapping[str, torch.Tensor], on: Stream) -> None:
    """Builds, loads and runs ``plan``; the workspace starts full of NaNs."""
    size = max(plan.workspace_bytes, 1)
    ctypes.memset(on.workspace(size), 0xFF, size)
    pipeline.build(plan.specs, on.device)  # in parallel
    with ThreadPoolExecutor(2) as pool:
        kernels = dict(zip(plan.specs, pool.map(lambda spec: load(pipeline, spec, on), plan.specs), strict=True))
    addresses = [tensors[name].data_ptr() if name in tensors else None for name in FUSED_MOE.tensors]
    BoundPlan(plan, kernels, FUSED_MOE.tensors).submit(on, addresses)
    on.wait()


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

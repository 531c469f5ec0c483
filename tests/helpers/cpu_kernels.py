# SPDX-License-Identifier: MIT
"""Runs CPU kernels of any instruction set that this machine has, through the plan, without the self-check."""

from __future__ import annotations

import ctypes
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import torch
from helpers.xe_emulation import Case

from jitmoe import selfcheck
from jitmoe.compilers.base import ArtifactKind
from jitmoe.device import CpuIsa, Device
from jitmoe.pipeline import Pipeline
from jitmoe.plan import cpu as plan_cpu
from jitmoe.runtime import cpu, loader
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, stream_of
from jitmoe.spec import KernelSpec

_kernels: dict[tuple[str, int], loader.Kernel] = {}


def stream() -> Stream:
    return stream_of(cpu.default_queue().addressof_ref())


def has(isa: CpuIsa) -> bool:
    """Whether this machine runs ``isa``."""
    order = list(CpuIsa)
    return order.index(isa) <= order.index(cpu.isa())


def run(pipeline: Pipeline, case: Case, isa: CpuIsa, num_compute_units: int | None = None) -> torch.Tensor:
    """Returns the result of ``case`` by the kernels of ``isa``; workspace and output start full of NaNs."""
    on = stream()
    changes: dict[str, object] = {"cpu_isa": isa}
    if num_compute_units is not None:
        changes["num_compute_units"] = num_compute_units
    device: Device = dataclasses.replace(on.device, **changes)  # type: ignore[arg-type]
    plan = plan_cpu.launches(case.problem, device, plan_cpu.choose(case.problem, device))
    entries = pipeline.build(plan.specs, on.device)

    def load(spec: KernelSpec) -> loader.Kernel:
        place = (entries[spec].key.digest, on.context_id)
        if place not in _kernels:
            image = entries[spec].files[ArtifactKind.SPIRV.value]
            vectorized = spec.WORK_GROUP_SIZE == 1
            _kernels[place], _ = loader.load_spirv(
                spec.entry_name, image, len(spec.ARGUMENTS), on, is_vectorized=vectorized
            )
        return _kernels[place]

    with ThreadPoolExecutor(2) as pool:
        kernels = dict(zip(plan.specs, pool.map(load, plan.specs), strict=True))
    out = torch.full((case.problem.num_tokens, case.problem.hidden_size), float("nan"), dtype=case.x.dtype)
    ctypes.memset(on.workspace(plan.workspace_bytes), 0xFF, plan.workspace_bytes)
    tensors = [case.x, case.w1, case.w2, case.topk_weights, case.topk_ids, case.expert_map, out]
    addresses = [None if t is None else t.data_ptr() for t in tensors]
    BoundPlan(plan, kernels, selfcheck.TENSOR_NAMES).submit(on, addresses)
    on.wait()
    return out

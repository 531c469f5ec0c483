# SPDX-License-Identifier: MIT
"""The kernel specs that the planners really ask for, over a spread of problems and devices."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator

from helpers.builders import cpu_device, gpu_device, moe_problem
from helpers.report import isa_report

from jitmoe.device import CpuIsa, Device
from jitmoe.errors import UnsupportedProblemError
from jitmoe.operation import Problem
from jitmoe.plan import planner_for, xe, xe_single
from jitmoe.plan.xe import XeChoice
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType, Layout, MoEProblem
from jitmoe.problems.grouped_gemm import GroupedGemmProblem
from jitmoe.spec import KernelSpec

GPU_ARCHS = ("bmg-g21", "pvc", "dg2", "mtl")


def grouped_gemm(moe: MoEProblem) -> GroupedGemmProblem:
    """Returns the second GEMM of a problem as a ``grouped_gemm_moe`` call."""
    return GroupedGemmProblem(
        num_tokens=moe.num_tokens,
        n=moe.hidden_size,
        k=moe.intermediate_size,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        dtype=moe.dtype,
        topk_ids_dtype=moe.topk_ids_dtype,
        topk_weights_dtype=moe.topk_weights_dtype,
        layout=moe.w2_layout,
        a_row_stride=moe.intermediate_size,
        d_row_stride=moe.hidden_size,
        b_expert_stride=moe.w2_expert_stride,
        b_stride=moe.w2_stride,
        topk_ids_row_stride=moe.topk_ids_row_stride,
        topk_weights_row_stride=moe.topk_weights_row_stride,
        base_alignment=moe.base_alignment,
    )


def problems() -> Iterator[Problem]:
    """Yields problems that differ in everything a spec may depend on, one thing at a time plus some pairs."""
    yield moe_problem()
    for dtype, layout in itertools.product((DType.BF16, DType.FP16, DType.FP32), Layout):
        yield moe_problem(dtype=dtype, w1_layout=layout, w2_layout=layout, base_alignment=64)
        yield moe_problem(dtype=dtype, w1_layout=layout, base_alignment=64)
    for activation in Activation:
        yield moe_problem(activation=activation, base_alignment=64)
    for quant, input_quant in (
        (WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=1, block_k=0), InputQuant.INT8),
        (WeightFormat(encoding=Encoding.E2M1, scale_dtype=DType.E8M0, block_n=1, block_k=32), None),
        (WeightFormat(encoding=Encoding.INT4, scale_dtype=DType.BF16, block_n=1, block_k=48), None),
    ):
        dense = {"w1_quant": quant.dense(64, 64), "w2_quant": quant.dense(64, 32), "base_alignment": 64}
        strides = {"w1_stride": quant.row_bytes(64), "w2_stride": quant.row_bytes(32)}
        yield moe_problem(**dense, **strides, input_quant=input_quant)
    for weights_dtype in (DType.BF16, DType.FP16, DType.FP32, DType.FP64):
        yield moe_problem(topk_weights_dtype=weights_dtype)
    for ids_dtype, num_global in itertools.product((DType.INT32, DType.INT64), (None, 8)):
        yield moe_problem(topk_ids_dtype=ids_dtype, num_global_experts=num_global)
    for dtype, num_tokens in itertools.product((DType.BF16, DType.FP32), (7, 257)):
        yield grouped_gemm(moe_problem(dtype=dtype, num_tokens=num_tokens, base_alignment=64))
    for num_tokens in (1, 16, 64, 257, 40000):
        yield moe_problem(num_tokens=num_tokens, hidden_size=128, intermediate_size=96, base_alignment=64)
    for hidden, intermediate in ((1, 1), (63, 33), (70, 34), (2048, 768)):
        for layout in Layout:
            yield moe_problem(
                hidden_size=hidden,
                intermediate_size=intermediate,
                w1_layout=layout,
                w2_layout=layout,
                num_tokens=33,
                base_alignment=64,
            )
    yield from isa_report.around_problems()


def specs_of(device: Device) -> tuple[KernelSpec, ...]:
    """Returns the distinct specs that the device's planner asks for, single launches included."""
    found: dict[KernelSpec, None] = {}
    for problem in problems():
        planner = planner_for(problem, device)
        with contextlib.suppress(UnsupportedProblemError):  # not every planner has every activation yet
            choice = planner.choose(problem, device)
            found.update(dict.fromkeys(planner.launches(problem, device, choice).specs))
            if isinstance(choice, XeChoice) and not xe.single_launch_objections(problem, device, choice):
                found[xe_single.single_kernel(choice)] = None
    return tuple(found)


def devices() -> list[Device]:
    """Returns a CPU of each instruction set and the GPUs, for the planners that exist."""
    there = []
    if importlib.util.find_spec("jitmoe.plan.cpu") is not None:
        there += [cpu_device(cpu_isa=isa) for isa in CpuIsa]
    if importlib.util.find_spec("jitmoe.plan.xe") is not None:
        there += [gpu_device(arch) for arch in GPU_ARCHS]
    return there


def all_specs() -> tuple[KernelSpec, ...]:
    return tuple(dict.fromkeys(spec for device in devices() for spec in specs_of(device)))


def emulated(spec: KernelSpec) -> KernelSpec:
    """Returns ``spec`` with portable intrinsics in all its parts that have some."""
    changes = {
        name: emulated(value) if isinstance(value, KernelSpec) else True
        for name, value in spec.constants()
        if name == "emulated" or isinstance(value, KernelSpec)
    }
    return dataclasses.replace(spec, **changes)

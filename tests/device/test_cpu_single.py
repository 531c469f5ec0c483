# SPDX-License-Identifier: MIT
"""Calls of few pairs on CPUs in one launch: the bits of two launches, however many work-items take part."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
import torch
from helpers.builders import moe_problem
from helpers.xe_emulation import bind_and_run, load

import jitmoe
from jitmoe.checks import fused_moe
from jitmoe.device import CpuIsa
from jitmoe.pipeline import Pipeline
from jitmoe.plan import cpu
from jitmoe.plan.launch import Plan
from jitmoe.problems.formats import Encoding, WeightFormat
from jitmoe.problems.fused_moe import FUSED_MOE, Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.runtime.cpu import default_queue
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, private_stream, stream_of

SIZES = {"hidden_size": 300, "intermediate_size": 208, "num_experts": 6}  # several ranges, the last ones with tails


def quantized(encoding: Encoding, scale_dtype: DType, block_n: int, block_k: int) -> dict[str, Any]:
    form = WeightFormat(encoding=encoding, scale_dtype=scale_dtype, block_n=block_n, block_k=block_k)
    h, i = SIZES["hidden_size"], SIZES["intermediate_size"]
    return {
        "w1_quant": form.dense(2 * i, h),
        "w2_quant": form.dense(h, i),
        "w1_stride": form.row_bytes(h),
        "w1_expert_stride": 2 * i * form.row_bytes(h),
        "w2_stride": form.row_bytes(i),
        "w2_expert_stride": h * form.row_bytes(i),
    }


PROBLEMS = {
    "one token": moe_problem(**SIZES, num_tokens=1, top_k=4),
    "most pairs": moe_problem(**SIZES, num_tokens=32, top_k=2),
    "one expert": moe_problem(**{**SIZES, "num_experts": 1}, num_tokens=9, top_k=1),
    "fp32, on the input": moe_problem(**SIZES, dtype=DType.FP32, router_weight_on_input=True),
    "fp16, interleaved": moe_problem(**SIZES, dtype=DType.FP16, gate_up=GateUp.INTERLEAVED),
    "kn": moe_problem(**SIZES, w1_layout=Layout.KN, w2_layout=Layout.KN),
    "kn and nk": moe_problem(**SIZES, w1_layout=Layout.KN),
    "bias, no gate": moe_problem(
        **SIZES,
        activation=Activation.RELU2,
        gate_up=GateUp.UNGATED,
        w1_expert_stride=208 * 300,
        w1_bias_dtype=DType.FP32,
        w2_bias_dtype=DType.FP32,
    ),
    "expert map": moe_problem(**SIZES, num_global_experts=6, topk_ids_dtype=DType.INT32),
    "int4": moe_problem(**SIZES, **quantized(Encoding.INT4, DType.BF16, 1, 128)),
    "fp8": moe_problem(**SIZES, **quantized(Encoding.E4M3, DType.FP32, 128, 128)),
    "int8": moe_problem(**SIZES, **quantized(Encoding.INT8, DType.FP32, 1, 0)),
}


def on() -> Stream:
    return stream_of(default_queue().addressof_ref())


def run(pipeline: Pipeline, plan: Plan, tensors: dict[str, torch.Tensor], stream: Stream) -> torch.Tensor:
    bind_and_run(pipeline, plan, tensors, stream)
    return tensors["out"]


def plans(problem: MoEProblem, stream: Stream) -> tuple[Plan, Plan]:
    """Returns the plans of two launches and of one."""
    device = dataclasses.replace(stream.device, cpu_isa=stream.device.cpu_isa.at_most(CpuIsa.AVX512_BF16))
    choice = cpu.choose(problem, device)
    assert choice.single is not None
    two = cpu.launches(problem, device, dataclasses.replace(choice, single=None))
    one = cpu.launches(problem, device, choice)
    assert (len(two.launches), len(one.launches)) == (2, 1)
    return two, one


def with_items(plan: Plan, items: int) -> Plan:
    (launch,) = plan.launches
    scalars = {**launch.scalars, "num_items": items}
    return dataclasses.replace(plan, launches=(dataclasses.replace(launch, scalars=scalars, global_size=(items,)),))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_one_launch_has_the_bits_of_two(pipeline, problem):
    stream = on()
    two, one = plans(problem, stream)
    tensors = fused_moe.inputs(problem)
    expected = run(pipeline, two, tensors, stream).clone()
    assert not fused_moe.judge(problem, tensors, {"out": expected})[1]
    for items in (1, 2, 3, 100):
        tensors["out"].fill_(float("nan"))
        assert torch.equal(run(pipeline, with_items(one, items), tensors, stream), expected)
        assert not any(ctypes.string_at(stream.counters(one.counter_bytes), one.counter_bytes))


def test_nobody_has_an_expert_here(pipeline):
    problem, stream = PROBLEMS["one token"], on()
    tensors = fused_moe.inputs(problem)
    tensors["topk_ids"].fill_(-1)
    _, one = plans(problem, stream)
    assert not run(pipeline, one, tensors, stream).any()


def test_the_output_may_be_the_input(pipeline):
    """Many times, as it goes wrong only if a piece of the second step overtakes one of the first."""
    problem, stream = PROBLEMS["most pairs"], on()
    two, one = plans(problem, stream)
    tensors = fused_moe.inputs(problem)
    expected = run(pipeline, two, tensors, stream).clone()
    given = tensors["hidden_states"].clone()
    tensors["out"] = tensors["hidden_states"]
    for _ in range(100):
        tensors["hidden_states"].copy_(given)
        assert torch.equal(run(pipeline, with_items(one, 8), tensors, stream), expected)


def test_calls_that_follow_each_other_without_a_wait(pipeline):
    """Each finds the counters clear, and reads what the one before has written."""
    problem, outside = PROBLEMS["most pairs"], on()
    two, one = plans(problem, outside)
    tensors = fused_moe.inputs(problem)
    given = tensors["hidden_states"].clone()
    tensors["out"] = tensors["hidden_states"]
    for _ in range(3):
        expected = run(pipeline, two, tensors, outside).clone()
    tensors["hidden_states"].copy_(given)
    kernels = {spec: load(pipeline, spec, outside) for spec in one.specs}
    with private_stream(outside) as stream:
        bound = BoundPlan(one, kernels, FUSED_MOE.tensors)
        for _ in range(3):
            bound.submit(stream, [tensors[name].data_ptr() if name in tensors else None for name in FUSED_MOE.tensors])
        stream.wait()
        assert torch.equal(tensors["hidden_states"], expected)


def test_a_call_of_few_pairs_is_one_launch():
    x, weights, ids = torch.randn(2, 64).bfloat16(), torch.rand(2, 3), torch.tensor([[0, 1, 2], [3, 4, 0]])
    w1, w2 = torch.randn(8, 64, 64).bfloat16(), torch.randn(8, 64, 32).bfloat16()
    text = jitmoe.explain(jitmoe.fused_moe, x, w1, w2, weights, ids)
    assert text.count("\n  launch ") == 1 and "launch cpu_single(" in text and "in the same launch" in text

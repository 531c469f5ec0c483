# SPDX-License-Identifier: MIT
"""The self-check of ``fused_moe``: random tensors with every kind of routing, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmoe.problems.formats import Encoding, WeightQuant
from jitmoe.problems.fused_moe import DType, GateUp, Layout, MoEProblem
from jitmoe.selfcheck import judge_floats
from jitmoe.tensors import torch_dtypes
from jitmoe.weights.quantize import quantize_weights
from jitmoe.weights.quantized import QuantizedTensor

SEED = 20260101


def judge(problem: MoEProblem, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "")."""
    import torch

    from jitmoe import reference

    def weights(name: str, layout: Layout, quant: WeightQuant | None) -> Any:
        data = inputs[name]
        if quant is None:
            return data.mT if layout is Layout.KN else data
        parts = [inputs.get(f"{name}_{part}") for part in ("scale", "zero_point", "k_order")]
        return QuantizedTensor(data, parts[0], quant.format, *parts[1:])

    up = inputs.get("w1_up")
    expected = reference.fused_moe(
        inputs["hidden_states"],
        weights("w1", problem.w1_layout, problem.w1_quant),
        weights("w2", problem.w2_layout, problem.w2_quant),
        inputs["topk_weights"],
        inputs["topk_ids"],
        activation=problem.activation,
        swiglu_alpha=problem.swiglu_alpha,
        swiglu_limit=problem.swiglu_limit,
        interleaved=problem.gate_up is GateUp.INTERLEAVED,
        w1_up=up.mT if up is not None and problem.w1_layout is Layout.KN else up,
        w1_bias=inputs.get("w1_bias"),
        w2_bias=inputs.get("w2_bias"),
        apply_router_weight_on_input=problem.router_weight_on_input,
        input_quant=problem.input_quant,
        input_block_k=problem.input_block_k,
        a1_scale=inputs.get("a1_scale"),
        a2_scale=inputs.get("a2_scale"),
        expert_map=inputs.get("expert_map"),
        compute_dtype=torch.float64,
    )
    return judge_floats(results["out"], expected, problem.dtype)


def inputs(problem: MoEProblem) -> dict[str, Any]:
    """Returns host tensors in the problem's dtypes and storage order, with every kind of routing case in them."""
    import torch

    dtypes = torch_dtypes()
    m, h, i = problem.num_tokens, problem.hidden_size, problem.intermediate_size
    e, k = problem.num_experts, problem.top_k
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, scale: float, layout: Layout = Layout.NK, dtype: DType = problem.dtype) -> Any:
        values = torch.randn(*shape, generator=generator) * scale
        stored = values.mT if layout is Layout.KN else values
        return stored.to(dtypes[dtype]).contiguous()

    ids = torch.randint(0, e, (m, k), generator=generator)
    ids[0, 0] = e + 3  # another rank's expert
    if m > 2:
        ids[1] = -1  # a token without any expert
        ids[2] = ids[2, 0]  # the same expert in every slot
    tensors = {
        "hidden_states": normal(m, h, scale=1.0),
        "topk_weights": torch.rand(m, k, generator=generator).to(dtypes[problem.topk_weights_dtype]),
        "topk_ids": ids.to(dtypes[problem.topk_ids_dtype]),
        "out": torch.full((m, h), float("nan"), dtype=dtypes[problem.dtype]),
    }
    matrices = [
        ("w1", (e, problem.w1_rows, h), problem.w1_layout, problem.w1_quant),
        ("w2", (e, h, i), problem.w2_layout, problem.w2_quant),
    ]
    if problem.gate_up is GateUp.SEPARATE:
        matrices.append(("w1_up", (e, i, h), problem.w1_layout, None))
    for name, shape, layout, quant in matrices:
        if quant is None:
            tensors[name] = normal(*shape, scale=shape[-1] ** -0.5, layout=layout)
        else:
            tensors |= _quantized(name, torch.randn(*shape, generator=generator) * shape[-1] ** -0.5, quant, generator)
    bias_rows = i if problem.gate_up is GateUp.UNGATED else 2 * i
    for name, bias_shape, dtype in (
        ("w1_bias", (e, bias_rows), problem.w1_bias_dtype),
        ("w2_bias", (e, h), problem.w2_bias_dtype),
    ):
        if dtype is not None:
            tensors[name] = normal(*bias_shape, scale=0.5, dtype=dtype)
    strides = (problem.a1_scale_stride, problem.a2_scale_stride)
    for name, stride, largest_input in zip(("a1_scale", "a2_scale"), strides, (4.0, 2.0), strict=True):
        if stride is not None and problem.input_quant is not None:
            step = largest_input / Encoding(problem.input_quant.value).largest
            tensors[name] = step * (1 + torch.rand(e if stride else 1, generator=generator))
    if problem.num_global_experts is not None:
        permutation = torch.randperm(e, generator=generator).to(torch.int32)
        permutation[0] = -1
        tensors["expert_map"] = permutation
    return tensors


def _quantized(name: str, values: Any, quant: WeightQuant, generator: Any) -> dict[str, Any]:
    """Returns densely packed codes, scales and the rest, by tensor name."""
    import dataclasses

    import torch

    form = quant.format
    packed = quantize_weights(values, dataclasses.replace(form, has_k_order=False))
    parts = {name: packed.data, f"{name}_scale": packed.scale}
    if form.has_zero_point:
        parts[f"{name}_zero_point"] = packed.zero_point
    if form.has_k_order:
        orders = [torch.randperm(values.shape[2], generator=generator) for _ in range(values.shape[0])]
        parts[f"{name}_k_order"] = torch.stack(orders).to(torch.int32)
    return parts

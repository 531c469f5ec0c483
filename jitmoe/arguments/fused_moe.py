# SPDX-License-Identifier: MIT
"""Argument checks of ``fused_moe``: tensor facts in, ``MoEProblem`` out, or an ``ArgumentError``."""

from __future__ import annotations

import math
from typing import NamedTuple

from jitmoe.arguments.common import (
    MAX_PAIRS,
    MAX_SLOTS,
    Facts,
    base_alignment,
    check_bias,
    check_dtype,
    check_places,
    check_rank,
    matrix_layout,
    row_stride,
    shape_text,
)
from jitmoe.errors import ArgumentError
from jitmoe.problems.formats import WHOLE, Encoding, InputQuant, WeightFormat, WeightQuant
from jitmoe.problems.fused_moe import (
    COMPUTE_DTYPES,
    INDEX_DTYPES,
    SWIGLU_ALPHA,
    WEIGHT_DTYPES,
    Activation,
    DType,
    GateUp,
    MoEProblem,
)
from jitmoe.tensors import TensorInfo


class FusedMoEOptions(NamedTuple):
    """What is not a tensor. A tuple, because it is built and hashed in every call."""

    activation: Activation
    swiglu_alpha: float = SWIGLU_ALPHA
    swiglu_limit: float | None = None
    interleaved: bool = False
    router_weight_on_input: bool = False
    input_quant: InputQuant | None = None
    w1_format: WeightFormat | None = None
    w2_format: WeightFormat | None = None


def check_no_order(form: WeightFormat) -> None:
    """Refuses a k_order of w2: its order belongs into the rows of w1, which costs nothing at run time."""
    if form.has_k_order:
        raise ArgumentError(
            argument="w2", got="weights with k_order", expected="none: jitmoe.fold_k_order moves it into w1's rows"
        )


def _weight_quant(name: str, tensors: Facts, form: WeightFormat | None) -> WeightQuant | None:
    """Returns format and scale strides of quantized weights, whose shapes ``QuantizedTensor`` has checked."""
    if form is None:
        return None

    def strides(which: str) -> tuple[int, int, int]:
        info = tensors[f"{name}_{which}"]
        assert info is not None
        return tuple(0 if size == 1 else stride for size, stride in zip(info.shape, info.strides, strict=True))  # type: ignore[return-value]

    return WeightQuant(form, *strides("scale"), *(strides("zero_point") if form.has_zero_point else (0, 0, 0)))


def _input_scale_stride(name: str, info: TensorInfo | None, num_experts: int, quant: InputQuant | None) -> int | None:
    if info is None:
        return None
    if quant is None:
        raise ArgumentError(argument=name, got="a tensor", expected="None: without input_quant no input is quantized")
    check_dtype(name, info, (DType.FP32,))
    count = math.prod(info.shape)
    if count != 1 and info.shape != (num_experts,):
        raise ArgumentError(
            argument=name, got=f"shape {shape_text(info)}", expected=f"one element, or one per expert: [{num_experts}]"
        )
    if count > 1 and info.strides != (1,):
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="a dense tensor")
    return 0 if count == 1 else 1


def input_block_k(options: FusedMoEOptions) -> int:
    """Returns how many elements of K share an input scale: what the weights have, 0 for whole rows."""
    quant = options.input_quant
    if quant is None:
        return 0
    floats = (Encoding.E4M3, Encoding.E5M2)
    for name, form in (("w1", options.w1_format), ("w2", options.w2_format)):
        fits = form is not None and (
            form.encoding is Encoding.INT8 and form.block_k == WHOLE
            if quant is InputQuant.INT8
            else form.encoding in floats
        )
        if not fits:
            wanted = "int8 weights with one scale per row or more rows" if quant is InputQuant.INT8 else "FP8 weights"
            raise ArgumentError(
                argument=name,
                got="plain weights" if form is None else f"weights {form}",
                expected=f"{wanted}, because input_quant is {quant.value}",
            )
    assert options.w1_format is not None and options.w2_format is not None
    if options.w1_format.block_k != options.w2_format.block_k:
        raise ArgumentError(
            argument="w2",
            got=f"scales for {options.w2_format.block_k or 'all'} of K",
            expected=f"{options.w1_format.block_k or 'all'}, like w1: both inputs are quantized in such blocks",
        )
    return options.w1_format.block_k


def _gate_up(
    w1: TensorInfo, w1_up: TensorInfo | None, rows: int, intermediate_size: int, options: FusedMoEOptions
) -> GateUp | None:
    """Returns where gate and up rows are, by w1's rows and w2's I; None if these do not go together."""
    if w1_up is not None:
        if options.interleaved:
            raise ArgumentError(argument="interleaved", got="True", expected="False, because w1_up is given")
        if options.w1_format is not None:
            raise ArgumentError(argument="w1_up", got="a tensor", expected="None: quantized w1 holds both projections")
        for what in ("shape", "strides"):
            if getattr(w1_up, what) != getattr(w1, what):
                raise ArgumentError(
                    argument="w1_up", got=f"{what} {getattr(w1_up, what)}", expected=f"{getattr(w1, what)}, like w1"
                )
        return GateUp.SEPARATE if rows == intermediate_size else None
    if rows == intermediate_size:
        if options.interleaved:
            raise ArgumentError(argument="interleaved", got="True", expected="False: w1 has no gate rows")
        return GateUp.UNGATED
    if rows != 2 * intermediate_size:
        if rows % 2:
            raise ArgumentError(
                argument="w1", got=f"shape {shape_text(w1)}", expected=f"[E, 2*I, H] with I = {intermediate_size}"
            )
        return None
    return GateUp.INTERLEAVED if options.interleaved else GateUp.CONCATENATED


class _Sizes(NamedTuple):
    num_tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    gate_up: GateUp


def _sizes(tensors: Facts, options: FusedMoEOptions) -> _Sizes:
    """Checks the shapes of inputs and weights against each other."""
    x, w1, w2, w1_up = tensors["hidden_states"], tensors["w1"], tensors["w2"], tensors.get("w1_up")
    assert x is not None and w1 is not None and w2 is not None
    hidden_size = x.shape[-1]
    w1_shape, w2_shape = _logical(w1, options.w1_format), _logical(w2, options.w2_format)
    num_experts, w1_rows, _ = w1_shape
    intermediate_size = w2_shape[2]
    if hidden_size == 0:
        raise ArgumentError(argument="hidden_states", got=f"shape {shape_text(x)}", expected="H >= 1")
    if num_experts == 0 or w1_rows == 0 or w1_shape[2] != hidden_size:
        raise ArgumentError(
            argument="w1",
            got=f"shape {list(w1_shape)}",
            expected=f"[E, 2*I, H] (or [E, I, H] without a gate) with E, I >= 1 and H = {hidden_size}",
        )
    gate_up = _gate_up(w1, w1_up, w1_rows, intermediate_size, options)
    if w2_shape != (num_experts, hidden_size, intermediate_size) or gate_up is None:
        likely = w1_rows // 2 if w1_up is None else w1_rows
        raise ArgumentError(
            argument="w2",
            got=f"shape {list(w2_shape)}",
            expected=f"[E, H, I] = [{num_experts}, {hidden_size}, {likely}] (or I = {w1_rows} without a gate)",
        )
    return _Sizes(math.prod(x.shape[:-1]), hidden_size, intermediate_size, num_experts, gate_up)


def _check_slots(ids: TensorInfo, weights: TensorInfo, num_tokens: int) -> int:
    """Checks the shapes of a routing and returns k."""
    if ids.shape[0] != num_tokens or not 1 <= ids.shape[1] <= MAX_SLOTS:
        raise ArgumentError(
            argument="topk_ids",
            got=f"shape {shape_text(ids)}",
            expected=f"[M, k] with M = {num_tokens} and 1 <= k <= {MAX_SLOTS}",
        )
    top_k = ids.shape[1]
    if weights.shape != ids.shape:
        raise ArgumentError(
            argument="topk_weights", got=f"shape {shape_text(weights)}", expected=f"{shape_text(ids)}, like topk_ids"
        )
    if num_tokens * top_k > MAX_PAIRS:
        raise ArgumentError(
            argument="topk_ids", got=f"{num_tokens * top_k} (token, expert) pairs", expected=f"at most {MAX_PAIRS}"
        )
    return top_k


def _out_row_stride(out: TensorInfo, x: TensorInfo, num_tokens: int) -> int:
    """Checks the output's shape and rows."""
    if out.shape != x.shape:
        raise ArgumentError(
            argument="out", got=f"shape {shape_text(out)}", expected=f"{shape_text(x)}, like hidden_states"
        )
    stride = row_stride("out", out)
    if num_tokens > 1 and stride < x.shape[-1]:
        raise ArgumentError(argument="out", got=f"strides {out.strides}", expected="rows that do not overlap")
    return stride


def _num_global_experts(expert_map: TensorInfo | None) -> int | None:
    """Checks the map and returns its length."""
    if expert_map is None:
        return None
    check_rank("expert_map", expert_map, "[number of experts on all ranks]", 1)
    check_dtype("expert_map", expert_map, (DType.INT32,))
    if expert_map.shape[0] > 1 and expert_map.strides[0] != 1:
        raise ArgumentError(argument="expert_map", got=f"strides {expert_map.strides}", expected="a dense tensor")
    return expert_map.shape[0]


def fused_moe_problem(tensors: Facts, options: FusedMoEOptions, *, look_at_addresses: bool) -> MoEProblem:
    """Checks the tensors of a ``fused_moe`` call against each other and returns what is asked.

    Args:
        tensors: the operation's tensors by name, None for those that are not given. Of quantized weights, ``w1`` and
            ``w2`` are the codes.
        options: everything else.
        look_at_addresses: whether the addresses' alignment is part of the problem (GPUs).

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    x, w1, w2 = tensors["hidden_states"], tensors["w1"], tensors["w2"]
    weights, ids, out = tensors["topk_weights"], tensors["topk_ids"], tensors["out"]
    assert x is not None and w1 is not None and w2 is not None
    assert weights is not None and ids is not None and out is not None
    w1_up = tensors.get("w1_up")

    check_rank("hidden_states", x, "[M, H] or [B, S, H]", 2, 3)
    check_rank("w1", w1, "[E, 2*I, H]", 3)
    check_rank("w2", w2, "[E, H, I]", 3)
    check_rank("topk_ids", ids, "[M, k]", 2)
    check_rank("topk_weights", weights, "[M, k]", 2)

    dtype = check_dtype("hidden_states", x, COMPUTE_DTYPES)
    check_dtype("out", out, (dtype,))
    for name, info, form in (("w1", w1, options.w1_format), ("w2", w2, options.w2_format), ("w1_up", w1_up, None)):
        if info is not None and form is None:
            check_dtype(name, info, (dtype,))
    ids_dtype = check_dtype("topk_ids", ids, INDEX_DTYPES)
    weights_dtype = check_dtype("topk_weights", weights, WEIGHT_DTYPES)
    check_places(tensors, "hidden_states")

    num_tokens, hidden_size, intermediate_size, num_experts, gate_up = _sizes(tensors, options)
    top_k = _check_slots(ids, weights, num_tokens)
    out_row_stride = _out_row_stride(out, x, num_tokens)
    num_global_experts = _num_global_experts(tensors["expert_map"])
    w1_layout, w1_stride = matrix_layout("w1", w1)
    w2_layout, w2_stride = matrix_layout("w2", w2)
    bias_rows = intermediate_size if gate_up is GateUp.UNGATED else 2 * intermediate_size
    return MoEProblem(
        num_tokens=num_tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_experts=num_experts,
        top_k=top_k,
        dtype=dtype,
        activation=options.activation,
        topk_ids_dtype=ids_dtype,
        topk_weights_dtype=weights_dtype,
        w1_layout=w1_layout,
        w2_layout=w2_layout,
        num_global_experts=num_global_experts,
        x_row_stride=row_stride("hidden_states", x),
        out_row_stride=out_row_stride,
        w1_expert_stride=w1.strides[0],
        w1_stride=w1_stride,
        w2_expert_stride=w2.strides[0],
        w2_stride=w2_stride,
        topk_ids_row_stride=row_stride("topk_ids", ids),
        topk_weights_row_stride=row_stride("topk_weights", weights),
        base_alignment=base_alignment([t.address for t in (x, w1, w2, out, w1_up) if t]) if look_at_addresses else 1,
        gate_up=gate_up,
        swiglu_alpha=options.swiglu_alpha,
        swiglu_limit=options.swiglu_limit,
        w1_bias_dtype=check_bias("w1_bias", tensors.get("w1_bias"), (num_experts, bias_rows), dtype),
        w2_bias_dtype=check_bias("w2_bias", tensors.get("w2_bias"), (num_experts, hidden_size), dtype),
        router_weight_on_input=options.router_weight_on_input,
        w1_quant=_weight_quant("w1", tensors, options.w1_format),
        w2_quant=_weight_quant("w2", tensors, options.w2_format),
        input_quant=options.input_quant,
        input_block_k=input_block_k(options),
        a1_scale_stride=_input_scale_stride("a1_scale", tensors.get("a1_scale"), num_experts, options.input_quant),
        a2_scale_stride=_input_scale_stride("a2_scale", tensors.get("a2_scale"), num_experts, options.input_quant),
    )


def _logical(info: TensorInfo, form: WeightFormat | None) -> tuple[int, int, int]:
    """Returns [E, N, K] of weights, unpacked."""
    experts, n, k = info.shape
    return experts, n, k if form is None else k * 8 // form.bits

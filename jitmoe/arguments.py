# SPDX-License-Identifier: MIT
"""Argument checks of the ops: tensor facts in, ``MoEProblem`` out, or an ``ArgumentError`` that names the argument."""

from __future__ import annotations

from collections.abc import Mapping

from jitmoe.errors import ArgumentError
from jitmoe.problem import COMPUTE_DTYPES, INDEX_DTYPES, WEIGHT_DTYPES, Activation, DType, Layout, MoEProblem
from jitmoe.tensors import TensorInfo

MAX_PAIRS = 2**31 - 1  # pair indices are int32 on the device
MAX_TOP_K = 2**15 - 1


def _names(values: tuple[DType, ...]) -> str:
    return ", ".join(value.value for value in values)


def _rank(name: str, info: TensorInfo, expected: str, *ranks: int) -> None:
    if len(info.shape) not in ranks:
        raise ArgumentError(argument=name, got=f"shape {_shape(info)}", expected=expected)


def _shape(info: TensorInfo) -> str:
    return "[" + ", ".join(str(size) for size in info.shape) + "]"


def _dtype(name: str, info: TensorInfo, allowed: tuple[DType, ...]) -> DType:
    if info.dtype not in allowed:
        raise ArgumentError(argument=name, got=f"dtype {info.dtype_name}", expected=f"dtype {_names(allowed)}")
    assert info.dtype is not None
    return info.dtype


def _row_stride(name: str, info: TensorInfo) -> int:
    """Returns the row stride of a tensor whose last dimension has to be dense and whose rows are evenly spaced."""
    if info.shape[-1] > 1 and info.strides[-1] != 1:
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="unit stride in the last dimension")
    if len(info.shape) == 3 and info.shape[0] > 1 and info.shape[1] > 0:
        if info.shape[1] > 1 and info.strides[0] != info.shape[1] * info.strides[1]:
            raise ArgumentError(
                argument=name, got=f"strides {info.strides}", expected="evenly spaced rows ([B, S, H] like [B*S, H])"
            )
        if info.shape[1] == 1:
            return info.strides[0]
    return info.strides[-2] if info.shape[-2] > 1 else info.shape[-1]


def _matrix_layout(name: str, info: TensorInfo) -> tuple[Layout, int]:
    """Returns the layout of [E, N, K] weights and the stride of the dimension that is not dense."""
    _, n, k = info.shape
    _, stride_n, stride_k = info.strides
    if any(stride < 0 for stride in info.strides):
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="strides >= 0")
    if stride_k == 1 or k == 1:
        return Layout.NK, stride_n if n > 1 else k
    if stride_n == 1 or n == 1:
        return Layout.KN, stride_k
    raise ArgumentError(
        argument=name,
        got=f"strides {info.strides}",
        expected="unit stride in the last or in the second-last dimension",
    )


def _base_alignment(addresses: list[int]) -> int:
    alignment = 64
    for address in addresses:
        alignment = min(alignment, address & -address if address else 64)
    return alignment


def check_activation(activation: object) -> Activation:
    """Returns the activation of that name."""
    try:
        return Activation(activation)
    except ValueError:
        names = ", ".join(value.value for value in Activation)
        raise ArgumentError(argument="activation", got=repr(activation), expected=f"one of {names}") from None


def fused_moe_problem(
    tensors: Mapping[str, TensorInfo | None], activation: Activation, *, look_at_addresses: bool
) -> MoEProblem:
    """Checks the tensors of a ``fused_moe`` call against each other and returns what is asked.

    Args:
        tensors: by argument name: hidden_states, w1, w2, topk_weights, topk_ids, expert_map (may be None), out.
        activation: between the GEMMs.
        look_at_addresses: whether the addresses' alignment is part of the problem (GPUs).

    Raises:
        ArgumentError: names the first argument that does not fit, what came and what was expected.
    """
    x, w1, w2 = tensors["hidden_states"], tensors["w1"], tensors["w2"]
    weights, ids, out = tensors["topk_weights"], tensors["topk_ids"], tensors["out"]
    assert x is not None and w1 is not None and w2 is not None
    assert weights is not None and ids is not None and out is not None
    expert_map = tensors["expert_map"]

    _rank("hidden_states", x, "[M, H] or [B, S, H]", 2, 3)
    _rank("w1", w1, "[E, 2*I, H]", 3)
    _rank("w2", w2, "[E, H, I]", 3)
    _rank("topk_ids", ids, "[M, k]", 2)
    _rank("topk_weights", weights, "[M, k]", 2)

    dtype = _dtype("hidden_states", x, COMPUTE_DTYPES)
    for name, info in (("w1", w1), ("w2", w2), ("out", out)):
        _dtype(name, info, (dtype,))
    ids_dtype = _dtype("topk_ids", ids, INDEX_DTYPES)
    weights_dtype = _dtype("topk_weights", weights, WEIGHT_DTYPES)

    for name, other in tensors.items():
        if other is not None and other.place != x.place:
            raise ArgumentError(argument=name, got=other.place, expected=f"{x.place}, like hidden_states")

    num_tokens = 1
    for size in x.shape[:-1]:
        num_tokens *= size
    hidden_size = x.shape[-1]
    num_experts, w1_rows, _ = w1.shape
    intermediate_size = w1_rows // 2
    if hidden_size == 0:
        raise ArgumentError(argument="hidden_states", got=f"shape {_shape(x)}", expected="H >= 1")
    if num_experts == 0 or w1_rows == 0 or w1_rows % 2 or w1.shape[2] != hidden_size:
        raise ArgumentError(
            argument="w1", got=f"shape {_shape(w1)}", expected=f"[E, 2*I, H] with E, I >= 1 and H = {hidden_size}"
        )
    if w2.shape != (num_experts, hidden_size, intermediate_size):
        raise ArgumentError(
            argument="w2",
            got=f"shape {_shape(w2)}",
            expected=f"[E, H, I] = [{num_experts}, {hidden_size}, {intermediate_size}]",
        )
    if ids.shape[0] != num_tokens or not 1 <= ids.shape[1] <= MAX_TOP_K:
        raise ArgumentError(
            argument="topk_ids",
            got=f"shape {_shape(ids)}",
            expected=f"[M, k] with M = {num_tokens} and 1 <= k <= {MAX_TOP_K}",
        )
    top_k = ids.shape[1]
    if weights.shape != ids.shape:
        raise ArgumentError(
            argument="topk_weights", got=f"shape {_shape(weights)}", expected=f"{_shape(ids)}, like topk_ids"
        )
    if num_tokens * top_k > MAX_PAIRS:
        raise ArgumentError(
            argument="topk_ids", got=f"{num_tokens * top_k} (token, expert) pairs", expected=f"at most {MAX_PAIRS}"
        )
    if out.shape != x.shape:
        raise ArgumentError(argument="out", got=f"shape {_shape(out)}", expected=f"{_shape(x)}, like hidden_states")
    num_global_experts = None
    if expert_map is not None:
        _rank("expert_map", expert_map, "[number of experts on all ranks]", 1)
        _dtype("expert_map", expert_map, (DType.INT32,))
        if expert_map.shape[0] > 1 and expert_map.strides[0] != 1:
            raise ArgumentError(argument="expert_map", got=f"strides {expert_map.strides}", expected="a dense tensor")
        num_global_experts = expert_map.shape[0]

    out_row_stride = _row_stride("out", out)
    if num_tokens > 1 and out_row_stride < hidden_size:
        raise ArgumentError(argument="out", got=f"strides {out.strides}", expected="rows that do not overlap")
    w1_layout, w1_stride = _matrix_layout("w1", w1)
    w2_layout, w2_stride = _matrix_layout("w2", w2)
    return MoEProblem(
        num_tokens=num_tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_experts=num_experts,
        top_k=top_k,
        dtype=dtype,
        activation=activation,
        topk_ids_dtype=ids_dtype,
        topk_weights_dtype=weights_dtype,
        w1_layout=w1_layout,
        w2_layout=w2_layout,
        num_global_experts=num_global_experts,
        x_row_stride=_row_stride("hidden_states", x),
        out_row_stride=out_row_stride,
        w1_expert_stride=w1.strides[0],
        w1_stride=w1_stride,
        w2_expert_stride=w2.strides[0],
        w2_stride=w2_stride,
        topk_ids_row_stride=_row_stride("topk_ids", ids),
        topk_weights_row_stride=_row_stride("topk_weights", weights),
        base_alignment=_base_alignment([t.address for t in (x, w1, w2, out)]) if look_at_addresses else 1,
    )

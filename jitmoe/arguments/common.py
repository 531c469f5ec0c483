# SPDX-License-Identifier: MIT
"""Checks that several ops share."""

from __future__ import annotations

from collections.abc import Mapping

from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import DType, Layout
from jitmoe.tensors import TensorInfo

Facts = Mapping[str, TensorInfo | None]  # a call's tensors by argument name, None for those it goes without

MAX_PAIRS = 2**31 - 1  # pair indices are int32 on the device
MAX_SLOTS = 2**15 - 1  # of a row of topk_ids


def check_places(facts: Facts, first: str) -> TensorInfo:
    """Returns the facts of tensor ``first``, after checking that all others are in the same place."""
    one = facts[first]
    assert one is not None
    for name, other in facts.items():
        if other is not None and other.place != one.place:
            raise ArgumentError(argument=name, got=other.place, expected=f"{one.place}, like {first}")
    return one


def dtype_names(values: tuple[DType, ...]) -> str:
    return ", ".join(value.value for value in values)


def check_rank(name: str, info: TensorInfo, expected: str, *ranks: int) -> None:
    """Checks the number of dimensions."""
    if len(info.shape) not in ranks:
        raise ArgumentError(argument=name, got=f"shape {shape_text(info)}", expected=expected)


def shape_text(info: TensorInfo) -> str:
    """Returns a shape as messages spell it."""
    return "[" + ", ".join(str(size) for size in info.shape) + "]"


def check_dtype(name: str, info: TensorInfo, allowed: tuple[DType, ...]) -> DType:
    """Returns the dtype if it is one of those allowed."""
    if info.dtype not in allowed:
        raise ArgumentError(argument=name, got=f"dtype {info.dtype_name}", expected=f"dtype {dtype_names(allowed)}")
    assert info.dtype is not None
    return info.dtype


def row_stride(name: str, info: TensorInfo) -> int:
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


def matrix_layout(name: str, info: TensorInfo) -> tuple[Layout, int]:
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


def base_alignment(addresses: list[int]) -> int:
    alignment = 64
    for address in addresses:
        alignment = min(alignment, address & -address if address else 64)
    return alignment


def check_bias(name: str, info: TensorInfo | None, shape: tuple[int, int], dtype: DType) -> DType | None:
    if info is None:
        return None
    found = check_dtype(name, info, tuple(dict.fromkeys((dtype, DType.FP32))))
    if info.shape != shape:
        raise ArgumentError(argument=name, got=f"shape {shape_text(info)}", expected=f"{list(shape)}")
    dense = (shape[1], 1)
    if any(size > 1 and stride != wanted for size, stride, wanted in zip(shape, info.strides, dense, strict=True)):
        raise ArgumentError(argument=name, got=f"strides {info.strides}", expected="a dense tensor")
    return found

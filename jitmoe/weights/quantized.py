# SPDX-License-Identifier: MIT
"""``QuantizedTensor``: the weights of all experts in a quantized format, with everything needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jitmoe.errors import ArgumentError
from jitmoe.problems.formats import MAX_ZERO_POINT, Encoding, WeightFormat
from jitmoe.problems.fused_moe import DType
from jitmoe.tensors import TensorInfo, adopt, describe, is_torch, stream_for, to_host

_DATA_DTYPES = {
    Encoding.INT8: (DType.INT8,),
    Encoding.E4M3: (DType.E4M3, DType.UINT8),
    Encoding.E5M2: (DType.E5M2, DType.UINT8),
    Encoding.INT4: (DType.UINT8, DType.INT8),
    Encoding.UINT4: (DType.UINT8, DType.INT8),
    Encoding.E2M1: (DType.UINT8, DType.INT8),
}


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """Quantized weights [E, N, K]; see ``WeightFormat`` for what code, scale, zero point and order mean.

    Checked when it is made: a wrong shape or dtype is an ``ArgumentError`` that says which one was expected and why. So
    is a zero point or an order that kernels cannot take.

    Attributes:
        data: [E, N, K] codes of 8 bits (int8, float8, or uint8 with FP8 bits), or [E, N, K / 2] bytes of two codes;
            dense in the last dimension. torch tensors, USM arrays or DLPack objects.
        scale: [E, N / block_n, K / block_k], any strides; dimensions of one block have size 1, and so may E have.
        format: how to read them.
        zero_point: uint8 from 0 to 16, shaped like the scales (with ``format.has_zero_point``).
        k_order: int32 [E, K], a permutation of 0 .. K-1 for each expert (with ``format.has_k_order``).
    """

    data: Any
    scale: Any
    format: WeightFormat
    zero_point: Any = None
    k_order: Any = None

    def __post_init__(self) -> None:
        form = self.format
        if not isinstance(form, WeightFormat):
            raise ArgumentError(argument="format", got=type(form).__name__, expected="a jitmoe.WeightFormat")
        data = _info("data", self.data, _DATA_DTYPES[form.encoding], f"{form.encoding.value} codes")
        packing = "[E, N, K]" if form.bits == 8 else "[E, N, K / 2], two codes per byte"
        if len(data.shape) != 3 or 0 in data.shape:
            raise ArgumentError(argument="data", got=f"shape {list(data.shape)}", expected=packing)
        if data.shape[2] > 1 and data.strides[2] != 1:
            raise ArgumentError(
                argument="data", got=f"strides {data.strides}", expected=f"unit stride in the last dimension, {packing}"
            )
        experts, n, k = self.shape
        blocks_n, blocks_k = form.blocks(n, k)
        block = f"blocks of {form.block_n or 'all'} x {form.block_k or 'all'}"
        dtypes = (DType.E8M0, DType.UINT8) if form.scale_dtype is DType.E8M0 else (form.scale_dtype,)
        self._shaped("scale", self.scale, dtypes, ((experts, blocks_n, blocks_k), (1, blocks_n, blocks_k)), block)
        if form.has_zero_point:
            self._shaped(
                *("zero_point", self.zero_point, (DType.UINT8,)),
                *(((experts, blocks_n, blocks_k), (1, blocks_n, blocks_k)), f"one per scale, {block}"),
            )
        if form.has_k_order:
            self._shaped("k_order", self.k_order, (DType.INT32,), ((experts, k),), "a permutation of K per expert")
        for name, wanted in (("zero_point", form.has_zero_point), ("k_order", form.has_k_order)):
            if not wanted and getattr(self, name) is not None:
                raise ArgumentError(argument=name, got="a tensor", expected=f"None: the format {form} has none")
        if form.has_zero_point:
            largest = int(_content(self.zero_point).max())
            if largest > MAX_ZERO_POINT:
                raise ArgumentError(argument="zero_point", got=str(largest), expected=f"0 to {MAX_ZERO_POINT}")
        if form.has_k_order and not _is_order(_content(self.k_order)):
            raise ArgumentError(
                argument="k_order", got="repeated or foreign numbers", expected=f"each of 0 to {k - 1} once per expert"
            )

    @staticmethod
    def _shaped(
        name: str, value: Any, dtypes: tuple[DType, ...], shapes: tuple[tuple[int, ...], ...], why: str
    ) -> None:
        info = _info(name, value, dtypes, why)
        if info.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise ArgumentError(argument=name, got=f"shape {list(info.shape)}", expected=f"{wanted} ({why})")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K)."""
        experts, n, stored = tuple(self.data.shape)
        return experts, n, stored * 8 // self.format.bits

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        total = 0
        for name in ("data", "scale", "zero_point"):
            value = getattr(self, name)
            if value is not None:
                info = describe(name, adopt(name, value))
                size = 1 if info.dtype is None else info.dtype.num_bytes
                for length in info.shape:
                    size *= length
                total += size
        return total

    def __repr__(self) -> str:
        return f"QuantizedTensor({list(self.shape)}, {self.format})"


def _info(name: str, value: Any, dtypes: tuple[DType, ...], why: str) -> TensorInfo:
    if value is None:
        raise ArgumentError(argument=name, got="None", expected=f"a tensor ({why})")
    info = describe(name, adopt(name, value))
    if info.dtype not in dtypes:
        names = " or ".join(dtype.value for dtype in dtypes)
        raise ArgumentError(argument=name, got=f"dtype {info.dtype_name}", expected=f"dtype {names} ({why})")
    return info


def _content(value: Any) -> Any:
    """Returns a tensor's elements as a torch tensor."""
    value = adopt("tensor", value)
    return value if is_torch(value) else to_host(value, stream_for(value, None)[0])


def _is_order(order: Any) -> bool:
    """Whether each row of [E, K] is a permutation."""
    import torch

    return bool((order.sort(dim=1).values == torch.arange(order.shape[1], device=order.device)).all())

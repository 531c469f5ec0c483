# SPDX-License-Identifier: MIT
"""How quantized weights are stored: one frozen value per format. No tensors here.

A quantized matrix W[e][n][k] is ``value(code) * scale`` with one scale per block of ``block_n`` rows and ``block_k``
elements of K, and, for ``UINT4``, ``value(code) = code - zero point``. Codes of 8 bits are one byte each, [E, N, K];
codes of 4 bits are two per byte along K, [E, N, K / 2], the even k in the low nibble.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jitmoe.errors import ArgumentError
from jitmoe.options import check_flag, check_member, check_whole
from jitmoe.problems.fused_moe import DType, check_dtype_name


class Encoding(str, Enum):
    """What a code stands for."""

    INT8 = "int8"  # two's complement
    E4M3 = "e4m3"  # OCP FP8: bias 7, no infinities, 0x7f and 0xff are NaN, largest 448
    E5M2 = "e5m2"  # OCP FP8: bias 15, infinities, largest finite 57344
    INT4 = "int4"  # two's complement nibble
    UINT4 = "uint4"  # 0..15 minus the zero point; 8 without one
    E2M1 = "e2m1"  # OCP FP4: sign, 0 0.5 1 1.5 2 3 4 6

    @property
    def bits(self) -> int:
        return 4 if self in (Encoding.INT4, Encoding.UINT4, Encoding.E2M1) else 8

    @property
    def largest(self) -> float:
        """The largest magnitude that a symmetric quantizer uses."""
        return _LARGEST[self]


_LARGEST = {
    Encoding.INT8: 127.0,
    Encoding.E4M3: 448.0,
    Encoding.E5M2: 57344.0,
    Encoding.INT4: 7.0,
    Encoding.UINT4: 7.0,
    Encoding.E2M1: 6.0,
}


class InputQuant(str, Enum):
    """How the inputs of both GEMMs are quantized (the 8 of W8A8); scales are absmax / largest unless given."""

    INT8 = "int8"
    E4M3 = "e4m3"
    E5M2 = "e5m2"


SCALE_DTYPES = (DType.FP32, DType.BF16, DType.FP16, DType.E8M0)
WHOLE = 0  # of a block size: all of that dimension
MAX_ZERO_POINT = 16  # codes minus zero points are -16..15: kernels look them up by five bits


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Everything about a format that changes a kernel. Strings will do for ``encoding`` and ``scale_dtype``.

    Raises:
        ArgumentError: a value is none of those named here.
    """

    encoding: Encoding
    scale_dtype: DType  # "fp32", "bf16", "fp16" (or torch's dtypes), or "e8m0" (a byte b that means 2^(b - 127))
    block_n: int  # rows that share a scale; WHOLE: all rows of an expert
    block_k: int  # elements of K that share a scale, an even number for codes of 4 bits; WHOLE: all of them
    has_zero_point: bool = False  # UINT4: a byte from 0 to 16 per scale, [E, N / block_n, K / block_k]
    has_k_order: bool = False  # column c of the stored matrix is k = order[e][c] (GPTQ's act-order, sorted by group)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", check_member("encoding", self.encoding, Encoding))
        object.__setattr__(self, "scale_dtype", check_dtype_name("scale_dtype", self.scale_dtype, SCALE_DTYPES))
        check_whole("block_n", self.block_n, 0)
        if check_whole("block_k", self.block_k, 0) % 2 and self.bits == 4:
            raise ArgumentError(argument="block_k", got=str(self.block_k), expected="an even number: bytes hold 2 k")
        check_flag("has_k_order", self.has_k_order)
        if check_flag("has_zero_point", self.has_zero_point) and self.encoding is not Encoding.UINT4:
            raise ArgumentError(
                argument="has_zero_point", got=f"True with {self.encoding.value}", expected="False: only uint4 has them"
            )

    @property
    def bits(self) -> int:
        return self.encoding.bits

    def row_bytes(self, k: int) -> int:
        """Bytes of ``k`` codes, packed."""
        return -(-k * self.bits // 8)

    def blocks(self, n: int, k: int) -> tuple[int, int]:
        """Blocks of an [n, k] matrix along both dimensions; the last ones may be partial."""
        return (
            1 if self.block_n == WHOLE else -(-n // self.block_n),
            1 if self.block_k == WHOLE else -(-k // self.block_k),
        )

    def dense(self, n: int, k: int) -> WeightQuant:
        """Returns the strides of densely packed scales and zero points, [E, blocks of n, blocks of k]."""
        blocks_n, blocks_k = self.blocks(n, k)
        strides = (blocks_n * blocks_k, 0 if blocks_n == 1 else blocks_k, 0 if blocks_k == 1 else 1)
        return WeightQuant(self, *strides, *(strides if self.has_zero_point else (0, 0, 0)))

    def __str__(self) -> str:
        block = "x".join("all" if size == WHOLE else str(size) for size in (self.block_n, self.block_k))
        extras = (" zero-point" if self.has_zero_point else "") + (" k-order" if self.has_k_order else "")
        return f"{self.encoding.value}/{block}/{self.scale_dtype.value}{extras}"


@dataclass(frozen=True, slots=True)
class WeightQuant:
    """One quantized weight tensor: its format, and the strides of its scales in elements (0 along a single block)."""

    format: WeightFormat
    scale_expert_stride: int
    scale_n_stride: int  # per block of rows
    scale_k_stride: int  # per block of K
    zero_expert_stride: int = 0
    zero_n_stride: int = 0
    zero_k_stride: int = 0

# SPDX-License-Identifier: MIT
"""Expert weights as checkpoints store them -> ``QuantizedTensor``.

Layouts that the kernels read as they are stay views (8-bit codes [E, N, K], 4-bit codes along K in bytes or in
compressed-tensors' int32 words). Others are repacked once, into the same number of bytes: transposed codes, and the
int32 words of GPTQ and AWQ. All functions take the tensors of all experts, stacked along the first dimension, and raise
``ArgumentError`` for shapes and dtypes that do not fit. They take torch tensors, DLPack objects, and USM arrays where
no element has to move. Parameters that require gradients are taken without them.
"""

from __future__ import annotations

from typing import Any

from jitmoe.errors import ArgumentError
from jitmoe.options import check_flag, check_whole
from jitmoe.problems.formats import WHOLE, Encoding, WeightFormat
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, DType
from jitmoe.tensors import adopt, describe, is_torch
from jitmoe.weights.quantized import QuantizedTensor

CODES_PER_WORD = 8  # 4-bit codes in an int32
# Nibble i of an AWQ word holds column AWQ_COLUMNS[i] of its eight (the packing order of AutoAWQ's GEMM format).
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def load_int4(data: Any, scale: Any) -> QuantizedTensor:
    """Returns symmetric INT4 weights: ``data`` [E, N, K / 2] bytes of two's complement nibbles, even k low.

    ``scale`` [E, N, K / group], any float dtype; the group size follows from the shapes.
    """
    data, scale = _taken("data", data), _taken("scale", scale)
    form = WeightFormat(
        encoding=Encoding.INT4, scale_dtype=_scale_dtype(scale), block_n=1, block_k=_group(data, scale, 2)
    )
    return QuantizedTensor(data, scale, form)


def load_mxfp4(blocks: Any, scale: Any) -> QuantizedTensor:
    """Returns MXFP4 weights: ``blocks`` uint8 [E, N, K / 32, 16] (gpt-oss) or [E, N, K / 2], even k low.

    ``scale`` [E, N, K / 32], E8M0 bytes.
    """
    blocks, scale = _taken("blocks", blocks), _taken("scale", scale)
    shape = _shape("blocks", blocks, DType.UINT8)
    if len(shape) == 4:
        if shape[3] != 16:
            raise ArgumentError(argument="blocks", got=f"shape {list(shape)}", expected="[E, N, K / 32, 16]")
        blocks = _torch("blocks", blocks).flatten(2)
    return QuantizedTensor(
        blocks, scale, WeightFormat(encoding=Encoding.E2M1, scale_dtype=DType.E8M0, block_n=1, block_k=32)
    )


def load_mxfp8(data: Any, scale: Any, *, k_major: bool = False) -> QuantizedTensor:
    """Returns MXFP8 weights: ``data`` float8 [E, N, K], ``scale`` E8M0 [E, N, K / 32].

    With ``k_major`` they are [E, K, N] and [E, K / 32, N]: the codes are transposed once, the scales stay a view.
    """
    data, scale = _taken("data", data), _taken("scale", scale)
    encoding = _fp8_encoding(data)
    if check_flag("k_major", k_major):
        _rank3("data", data, "[E, K, N]")
        _rank3("scale", scale, "[E, K / 32, N]")
        data, scale = _row_major(_torch("data", data)), scale.mT
    return QuantizedTensor(data, scale, WeightFormat(encoding=encoding, scale_dtype=DType.E8M0, block_n=1, block_k=32))


def load_fp8(data: Any, scale: Any, *, block: tuple[int, int] = (128, 128), k_major: bool = False) -> QuantizedTensor:
    """Returns FP8 weights whose scales (multipliers, not inverses) may have any usual granularity.

    Args:
        data: float8 e4m3 or e5m2, [E, N, K]; [E, K, N] with ``k_major`` (transposed once).
        scale: float32, bf16, fp16 or float8_e8m0fnu. One element or [1, 1, 1]: per tensor. [E] or [E, 1, 1]: per
            expert. [E, N] or [E, N, 1]: per channel. [E, ceil(N / block_n), ceil(K / block_k)]: blocks (last two
            swapped with ``k_major``).
        block: (block_n, block_k) of block scales, each at least 1.
    """
    data, scale = _torch("data", data), _torch("scale", scale)
    encoding = _fp8_encoding(data)
    if check_flag("k_major", k_major):
        _rank3("data", data, "[E, K, N]")
        data = _row_major(data)
        scale = scale.mT if scale.ndim == 3 else scale
    return _eight_bits(data, scale, encoding, block)


def load_int8(data: Any, scale: Any, *, block: tuple[int, int] = (128, 128)) -> QuantizedTensor:
    """Returns INT8 weights, as compressed-tensors (``int-quantized``) and blockwise INT8 checkpoints have them.

    Args:
        data: int8 [E, N, K].
        scale: as for ``load_fp8``; usually [E, N, 1].
        block: (block_n, block_k) of block scales; (1, group size) for groups of K.
    """
    data, scale = _torch("data", data), _torch("scale", scale)
    _shape("data", data, DType.INT8)
    return _eight_bits(data, scale, Encoding.INT8, block)


def _eight_bits(data: Any, scale: Any, encoding: Encoding, block: tuple[int, int]) -> QuantizedTensor:
    """Returns codes [E, N, K] with scales of the granularity that their shape says."""
    experts, n, k = _rank3("data", data, "[E, N, K]")
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise ArgumentError(argument="block", got=repr(block), expected="(block_n, block_k), such as (128, 128)")
    for size in block:
        check_whole("block", size, 1)
    sizes = tuple(scale.shape)
    blocks = (-(-n // block[0]), -(-k // block[1]))
    if scale.numel() == 1:
        scale, granularity = scale.reshape(1, 1, 1), (WHOLE, WHOLE)
    elif sizes in ((experts,), (experts, 1), (experts, 1, 1)):
        scale, granularity = scale.reshape(experts, 1, 1), (WHOLE, WHOLE)
    elif sizes in ((experts, n), (experts, n, 1)):
        scale, granularity = scale.reshape(experts, n, 1), (1, WHOLE)
    elif sizes == (experts, *blocks):
        granularity = block
    else:
        raise ArgumentError(
            argument="scale",
            got=f"shape {list(sizes)}",
            expected=f"one element, [{experts}], [{experts}, {n}] or {[experts, *blocks]} (blocks of {block[0]} x "
            f"{block[1]} of [N, K] = [{n}, {k}])",
        )
    form = WeightFormat(
        encoding=encoding,
        scale_dtype=_scale_dtype(scale, also=(DType.E8M0,)),
        block_n=granularity[0],
        block_k=granularity[1],
    )
    return QuantizedTensor(data, scale, form)


def load_gptq(
    qweight: Any, scales: Any, qzeros: Any = None, g_idx: Any = None, *, zero_offset: int = 1, num_bits: int = 4
) -> QuantizedTensor:
    """Returns GPTQ weights of 4 or 8 bits.

    Args:
        qweight: int32 [E, K * num_bits / 32, N]; a word of a column holds neighbouring k, lowest bits first.
        scales: [E, K / group, N], any float dtype.
        qzeros: int32 [E, K / group, ceil(N / 8)], eight columns per word; only with 4 bits. None for symmetric weights
            (zero point 2^(num_bits - 1)).
        g_idx: int32 [E, K], the group of each k (act-order); None for groups in order.
        zero_offset: what was subtracted from zero points when they were stored: 1 in GPTQ's first format, 0 in v2.
        num_bits: 4 or 8.

    With a ``g_idx`` that is not in order, columns are sorted by group and ``k_order`` says where they belong. The
    second GEMM's weights take no such order: see ``fold_k_order``.
    """
    codes_per_word = _codes_per_word(num_bits)
    check_whole("zero_offset", zero_offset, 0, 1)
    qweight, scales = _torch("qweight", qweight), _torch("scales", scales)
    words = _rank3("qweight", qweight, f"[E, K / {codes_per_word}, N]", DType.INT32)
    experts, k, n = words[0], words[1] * codes_per_word, words[2]
    sizes = _shape("scales", scales, None)
    _scale_dtype(scales, "scales")
    if len(sizes) != 3 or sizes[0] != experts or sizes[2] != n or sizes[1] == 0 or k % sizes[1]:
        raise ArgumentError(
            argument="scales", got=f"shape {list(sizes)}", expected=f"[{experts}, K / group, {n}] with K = {k}"
        )
    groups = sizes[1]
    zero = None
    if qzeros is not None:
        qzeros = _torch("qzeros", qzeros)
        _check_zero_words("qzeros", qzeros, (experts, groups, -(-n // CODES_PER_WORD)), num_bits)
        zero = (_nibbles(qzeros)[..., :n] + zero_offset).mT.contiguous()
    order = None if g_idx is None else _order_of_groups(g_idx, experts, k, groups)
    return _integers(_bytes(qweight.mT), scales.mT, zero, order, num_bits)


def load_awq(qweight: Any, scales: Any, qzeros: Any) -> QuantizedTensor:
    """Returns 4-bit AWQ weights (AutoAWQ's GEMM format).

    Args:
        qweight: int32 [E, K, N / 8]; a word holds eight columns in the order 0 2 4 6 1 3 5 7, lowest bits first.
        scales: [E, K / group, N].
        qzeros: int32 [E, K / group, N / 8], packed like ``qweight``.
    """
    import torch

    qweight, scales, qzeros = _torch("qweight", qweight), _torch("scales", scales), _torch("qzeros", qzeros)
    words, sizes = _rank3("qweight", qweight, "[E, K, N / 8]", DType.INT32), _shape("scales", scales, None)
    _scale_dtype(scales, "scales")
    experts, k, n = words[0], words[1], words[2] * CODES_PER_WORD
    if len(sizes) != 3 or sizes[0] != experts or sizes[2] != n or sizes[1] == 0 or k % sizes[1]:
        raise ArgumentError(
            argument="scales", got=f"shape {list(sizes)}", expected=f"[{experts}, K / group, {n}] with K = {k}"
        )
    zeros = _shape("qzeros", qzeros, DType.INT32)
    if zeros != (experts, sizes[1], words[2]):
        raise ArgumentError(
            argument="qzeros",
            got=f"shape {list(zeros)}",
            expected=f"{[experts, sizes[1], words[2]]}, packed like qweight",
        )
    places = torch.tensor(AWQ_COLUMNS, device=qweight.device).argsort()  # column c is nibble places[c]

    def columns(packed: Any) -> Any:
        return _nibbles(packed).unflatten(-1, (-1, CODES_PER_WORD))[..., places].flatten(-2)

    return _integers(_packed(columns(qweight).mT), scales.mT, columns(qzeros).mT.contiguous(), None, 4)


def load_compressed_tensors(
    packed: Any, scale: Any, zero_point: Any = None, g_idx: Any = None, *, num_bits: int = 4
) -> QuantizedTensor:
    """Returns integer weights of compressed-tensors' ``pack-quantized`` format.

    Args:
        packed: ``weight_packed``, int32 [E, N, K * num_bits / 32]; a word holds neighbouring k, lowest bits first, each
            code with 2^(num_bits - 1) added. 4-bit codes stay a view, 8-bit codes are copied.
        scale: ``weight_scale`` [E, N, K / group], any float dtype; [E, N, 1] per channel.
        zero_point: ``weight_zero_point``, int32 [E, ceil(N / 8), K / group], eight rows per word; only with 4 bits.
            None for symmetric weights.
        g_idx: ``weight_g_idx``, int32 [E, K], the group of each k (``actorder`` group); None, or with a -1 in it, for
            groups in order (per expert). See ``load_gptq``.
        num_bits: 4 or 8.

    Of its other formats ``int-quantized`` is for ``load_int8``, ``float-quantized`` for ``load_fp8``,
    ``mxfp4-pack-quantized`` for ``load_mxfp4`` and ``mxfp8-quantized`` for ``load_mxfp8``.
    """
    codes_per_word = _codes_per_word(num_bits)
    packed, scale = _torch("packed", packed), _torch("scale", scale)
    words = _rank3("packed", packed, f"[E, N, K / {codes_per_word}]", DType.INT32)
    experts, n, k = words[0], words[1], words[2] * codes_per_word
    sizes = _shape("scale", scale, None)
    if len(sizes) != 3 or sizes[:2] != (experts, n) or sizes[2] == 0 or k % sizes[2]:
        raise ArgumentError(
            argument="scale", got=f"shape {list(sizes)}", expected=f"[{experts}, {n}, K / group] with K = {k}"
        )
    groups = sizes[2]
    zero = None
    if zero_point is not None:
        zero_point = _torch("zero_point", zero_point)
        _check_zero_words("zero_point", zero_point, (experts, -(-n // CODES_PER_WORD), groups), num_bits)
        zero = _nibbles(zero_point.mT)[..., :n].mT.contiguous()
    order = None if g_idx is None else _order_of_groups(g_idx, experts, k, groups, may_be_unset=True)
    return _integers(_bytes(packed), scale, zero, order, num_bits)


def fold_k_order(
    w1: QuantizedTensor, w2: QuantizedTensor, *, interleaved: bool = False
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Returns (w1, w2) with the ``k_order`` of w2 moved into the order of w1's rows, which costs nothing at run time.

    The activations between the GEMMs then come in the order in which w2 is stored. A bias of w1 has to be reordered
    like its rows: ``row_order(w1, w2)`` says how. w1 is copied once; without an order both come back as they are.
    """
    rows = row_order(w1, w2, interleaved=interleaved)
    if rows is None:
        return w1, w2
    import dataclasses

    def sorted_rows(tensor: Any) -> Any:
        if tensor is None or tensor.shape[1] == 1:
            return tensor
        return _torch("w1", tensor).gather(1, rows.unsqueeze(-1).expand(rows.shape[0], rows.shape[1], tensor.shape[2]))

    if w1.format.block_n > 1:
        raise ArgumentError(argument="w1", got=f"format {w1.format}", expected="one scale per row: its rows move")
    if w1.scale.shape[0] == 1 and w1.scale.shape[1] > 1:
        raise ArgumentError(argument="w1", got="scales shared by all experts", expected="scales per expert")
    moved = QuantizedTensor(
        sorted_rows(w1.data), sorted_rows(w1.scale), w1.format, sorted_rows(w1.zero_point), w1.k_order
    )
    return moved, QuantizedTensor(w2.data, w2.scale, dataclasses.replace(w2.format, has_k_order=False), w2.zero_point)


def row_order(w1: QuantizedTensor, w2: QuantizedTensor, *, interleaved: bool = False) -> Any:
    """Returns int64 [E, rows of w1], where ``fold_k_order`` takes each of w1's rows from; None without an order."""
    import torch

    for name, weights in (("w1", w1), ("w2", w2)):
        if not isinstance(weights, QuantizedTensor):
            raise ArgumentError(argument=name, got=type(weights).__name__, expected="a jitmoe.QuantizedTensor")
    check_flag("interleaved", interleaved)
    if w2.k_order is None:
        return None
    order, size = _torch("w2", w2.k_order).to(torch.int64), w2.shape[2]
    if w1.shape[1] == size:
        return order
    if w1.shape[1] != 2 * size:
        raise ArgumentError(argument="w1", got=f"{w1.shape[1]} rows", expected=f"{size} or {2 * size}, for I = {size}")
    if interleaved:
        return torch.stack((2 * order, 2 * order + 1), dim=-1).flatten(1)
    return torch.cat((order, order + size), dim=1)


def _taken(name: str, value: Any) -> Any:
    """Returns what the weights will hold: an adopted tensor, no gradient of which is wanted."""
    value = adopt(name, value)
    return value.detach() if is_torch(value) else value


def _torch(name: str, value: Any) -> Any:
    """Returns a tensor that can be rearranged."""
    value = _taken(name, value)
    if not is_torch(value):
        expected = "a torch tensor or a DLPack object: its elements may have to move"
        raise ArgumentError(argument=name, got=type(value).__name__, expected=expected)
    return value


def _shape(name: str, value: Any, dtype: DType | None) -> tuple[int, ...]:
    info = describe(name, value)
    if dtype is not None and info.dtype is not dtype:
        raise ArgumentError(argument=name, got=f"dtype {info.dtype_name}", expected=f"dtype {dtype.value}")
    return info.shape


def _rank3(name: str, value: Any, expected: str, dtype: DType | None = None) -> tuple[int, ...]:
    shape = _shape(name, value, dtype)
    if len(shape) != 3:
        raise ArgumentError(argument=name, got=f"shape {list(shape)}", expected=expected)
    return shape


def _scale_dtype(scale: Any, name: str = "scale", *, also: tuple[DType, ...] = ()) -> DType:
    info = describe(name, scale)
    if info.dtype not in (*COMPUTE_DTYPES, *also):
        names = ["fp32", "bf16", "fp16", *(dtype.value for dtype in also)]
        raise ArgumentError(
            argument=name,
            got=f"dtype {info.dtype_name}",
            expected=f"dtype {', '.join(names[:-1])} or {names[-1]}",
        )
    assert info.dtype is not None
    return info.dtype


def _fp8_encoding(data: Any) -> Encoding:
    info = describe("data", data)
    if info.dtype not in (DType.E4M3, DType.E5M2):
        raise ArgumentError(argument="data", got=f"dtype {info.dtype_name}", expected="float8_e4m3fn or float8_e5m2")
    assert info.dtype is not None
    return Encoding(info.dtype.value)


def _group(data: Any, scale: Any, codes_per_byte: int) -> int:
    """Returns K / blocks of the scales."""
    codes, scales = _shape("data", data, None), _shape("scale", scale, None)
    if len(codes) != 3 or len(scales) != 3 or scales[2] == 0 or codes[2] * codes_per_byte % scales[2]:
        raise ArgumentError(
            argument="scale", got=f"shape {list(scales)}", expected=f"[E, N, K / group] for codes {list(codes)}"
        )
    return codes[2] * codes_per_byte // scales[2]


def _order_of_groups(g_idx: Any, experts: int, k: int, groups: int, *, may_be_unset: bool = False) -> Any:
    """Returns int32 [E, K], the columns sorted by their groups [E, K]; None if they are.

    With ``may_be_unset`` an expert with a -1 has its groups in order.
    """
    import torch

    g_idx = _torch("g_idx", g_idx)
    if _shape("g_idx", g_idx, DType.INT32) != (experts, k):
        raise ArgumentError(argument="g_idx", got=f"shape {list(g_idx.shape)}", expected=f"{[experts, k]}")
    size = k // groups
    in_order = torch.arange(k, device=g_idx.device) // size
    if may_be_unset:
        g_idx = torch.where((g_idx == -1).any(dim=1, keepdim=True), in_order, g_idx)
    if bool((g_idx == in_order).all()):
        return None
    order = g_idx.argsort(dim=1, stable=True)
    if not bool((g_idx.gather(1, order) == in_order).all()):
        raise ArgumentError(
            argument="g_idx", got="groups of different sizes", expected=f"each of {groups} groups {size} times"
        )
    return order.to(torch.int32)


def _columns(codes: Any, order: Any) -> Any:
    """Returns codes [E, N, K] with the columns in ``order`` [E, K]."""
    return codes.gather(2, order.long().unsqueeze(1).expand(codes.shape))


def _row_major(data: Any) -> Any:
    """Returns [E, N, K] of [E, K, N], copied. Bytes are moved: torch copies float8 slowly."""
    import torch

    return data.view(torch.uint8).mT.contiguous().view(data.dtype)


def _nibbles(words: Any) -> Any:
    """Returns uint8 codes [..., 8 * n] of int32 words [..., n], lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8).flatten(-2)


def _halves(data: Any) -> Any:
    """Returns codes [E, N, K] of bytes [E, N, K / 2], even k low."""
    import torch

    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)


def _packed(codes: Any) -> Any:
    """Returns bytes [E, N, K / 2] of codes [E, N, K], even k low."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).contiguous()


def _codes_per_word(num_bits: int) -> int:
    if num_bits not in (4, 8):
        raise ArgumentError(argument="num_bits", got=repr(num_bits), expected="4 or 8")
    return 32 // num_bits


def _check_zero_words(name: str, value: Any, shape: tuple[int, ...], num_bits: int) -> None:
    if num_bits != 4:
        raise ArgumentError(argument=name, got="a tensor", expected="None: only 4-bit codes have zero points")
    if _shape(name, value, DType.INT32) != shape:
        raise ArgumentError(
            argument=name, got=f"shape {list(value.shape)}", expected=f"{list(shape)}: a word per 8 of N and group"
        )


def _bytes(words: Any) -> Any:
    """Returns the bytes of int32 words; a view if they are dense in the last dimension."""
    import torch

    return (words if words.stride(-1) == 1 else words.contiguous()).view(torch.uint8)


def _integers(data: Any, scale: Any, zero: Any, order: Any, num_bits: int) -> QuantizedTensor:
    """Returns the weights of bytes [E, N, K * num_bits / 8] with 2^(num_bits - 1) added to each code, even k low.

    ``order`` [E, K] is what the columns are to be sorted by, or None.
    """
    import torch

    if num_bits == 8:
        data = (data ^ 0x80).view(torch.int8)
    if order is not None:
        data = _columns(data, order) if num_bits == 8 else _packed(_columns(_halves(data), order))
    groups = scale.shape[2]
    form = WeightFormat(
        encoding=Encoding.UINT4 if num_bits == 4 else Encoding.INT8,
        scale_dtype=_scale_dtype(scale),
        block_n=1,
        block_k=WHOLE if groups == 1 else data.shape[2] * 8 // num_bits // groups,
        has_zero_point=zero is not None,
        has_k_order=order is not None,
    )
    return QuantizedTensor(data, scale, form, zero, order)

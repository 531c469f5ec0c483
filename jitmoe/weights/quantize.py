# SPDX-License-Identifier: MIT
"""Makes quantized expert weights from bf16, fp16 or fp32 ones, with torch, one expert at a time.

Rounding, the same in every format: one step (scale) per block is absmax / largest code, rounded to the scale's dtype;
each weight becomes the code nearest to weight / step, ties to the even code. So a weight is off by at most half the
distance to the next code, times the step. E8M0 steps are powers of two and are rounded up, so that nothing is clipped.
"""

from __future__ import annotations

from typing import Any

from jitmoe.errors import ArgumentError
from jitmoe.options import check_flag, check_member, check_whole
from jitmoe.problems.formats import SCALE_DTYPES, WHOLE, Encoding, WeightFormat
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, DType, check_dtype_name
from jitmoe.reference import E2M1_VALUES
from jitmoe.tensors import is_torch, torch_dtypes
from jitmoe.weights.quantized import QuantizedTensor


def quantize_weights(weights: Any, form: WeightFormat) -> QuantizedTensor:
    """Returns torch weights [E, N, K] in the format ``form``.

    Raises:
        ArgumentError: weights are not finite floats [E, N, K], or K is odd and codes have 4 bits, or ``form`` is none
            or has a k-order.
    """
    import torch

    if not isinstance(form, WeightFormat):
        raise ArgumentError(argument="form", got=repr(form), expected="a jitmoe.WeightFormat")

    dtypes = torch_dtypes()
    if not is_torch(weights) or weights.ndim != 3 or weights.dtype not in [dtypes[dtype] for dtype in COMPUTE_DTYPES]:
        got = f"{weights.dtype} {list(weights.shape)}" if is_torch(weights) else type(weights).__name__
        raise ArgumentError(argument="weights", got=got, expected="a bf16, fp16 or fp32 torch tensor [E, N, K]")
    if form.has_k_order:
        raise ArgumentError(argument="form", got=str(form), expected="a format without k-order: it comes from GPTQ")
    weights = weights.detach()
    experts, n, k = weights.shape
    if weights.numel() == 0:
        raise ArgumentError(argument="weights", got=f"shape {list(weights.shape)}", expected="[E, N, K] with elements")
    if form.bits == 4 and k % 2:
        raise ArgumentError(argument="weights", got=f"K = {k}", expected="an even K: two 4-bit codes share a byte")
    blocks = form.blocks(n, k)
    e8m0 = form.scale_dtype is DType.E8M0
    scale_dtype = torch.uint8 if e8m0 else dtypes[form.scale_dtype]
    code_dtype = {Encoding.INT8: torch.int8, Encoding.E4M3: torch.float8_e4m3fn, Encoding.E5M2: torch.float8_e5m2}
    data = torch.empty(
        (experts, n, form.row_bytes(k)), dtype=code_dtype.get(form.encoding, torch.uint8), device=weights.device
    )
    scale = torch.empty((experts, *blocks), dtype=scale_dtype, device=weights.device)
    zero = torch.empty((experts, *blocks), dtype=torch.uint8, device=weights.device) if form.has_zero_point else None
    for expert in range(experts):
        matrix = weights[expert].float()
        if not bool(matrix.isfinite().all()):
            raise ArgumentError(
                argument="weights", got=f"NaN or infinity in expert {expert}", expected="finite numbers"
            )
        blocked = _blocked(matrix, form)  # [blocks_n, block_n, blocks_k, block_k]
        if zero is None:
            step = blocked.abs().amax((1, 3)) / form.encoding.largest
        else:
            low, high = blocked.amin((1, 3)).clamp(max=0), blocked.amax((1, 3)).clamp(min=0)
            step = (high - low) / 15
        step = torch.where(step == 0, torch.ones_like(step), step)
        if e8m0:
            exponents = step.log2().ceil().clamp(-127, 127)
            exponents = exponents + (torch.exp2(exponents) < step)  # log2 is not exact
            scale[expert] = (exponents + 127).to(torch.uint8)
            step = torch.exp2(exponents.double()).float()
        else:
            tiny = torch.finfo(scale_dtype).smallest_normal
            scale[expert] = step.clamp(min=tiny).to(scale_dtype)
            step = scale[expert].float()
        quotient = blocked / step[:, None, :, None]
        if zero is not None:
            zero[expert] = (-low / step).round().clamp(0, 15).to(torch.uint8)
            quotient = quotient.round() + zero[expert].float()[:, None, :, None]
        flat = quotient.reshape(quotient.shape[0] * quotient.shape[1], -1)[:n, :k]
        data[expert] = _codes(flat, form, has_zero=zero is not None)
    return QuantizedTensor(data, scale, form, zero)


def _blocked(matrix: Any, form: WeightFormat) -> Any:
    """Returns [blocks_n, block_n, blocks_k, block_k] of an [N, K] matrix, padded with zeros."""
    import torch

    n, k = matrix.shape
    block_n, block_k = form.block_n or n, form.block_k or k
    padded = torch.nn.functional.pad(matrix, (0, -k % block_k, 0, -n % block_n))
    return padded.reshape(padded.shape[0] // block_n, block_n, padded.shape[1] // block_k, block_k)


def _codes(quotient: Any, form: WeightFormat, *, has_zero: bool) -> Any:
    """Returns the stored bytes of quotients weight / step, [N, K]."""
    import torch

    encoding, largest = form.encoding, form.encoding.largest
    if encoding in (Encoding.E4M3, Encoding.E5M2):
        return quotient.clamp(-largest, largest).to(
            torch.float8_e4m3fn if encoding is Encoding.E4M3 else torch.float8_e5m2
        )
    if encoding is Encoding.INT8:
        return quotient.round().clamp(-largest, largest).to(torch.int8)
    if encoding is Encoding.E2M1:
        values = torch.tensor(E2M1_VALUES, device=quotient.device)
        middles = (values[1:] + values[:-1]) / 2
        magnitude = quotient.abs().contiguous()
        down, up = torch.bucketize(magnitude, middles), torch.bucketize(magnitude, middles, right=True)
        codes = torch.where(down % 2 == 0, down, up) + 8 * (quotient < 0)  # in the middle: down and up differ by one
    elif has_zero:
        codes = quotient.clamp(0, 15)
    else:
        codes = quotient.round().clamp(-largest, largest) + (8 if encoding is Encoding.UINT4 else 0)
    codes = codes.to(torch.int64) & 15
    return (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)


def quantize_int8(weights: Any) -> QuantizedTensor:
    """Returns INT8 weights with one float32 scale per row (output channel)."""
    return quantize_weights(
        weights, WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=1, block_k=WHOLE)
    )


def _fp8(encoding: object) -> Encoding:
    known = check_member("encoding", encoding, Encoding)
    if known not in (Encoding.E4M3, Encoding.E5M2):
        raise ArgumentError(argument="encoding", got=repr(encoding), expected="e4m3 or e5m2")
    return known


def quantize_fp8(
    weights: Any, *, encoding: str | Encoding = Encoding.E4M3, scale: str | tuple[int, int] = "channel"
) -> QuantizedTensor:
    """Returns FP8 weights with float32 scales.

    Args:
        weights: [E, N, K].
        encoding: "e4m3" or "e5m2".
        scale: "tensor" (one for all experts), "expert", "channel" (one per row) or (block_n, block_k) like (128, 128).
    """
    encoding = _fp8(encoding)
    known = {"tensor": (WHOLE, WHOLE), "expert": (WHOLE, WHOLE), "channel": (1, WHOLE)}
    block = known.get(scale) if isinstance(scale, str) else scale
    if not isinstance(block, tuple) or len(block) != 2:
        raise ArgumentError(argument="scale", got=repr(scale), expected="tensor, expert, channel or (block_n, block_k)")
    form = WeightFormat(encoding=encoding, scale_dtype=DType.FP32, block_n=block[0], block_k=block[1])
    if scale != "tensor":
        return quantize_weights(weights, form)
    flat = weights.reshape(1, -1, weights.shape[-1]) if is_torch(weights) and weights.ndim == 3 else weights
    whole = quantize_weights(flat, form)
    return QuantizedTensor(whole.data.reshape(weights.shape), whole.scale, form)


def quantize_int4(
    weights: Any, *, group_size: int = 128, zero_point: bool = False, scale_dtype: Any = DType.BF16
) -> QuantizedTensor:
    """Returns 4-bit integer weights with a scale (with ``zero_point`` an offset) per row and ``group_size`` of K.

    ``scale_dtype``: "bf16", "fp16", "fp32", "e8m0" or a torch dtype of these.
    """
    if check_whole("group_size", group_size, 2) % 2:
        raise ArgumentError(argument="group_size", got=repr(group_size), expected="an even number, such as 128")
    form = WeightFormat(
        encoding=Encoding.UINT4 if check_flag("zero_point", zero_point) else Encoding.INT4,
        scale_dtype=check_dtype_name("scale_dtype", scale_dtype, SCALE_DTYPES),
        block_n=1,
        block_k=group_size,
        has_zero_point=zero_point,
    )
    return quantize_weights(weights, form)


MX_BLOCK = 32  # elements of K that share a scale (OCP Microscaling Formats v1.0, section 5.2)


def quantize_mxfp4(weights: Any) -> QuantizedTensor:
    """Returns MXFP4 weights: E2M1 codes, an E8M0 scale per 32 of K (OCP Microscaling Formats v1.0)."""
    return quantize_weights(
        weights, WeightFormat(encoding=Encoding.E2M1, scale_dtype=DType.E8M0, block_n=1, block_k=MX_BLOCK)
    )


def quantize_mxfp8(weights: Any, *, encoding: str | Encoding = Encoding.E4M3) -> QuantizedTensor:
    """Returns MXFP8 weights: FP8 codes, an E8M0 scale per 32 of K (OCP Microscaling Formats v1.0)."""
    return quantize_weights(
        weights, WeightFormat(encoding=_fp8(encoding), scale_dtype=DType.E8M0, block_n=1, block_k=MX_BLOCK)
    )

# SPDX-License-Identifier: MIT
"""What a checkpoint's ``quantization_config`` says of its experts: weight formats as the loaders give them.

Formats that no loader of ``jitmoe.weights.checkpoints`` reads stay words, which become an obstacle of the model.
FP8 weights are taken with plain inputs (W8A16), which is no less exact and reads the same bytes; INT8 weights whose
inputs the checkpoint quantizes too are taken as W8A8, for which integer dot products exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jitmoe.problems.formats import WHOLE, Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFormats:
    """How both matrices are stored, and whether inputs are quantized."""

    w1: WeightFormat | None = None  # None: plain numbers
    w2: WeightFormat | None = None
    input_quant: InputQuant | None = None
    unknown: str = ""  # a format in words that cannot be used as it is


PLAIN = ExpertFormats()


def _both(form: WeightFormat, input_quant: InputQuant | None = None) -> ExpertFormats:
    return ExpertFormats(w1=form, w2=form, input_quant=input_quant)


def _form(encoding: Encoding, scale_dtype: DType, block_n: int, block_k: int, **more: bool) -> WeightFormat:
    return WeightFormat(encoding=encoding, scale_dtype=scale_dtype, block_n=block_n, block_k=block_k, **more)


_MXFP4 = _form(Encoding.E2M1, DType.E8M0, 1, 32)
_MXFP8 = _form(Encoding.E4M3, DType.E8M0, 1, 32)
_FP8_BLOCKS = _form(Encoding.E4M3, DType.FP32, 128, 128)
_FP8_CHANNELS = _form(Encoding.E4M3, DType.FP32, 1, WHOLE)

# Names for the command line: what jitmoe.quantize_* and jitmoe.load_* give.
NAMED: dict[str, ExpertFormats] = {
    "none": PLAIN,
    "fp8-block": _both(_FP8_BLOCKS),
    "fp8-block-w8a8": _both(_FP8_BLOCKS, InputQuant.E4M3),
    "fp8-channel": _both(_FP8_CHANNELS),
    "fp8-channel-w8a8": _both(_FP8_CHANNELS, InputQuant.E4M3),
    "fp8-tensor": _both(_form(Encoding.E4M3, DType.FP32, WHOLE, WHOLE)),
    "int8": _both(_form(Encoding.INT8, DType.FP32, 1, WHOLE)),
    "int8-w8a8": _both(_form(Encoding.INT8, DType.FP32, 1, WHOLE), InputQuant.INT8),
    "int4": _both(_form(Encoding.INT4, DType.BF16, 1, 128)),
    "int4-64": _both(_form(Encoding.INT4, DType.BF16, 1, 64)),
    "int4-32": _both(_form(Encoding.INT4, DType.BF16, 1, 32)),
    "int4-zero-point": _both(_form(Encoding.UINT4, DType.BF16, 1, 128, has_zero_point=True)),
    "mxfp4": _both(_MXFP4),
    "mxfp8": _both(_MXFP8),
}


def formats_of(*parts: Mapping[str, Any], dtype: DType, w1_k: int, w2_k: int) -> ExpertFormats:
    """Returns the formats that the first ``quantization_config`` in ``parts`` stands for.

    Args:
        parts: the config and what it is nested in.
        dtype: of the model, which compressed-tensors stores scales in.
        w1_k, w2_k: K of both matrices.
    """
    for part in parts:
        if part.get("expert_dtype") == "fp4":  # DeepSeek-V4; its quantization_config describes the other layers
            return _both(_MXFP4)
    for part in parts:
        for key in ("quantization_config", "compression_config", "quantization"):
            found = part.get(key)
            if isinstance(found, Mapping) and found:
                return _formats(found, dtype, w1_k, w2_k)
            if found:
                return ExpertFormats(unknown=f"{key} = {found!r}")
    return PLAIN


def _formats(config: Mapping[str, Any], dtype: DType, w1_k: int, w2_k: int) -> ExpertFormats:
    skipped = config.get("modules_to_not_convert") or config.get("ignore") or ()
    if any("experts" in str(name).replace("shared_experts", "") for name in skipped):
        return PLAIN
    method = str(config.get("quant_method") or "")
    known: ExpertFormats | None = None
    if method == "mxfp4":
        known = _both(_MXFP4)
    elif method == "fp8":
        known = _fp8(config.get("weight_block_size"))
    elif method in ("gptq", "awq"):
        known = _gptq(config, w1_k, w2_k) if method == "gptq" else _awq(config, w1_k, w2_k)
    elif method == "compressed-tensors":
        known = _compressed(config, dtype, w1_k, w2_k)
    return known or ExpertFormats(unknown=_words(config))


def _fp8(block: Any) -> ExpertFormats | None:
    """Fine-grained FP8 as DeepSeek publishes it: scales named weight_scale_inv, which are multipliers."""
    if block is None:
        return _both(_form(Encoding.E4M3, DType.FP32, WHOLE, WHOLE))
    if not (isinstance(block, (list, tuple)) and len(block) == 2 and all(isinstance(b, int) and b > 0 for b in block)):
        return None
    return _both(_form(Encoding.E4M3, DType.FP32, block[0], block[1]))


def _gptq(config: Mapping[str, Any], w1_k: int, w2_k: int) -> ExpertFormats | None:
    """As ``load_gptq`` gives them (symmetric: without qzeros)."""
    return _words_of_integers(
        config.get("bits", 4), DType.FP16, config.get("group_size", 128), (w1_k, w2_k),
        has_zero_point=not config.get("sym", True), has_k_order=bool(config.get("desc_act")),
    )  # fmt: skip


def _awq(config: Mapping[str, Any], w1_k: int, w2_k: int) -> ExpertFormats | None:
    """As ``load_awq`` gives them."""
    if config.get("bits", 4) != 4 or str(config.get("version", "gemm")).lower() != "gemm":
        return None
    return _words_of_integers(
        4, DType.FP16, config.get("group_size", 128), (w1_k, w2_k),
        has_zero_point=bool(config.get("zero_point", True)), has_k_order=False,
    )  # fmt: skip


def _words_of_integers(
    bits: Any, scale_dtype: DType, group: Any, sizes: tuple[int, int], *, has_zero_point: bool, has_k_order: bool
) -> ExpertFormats | None:
    """Integers of 4 or 8 bits with a scale per ``group`` elements of K, -1 for all; ``sizes``: K of both matrices."""
    if bits not in (4, 8) or (bits == 8 and has_zero_point) or not isinstance(group, int) or group == 0:
        return None

    def form(k: int, has_order: bool) -> WeightFormat:
        block = group if 0 < group < k else WHOLE
        return _form(
            Encoding.UINT4 if bits == 4 else Encoding.INT8, scale_dtype, 1, block,
            has_zero_point=has_zero_point, has_k_order=has_order and block != WHOLE,
        )  # fmt: skip

    # An order of w2 goes into w1's rows (jitmoe.fold_k_order).
    return ExpertFormats(w1=form(sizes[0], has_k_order), w2=form(sizes[1], False))


def _compressed(config: Mapping[str, Any], dtype: DType, w1_k: int, w2_k: int) -> ExpertFormats | None:
    """One scheme for all layers, as ``load_compressed_tensors`` and the loaders that it names give it."""
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return None
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    kind, bits, inputs = weights.get("type", "int"), weights.get("num_bits"), group.get("input_activations")
    stored = str(group.get("format") or config.get("format") or "")
    if kind == "float" and stored.startswith("mxfp"):
        return _both(_MXFP4 if bits == 4 else _MXFP8)
    if kind == "int" and (bits == 4 or stored == "pack-quantized"):
        if isinstance(inputs, Mapping):
            return None
        return _words_of_integers(
            bits, dtype, {"channel": -1, "group": weights.get("group_size")}.get(str(weights.get("strategy"))),
            (w1_k, w2_k), has_zero_point=not weights.get("symmetric", True),
            has_k_order=weights.get("actorder") in (True, "group", "dynamic"),
        )  # fmt: skip
    encoding = {"int": Encoding.INT8, "float": Encoding.E4M3}.get(str(kind))
    block = _compressed_block(weights)
    if bits != 8 or not weights.get("symmetric", True) or encoding is None or block is None:
        return None
    dynamic = isinstance(inputs, Mapping) and inputs.get("num_bits") == 8 and bool(inputs.get("dynamic", True))
    if isinstance(inputs, Mapping) and encoding is Encoding.INT8 and not dynamic:
        return None
    quantizes = encoding is Encoding.INT8 and dynamic
    return _both(_form(encoding, dtype, *block), InputQuant.INT8 if quantizes else None)


def _compressed_block(weights: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns (block_n, block_k) of weights that are stored as they are."""
    strategy, structure = weights.get("strategy"), weights.get("block_structure")
    if strategy == "block" and isinstance(structure, (list, tuple)) and len(structure) == 2:
        rows, columns = structure
        return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
    return {"channel": (1, WHOLE), "tensor": (WHOLE, WHOLE)}.get(str(strategy))


def _words(config: Mapping[str, Any]) -> str:
    words = [str(config.get("quant_method") or config.get("quant_algo") or config.get("format") or "unknown")]
    if config.get("format") and config["format"] not in words:
        words.append(str(config["format"]))
    if config.get("bits"):
        words.append(f"{config['bits']} bits")
    if config.get("weight_block_size"):
        blocks = config["weight_block_size"]
        words.append("blocks of " + ("x".join(map(str, blocks)) if isinstance(blocks, (list, tuple)) else str(blocks)))
    if config.get("group_size"):
        words.append(f"groups of {config['group_size']}")
    return " ".join(words)

# SPDX-License-Identifier: MIT
"""MoE layers by model: a built-in table, and a reader of Hugging Face ``config.json`` files. No torch, no network.

A ``MoEModel`` says what the experts of a model ask of ``fused_moe``: sizes, dtype, activation, layouts, weight formats.
What cannot be asked for is part of the value (``obstacles``), so that nobody warms up something else by mistake.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jitmoe.errors import JitMoEError, UnsupportedProblemError
from jitmoe.model_formats import NAMED, ExpertFormats, formats_of
from jitmoe.problems.formats import WeightFormat
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, Activation, DType, GateUp, Layout, MoEProblem

CONFIG_NAME = "config.json"


class ModelError(JitMoEError):
    """A model name, shape or config.json that cannot be read; ``advice`` says what to do."""

    def __init__(self, *, model: str, reason: str, advice: str = "") -> None:
        super().__init__(model=model, reason=reason, advice=advice)

    model: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.model}: {self.reason}" + (f"\n{self.advice}" if self.advice else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEModel:
    """The experts of one model, as ``fused_moe`` sees them."""

    name: str
    hidden_size: int  # H
    intermediate_size: int  # I, of one routed expert
    num_experts: int  # E, routed experts
    top_k: int  # k
    dtype: DType = DType.BF16  # of hidden states, plain weights and biases
    activation: str = "silu"  # an Activation's value, or the name of one that jitmoe does not have
    swiglu_alpha: float = 1.702
    swiglu_limit: float | None = None
    w1_layout: Layout = Layout.NK  # how the model's code holds plain weights after loading
    w2_layout: Layout = Layout.NK
    gate_up: GateUp = GateUp.CONCATENATED
    has_bias: bool = False  # per-expert biases of both matrices
    router_weight_on_input: bool = False
    formats: ExpertFormats = ExpertFormats()  # of quantized weights, which are [E, N, K] whatever the layouts say
    num_shared_experts: int = 0  # run by the model outside of fused_moe
    num_global_experts: int | None = None  # experts on all ranks, where these are one rank's part (expert parallel)
    routing: str = ""  # in words
    note: str = ""  # what a user of the layer has to know

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why ``fused_moe`` cannot be asked for this layer; empty if it can. Devices may lack kernels all the same."""
        reasons = []
        known = [activation.value for activation in Activation]
        if self.activation not in known:
            reasons.append(f"activation {self.activation}: jitmoe has {', '.join(known)}")
        if self.formats.unknown:
            reasons.append(f"weights quantized as {self.formats.unknown}: no loader reads this format")
        if self.dtype not in COMPUTE_DTYPES:
            reasons.append(f"dtype {self.dtype.value}: jitmoe has kernels for bf16, fp16, fp32")
        return tuple(reasons)

    @property
    def stored_layouts(self) -> tuple[Layout, Layout]:
        """Layouts of w1 and w2 as they lie in memory."""
        return (
            self.w1_layout if self.formats.w1 is None else Layout.NK,
            self.w2_layout if self.formats.w2 is None else Layout.NK,
        )

    def check(self) -> None:
        """Raises ``UnsupportedProblemError`` if there are obstacles."""
        if self.obstacles:
            raise UnsupportedProblemError(problem=self.name, reasons=self.obstacles)

    def sharded(self, *, tensor_parallel: int = 1, expert_parallel: int = 1) -> MoEModel:
        """Returns one rank's part: I / tensor_parallel of every expert, or E / expert_parallel experts behind a map."""
        for what, letter, size, parts in (
            ("tensor parallel", "I", self.intermediate_size, tensor_parallel),
            ("expert parallel", "E", self.num_experts, expert_parallel),
        ):
            if parts < 1 or size % parts:
                raise ModelError(model=self.name, reason=f"{letter} = {size} cannot be split {what} into {parts} parts")
        return dataclasses.replace(
            self,
            intermediate_size=self.intermediate_size // tensor_parallel,
            num_experts=self.num_experts // expert_parallel,
            num_global_experts=self.num_experts if expert_parallel > 1 else self.num_global_experts,
        )

    def problem(
        self, num_tokens: int, *, topk_ids_dtype: DType, topk_weights_dtype: DType, base_alignment: int
    ) -> MoEProblem:
        """Returns the call with ``num_tokens`` tokens and densely packed tensors.

        Args:
            num_tokens: M.
            topk_ids_dtype, topk_weights_dtype: what the model's router gives.
            base_alignment: bytes that every tensor's address is a multiple of (1 on CPUs, which do not look at it).
        """
        self.check()
        h, i = self.hidden_size, self.intermediate_size
        rows = self.gate_up.rows(i)
        (w1_layout, w2_layout), formats = self.stored_layouts, self.formats

        def stride(n: int, k: int, layout: Layout, form: WeightFormat | None) -> int:
            if form is not None:
                return form.row_bytes(k)
            return k if layout is Layout.NK else n

        w1_stride, w2_stride = stride(rows, h, w1_layout, formats.w1), stride(h, i, w2_layout, formats.w2)
        bias_dtype = self.dtype if self.has_bias else None
        return MoEProblem(
            num_tokens=num_tokens,
            hidden_size=h,
            intermediate_size=i,
            num_experts=self.num_experts,
            top_k=self.top_k,
            dtype=self.dtype,
            activation=Activation(self.activation),
            topk_ids_dtype=topk_ids_dtype,
            topk_weights_dtype=topk_weights_dtype,
            w1_layout=w1_layout,
            w2_layout=w2_layout,
            num_global_experts=self.num_global_experts,
            x_row_stride=h,
            out_row_stride=h,
            w1_expert_stride=w1_stride * (rows if w1_layout is Layout.NK else h),
            w1_stride=w1_stride,
            w2_expert_stride=w2_stride * (h if w2_layout is Layout.NK else i),
            w2_stride=w2_stride,
            topk_ids_row_stride=self.top_k,
            topk_weights_row_stride=self.top_k,
            base_alignment=base_alignment,
            gate_up=self.gate_up,
            swiglu_alpha=self.swiglu_alpha,
            swiglu_limit=self.swiglu_limit,
            w1_bias_dtype=bias_dtype,
            w2_bias_dtype=bias_dtype,
            router_weight_on_input=self.router_weight_on_input,
            w1_quant=None if formats.w1 is None else formats.w1.dense(rows, h),
            w2_quant=None if formats.w2 is None else formats.w2.dense(h, i),
            input_quant=formats.input_quant,
            input_block_k=0 if formats.input_quant is None or formats.w1 is None else formats.w1.block_k,
        )

    def __str__(self) -> str:
        return (
            f"H={self.hidden_size} I={self.intermediate_size} E={self.num_experts} k={self.top_k} "
            f"{self.dtype.value} {self.activation}"
        )

    @property
    def features(self) -> str:
        """What is special about the experts, in words."""
        forms = tuple(dict.fromkeys(str(form) for form in (self.formats.w1, self.formats.w2) if form is not None))
        words = [
            *([f"limit {self.swiglu_limit:g}"] if self.swiglu_limit is not None else []),
            *([self.gate_up.value] if self.gate_up is not GateUp.CONCATENATED else []),
            *(["biases"] if self.has_bias else []),
            *(["weight on input"] if self.router_weight_on_input else []),
            *forms,
            *([f"inputs {self.formats.input_quant.value}"] if self.formats.input_quant is not None else []),
        ]
        return ", ".join(words)


# The built-in table. Sizes are those of the published config.json files; the layouts those of transformers 5.

_SOFTMAX = "softmax, then top-k"
_SIGMOID = "sigmoid with correction bias, then top-k"
_FP8 = "the published checkpoint is FP8 in 128x128 blocks: --format fp8-block; without, weights converted to bf16"


def _row(name: str, h: int, i: int, e: int, k: int, **more: Any) -> MoEModel:
    return MoEModel(name=name, hidden_size=h, intermediate_size=i, num_experts=e, top_k=k, **more)


def _gpt_oss(name: str, num_experts: int) -> MoEModel:
    return _row(
        name, 2880, 2880, num_experts, 4, activation="swiglu_oai", swiglu_limit=7.0, w1_layout=Layout.KN,
        w2_layout=Layout.KN, gate_up=GateUp.INTERLEAVED, has_bias=True, formats=NAMED["mxfp4"],
        routing="top-k, then softmax",
    )  # fmt: skip


def _llama4(name: str, num_experts: int) -> MoEModel:
    return _row(
        name, 5120, 8192, num_experts, 1, w1_layout=Layout.KN, w2_layout=Layout.KN, num_shared_experts=1,
        routing="top-1, then sigmoid", router_weight_on_input=True,
    )  # fmt: skip


MODELS: dict[str, MoEModel] = {
    model.name: model
    for model in (
        _row("mixtral-8x7b", 4096, 14336, 8, 2, routing=_SOFTMAX),
        _row("mixtral-8x22b", 6144, 16384, 8, 2, routing=_SOFTMAX),
        _row("qwen1.5-moe-a2.7b", 2048, 1408, 60, 4, num_shared_experts=1, routing=_SOFTMAX),
        _row("qwen2-57b-a14b", 3584, 2560, 64, 8, num_shared_experts=1, routing=_SOFTMAX),
        _row("qwen3-30b-a3b", 2048, 768, 128, 8, routing=_SOFTMAX),
        _row("qwen3-235b-a22b", 4096, 1536, 128, 8, routing=_SOFTMAX),
        _row("qwen3-coder-480b-a35b", 6144, 2560, 160, 8, routing=_SOFTMAX),
        _row("qwen3-next-80b-a3b", 2048, 512, 512, 10, num_shared_experts=1, routing=_SOFTMAX),
        _row("qwen3.5-35b-a3b", 2048, 512, 256, 8, num_shared_experts=1, routing=_SOFTMAX),
        _row("deepseek-moe-16b", 2048, 1408, 64, 6, num_shared_experts=2, routing=_SOFTMAX),
        _row("deepseek-v2-lite", 2048, 1408, 64, 6, num_shared_experts=2, routing=_SOFTMAX),
        _row("deepseek-v2", 5120, 1536, 160, 6, num_shared_experts=2, routing="softmax, grouped top-k"),
        _row("deepseek-v3", 7168, 2048, 256, 8, num_shared_experts=1, routing=_SIGMOID + " in groups", note=_FP8),
        _row("kimi-k2", 7168, 2048, 384, 8, num_shared_experts=1, routing=_SIGMOID, note=_FP8),
        _row("moonlight-16b-a3b", 2048, 1408, 64, 6, num_shared_experts=2, routing=_SIGMOID),
        _row("glm-4.5", 5120, 1536, 160, 8, num_shared_experts=1, routing=_SIGMOID),
        _row("glm-4.5-air", 4096, 1408, 128, 8, num_shared_experts=1, routing=_SIGMOID),
        _row("olmoe-1b-7b", 2048, 1024, 64, 8, routing=_SOFTMAX),
        _row("phi-3.5-moe", 4096, 6400, 16, 2, routing="sparsemixer"),
        _row("granite-3.0-1b-a400m", 1024, 512, 32, 8, routing="top-k, then softmax"),
        _row("granite-3.0-3b-a800m", 1536, 512, 40, 8, routing="top-k, then softmax"),
        _row("minimax-m2", 3072, 1536, 256, 8, routing=_SIGMOID, note=_FP8),
        _row("ernie-4.5-21b-a3b", 2560, 1536, 64, 6, num_shared_experts=2, routing=_SOFTMAX),
        _row("ernie-4.5-300b-a47b", 8192, 3584, 64, 8, routing=_SOFTMAX),
        _row("lfm2-8b-a1b", 2048, 1792, 32, 4, routing=_SIGMOID),
        _row("jamba-1.5-mini", 4096, 14336, 16, 2, routing=_SOFTMAX),
        _row("jamba-1.5-large", 8192, 24576, 16, 2, routing=_SOFTMAX),
        _row("dbrx", 6144, 10752, 16, 4, gate_up=GateUp.SEPARATE, w2_layout=Layout.KN, routing=_SOFTMAX),
        _llama4("llama-4-scout", 16),
        _llama4("llama-4-maverick", 128),
        _gpt_oss("gpt-oss-20b", 32),
        _gpt_oss("gpt-oss-120b", 128),
    )
}

_ALIASES = {
    "deepseek-coder-v2": "deepseek-v2",
    "deepseek-coder-v2-lite": "deepseek-v2-lite",
    "deepseek-r1": "deepseek-v3",
    "deepseek-v2.5": "deepseek-v2",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-v3.2": "deepseek-v3",
    "ernie-4.5-21b-a3b-pt": "ernie-4.5-21b-a3b",
    "ernie-4.5-300b-a47b-pt": "ernie-4.5-300b-a47b",
    "gpt-oss": "gpt-oss-20b",
    "granite-3.1-1b-a400m": "granite-3.0-1b-a400m",
    "granite-3.1-3b-a800m": "granite-3.0-3b-a800m",
    "jamba": "jamba-1.5-mini",
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "mixtral": "mixtral-8x7b",
    "olmoe": "olmoe-1b-7b",
    "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
    "qwen3-coder-next": "qwen3-next-80b-a3b",
    "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
}
# Words at the end of a published name that do not change the experts.
_VARIANT = re.compile(r"-(instruct|chat|base|thinking|it|hf|preview|original|speciale|v0\.\d|\d{4})$")
_QUANTIZED = re.compile(
    r"-(fp8|fp8-dynamic|fp4|nvfp4|mxfp4|mxfp8|awq|gptq|int4|int8|4bit|8bit|w4a16|w8a8|w8a16|gguf)(-|$)"
)
_SHAPE = re.compile(r"^(?:[HIEk]=?\d+(?:[, _x-]|$)){4}$")
_SHAPE_PART = re.compile(r"([HIEk])=?(\d+)")


def _plain(name: str) -> str:
    """Returns a published name without owner and variant, in the table's spelling."""
    plain = name.strip().rstrip("/").rpartition("/")[2].lower().replace("_", "-").replace(" ", "-")
    while True:
        shorter = _VARIANT.sub("", plain)
        if shorter == plain:
            return plain
        plain = shorter


def find_model(what: str) -> MoEModel:
    """Returns the model that ``what`` means.

    Args:
        what: a ``config.json``, a folder that holds one, a name of the built-in table (any published spelling:
            "Qwen/Qwen3-30B-A3B-Instruct-2507"), "owner/name" of a model in the local Hugging Face cache, or sizes
            ("H2048,I768,E128,k8").

    Raises:
        ModelError: it means nothing known, or the config.json cannot be read.
    """
    path = Path(what).expanduser()
    if path.is_file():
        return read_config(path)
    if (path / CONFIG_NAME).is_file():
        return read_config(path / CONFIG_NAME)
    if _SHAPE.match(what):
        sizes = {letter: int(number) for letter, number in _SHAPE_PART.findall(what)}
        if len(sizes) == 4 and all(sizes.values()):
            return _checked(_row(what, sizes["H"], sizes["I"], sizes["E"], sizes["k"]))
    plain = _plain(what)
    model = MODELS.get(_ALIASES.get(plain, plain))
    if model is not None:
        return model
    downloaded = _downloaded_config(what)
    if downloaded is not None:
        return read_config(downloaded)
    if path.is_dir():
        raise ModelError(model=what, reason=f"this folder holds no {CONFIG_NAME}")
    if path.suffix == ".json" or what.startswith((".", "~")) or path.is_absolute():
        raise ModelError(model=what, reason="no such file or folder")
    quantized = _QUANTIZED.search(plain)
    base = plain[: quantized.start()] if quantized else plain
    if quantized and _ALIASES.get(_plain(base), _plain(base)) in MODELS:
        raise ModelError(
            model=what,
            reason=f"names a quantized checkpoint ({quantized.group(1)}), whose format only its config.json says",
            advice=f"Give that, or {_plain(base)} with --format (one of {', '.join(NAMED)})",
        )
    near = difflib.get_close_matches(plain, [*MODELS, *_ALIASES], n=3, cutoff=0.55)
    near = list(dict.fromkeys(_ALIASES.get(name, name) for name in near))
    advice = f"Did you mean {' or '.join(near)}?\n" if near else ""
    raise ModelError(
        model=what,
        reason="no such model in the table, and no such file",
        advice=advice + "jitmoe-warmup --list-models shows the table; a config.json or sizes (H2048,I768,E128,k8) "
        "work for every other model",
    )


def _downloaded_config(what: str) -> Path | None:
    """Returns the newest config.json of "owner/name" in the local Hugging Face cache; nothing is downloaded."""
    owner, slash, name = what.partition("/")
    if not (owner and slash and name) or "/" in name or owner.startswith((".", "~")):
        return None
    hub = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME') or '~/.cache/huggingface'}/hub"
    try:
        folder = Path(hub).expanduser() / f"models--{owner}--{name}" / "snapshots"
        found = [path for path in folder.glob(f"*/{CONFIG_NAME}") if path.is_file()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    except (OSError, RuntimeError):  # no such place, or no home
        return None


# config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Where the configs of one model_type keep their sizes, and what the type implies. Keys: first one present wins."""

    intermediate: tuple[str, ...] = ("moe_intermediate_size",)
    experts: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    hidden: tuple[str, ...] = ("hidden_size",)
    activation: tuple[str, ...] = ("hidden_act",)
    section: str = ""  # sub-dictionary that holds everything but ``hidden``
    shared: tuple[str, ...] = ()  # number of shared experts
    shared_size: tuple[str, ...] = ()  # or the width of the only one
    always_activation: str = ""  # whatever hidden_act says
    limit: float | None = None  # where the config does not say swiglu_limit
    w1_layout: Layout = Layout.NK
    w2_layout: Layout = Layout.NK
    gate_up: GateUp = GateUp.CONCATENATED
    has_bias: bool = False
    router_weight_on_input: bool = False
    routing: str = _SOFTMAX
    note: str = ""


_QWEN = _Family(shared_size=("shared_expert_intermediate_size",))
_DEEPSEEK = _Family(experts=("n_routed_experts", "num_experts", "num_local_experts"), shared=("n_shared_experts",))
_DEEPSEEK_V3 = dataclasses.replace(_DEEPSEEK, routing=_SIGMOID + " in groups")
_LOCAL = _Family(intermediate=("intermediate_size",), experts=("num_local_experts", "num_experts"))
_GRANITE = dataclasses.replace(_LOCAL, routing="top-k, then softmax", shared_size=("shared_intermediate_size",))
_LLAMA4_FAMILY = dataclasses.replace(
    _LOCAL, w1_layout=Layout.KN, w2_layout=Layout.KN, routing="top-1, then sigmoid", router_weight_on_input=True
)

_FAMILIES: dict[str, _Family] = {
    "mixtral": _LOCAL,
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_vl_moe_text": _QWEN,
    "deepseek": _DEEPSEEK,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm_moe_dsa": _DEEPSEEK_V3,
    "deepseek_v4": dataclasses.replace(_DEEPSEEK_V3, routing="sqrt-softplus, or a table by token"),
    "llama4": _LLAMA4_FAMILY,
    "llama4_text": _LLAMA4_FAMILY,
    "gpt_oss": dataclasses.replace(
        _LOCAL,
        top_k=("num_experts_per_tok", "experts_per_token"),
        always_activation="swiglu_oai",
        limit=7.0,
        w1_layout=Layout.KN,
        w2_layout=Layout.KN,
        gate_up=GateUp.INTERLEAVED,
        has_bias=True,
        routing="top-k, then softmax",
    ),
    "glm4_moe": dataclasses.replace(_DEEPSEEK_V3, routing=_SIGMOID),
    "glm4v_moe": dataclasses.replace(_DEEPSEEK_V3, routing=_SIGMOID),
    "glm4v_moe_text": dataclasses.replace(_DEEPSEEK_V3, routing=_SIGMOID),
    "dots1": dataclasses.replace(_DEEPSEEK_V3, routing=_SIGMOID),
    "olmoe": dataclasses.replace(_LOCAL, experts=("num_experts", "num_local_experts")),
    "phimoe": dataclasses.replace(_LOCAL, routing="sparsemixer"),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "minimax": _LOCAL,
    "minimax_m2": dataclasses.replace(_LOCAL, routing=_SIGMOID),
    "ernie4_5_moe": _Family(
        experts=("moe_num_experts", "num_experts", "num_local_experts"),
        top_k=("moe_k", "num_experts_per_tok"),
        shared=("moe_num_shared_experts",),
    ),
    "lfm2_moe": dataclasses.replace(_QWEN, shared_size=(), routing=_SIGMOID),
    "jamba": dataclasses.replace(_LOCAL, experts=("num_experts", "num_local_experts")),
    "dbrx": _Family(
        hidden=("d_model", "hidden_size"),
        section="ffn_config",
        intermediate=("ffn_hidden_size",),
        experts=("moe_num_experts",),
        top_k=("moe_top_k",),
        activation=("ffn_act_fn",),
        w2_layout=Layout.KN,
        gate_up=GateUp.SEPARATE,
    ),
    "nemotron_h": dataclasses.replace(
        _DEEPSEEK_V3,
        hidden=("moe_latent_size", "hidden_size"),
        activation=("mlp_hidden_act", "hidden_act"),
        gate_up=GateUp.UNGATED,
        routing=_SIGMOID,
    ),
    "hunyuan_v1_moe": dataclasses.replace(
        _LOCAL, experts=("num_experts",), top_k=("moe_topk", "num_experts_per_tok"), shared_size=("num_shared_expert",)
    ),
}

# Names of transformers' ACT2FN. Whatever is not here keeps its name and becomes an obstacle.
_ACTIVATION_NAMES = {
    "silu": Activation.SILU.value,
    "swish": Activation.SILU.value,
    "gelu": Activation.GELU.value,
    "gelu_python": Activation.GELU.value,
    "gelu_pytorch_tanh": Activation.GELU_TANH.value,
    "gelu_new": Activation.GELU_TANH.value,
    "gelu_fast": Activation.GELU_TANH.value,
    "gelu_accurate": Activation.GELU_TANH.value,
    "relu2": Activation.RELU2.value,
}
_DTYPE_NAMES = {
    "bfloat16": DType.BF16,
    "bf16": DType.BF16,
    "float16": DType.FP16,
    "fp16": DType.FP16,
    "half": DType.FP16,
    "float32": DType.FP32,
    "fp32": DType.FP32,
    "float": DType.FP32,
}
_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")


def read_config(path: Path) -> MoEModel:
    """Returns the MoE layer that a Hugging Face ``config.json`` describes; raises ``ModelError``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(model=str(path), reason=f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ModelError(model=str(path), reason=f"is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(model=str(path), reason="is no JSON object")
    return model_of_config(config, name=str(path))


def model_of_config(config: Mapping[str, Any], *, name: str) -> MoEModel:
    """Returns the MoE layer of a parsed config; ``name`` is for messages. Raises ``ModelError``."""
    text, model_type = _text_part(config)
    family = _FAMILIES.get(model_type)
    if family is None:
        near = difflib.get_close_matches(model_type, _FAMILIES, n=1)
        raise ModelError(
            model=name,
            reason=f"model_type {model_type!r} is not one that jitmoe knows" if model_type else "has no model_type",
            advice=(f"The nearest is {near[0]}. " if near else "")
            + f"Known: {', '.join(_FAMILIES)}.\nSizes work for every model: jitmoe-warmup H2048,I768,E128,k8",
        )
    part = text
    if family.section:
        section = text.get(family.section)
        if not isinstance(section, Mapping):
            raise _missing(name, model_type, (family.section,))
        part = section

    def number(keys: tuple[str, ...], where: Mapping[str, Any]) -> int:
        for key in keys:
            value = where.get(key)
            if value is None:
                continue
            if isinstance(value, list) and value and all(item == value[0] for item in value):  # one per layer
                value = value[0]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(model=name, reason=f"{key} is {value!r}, expected one number >= 1")
            return value
        raise _missing(name, model_type, keys)

    hidden_size, intermediate_size = number(family.hidden, text), number(family.intermediate, part)
    dtype = _dtype_of(name, text, config)
    shared = [part[key] for key in family.shared if isinstance(part.get(key), int)]
    shared += [1 for key in family.shared_size if part.get(key)]
    return _checked(
        MoEModel(
            name=name,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=number(family.experts, part),
            top_k=number(family.top_k, part),
            dtype=dtype,
            activation=family.always_activation or _activation_of(name, part, family.activation),
            swiglu_alpha=_number_of(name, text, "swiglu_alpha", 1.702),
            swiglu_limit=_number_of(name, text, "swiglu_limit", family.limit),
            w1_layout=family.w1_layout,
            w2_layout=family.w2_layout,
            gate_up=family.gate_up,
            has_bias=family.has_bias,
            router_weight_on_input=family.router_weight_on_input,
            formats=formats_of(text, config, dtype=dtype, w1_k=hidden_size, w2_k=intermediate_size),
            num_shared_experts=sum(shared),
            routing=family.routing,
            note=family.note,
        )
    )


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Returns (the language model's part of a config, its model_type); multimodal configs nest it."""
    for section in _TEXT_SECTIONS:
        nested = config.get(section)
        if isinstance(nested, Mapping) and nested:
            text, model_type = _text_part(nested)
            return text, model_type or str(config.get("model_type") or "")
    return config, str(config.get("model_type") or "")


def _missing(name: str, model_type: str, keys: tuple[str, ...]) -> ModelError:
    others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
    return ModelError(
        model=name,
        reason=f"key {keys[0]}{others} is missing; configs of model_type {model_type} have it in their MoE variants",
    )


def _checked(model: MoEModel) -> MoEModel:
    if model.top_k > model.num_experts:
        raise ModelError(
            model=model.name, reason=f"k = {model.top_k} experts per token, but only E = {model.num_experts}"
        )
    return model


def _activation_of(name: str, part: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = part.get(key)
        if isinstance(value, Mapping):  # dbrx: {"name": "silu"}
            value = value.get("name")
        if value is None:
            continue
        if not isinstance(value, str):
            raise ModelError(model=name, reason=f"{key} is {value!r}, expected a name such as 'silu'")
        return _ACTIVATION_NAMES.get(value.lower(), value)
    return Activation.SILU.value  # the default of every family above that may leave it out


def _dtype_of(name: str, *parts: Mapping[str, Any]) -> DType:
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if value is None or value == "auto":
                continue
            dtype = _DTYPE_NAMES.get(str(value).removeprefix("torch."))
            if dtype is None:
                raise ModelError(
                    model=name, reason=f"{key} is {value!r}; jitmoe has kernels for bfloat16, float16 and float32"
                )
            return dtype
    return DType.BF16


_Number = TypeVar("_Number", float, "float | None")


def _number_of(name: str, part: Mapping[str, Any], key: str, default: _Number) -> float | _Number:
    value = part.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ModelError(model=name, reason=f"{key} is {value!r}, expected a number > 0")
    return float(value)

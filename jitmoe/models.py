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

from jitmoe.errors import ModelError, UnsupportedProblemError
from jitmoe.model_formats import NAMED, ExpertFormats, formats_of
from jitmoe.model_routing import Router, router_of
from jitmoe.problems.activate import ActivateProblem
from jitmoe.problems.formats import WeightFormat
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, SWIGLU_ALPHA, Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.problems.grouped_gemm import GroupedGemmProblem
from jitmoe.problems.routed import AdjustRoutingProblem
from jitmoe.problems.routing import RoutingProblem
from jitmoe.problems.sorting import LoadProblem, SortProblem, max_padded_pairs

CONFIG_NAME = "config.json"
BIAS_DTYPE = DType.FP32  # of correction biases: how checkpoints hold them and servers keep them
ALIGN_BLOCK = 64  # any will do: no kernel depends on it


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
    swiglu_alpha: float = SWIGLU_ALPHA
    swiglu_limit: float | None = None
    w1_layout: Layout = Layout.NK  # how the model's code holds plain weights after loading
    w2_layout: Layout = Layout.NK
    gate_up: GateUp = GateUp.CONCATENATED
    has_bias: bool = False  # per-expert biases of both matrices
    router_weight_on_input: bool = False
    formats: ExpertFormats = ExpertFormats()  # of quantized weights, which are [E, N, K] whatever the layouts say
    num_shared_experts: int = 0  # run by the model outside of fused_moe, or by it as its last experts
    has_shared_gate: bool = False  # shared experts have a weight per token
    num_global_experts: int | None = None  # experts on all ranks, where these are one rank's part (expert parallel)
    router: Router = Router(unknown="not known")
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
        for letter, size, form in (
            ("H", self.hidden_size, self.formats.w1),
            ("I", self.intermediate_size, self.formats.w2),
        ):
            if form is not None and form.bits == 4 and size % 2:
                reasons.append(f"{letter} = {size} is odd, but two 4-bit codes share a byte")
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

    def with_shared_experts(self) -> MoEModel:
        """Returns the layer whose calls compute the shared experts too, as the last ones of their weights."""
        more = self.num_shared_experts
        everywhere = self.num_global_experts
        return dataclasses.replace(
            self,
            num_experts=self.num_experts + more,
            num_global_experts=None if everywhere is None else everywhere + more,
            top_k=self.top_k + more,
            num_shared_experts=0,
        )

    def routing_problem(self, num_tokens: int, *, logits_dtype: DType, ids_dtype: DType) -> RoutingProblem:
        """Returns the ``route`` call of the model's router with ``num_tokens`` tokens and densely packed tensors."""
        routing = self.router.routing
        assert routing is not None
        num_experts = self._num_routed_experts
        return RoutingProblem(
            num_tokens=num_tokens,
            num_experts=num_experts,
            routing=routing,
            dtype=logits_dtype,
            bias_dtype=BIAS_DTYPE if self.router.has_correction_bias else None,
            ids_dtype=ids_dtype,
            logits_row_stride=num_experts,
            weights_row_stride=routing.num_slots,
            ids_row_stride=routing.num_slots,
        )

    def adjust_problem(self, num_tokens: int, *, ids_dtype: DType, weights_dtype: DType) -> AdjustRoutingProblem:
        """Returns what comes before the experts in calls with given weights and ``num_shared_experts``."""
        return AdjustRoutingProblem(
            num_tokens=num_tokens,
            top_k=self.top_k,
            num_shared_experts=self.num_shared_experts,
            first_shared_expert=self._num_routed_experts,
            renormalize=False,
            ids_dtype=ids_dtype,
            weights_dtype=weights_dtype,
            shared_dtype=weights_dtype if self.has_shared_gate else None,
            topk_ids_row_stride=self.top_k,
            topk_weights_row_stride=self.top_k,
            shared_row_stride=self.num_shared_experts if self.has_shared_gate else 0,
        )

    def align_problem(self, num_tokens: int, *, ids_dtype: DType) -> SortProblem:
        """Returns the ``moe_align_block_size`` call."""
        longest = max_padded_pairs(num_tokens * self.top_k, self.num_experts, ALIGN_BLOCK)
        return SortProblem(
            num_tokens=num_tokens,
            top_k=self.top_k,
            num_experts=self.num_experts,
            num_global_experts=self.num_global_experts,
            block_size=ALIGN_BLOCK,
            ids_dtype=ids_dtype,
            ids_row_stride=self.top_k,
            num_sorted=longest,
            num_blocks=longest // ALIGN_BLOCK,
        )

    def sort_problem(self, num_tokens: int, *, ids_dtype: DType, weights_dtype: DType) -> SortProblem:
        """Returns the ``moe_sorting`` call."""
        return dataclasses.replace(
            self.align_problem(num_tokens, ids_dtype=ids_dtype),
            weights_dtype=weights_dtype,
            weights_row_stride=self.top_k,
            zeroed_bytes=num_tokens * self.hidden_size * self.dtype.num_bytes,
        )

    def load_problem(self, num_tokens: int, *, ids_dtype: DType) -> LoadProblem:
        """Returns the ``expert_load`` call over all experts that are routed to."""
        return LoadProblem(
            num_tokens=num_tokens,
            top_k=self.top_k,
            num_experts=self._num_routed_experts,
            ids_dtype=ids_dtype,
            ids_row_stride=self.top_k,
        )

    def activate_problem(self, num_tokens: int) -> ActivateProblem:
        """Returns the ``activate`` call between both GEMMs: a row for each of a token's experts."""
        self.check()
        size = self.intermediate_size
        return ActivateProblem(
            num_rows=num_tokens * self.top_k,
            num_columns=size,
            dtype=self.dtype,
            activation=Activation(self.activation),
            gate_up=self.gate_up,
            alpha=self.swiglu_alpha,
            limit=self.swiglu_limit,
            gate_row_stride=self.gate_up.rows(size),
            up_row_stride=size if self.gate_up is GateUp.SEPARATE else 0,
            out_row_stride=size,
        )

    def product_problem(
        self, num_tokens: int, *, topk_ids_dtype: DType, topk_weights_dtype: DType, base_alignment: int
    ) -> GroupedGemmProblem:
        """Returns the ``grouped_gemm_moe`` call with plain matrices in the shape of w2; see ``problem``."""
        n, k = self.hidden_size, self.intermediate_size
        _, layout = self.stored_layouts
        return GroupedGemmProblem(
            num_tokens=num_tokens,
            n=n,
            k=k,
            num_experts=self.num_experts,
            top_k=self.top_k,
            dtype=self.dtype,
            topk_ids_dtype=topk_ids_dtype,
            topk_weights_dtype=topk_weights_dtype,
            layout=layout,
            a_row_stride=k,
            d_row_stride=n,
            b_expert_stride=n * k,
            b_stride=k if layout is Layout.NK else n,
            topk_ids_row_stride=self.top_k,
            topk_weights_row_stride=self.top_k,
            bias_dtype=self.dtype if self.has_bias else None,
            base_alignment=base_alignment,
        )

    @property
    def _num_routed_experts(self) -> int:
        return self.num_experts if self.num_global_experts is None else self.num_global_experts

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


# The built-in table. Sizes and routers are those of the published config.json files; layouts those of transformers 5.

_FP8 = "the published checkpoint is FP8 in 128x128 blocks: --format fp8-block; without, weights converted to bf16"


def _row(
    name: str, model_type: str, h: int, i: int, e: int, k: int, router: Mapping[str, Any] | None = None, **more: Any
) -> MoEModel:
    """Returns a row; ``router`` are the published config's keys of routing that differ from transformers' defaults."""
    how = router_of(model_type, router or {}, name=name, num_experts=e, top_k=k)
    return MoEModel(name=name, hidden_size=h, intermediate_size=i, num_experts=e, top_k=k, router=how, **more)


def _gpt_oss(name: str, num_experts: int) -> MoEModel:
    return _row(
        name, "gpt_oss", 2880, 2880, num_experts, 4, activation="swiglu_oai", swiglu_limit=7.0, w1_layout=Layout.KN,
        w2_layout=Layout.KN, gate_up=GateUp.INTERLEAVED, has_bias=True, formats=NAMED["mxfp4"],
    )  # fmt: skip


def _llama4(name: str, num_experts: int) -> MoEModel:
    return _row(
        name, "llama4_text", 5120, 8192, num_experts, 1, w1_layout=Layout.KN, w2_layout=Layout.KN,
        num_shared_experts=1, router_weight_on_input=True,
    )  # fmt: skip


_NORM = {"norm_topk_prob": True}
_GATED: dict[str, Any] = {"num_shared_experts": 1, "has_shared_gate": True}
_V2 = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "routed_scaling_factor": 16.0}


def _one_group(scaling: float) -> dict[str, Any]:
    return {"n_group": 1, "topk_group": 1, "routed_scaling_factor": scaling}


MODELS: dict[str, MoEModel] = {
    model.name: model
    for model in (
        _row("mixtral-8x7b", "mixtral", 4096, 14336, 8, 2),
        _row("mixtral-8x22b", "mixtral", 6144, 16384, 8, 2),
        _row("qwen1.5-moe-a2.7b", "qwen2_moe", 2048, 1408, 60, 4, **_GATED),
        _row("qwen2-57b-a14b", "qwen2_moe", 3584, 2560, 64, 8, **_GATED),
        _row("qwen3-30b-a3b", "qwen3_moe", 2048, 768, 128, 8, _NORM),
        _row("qwen3-235b-a22b", "qwen3_moe", 4096, 1536, 128, 8, _NORM),
        _row("qwen3-coder-480b-a35b", "qwen3_moe", 6144, 2560, 160, 8, _NORM),
        _row("qwen3-next-80b-a3b", "qwen3_next", 2048, 512, 512, 10, **_GATED),
        _row("qwen3.5-35b-a3b", "qwen3_5_moe_text", 2048, 512, 256, 8, **_GATED),
        _row("deepseek-moe-16b", "deepseek", 2048, 1408, 64, 6, num_shared_experts=2),
        _row("deepseek-v2-lite", "deepseek_v2", 2048, 1408, 64, 6, num_shared_experts=2),
        _row("deepseek-v2", "deepseek_v2", 5120, 1536, 160, 6, _V2, num_shared_experts=2),
        _row("deepseek-v3", "deepseek_v3", 7168, 2048, 256, 8, num_shared_experts=1, note=_FP8),
        _row("kimi-k2", "kimi_k2", 7168, 2048, 384, 8, _one_group(2.827), num_shared_experts=1, note=_FP8),
        _row("moonlight-16b-a3b", "deepseek_v3", 2048, 1408, 64, 6, _one_group(2.446), num_shared_experts=2),
        _row("glm-4.5", "glm4_moe", 5120, 1536, 160, 8, _one_group(2.5), num_shared_experts=1),
        _row("glm-4.5-air", "glm4_moe", 4096, 1408, 128, 8, _one_group(1.0), num_shared_experts=1),
        _row("glm-4.7-flash", "glm4_moe_lite", 2048, 1536, 64, 4, num_shared_experts=1),
        _row("glm-5", "glm_moe_dsa", 6144, 2048, 256, 8, num_shared_experts=1),
        _row("kimi-linear-48b-a3b", "kimi_linear", 2304, 1024, 256, 8, num_shared_experts=1),
        _row("mimo-v2-flash", "mimo_v2_flash", 4096, 2048, 256, 8),
        _row("olmoe-1b-7b", "olmoe", 2048, 1024, 64, 8),
        _row("phi-3.5-moe", "phimoe", 4096, 6400, 16, 2),
        _row("granite-3.0-1b-a400m", "granitemoe", 1024, 512, 32, 8),
        _row("granite-3.0-3b-a800m", "granitemoe", 1536, 512, 40, 8),
        _row("minimax-m2", "minimax_m2", 3072, 1536, 256, 8, note=_FP8),
        _row("ernie-4.5-21b-a3b", "ernie4_5_moe", 2560, 1536, 64, 6, num_shared_experts=2),
        _row("ernie-4.5-300b-a47b", "ernie4_5_moe", 8192, 3584, 64, 8),
        _row("lfm2-8b-a1b", "lfm2_moe", 2048, 1792, 32, 4),
        _row("jamba-1.5-mini", "jamba", 4096, 14336, 16, 2),
        _row("jamba-1.5-large", "jamba", 8192, 24576, 16, 2),
        _row("dbrx", "dbrx", 6144, 10752, 16, 4, gate_up=GateUp.SEPARATE, w2_layout=Layout.KN),
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
    "glm-4.6": "glm-4.5",
    "glm-4.7": "glm-4.5",
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
_LIKE_SHAPE = re.compile(r"^H=?\d+(?:[, _x-][A-Za-z]=?\d+)*$")


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
            return _checked(
                MoEModel(
                    name=what,
                    hidden_size=sizes["H"],
                    intermediate_size=sizes["I"],
                    num_experts=sizes["E"],
                    top_k=sizes["k"],
                )
            )
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
    if _LIKE_SHAPE.match(what):
        raise ModelError(
            model=what, reason="sizes are H, I, E and k, each once and at least 1", advice="Such as H2048,I768,E128,k8"
        )
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
    always_shared: int = 0  # number of shared experts that no key tells
    has_shared_gate: bool = False
    always_activation: str = ""  # whatever hidden_act says
    limit: float | None = None  # where the config does not say swiglu_limit
    w1_layout: Layout = Layout.NK
    w2_layout: Layout = Layout.NK
    gate_up: GateUp = GateUp.CONCATENATED
    has_bias: bool = False
    router_weight_on_input: bool = False
    note: str = ""


_QWEN = _Family(shared_size=("shared_expert_intermediate_size",), has_shared_gate=True)
_DEEPSEEK = _Family(experts=("n_routed_experts", "num_experts", "num_local_experts"), shared=("n_shared_experts",))
_LOCAL = _Family(intermediate=("intermediate_size",), experts=("num_local_experts", "num_experts"))
_GRANITE = dataclasses.replace(_LOCAL, shared_size=("shared_intermediate_size",))
_LLAMA4_FAMILY = dataclasses.replace(
    _LOCAL, w1_layout=Layout.KN, w2_layout=Layout.KN, router_weight_on_input=True, always_shared=1
)
_MINIMAX_M3 = dataclasses.replace(
    _LOCAL,
    always_activation="swiglu_oai",
    limit=7.0,
    shared_size=("shared_intermediate_size",),
    note="the model multiplies the sum of the experts by routed_scaling_factor",
)
_DEEPSEEK_LIKE = dataclasses.replace(_DEEPSEEK, shared=("num_shared_experts",))

_FAMILIES: dict[str, _Family] = {
    "mixtral": _LOCAL,
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_vl_moe_text": _QWEN,
    "qwen3_omni_moe": _QWEN,
    "qwen3_omni_moe_thinker": _QWEN,
    "qwen3_omni_moe_text": _QWEN,
    "deepseek": _DEEPSEEK,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "kimi_linear": dataclasses.replace(
        _DEEPSEEK_LIKE,
        experts=("num_experts", "num_local_experts"),
        top_k=("num_experts_per_token", "num_experts_per_tok"),
    ),
    "glm_moe_dsa": _DEEPSEEK,
    "mistral4": _DEEPSEEK,
    "mistral_large4": _DEEPSEEK,
    "mistral_large4_text": _DEEPSEEK,
    "mimo_v2_flash": _DEEPSEEK,
    "solar_open": _DEEPSEEK,
    "exaone_moe": _DEEPSEEK_LIKE,
    "hy_v3": _DEEPSEEK_LIKE,
    "afmoe": _DEEPSEEK_LIKE,
    "deepseek_v4": _DEEPSEEK,
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
    ),
    "glm4_moe": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "glm4v_moe": _DEEPSEEK,
    "glm4v_moe_text": _DEEPSEEK,
    "dots1": _DEEPSEEK,
    "olmoe": dataclasses.replace(_LOCAL, experts=("num_experts", "num_local_experts")),
    "flex_olmo": dataclasses.replace(_LOCAL, experts=("num_experts", "num_local_experts")),
    "cohere2_moe": dataclasses.replace(
        _LOCAL, experts=("num_experts", "num_local_experts"), shared=("num_shared_experts",)
    ),
    "phimoe": _LOCAL,
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "minimax": _LOCAL,
    "minimax_m2": _LOCAL,
    "minimax_m3_vl": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "ernie4_5_moe": _Family(
        experts=("moe_num_experts", "num_experts", "num_local_experts"),
        top_k=("moe_k", "num_experts_per_tok"),
        shared=("moe_num_shared_experts",),
    ),
    "lfm2_moe": _Family(),
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
        _DEEPSEEK,
        hidden=("moe_latent_size", "hidden_size"),
        activation=("mlp_hidden_act", "hidden_act"),
        gate_up=GateUp.UNGATED,
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
    num_experts, top_k = number(family.experts, part), number(family.top_k, part)
    shared = [part[key] for key in family.shared if isinstance(part.get(key), int)]
    shared += [1 for key in family.shared_size if part.get(key)]
    num_shared = sum(shared) + family.always_shared
    return _checked(
        MoEModel(
            name=name,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_experts=num_experts,
            top_k=top_k,
            dtype=dtype,
            activation=family.always_activation or _activation_of(name, part, family.activation),
            swiglu_alpha=_number_of(name, text, "swiglu_alpha", SWIGLU_ALPHA),
            swiglu_limit=_number_of(name, text, "swiglu_limit", family.limit),
            w1_layout=family.w1_layout,
            w2_layout=family.w2_layout,
            gate_up=family.gate_up,
            has_bias=family.has_bias,
            router_weight_on_input=family.router_weight_on_input,
            formats=formats_of(text, config, dtype=dtype, w1_k=hidden_size, w2_k=intermediate_size),
            num_shared_experts=num_shared,
            has_shared_gate=family.has_shared_gate and num_shared > 0,
            router=router_of(model_type, part, name=name, num_experts=num_experts, top_k=top_k),
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

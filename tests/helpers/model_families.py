# SPDX-License-Identifier: MIT
"""The MoE blocks of transformers: tiny, random, and with routing and experts replaced by jitmoe's.

Everything that a call needs is read from the real modules' attributes. The rest of a block (its router's matrix, shared
experts, latent projections) stays its own code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import jitmoe
from jitmoe import GroupScore, QuantizedTensor, Routing, Scoring

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 128, 96, 16, 4
BATCH, SEQUENCE = 2, 34  # more than 64 pairs even with one expert per token: the same kernels for all

Module = Any  # attributes of these modules are looked at by name


def _softmax(gate: Module, block: Module) -> tuple[Routing, None]:
    """Qwen, OLMoE: gates that know whether they renormalize."""
    return Routing(top_k=gate.top_k, scoring=Scoring.SOFTMAX, renormalize=bool(gate.norm_topk_prob)), None


def _softmax_renormalized(gate: Module, block: Module) -> tuple[Routing, None]:
    """Mixtral, MiniMax, Hunyuan: gates that always divide by the sum."""
    return Routing(top_k=gate.top_k, scoring=Scoring.SOFTMAX, renormalize=True), None


def _softmax_plain(gate: Module, block: Module) -> tuple[Routing, None]:
    return Routing(top_k=gate.top_k, scoring=Scoring.SOFTMAX), None


def _topk_then_softmax(gate: Module, block: Module) -> tuple[Routing, None]:
    return Routing(top_k=gate.top_k, scoring=Scoring.SOFTMAX, topk_before_scoring=True), None


def _deepseek_v2(gate: Module, block: Module) -> tuple[Routing, None]:
    grouped = gate.topk_method == "group_limited_greedy"
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SOFTMAX,
        num_groups=gate.num_group if grouped else 1,
        topk_groups=gate.topk_group if grouped else 1,
        group_score=GroupScore.MAX,
        scaling_factor=gate.routed_scaling_factor,
    ), None


def _deepseek_v3(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SIGMOID,
        num_groups=gate.num_group,
        topk_groups=gate.topk_group,
        group_score=GroupScore.TOP2_SUM,
        renormalize=gate.norm_topk_prob,
        renormalize_epsilon=1e-20,
        scaling_factor=gate.routed_scaling_factor,
    ), gate.e_score_correction_bias


def _deepseek_v4(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SQRT_SOFTPLUS,
        renormalize=True,
        renormalize_epsilon=1e-20,
        scaling_factor=gate.routed_scaling_factor,
    ), gate.e_score_correction_bias


def _minimax_m2(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(top_k=gate.top_k, scoring=Scoring.SIGMOID, renormalize=True), block.e_score_correction_bias


def _minimax_m3(gate: Module, block: Module) -> tuple[Routing, Any]:
    """Its block scales the sum of the experts itself."""
    return Routing(top_k=gate.top_k, scoring=Scoring.SIGMOID, renormalize=True), gate.e_score_correction_bias


def _lfm2(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SIGMOID,
        renormalize=gate.norm_topk_prob,
        renormalize_epsilon=1e-6,
        scaling_factor=gate.routed_scaling_factor,
    ), block.expert_bias


def _ernie(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k, scoring=Scoring.SOFTMAX, renormalize=True, renormalize_min=gate.norm_min
    ), gate.moe_statics.e_score_correction_bias.squeeze()


def _dbrx(gate: Module, block: Module) -> tuple[Routing, None]:
    assert block.moe_normalize_expert_weights == 1  # a sum of positive numbers
    return Routing(top_k=block.top_k, scoring=Scoring.SOFTMAX, renormalize=True), None


def _llama4(gate: Module, block: Module) -> tuple[Routing, None]:
    return Routing(top_k=gate.top_k, scoring=Scoring.SIGMOID, topk_before_scoring=True), None


def _phimoe(gate: Module, block: Module) -> tuple[Routing, None]:
    return Routing(top_k=gate.top_k, scoring=Scoring.SPARSEMIXER, jitter_eps=gate.router_jitter_noise), None


def _mistral_large4(gate: Module, block: Module) -> tuple[Routing, None]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SOFTMAX,
        num_groups=gate.num_group,
        topk_groups=gate.topk_group,
        group_score=GroupScore.TOP2_SUM,
        renormalize=True,
        renormalize_epsilon=1e-20,
        scaling_factor=gate.routed_scaling_factor,
    ), None


def _afmoe(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SIGMOID,
        renormalize=True,
        renormalize_epsilon=1e-20,
        scaling_factor=gate.route_scale,
    ), block.expert_bias


def _hy_v3(gate: Module, block: Module) -> tuple[Routing, Any]:
    return Routing(
        top_k=gate.top_k,
        scoring=Scoring.SIGMOID,
        renormalize=True,
        renormalize_epsilon=1e-20,
        scaling_factor=gate.router_scaling_factor,
    ), block.e_score_correction_bias


def _cohere2(gate: Module, block: Module) -> tuple[Routing, None]:
    scoring = Scoring(gate.expert_selection_fn)
    return Routing(
        top_k=gate.top_k,
        scoring=scoring,
        topk_before_scoring=True,
        renormalize=scoring is Scoring.SIGMOID and gate.norm_topk_prob,
    ), None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where transformers keeps a family's block, and what is special about its configuration."""

    block: str
    config: str
    routing: Callable[[Module, Module], tuple[Routing, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    module: str = ""  # if it is not the family's name
    gate: str = "gate"
    block_arguments: tuple[Any, ...] = ()
    formats: tuple[str, ...] = ()  # of published quantized checkpoints, see FORMATS


_SIZES = {"hidden_size": HIDDEN, "num_experts_per_tok": TOP_K}
_MOE = {**_SIZES, "moe_intermediate_size": INTERMEDIATE}
_LOCAL = {**_SIZES, "intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS}
_QWEN = {**_MOE, "num_experts": EXPERTS}
_SHARED = {"shared_expert_intermediate_size": INTERMEDIATE}
_GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
_ROUTED = {**_MOE, "n_routed_experts": EXPERTS, "n_shared_experts": 1}

FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        block="MixtralSparseMoeBlock",
        config="MixtralConfig",
        routing=_softmax_renormalized,
        settings=_LOCAL,
        formats=("int4",),
    ),
    "qwen2_moe": Family(
        block="Qwen2MoeSparseMoeBlock", config="Qwen2MoeConfig", routing=_softmax, settings=_QWEN | _SHARED
    ),
    "qwen3_moe": Family(
        block="Qwen3MoeSparseMoeBlock",
        config="Qwen3MoeConfig",
        routing=_softmax,
        settings={**_QWEN, "norm_topk_prob": True},
        formats=("int4 with zero points", "int8", "int8 with int8 inputs"),
    ),
    "qwen3_vl_moe": Family(
        block="Qwen3VLMoeTextSparseMoeBlock",
        config="Qwen3VLMoeTextConfig",
        routing=_softmax_renormalized,
        settings=_QWEN,
    ),
    "qwen3_omni_moe": Family(
        block="Qwen3OmniMoeThinkerTextSparseMoeBlock", config="Qwen3OmniMoeTextConfig", routing=_softmax, settings=_QWEN
    ),
    "qwen3_next": Family(
        block="Qwen3NextSparseMoeBlock", config="Qwen3NextConfig", routing=_softmax, settings=_QWEN | _SHARED
    ),
    "qwen3_5_moe": Family(
        block="Qwen3_5MoeSparseMoeBlock",
        config="Qwen3_5MoeTextConfig",
        routing=_softmax_renormalized,
        settings=_QWEN | _SHARED,
    ),
    "deepseek_v2": Family(
        block="DeepseekV2Moe",
        config="DeepseekV2Config",
        routing=_deepseek_v2,
        settings={**_ROUTED, **_GROUPS, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v3": Family(
        block="DeepseekV3MoE",
        config="DeepseekV3Config",
        routing=_deepseek_v3,
        settings=_ROUTED | _GROUPS,
        formats=(
            "fp8 in 128x128 blocks",
            "fp8 in 128x128 blocks with fp8 inputs",
            "int8 with int8 inputs",
            "int4 of compressed-tensors",  # Kimi K2
        ),
    ),
    "deepseek_v32": Family(
        block="DeepseekV32MoE", config="DeepseekV32Config", routing=_deepseek_v3, settings=_ROUTED | _GROUPS
    ),
    "deepseek_v4": Family(
        block="DeepseekV4SparseMoeBlock",
        config="DeepseekV4Config",
        routing=_deepseek_v4,
        settings={**_ROUTED, "swiglu_limit": 0.7, "num_hidden_layers": 4, "routed_scaling_factor": 1.5},
        block_arguments=(3,),  # a layer that is not routed by a table
        formats=("mxfp4",),
    ),
    "glm4_moe": Family(block="Glm4MoeMoE", config="Glm4MoeConfig", routing=_deepseek_v3, settings=_ROUTED),
    "glm4_moe_lite": Family(block="Glm4MoeLiteMoE", config="Glm4MoeLiteConfig", routing=_deepseek_v3, settings=_ROUTED),
    "glm_moe_dsa": Family(block="GlmMoeDsaMoE", config="GlmMoeDsaConfig", routing=_deepseek_v3, settings=_ROUTED),
    "kimi_linear": Family(
        block="KimiLinearMoE",
        config="KimiLinearConfig",
        routing=_deepseek_v3,
        settings={**_MOE, "num_local_experts": EXPERTS},
    ),
    "mimo_v2_flash": Family(
        block="MiMoV2FlashMoE",
        config="MiMoV2FlashConfig",
        routing=_deepseek_v3,
        settings={**_MOE, "n_routed_experts": EXPERTS},
    ),
    "mistral_large4": Family(
        block="MistralLarge4TextMoE",
        config="MistralLarge4TextConfig",
        routing=_mistral_large4,
        settings=_ROUTED | _GROUPS,
    ),
    "exaone_moe": Family(
        block="ExaoneMoeSparseMoEBlock", config="ExaoneMoeConfig", routing=_deepseek_v3, settings=_QWEN
    ),
    "solar_open": Family(block="SolarOpenMoE", config="SolarOpenConfig", routing=_deepseek_v3, settings=_ROUTED),
    "hy_v3": Family(block="HYV3MoE", config="HYV3Config", routing=_hy_v3, settings=_QWEN),
    "afmoe": Family(
        block="AfmoeSparseMoeBlock",
        config="AfmoeConfig",
        routing=_afmoe,
        settings={**_QWEN, "route_scale": 2.5},
        gate="router",
    ),
    "dots1": Family(block="Dots1MoE", config="Dots1Config", routing=_deepseek_v3, settings=_ROUTED),
    "olmoe": Family(
        block="OlmoeSparseMoeBlock",
        config="OlmoeConfig",
        routing=_softmax,
        settings={**_SIZES, "intermediate_size": INTERMEDIATE, "num_experts": EXPERTS},
    ),
    "flex_olmo": Family(
        block="FlexOlmoSparseMoeBlock",
        config="FlexOlmoConfig",
        routing=_softmax,
        settings={**_SIZES, "intermediate_size": INTERMEDIATE, "num_experts": EXPERTS, "norm_topk_prob": True},
    ),
    "cohere2_moe": Family(
        block="Cohere2MoeSparseMoeBlock",
        config="Cohere2MoeConfig",
        routing=_cohere2,
        settings={
            **_SIZES,
            "intermediate_size": INTERMEDIATE,
            "num_experts": EXPERTS,
            "expert_selection_fn": "sigmoid",
        },
    ),
    "phimoe": Family(
        block="PhimoeSparseMoeBlock",
        config="PhimoeConfig",
        routing=_phimoe,
        settings={**_LOCAL, "num_experts_per_tok": 2, "router_jitter_noise": 0.2},  # high enough to matter
        gate="router",
    ),
    "granitemoe": Family(
        block="GraniteMoeMoE",
        config="GraniteMoeConfig",
        routing=_topk_then_softmax,
        settings=_LOCAL,
        gate="router",
    ),
    "granitemoeshared": Family(
        block="GraniteMoeSharedMoE",
        config="GraniteMoeSharedConfig",
        routing=_topk_then_softmax,
        settings=_LOCAL,
        gate="router",
    ),
    "gpt_oss": Family(
        block="GptOssMLP",
        config="GptOssConfig",
        routing=_topk_then_softmax,
        settings={**_LOCAL, "swiglu_limit": 0.7},  # low enough to matter
        gate="router",
        formats=("mxfp4",),
    ),
    "llama4": Family(
        block="Llama4TextMoe",
        config="Llama4TextConfig",
        routing=_llama4,
        settings={**_LOCAL, "num_experts_per_tok": 1},
        gate="router",
        formats=("fp8 per channel",),
    ),
    "minimax": Family(
        block="MiniMaxSparseMoeBlock", config="MiniMaxConfig", routing=_softmax_renormalized, settings=_LOCAL
    ),
    "minimax_m2": Family(
        block="MiniMaxM2SparseMoeBlock",
        config="MiniMaxM2Config",
        routing=_minimax_m2,
        settings=_LOCAL,
        formats=("fp8 in 128x128 blocks",),
    ),
    "minimax_m3_vl": Family(
        block="MiniMaxM3VLSparseMoeBlock",
        config="MiniMaxM3VLTextConfig",
        routing=_minimax_m3,
        settings={**_LOCAL, "shared_intermediate_size": INTERMEDIATE, "swiglu_limit": 0.7},  # low enough to matter
    ),
    "ernie4_5_moe": Family(
        block="Ernie4_5_MoeSparseMoeBlock",
        config="Ernie4_5_MoeConfig",
        routing=_ernie,
        settings={
            "hidden_size": HIDDEN,
            "moe_intermediate_size": INTERMEDIATE,
            "moe_num_experts": EXPERTS,
            "moe_k": TOP_K,
            "moe_norm_min": 0.5,  # high enough to matter
        },
    ),
    "lfm2_moe": Family(
        block="Lfm2MoeSparseMoeBlock",
        config="Lfm2MoeConfig",
        routing=_lfm2,
        settings={**_QWEN, "use_expert_bias": True},
    ),
    "jamba": Family(
        block="JambaSparseMoeBlock",
        config="JambaConfig",
        routing=_softmax_plain,
        settings={**_SIZES, "intermediate_size": INTERMEDIATE, "num_experts": EXPERTS},
        gate="router",
    ),
    "dbrx": Family(
        block="DbrxFFN",
        config="DbrxConfig",
        routing=_dbrx,
        settings={
            "d_model": HIDDEN,
            "ffn_config": {
                "hidden_size": HIDDEN,
                "ffn_hidden_size": INTERMEDIATE,
                "moe_num_experts": EXPERTS,
                "moe_top_k": TOP_K,
            },
        },
        gate="router",
    ),
    "nemotron_h": Family(
        block="NemotronHMoE",
        config="NemotronHConfig",
        routing=_deepseek_v3,
        settings={**_ROUTED, "moe_shared_expert_intermediate_size": INTERMEDIATE},
    ),
    "hunyuan_v1_moe": Family(
        block="HunYuanMoEV1Moe",
        config="HunYuanMoEV1Config",
        routing=_softmax_renormalized,
        settings={
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_experts": EXPERTS,
            "moe_topk": TOP_K,
        },
    ),
}


def _compressed_int4(weights: torch.Tensor) -> QuantizedTensor:
    """compressed-tensors' int32 words: four bytes of two codes each, with 8 added."""
    made = jitmoe.quantize_int4(weights, group_size=32)
    return jitmoe.load_compressed_tensors((made.data ^ 0x88).view(torch.int32), made.scale)


def _compressed_int8(weights: torch.Tensor) -> QuantizedTensor:
    """As compressed-tensors stores it: scales are bf16, like the model."""
    made = jitmoe.quantize_int8(weights)
    return jitmoe.load_int8(made.data, made.scale.bfloat16())


def _fp8_blocks(weights: torch.Tensor) -> QuantizedTensor:
    return jitmoe.quantize_fp8(weights, scale=(128, 128))


def _int8_rows(x: torch.Tensor) -> torch.Tensor:
    """Each row as multiples -127 .. 127 of one step."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round() * step


def _fp8_rows(x: torch.Tensor) -> torch.Tensor:
    """Each 128 elements of a row as FP8 numbers times one step."""
    parts = []
    for part in x.split(128, dim=-1):
        step = part.abs().amax(-1, keepdim=True) / 448
        parts.append((part / step).to(torch.float8_e4m3fn).to(x.dtype) * step)
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Format:
    """How a checkpoint stores weights, and what its kernels do with the inputs of both matrices."""

    quantize: Callable[[torch.Tensor], QuantizedTensor]
    input_quant: str = ""  # jitmoe's word for it
    round_inputs: Callable[[torch.Tensor], torch.Tensor] | None = None


FORMATS = {
    "fp8 in 128x128 blocks": Format(_fp8_blocks),
    "fp8 in 128x128 blocks with fp8 inputs": Format(_fp8_blocks, "e4m3", _fp8_rows),
    "fp8 per channel": Format(jitmoe.quantize_fp8),
    "int8": Format(jitmoe.quantize_int8),
    "int8 with int8 inputs": Format(_compressed_int8, "int8", _int8_rows),
    "int4": Format(lambda weights: jitmoe.quantize_int4(weights, group_size=32)),
    "int4 with zero points": Format(lambda weights: jitmoe.quantize_int4(weights, group_size=32, zero_point=True)),
    "int4 of compressed-tensors": Format(_compressed_int4),
    "mxfp4": Format(jitmoe.quantize_mxfp4),
}


def make(name: str, dtype: torch.dtype, settings: dict[str, Any] | None = None) -> tuple[Module, Any]:
    """Returns (a random block, its configuration), with other settings than the family's if given."""
    family = FAMILIES[name]
    settings = family.settings if settings is None else settings
    package = f"transformers.models.{family.module or name}"
    short = package.rpartition(".")[2]
    config = getattr(importlib.import_module(f"{package}.configuration_{short}"), family.config)(**settings)
    config._experts_implementation = "eager"
    block_class = getattr(importlib.import_module(f"{package}.modeling_{short}"), family.block)
    block = block_class(config, *family.block_arguments).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor_name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        small = tensor_name.endswith("bias") and "proj" not in tensor_name  # of a router: some choices change
        scale = 0.2 if small or tensor.ndim == 1 else _fan_in(tensor_name, tensor) ** -0.5
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return block.to(dtype).requires_grad_(False), config


def _fan_in(name: str, tensor: torch.Tensor) -> int:
    """Elements that a product with ``tensor`` adds up."""
    if tensor.ndim == 3:
        return min(tensor.shape[1:]) if name.endswith("down_proj") else HIDDEN
    return tensor.shape[-1]


def inputs(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(BATCH, SEQUENCE, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)


def output(result: Any) -> torch.Tensor:
    """The hidden states of what a block returns, [tokens, H]."""
    hidden: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return hidden.reshape(-1, HIDDEN)


_ACTIVATIONS = {
    "silu": "silu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "ReLUSquaredActivation": "relu2",
    "GELUActivation": "gelu",
}


def expert_weights(experts: Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns (w1 [E, N, H], w2 [E, H, I], w1_up or None): views of the module's parameters."""
    glu = getattr(experts, "mlp", None)  # dbrx: matrices of all experts below each other
    if glu is not None:
        gate, up, down = (getattr(glu, name).view(EXPERTS, INTERMEDIATE, HIDDEN) for name in ("w1", "v1", "w2"))
        return gate, down.mT, up
    first = experts.gate_up_proj if getattr(experts, "has_gate", True) else experts.up_proj
    if getattr(experts, "is_transposed", first.shape[1] == HIDDEN):
        return first.mT, experts.down_proj.mT, None
    return first, experts.down_proj, None


def expert_options(experts: Module) -> dict[str, Any]:
    """Returns the options of ``fused_moe`` for a module's experts."""
    options: dict[str, Any] = {}
    if not getattr(experts, "is_concatenated", True):
        options["interleaved"] = True
    if getattr(experts, "has_bias", False):
        options |= {"w1_bias": experts.gate_up_proj_bias, "w2_bias": experts.down_proj_bias}
    alpha = getattr(experts, "alpha", getattr(experts, "swiglu_alpha", None))
    if alpha is not None:
        options |= {"activation": "swiglu_oai", "swiglu_alpha": alpha}
    else:
        function = experts.mlp.activation_fn if hasattr(experts, "mlp") else experts.act_fn
        options["activation"] = _ACTIVATIONS[getattr(function, "__name__", type(function).__name__)]
    if getattr(experts, "limit", None) is not None:
        options["swiglu_limit"] = experts.limit
    return options


@dataclass
class Choice:
    """One routing: what was to be routed how, and the ids of the block and of jitmoe."""

    logits: torch.Tensor
    routing: Routing
    bias: torch.Tensor | None
    theirs: torch.Tensor
    ours: torch.Tensor

    def same(self) -> torch.Tensor:
        """Returns which tokens have the same experts."""
        return (self.theirs.sort().values == self.ours.sort().values).all(-1)

    def at_the_limit(self) -> torch.Tensor:
        """Returns which tokens have a logit that is near a chosen one or not, as its distance is rounded to bf16."""
        x, limit = self.logits.float(), 2 * self.routing.jitter_eps
        tokens = torch.zeros(x.shape[0], dtype=torch.bool)
        if self.routing.scoring is Scoring.SPARSEMIXER:
            for m in x.gather(1, self.ours).split(1, dim=1):
                distance = (m - x) / torch.maximum(x.abs(), m)
                tokens |= ((distance / limit - 1).abs() <= 2**-7).any(-1)
        return tokens

    def values(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns what the chosen experts were chosen by, sorted."""
        routing, num_experts = self.routing, self.logits.shape[1]
        if routing.chooses_by_logits:
            scores = self.logits.float()
        else:
            every = Routing(top_k=num_experts, scoring=routing.scoring)
            weights, places = jitmoe.reference.route(self.logits, every, ids_dtype="int64")
            scores = torch.empty_like(weights).scatter_(1, places, weights)
        choice = scores if self.bias is None else scores + self.bias.float()
        return choice.gather(1, ids).sort().values


@dataclass
class Seen:
    """What went through jitmoe."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)  # of fused_moe
    chosen: list[Choice] = field(default_factory=list)


Weights = tuple[Any, Any, Any]


@contextlib.contextmanager
def replaced(
    name: str,
    block: Module,
    *,
    weights: Weights | None = None,
    input_quant: str = "",
    dtype: torch.dtype | None = None,
) -> Iterator[Seen]:
    """Lets jitmoe route and compute the experts of a block.

    Args:
        weights: (w1, w2, w1_up) instead of the module's own.
        input_quant: of ``fused_moe``, "" for none.
        dtype: that jitmoe computes in, if not the block's.
    """
    family, seen, experts = FAMILIES[name], Seen(), block.experts
    gate = getattr(block, family.gate)
    w1, w2, w1_up = expert_weights(experts) if weights is None else weights
    options = expert_options(experts)
    if w1_up is not None:
        options["w1_up"] = w1_up
    if input_quant:
        options["input_quant"] = input_quant

    def fused(x: torch.Tensor, *topk: torch.Tensor, **more: Any) -> torch.Tensor:
        arguments = (x if dtype is None else x.to(dtype), w1, w2, *topk)
        seen.calls.append((arguments, options | more))
        return jitmoe.fused_moe(*arguments, **options, **more).to(x.dtype)

    def routed(logits: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routing, bias = family.routing(gate, block)
        ours, ids = jitmoe.route(logits, routing, correction_bias=bias, ids_dtype="int64")
        seen.chosen.append(Choice(logits, routing, bias, theirs, ids))
        return ours, ids

    with contextlib.ExitStack() as stack:

        def replace(module: Module, attribute: str, function: Any) -> None:
            own = module.__dict__.get(attribute)
            module.__dict__[attribute] = function
            stack.callback(module.__dict__.pop if own is None else module.__dict__.__setitem__, attribute, own)

        gate_forward = gate.forward

        def new_gate(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits, _, theirs = gate_forward(*arguments)
            return logits, *routed(logits, theirs)

        def new_experts(x: torch.Tensor, ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
            return fused(x, topk_weights, ids)

        if name == "llama4":  # its experts see every token; the weight multiplies their input

            def new_block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                flat = x.reshape(-1, HIDDEN)
                _, logits = gate_forward(flat)
                weights, ids = routed(logits, logits.topk(gate.top_k).indices)
                return block.shared_expert(flat) + fused(flat, weights, ids, apply_router_weight_on_input=True), logits

            replace(block, "forward", new_block)
        elif name == "dbrx":  # a router that gives logits only, and experts for [B, S, H]
            own_route = block.route_tokens_to_experts
            replace(block, "route_tokens_to_experts", lambda logits: routed(logits, own_route(logits)[1]))
            replace(experts, "forward", lambda x, ids, topk: fused(x.reshape(-1, HIDDEN), topk, ids).view(x.shape))
        else:
            replace(gate, "forward", new_gate)
            replace(experts, "forward", new_experts)
        yield seen


def requantized(block: Module, format_name: str) -> Weights:
    """Returns the experts' weights quantized; the block gets what these stand for."""
    quantize = FORMATS[format_name].quantize
    w1, w2, w1_up = expert_weights(block.experts)
    assert w1_up is None
    quantized = (quantize(w1), quantize(w2), None)
    for own, weights in zip((w1, w2), quantized, strict=False):
        own.copy_(jitmoe.reference.dequantize(weights))
    return quantized


@contextlib.contextmanager
def rounded_inputs(block: Module, format_name: str) -> Iterator[None]:
    """Lets the experts of a block round the inputs of their matrices as the format says."""
    round_inputs, linear = FORMATS[format_name].round_inputs, torch.nn.functional.linear
    if round_inputs is None:
        yield
        return
    own, products = block.experts.forward, []

    def rounding(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        products.append(weight)
        return linear(round_inputs(x), weight)

    def forward(*arguments: Any) -> torch.Tensor:
        torch.nn.functional.linear = rounding
        try:
            return own(*arguments)
        finally:
            torch.nn.functional.linear = linear

    block.experts.__dict__["forward"] = forward
    try:
        yield
        assert products, "the experts do not multiply with torch.nn.functional.linear"
    finally:
        del block.experts.__dict__["forward"]


def described(name: str) -> str:
    """Returns a family's row of the table in docs/models.md."""
    family = FAMILIES[name]
    block, _ = make(name, torch.float32)
    value, bias = family.routing(getattr(block, family.gate), block)
    routing = _words(value) + (", correction bias" if bias is not None else "")
    options = expert_options(block.experts)
    w1, _, w1_up = expert_weights(block.experts)
    features = [options["activation"]]
    features += ["limit"] if "swiglu_limit" in options else []
    features += ["interleaved"] if options.get("interleaved") else []
    features += ["separate gate and up"] if w1_up is not None else []
    features += ["no gate"] if w1.shape[1] == INTERMEDIATE and w1_up is None else []
    features += ["biases"] if "w1_bias" in options else []
    features += ["[E, K, N]"] if w1.stride(2) != 1 else []
    features += ["weight on input"] if name == "llama4" else []
    formats = ", ".join(("fp32", "bf16", *family.formats))
    return f"| `{name}` | `{family.block}` | {routing} | {', '.join(features)} | {formats} |"


def _words(routing: Routing) -> str:
    default = {item.name: item.default for item in dataclasses.fields(Routing)}
    order = f"top-k, then {routing.scoring.value}" if routing.topk_before_scoring else routing.scoring.value
    words = [order]
    if routing.num_groups > 1:
        words.append(f"groups by {routing.group_score.value}")
    if routing.renormalize:
        words.append("renormalized")
    words += [
        name.replace("_", " ")
        for name in ("renormalize_min", "scaling_factor")
        if getattr(routing, name) != default[name]
    ]
    return ", ".join(words)

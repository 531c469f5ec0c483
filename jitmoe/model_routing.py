# SPDX-License-Identifier: MIT
"""What a model's config says of its router: a ``Routing`` value, or words where none says it.

Routers are those of the model code that transformers has, or that came with the checkpoint where transformers has none
(DeepSeek-MoE, Kimi K2). A key that a config leaves out has the default of the configuration class there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jitmoe.errors import ArgumentError, ModelError
from jitmoe.problems.routing import DEEPSEEK_EPSILON, GroupScore, Routing, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How a model chooses experts."""

    routing: Routing | None = None
    has_correction_bias: bool = False
    unknown: str = ""  # without routing: why, in words

    def __str__(self) -> str:
        routing = self.routing
        if routing is None:
            return self.unknown
        scoring = routing.scoring.value.replace("_", " ")
        words = [f"top-k, then {scoring}" if routing.chooses_by_logits else f"{scoring}, then top-k"]
        if routing.num_groups > 1:
            words.append(f"in {routing.topk_groups} of {routing.num_groups} groups by {routing.group_score.value}")
        words += ["renormalized"] if routing.renormalize else []
        words += [f"times {routing.scaling_factor:g}"] if routing.scaling_factor != 1.0 else []
        words += ["correction bias"] if self.has_correction_bias else []
        return ", ".join(words)


def router_of(model_type: str, config: Mapping[str, Any], *, name: str, num_experts: int, top_k: int) -> Router:
    """Returns the router of a config's MoE layers.

    Args:
        model_type: one of ``READERS``.
        config: the part of the config that has the router's keys.
        name: of the model, for messages.
        num_experts, top_k: E and k.

    Raises:
        ModelError: a key's value is not what the model's code takes.
    """
    router = READERS[model_type](_Keys(name, config), top_k)
    objection = None if router.routing is None else router.routing.objection(num_experts)
    return router if objection is None else Router(unknown=str(objection))


class _Keys:
    """The keys of one config; a missing one, or null, has the default."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._name = name
        self._config = config

    def _get(self, key: str, default: Any, expected: str, is_right: Callable[[Any], bool]) -> Any:
        value = self._config.get(key)
        if value is None:
            return default
        if not is_right(value):
            raise ModelError(model=self._name, reason=f"{key} is {value!r}, expected {expected}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._get(key, default, "true or false", lambda value: isinstance(value, bool)))

    def whole(self, key: str, default: int) -> int:
        return int(self._get(key, default, "a whole number >= 1", lambda value: type(value) is int and value >= 1))

    def number(self, key: str, default: float) -> float:
        return float(self._get(key, default, "a number", _is_number))

    def word(self, key: str, default: str) -> str:
        return str(self._get(key, default, "a name", lambda value: isinstance(value, str)))

    def has_null(self, key: str) -> bool:
        return key in self._config and self._config[key] is None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_Reader = Callable[[_Keys, int], Router]


def _router(top_k: int, *, has_correction_bias: bool = False, **fields: Any) -> Router:
    try:
        return Router(routing=Routing(top_k=top_k, **fields), has_correction_bias=has_correction_bias)
    except ArgumentError as error:  # a limit of jitmoe's, such as that of k
        return Router(unknown=str(error))


def _softmax(keys: _Keys, top_k: int, *, renormalize: bool) -> Router:
    return _router(top_k, renormalize=renormalize)


def _softmax_with_key(keys: _Keys, top_k: int, *, renormalize: bool) -> Router:
    return _router(top_k, renormalize=keys.flag("norm_topk_prob", renormalize))


def _topk_first(keys: _Keys, top_k: int, *, scoring: Scoring) -> Router:
    return _router(top_k, scoring=scoring, topk_before_scoring=True)


def _deepseek(keys: _Keys, top_k: int) -> Router:
    """DeepSeek-MoE and V2: softmax, groups by their best expert."""
    scoring, method = keys.word("scoring_func", "softmax"), keys.word("topk_method", "greedy")
    if scoring != "softmax" or method not in ("greedy", "group_limited_greedy"):
        return Router(unknown=f"{scoring} scores with topk_method {method}")
    grouped = method == "group_limited_greedy"
    renormalize = keys.flag("norm_topk_prob", False)
    return _router(
        top_k,
        num_groups=keys.whole("n_group", 1) if grouped else 1,
        topk_groups=keys.whole("topk_group", 1) if grouped else 1,
        group_score=GroupScore.MAX,
        renormalize=renormalize,
        renormalize_epsilon=DEEPSEEK_EPSILON if renormalize else 0.0,
        # DeepSeek's own code multiplies only what it has not divided.
        scaling_factor=1.0 if renormalize else keys.number("routed_scaling_factor", 1.0),
    )


def _deepseek_v3(
    keys: _Keys, top_k: int, *, groups: tuple[int, int] = (1, 1), renormalize: bool = True, scaling: float = 1.0
) -> Router:
    """DeepSeek-V3 and the many that took it over: sigmoid, correction bias, groups by their two best."""
    scoring, method = keys.word("scoring_func", "sigmoid"), keys.word("topk_method", "noaux_tc")
    if (scoring, method) != ("sigmoid", "noaux_tc"):
        return Router(unknown=f"{scoring} scores with topk_method {method}")
    return _router(
        top_k,
        has_correction_bias=True,
        scoring=Scoring.SIGMOID,
        num_groups=keys.whole("n_group", groups[0]),
        topk_groups=keys.whole("topk_group", groups[1]),
        group_score=GroupScore.TOP2_SUM,
        renormalize=keys.flag("norm_topk_prob", renormalize),
        renormalize_epsilon=DEEPSEEK_EPSILON,
        scaling_factor=keys.number("routed_scaling_factor", scaling),
    )


def _deepseek_v4(keys: _Keys, top_k: int) -> Router:
    """Of the layers that are not routed by a table of token ids."""
    name = keys.word("scoring_func", "sqrtsoftplus")
    scoring = {"sqrtsoftplus": Scoring.SQRT_SOFTPLUS, "sigmoid": Scoring.SIGMOID}.get(name)
    if scoring is None:
        return Router(unknown=f"{name} scores")
    return _router(
        top_k,
        has_correction_bias=True,
        scoring=scoring,
        renormalize=True,
        renormalize_epsilon=DEEPSEEK_EPSILON,
        scaling_factor=keys.number("routed_scaling_factor", 1.5),
    )


def _sigmoid(keys: _Keys, top_k: int, *, scaling_key: str, scaling: float) -> Router:
    """DeepSeek-V3's without groups, its factor under another name."""
    return _router(
        top_k,
        has_correction_bias=True,
        scoring=Scoring.SIGMOID,
        renormalize=True,
        renormalize_epsilon=DEEPSEEK_EPSILON,
        scaling_factor=keys.number(scaling_key, scaling),
    )


def _kimi_linear(keys: _Keys, top_k: int) -> Router:
    """DeepSeek-V3's under other names."""
    scoring = keys.word("moe_router_activation_func", "sigmoid")
    if scoring != "sigmoid":
        return Router(unknown=f"{scoring} scores")
    return _router(
        top_k,
        has_correction_bias=True,
        scoring=Scoring.SIGMOID,
        num_groups=keys.whole("num_expert_group", 1),
        topk_groups=keys.whole("topk_group", 1),
        group_score=GroupScore.TOP2_SUM,
        renormalize=keys.flag("moe_renormalize", True),
        renormalize_epsilon=DEEPSEEK_EPSILON,
        scaling_factor=keys.number("routed_scaling_factor", 2.446),
    )


def _mistral(keys: _Keys, top_k: int) -> Router:
    """Mistral 4 and Large 4: softmax, groups by their two best, no bias."""
    return _router(
        top_k,
        num_groups=keys.whole("n_group", 1),
        topk_groups=keys.whole("topk_group", 1),
        group_score=GroupScore.TOP2_SUM,
        renormalize=keys.flag("norm_topk_prob", True),
        renormalize_epsilon=DEEPSEEK_EPSILON,
        scaling_factor=keys.number("routed_scaling_factor", 1.0),
    )


def _cohere2(keys: _Keys, top_k: int) -> Router:
    name = keys.word("expert_selection_fn", "softmax")
    if name not in ("softmax", "sigmoid"):
        return Router(unknown=f"{name} of the chosen experts")
    is_divided = name == "sigmoid" and keys.flag("norm_topk_prob", True)
    return _router(top_k, scoring=Scoring(name), topk_before_scoring=True, renormalize=is_divided)


def _minimax_m2(keys: _Keys, top_k: int) -> Router:
    return _router(top_k, has_correction_bias=True, scoring=Scoring.SIGMOID, renormalize=True)


def _ernie(keys: _Keys, top_k: int) -> Router:
    lower_bound = keys.number("moe_norm_min", 1e-12)
    return _router(top_k, has_correction_bias=True, renormalize=True, renormalize_min=lower_bound)


def _lfm2(keys: _Keys, top_k: int) -> Router:
    return _router(
        top_k,
        has_correction_bias=keys.flag("use_expert_bias", True),
        scoring=Scoring.SIGMOID,
        renormalize=keys.flag("norm_topk_prob", True),
        renormalize_epsilon=1e-6,
        scaling_factor=keys.number("routed_scaling_factor", 1.0),
    )


def _dbrx(keys: _Keys, top_k: int) -> Router:
    """Weights are divided by their p-norm; null: they are not."""
    power = keys.number("moe_normalize_expert_weights", 1.0)
    is_divided = not keys.has_null("moe_normalize_expert_weights")
    if is_divided and power != 1.0:
        return Router(unknown=f"weights divided by their {power:g}-norm")
    return _router(top_k, renormalize=is_divided)


def _phimoe(keys: _Keys, top_k: int) -> Router:
    return _router(top_k, scoring=Scoring.SPARSEMIXER, jitter_eps=keys.number("router_jitter_noise", 0.01))


_RENORMALIZED = partial(_softmax, renormalize=True)
_TOPK_THEN_SOFTMAX = partial(_topk_first, scoring=Scoring.SOFTMAX)
_TOPK_THEN_SIGMOID = partial(_topk_first, scoring=Scoring.SIGMOID)
_DEEPSEEK_V3 = partial(_deepseek_v3, groups=(8, 4), scaling=2.5)

READERS: dict[str, _Reader] = {
    "mixtral": _RENORMALIZED,
    "qwen2_moe": partial(_softmax_with_key, renormalize=False),
    "qwen3_moe": partial(_softmax_with_key, renormalize=False),
    "qwen3_next": partial(_softmax_with_key, renormalize=True),
    "qwen3_5_moe": _RENORMALIZED,
    "qwen3_5_moe_text": _RENORMALIZED,
    "qwen3_vl_moe": _RENORMALIZED,
    "qwen3_vl_moe_text": _RENORMALIZED,
    "qwen3_omni_moe": partial(_softmax_with_key, renormalize=True),
    "qwen3_omni_moe_thinker": partial(_softmax_with_key, renormalize=True),
    "qwen3_omni_moe_text": partial(_softmax_with_key, renormalize=True),
    "deepseek": _deepseek,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "kimi_linear": _kimi_linear,
    "glm_moe_dsa": partial(_deepseek_v3, scaling=2.5),
    "mistral4": _mistral,
    "mistral_large4": _mistral,
    "mistral_large4_text": _mistral,
    "mimo_v2_flash": _deepseek_v3,
    "solar_open": _deepseek_v3,
    "exaone_moe": partial(_deepseek_v3, scaling=2.5),
    "hy_v3": partial(_sigmoid, scaling_key="router_scaling_factor", scaling=2.826),
    "afmoe": partial(_sigmoid, scaling_key="route_scale", scaling=1.0),
    "deepseek_v4": _deepseek_v4,
    "llama4": _TOPK_THEN_SIGMOID,
    "llama4_text": _TOPK_THEN_SIGMOID,
    "gpt_oss": _TOPK_THEN_SOFTMAX,
    "glm4_moe": _deepseek_v3,
    "glm4_moe_lite": partial(_deepseek_v3, scaling=1.8),
    "glm4v_moe": _deepseek_v3,
    "glm4v_moe_text": _deepseek_v3,
    "dots1": partial(_deepseek_v3, renormalize=False),
    "olmoe": partial(_softmax_with_key, renormalize=False),
    "flex_olmo": partial(_softmax_with_key, renormalize=False),
    "cohere2_moe": _cohere2,
    "phimoe": _phimoe,
    "granitemoe": _TOPK_THEN_SOFTMAX,
    "granitemoeshared": _TOPK_THEN_SOFTMAX,
    "granitemoehybrid": _TOPK_THEN_SOFTMAX,
    "minimax": _RENORMALIZED,
    "minimax_m2": _minimax_m2,
    "minimax_m3_vl": _minimax_m2,
    "minimax_m3_vl_text": _minimax_m2,
    "ernie4_5_moe": _ernie,
    "lfm2_moe": _lfm2,
    "jamba": partial(_softmax, renormalize=False),
    "dbrx": _dbrx,
    "nemotron_h": _deepseek_v3,
    "hunyuan_v1_moe": _RENORMALIZED,
}

# SPDX-License-Identifier: MIT
"""The model table and the reader of config.json."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jitmoe import models
from jitmoe.errors import ModelError, UnsupportedProblemError
from jitmoe.model_formats import NAMED, PLAIN
from jitmoe.model_routing import READERS, Router
from jitmoe.models import MODELS, find_model, model_of_config, read_config
from jitmoe.problems.formats import WHOLE, Encoding, InputQuant
from jitmoe.problems.fused_moe import Activation, DType, GateUp, Layout, MoEProblem
from jitmoe.problems.routing import Scoring

# What the MoE part of published config.json files says, and (H, I, E, k) of it.
CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "mixtral-8x7b": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8,
         "num_experts_per_tok": 2, "hidden_act": "silu", "torch_dtype": "bfloat16"},
        (4096, 14336, 8, 2),
    ),
    "qwen1.5-moe-a2.7b": (
        {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
         "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False, "shared_expert_intermediate_size": 5632,
         "hidden_act": "silu"},
        (2048, 1408, 60, 4),
    ),
    "qwen3-30b-a3b": (
        {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "hidden_act": "silu",
         "torch_dtype": "bfloat16"},
        (2048, 768, 128, 8),
    ),
    "qwen3.5-35b-a3b": (
        {"model_type": "qwen3_5_moe", "vision_config": {"hidden_size": 1152},
         "text_config": {"model_type": "qwen3_5_moe_text", "hidden_size": 2048, "moe_intermediate_size": 512,
                         "num_experts": 256, "num_experts_per_tok": 8, "shared_expert_intermediate_size": 512}},
        (2048, 512, 256, 8),
    ),
    "deepseek-v2-lite": (
        {"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "hidden_act": "silu",
         "scoring_func": "softmax", "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
         "routed_scaling_factor": 1.0},
        (2048, 1408, 64, 6),
    ),
    "deepseek-v2": (
        {"model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "hidden_act": "silu",
         "scoring_func": "softmax", "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3,
         "norm_topk_prob": False, "routed_scaling_factor": 16.0},
        (5120, 1536, 160, 6),
    ),
    "deepseek-v3": (
        {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
         "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "hidden_act": "silu",
         "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
         "routed_scaling_factor": 2.5},
        (7168, 2048, 256, 8),
    ),
    "kimi-k2": (
        {"model_type": "kimi_k2", "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 384,
         "n_shared_experts": 1, "num_experts_per_tok": 8, "hidden_act": "silu", "scoring_func": "sigmoid",
         "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
         "routed_scaling_factor": 2.827},
        (7168, 2048, 384, 8),
    ),
    "llama-4-scout": (
        {"model_type": "llama4", "text_config": {
            "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_local_experts": 16, "num_experts_per_tok": 1, "hidden_act": "silu", "torch_dtype": "bfloat16"}},
        (5120, 8192, 16, 1),
    ),
    "glm-4.5-air": (
        {"model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "hidden_act": "silu",
         "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
        (4096, 1408, 128, 8),
    ),
    "glm-4.7-flash": (
        {"model_type": "glm4_moe_lite", "hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536,
         "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4, "hidden_act": "silu"},
        (2048, 1536, 64, 4),
    ),
    "kimi-linear-48b-a3b": (
        {"model_type": "kimi_linear", "hidden_size": 2304, "intermediate_size": 9216, "moe_intermediate_size": 1024,
         "num_experts": 256, "num_shared_experts": 1, "num_experts_per_token": 8, "hidden_act": "silu"},
        (2304, 1024, 256, 8),
    ),
    "olmoe-1b-7b": (
        {"model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
         "num_experts_per_tok": 8, "norm_topk_prob": False, "hidden_act": "silu"},
        (2048, 1024, 64, 8),
    ),
    "phi-3.5-moe": (
        {"model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400, "num_local_experts": 16,
         "num_experts_per_tok": 2, "router_jitter_noise": 0.01, "hidden_act": "silu"},
        (4096, 6400, 16, 2),
    ),
    "granite-3.0-3b-a800m": (
        {"model_type": "granitemoe", "hidden_size": 1536, "intermediate_size": 512, "num_local_experts": 40,
         "num_experts_per_tok": 8, "hidden_act": "silu"},
        (1536, 512, 40, 8),
    ),
    "minimax-m2": (
        {"model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_local_experts": 256,
         "num_experts_per_tok": 8, "hidden_act": "silu"},
        (3072, 1536, 256, 8),
    ),
    "ernie-4.5-21b-a3b": (
        {"model_type": "ernie4_5_moe", "hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2, "moe_norm_min": 1e-12,
         "hidden_act": "silu"},
        (2560, 1536, 64, 6),
    ),
    "jamba-1.5-mini": (
        {"model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_experts": 16,
         "num_experts_per_tok": 2, "hidden_act": "silu"},
        (4096, 14336, 16, 2),
    ),
    "dbrx": (
        {"model_type": "dbrx", "d_model": 6144, "ffn_config": {
            "ffn_act_fn": {"name": "silu"}, "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
            "moe_normalize_expert_weights": 1}},
        (6144, 10752, 16, 4),
    ),
    "lfm2-8b-a1b": (
        {"model_type": "lfm2_moe", "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
         "num_experts": 32, "num_experts_per_tok": 4, "use_expert_bias": True, "norm_topk_prob": True,
         "routed_scaling_factor": 1.0},
        (2048, 1792, 32, 4),
    ),
}  # fmt: skip
MIXTRAL = CONFIGS["mixtral-8x7b"][0]
GPT_OSS = {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
           "experts_per_token": 4, "hidden_act": "silu", "swiglu_limit": 7.0}  # fmt: skip


def problem_of(config: dict[str, Any], **quantization: Any) -> MoEProblem:
    """What a config stands for, with that quantization_config."""
    whole = {**config, "quantization_config": quantization} if quantization else config
    return model_of_config(whole, name="x").problem(
        5, topk_ids_dtype=DType.INT32, topk_weights_dtype=DType.FP32, base_alignment=64
    )


def sizes(model: Any) -> tuple[int, int, int, int]:
    return model.hidden_size, model.intermediate_size, model.num_experts, model.top_k


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_sizes_of_the_table(name):
    config, expected = CONFIGS[name]
    model = model_of_config(config, name=name)
    assert sizes(model) == expected == sizes(MODELS[name])
    assert (model.w1_layout, model.w2_layout) == (MODELS[name].w1_layout, MODELS[name].w2_layout)
    assert model.activation == MODELS[name].activation == "silu"
    assert not model.obstacles
    assert model.router == MODELS[name].router
    shared = (model.num_shared_experts, model.has_shared_gate)
    assert shared == (MODELS[name].num_shared_experts, MODELS[name].has_shared_gate)


@pytest.mark.parametrize("kind", ["as it is", *NAMED])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_table_makes_a_dense_problem_in_every_format(name, kind):
    model = MODELS[name] if kind == "as it is" else dataclasses.replace(MODELS[name], formats=NAMED[kind])
    assert not model.obstacles
    problem = model.problem(5, topk_ids_dtype=DType.INT32, topk_weights_dtype=DType.FP32, base_alignment=64)
    assert problem.num_pairs == 5 * model.top_k
    dense = problem.resized(
        num_tokens=5, hidden_size=model.hidden_size, intermediate_size=model.intermediate_size,
        num_experts=model.num_experts, top_k=model.top_k,
    )  # fmt: skip
    assert problem == dense


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("DeepSeek_V3", "deepseek-v3"),
        ("zai-org/GLM-4.5-Air/", "glm-4.5-air"),
        ("allenai/OLMoE-1B-7B-0924-Instruct", "olmoe-1b-7b"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout"),
    ],
)
def test_published_spellings_are_understood(spelling, name):
    assert find_model(spelling) is MODELS[name]


def test_sizes_instead_of_a_name():
    model = find_model("H2048,I768,E128,k8")
    assert sizes(model) == (2048, 768, 128, 8)
    assert sizes(find_model("E=128 k=8 H=2048 I=768")) == sizes(model)
    with pytest.raises(ModelError, match="only E = 4"):
        find_model("H64,I64,E4,k8")


def test_a_typo_is_answered_with_near_names():
    with pytest.raises(ModelError) as caught:
        find_model("qwen3-30b")
    assert "qwen3-30b-a3b" in str(caught.value)


@pytest.mark.parametrize("what", ["H64,I96,E4", "H64,I96,E4,k2,X3", "H64,I96,E4,k0", "H64 H64 E4 k2", "H64"])
def test_sizes_that_are_not_complete(what):
    with pytest.raises(ModelError, match="sizes are H, I, E and k, each once"):
        find_model(what)


def test_a_quantized_checkpoint_is_not_taken_for_the_plain_one():
    with pytest.raises(ModelError, match=r"only its config.json says[\s\S]*qwen3-30b-a3b with --format"):
        find_model("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8")


def test_a_file_or_its_folder_is_read(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    assert sizes(find_model(str(tmp_path))) == sizes(find_model(str(tmp_path / "config.json"))) == (4096, 14336, 8, 2)


def test_a_model_in_the_local_hugging_face_cache_is_found(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    snapshot = tmp_path / "hub" / "models--someone--My-MoE" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    with pytest.raises(ModelError, match="no such model"):
        find_model("someone/My-MoE")
    (snapshot / "config.json").write_text(json.dumps(MIXTRAL))
    assert sizes(find_model("someone/My-MoE")) == (4096, 14336, 8, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[1]", "no JSON object"), ("{}", "no model_type"), (None, "cannot be read")],
)
def test_unreadable_files_are_explained(tmp_path: Path, text: str | None, words: str):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match=words):
        read_config(path)


def test_paths_that_are_not_there_are_no_model_names(tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ModelError, match=f"key {key}.* is missing"):
        model_of_config({name: value for name, value in MIXTRAL.items() if name != key}, name="x")


def test_the_dense_width_is_never_taken_for_the_experts():
    config, _ = CONFIGS["qwen3-30b-a3b"]
    with pytest.raises(ModelError, match="moe_intermediate_size is missing"):
        model_of_config({key: value for key, value in config.items() if key != "moe_intermediate_size"}, name="x")


@pytest.mark.parametrize("value", [[2, 4], "8", 0, True, 1.5])
def test_a_value_that_is_no_size_is_refused(value):
    with pytest.raises(ModelError, match="num_experts_per_tok is"):
        model_of_config({**MIXTRAL, "num_experts_per_tok": value}, name="x")


def test_an_unknown_model_type_is_refused_by_name():
    with pytest.raises(ModelError, match="model_type 'llama'"):
        model_of_config({"model_type": "llama", "hidden_size": 4096}, name="x")


@pytest.mark.parametrize(
    ("hidden_act", "activation"),
    [
        ("silu", "silu"),
        ("swish", "silu"),
        ("gelu", "gelu"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_new", "gelu_tanh"),
        ("relu2", "relu2"),
    ],
)
def test_activation_names(hidden_act, activation):
    model = model_of_config({**MIXTRAL, "hidden_act": hidden_act}, name="x")
    assert model.activation == Activation(activation).value


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "xielu"])
def test_an_activation_without_kernels_is_an_obstacle(hidden_act):
    model = model_of_config({**MIXTRAL, "hidden_act": hidden_act}, name="x")
    with pytest.raises(UnsupportedProblemError, match=f"activation {hidden_act}"):
        model.problem(1, topk_ids_dtype=DType.INT32, topk_weights_dtype=DType.FP32, base_alignment=1)


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"torch_dtype": "float16"}, DType.FP16),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, DType.FP32),
        ({"torch_dtype": "torch.bfloat16"}, DType.BF16),
        ({"torch_dtype": None}, DType.BF16),
        ({"torch_dtype": "auto"}, DType.BF16),
    ],
)
def test_dtype_keys(keys, dtype):
    config = {key: value for key, value in MIXTRAL.items() if key != "torch_dtype"}
    assert model_of_config({**config, **keys}, name="x").dtype is dtype


def test_a_dtype_without_kernels_is_refused():
    with pytest.raises(ModelError, match="float8_e4m3fn"):
        model_of_config({**MIXTRAL, "torch_dtype": "float8_e4m3fn"}, name="x")


def test_gpt_oss_has_all_its_features():
    plain = problem_of(GPT_OSS)
    assert (plain.activation, plain.swiglu_alpha, plain.swiglu_limit) == (Activation.SWIGLU_OAI, 1.702, 7.0)
    assert (plain.gate_up, plain.w1_bias_dtype, plain.w2_bias_dtype) == (GateUp.INTERLEAVED, DType.BF16, DType.BF16)
    assert (plain.w1_layout, plain.w1_stride, plain.w2_stride) == (Layout.KN, 2 * 2880, 2880)
    packed = problem_of(GPT_OSS, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    assert packed == MODELS["gpt-oss-20b"].problem(
        5, topk_ids_dtype=DType.INT32, topk_weights_dtype=DType.FP32, base_alignment=64
    )
    assert (packed.w1_layout, packed.w1_stride, packed.w1_expert_stride) == (Layout.NK, 1440, 1440 * 2 * 2880)
    assert packed.w1_quant is not None and packed.w1_quant.format == NAMED["mxfp4"].w1
    assert problem_of({**GPT_OSS, "swiglu_alpha": 1.5, "swiglu_limit": None}).swiglu_alpha == 1.5
    with pytest.raises(ModelError, match="swiglu_limit is -1, expected a number > 0"):
        problem_of({**GPT_OSS, "swiglu_limit": -1})


NEMOTRON = {"model_type": "nemotron_h", "hidden_size": 2688, "moe_intermediate_size": 1856, "n_routed_experts": 128,
            "num_experts_per_tok": 6, "mlp_hidden_act": "relu2"}  # fmt: skip


def test_minimax_m3_has_the_activation_of_gpt_oss_with_other_rows():
    config = {"model_type": "minimax_m3_vl", "text_config": {
        "model_type": "minimax_m3_vl_text", "hidden_size": 6144, "intermediate_size": 3072, "num_local_experts": 128,
        "num_experts_per_tok": 4, "hidden_act": "silu", "swiglu_alpha": 1.5}}  # fmt: skip
    problem = problem_of(config)
    assert (problem.activation, problem.swiglu_alpha, problem.swiglu_limit) == (Activation.SWIGLU_OAI, 1.5, 7.0)
    assert (problem.gate_up, problem.w1_layout, problem.w1_bias_dtype) == (GateUp.CONCATENATED, Layout.NK, None)


def test_experts_without_a_gate():
    problem = problem_of(NEMOTRON)
    assert (problem.activation, problem.gate_up) == (Activation.RELU2, GateUp.UNGATED)
    assert (problem.w1_rows, problem.w1_expert_stride) == (1856, 1856 * 2688)
    assert problem_of({**NEMOTRON, "moe_latent_size": 1024}).hidden_size == 1024
    assert problem_of({**NEMOTRON, "moe_latent_size": None}).hidden_size == 2688


def test_clamped_silu_and_separate_projections():
    config = {"model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048, "n_routed_experts": 256,
              "num_experts_per_tok": 6, "hidden_act": "silu", "swiglu_limit": 10.0}  # fmt: skip
    problem = problem_of(config)
    assert (problem.activation, problem.swiglu_limit, problem.w1_quant) == (Activation.SILU, 10.0, None)
    packed = problem_of({**config, "expert_dtype": "fp4"}, quant_method="fp8", weight_block_size=[128, 128])
    assert packed.w1_quant is not None and packed.w1_quant.format == NAMED["mxfp4"].w1
    dbrx = problem_of(CONFIGS["dbrx"][0])
    assert (dbrx.gate_up, dbrx.w1_layout, dbrx.w2_layout) == (GateUp.SEPARATE, Layout.NK, Layout.KN)
    assert (dbrx.w1_expert_stride, dbrx.w2_stride) == (10752 * 6144, 6144)


def test_sizes_per_layer_are_taken_if_they_are_the_same():
    config = {"model_type": "hunyuan_v1_moe", "hidden_size": 4096, "intermediate_size": 3072, "num_experts": 64,
              "moe_topk": [8, 8, 8], "hidden_act": "silu"}  # fmt: skip
    assert problem_of(config).top_k == 8
    with pytest.raises(ModelError, match="moe_topk is"):
        problem_of({**config, "moe_topk": [8, 4]})


_CHANNEL = {"num_bits": 8, "strategy": "channel", "symmetric": True}
_TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": weights, "input_activations": inputs}},
    }


_WORDS = {"format": "pack-quantized"}

# (quantization_config, encoding, scale dtype, block of w1, zero points, k-order, inputs)
QUANTIZED: dict[str, tuple[dict[str, Any], Any]] = {
    "fp8 blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        (Encoding.E4M3, DType.FP32, (128, 128), False, False, None),
    ),
    "fp8": ({"quant_method": "fp8"}, (Encoding.E4M3, DType.FP32, (WHOLE, WHOLE), False, False, None)),
    "mxfp4": ({"quant_method": "mxfp4"}, (Encoding.E2M1, DType.E8M0, (1, 32), False, False, None)),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
        (Encoding.UINT4, DType.FP16, (1, 128), False, False, None),
    ),
    "gptq with order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": True},
        (Encoding.UINT4, DType.FP16, (1, 64), True, True, None),
    ),
    "gptq of whole rows": (
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True},
        (Encoding.UINT4, DType.FP16, (1, WHOLE), False, False, None),
    ),
    "gptq of 8 bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True, "desc_act": True},
        (Encoding.INT8, DType.FP16, (1, 128), False, True, None),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        (Encoding.UINT4, DType.FP16, (1, 128), True, False, None),
    ),
    "int8 w8a8": (
        compressed({**_CHANNEL, "type": "int"}, _TOKENS),
        (Encoding.INT8, DType.BF16, (1, WHOLE), False, False, InputQuant.INT8),
    ),
    "int8 w8a16": (
        compressed({**_CHANNEL, "type": "int"}, None),
        (Encoding.INT8, DType.BF16, (1, WHOLE), False, False, None),
    ),
    "fp8 per channel": (
        compressed({**_CHANNEL, "type": "float"}, _TOKENS),
        (Encoding.E4M3, DType.BF16, (1, WHOLE), False, False, None),
    ),
    "int8 in words": (
        {**compressed({"num_bits": 8, "type": "int", "strategy": "group", "group_size": 64}, None), **_WORDS},
        (Encoding.INT8, DType.BF16, (1, 64), False, False, None),
    ),
    "int4 in words": (
        {**compressed({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, None), **_WORDS},
        (Encoding.UINT4, DType.BF16, (1, 32), False, False, None),
    ),
    "int4 in words, per channel": (
        {**compressed({"num_bits": 4, "type": "int", "strategy": "channel"}, None), **_WORDS},
        (Encoding.UINT4, DType.BF16, (1, WHOLE), False, False, None),
    ),
    "int4 in words with zero points and order": (
        {
            **compressed(
                {
                    "num_bits": 4,
                    "type": "int",
                    "strategy": "group",
                    "group_size": 128,
                    "symmetric": False,
                    "actorder": "group",
                },
                None,
            ),
            **_WORDS,
        },
        (Encoding.UINT4, DType.BF16, (1, 128), True, True, None),
    ),
    "int4 in words, ordered for calibration only": (
        {
            **compressed(
                {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "actorder": "static"}, None
            ),
            **_WORDS,
        },
        (Encoding.UINT4, DType.BF16, (1, 128), False, False, None),
    ),
    "compressed mxfp4": (
        {
            **compressed({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, None),
            "format": "mxfp4-pack-quantized",
        },
        (Encoding.E2M1, DType.E8M0, (1, 32), False, False, None),
    ),
    "compressed mxfp8": (
        {
            **compressed({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}, None),
            "format": "mxfp8-quantized",
        },
        (Encoding.E4M3, DType.E8M0, (1, 32), False, False, None),
    ),
    "fp8 in compressed blocks": (
        compressed({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 128]}, _TOKENS),
        (Encoding.E4M3, DType.BF16, (64, 128), False, False, None),
    ),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantization_configs_become_formats(kind):
    config, (encoding, scale, block, has_zero_point, has_order, inputs) = QUANTIZED[kind]
    problem = problem_of(MIXTRAL, **config)
    assert problem.w1_quant is not None and problem.w2_quant is not None
    form, other = problem.w1_quant.format, problem.w2_quant.format
    assert (form.encoding, form.scale_dtype, (form.block_n, form.block_k)) == (encoding, scale, block)
    assert (form.has_zero_point, form.has_k_order, problem.input_quant) == (has_zero_point, has_order, inputs)
    assert other == dataclasses.replace(form, has_k_order=False)
    nested, _ = CONFIGS["llama-4-scout"]
    assert problem_of(nested, **config).w2_quant is not None  # where multimodal configs have it


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": False}, "gptq 8 bits groups of 128"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq 3 bits groups of 128"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "awq 4 bits groups of 128"),
        ({"quant_method": "fp8", "weight_block_size": "all"}, "fp8 blocks of all"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_algo": "NVFP4"}, "NVFP4"),
        (
            {
                **compressed({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, None),
                "format": "nvfp4-pack-quantized",
            },
            "compressed-tensors nvfp4-pack-quantized",
        ),
        (
            {**compressed({"num_bits": 4, "type": "int", "strategy": "channel"}, _TOKENS), "format": "int-quantized"},
            "compressed-tensors int-quantized",
        ),
        (
            {**compressed({"num_bits": 3, "type": "int", "strategy": "channel"}, None), **_WORDS},
            "compressed-tensors pack-quantized",
        ),
        (
            {**compressed({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}, None), **_WORDS},
            "compressed-tensors pack-quantized",
        ),
        (
            {**compressed({"num_bits": 4, "type": "int", "strategy": "group"}, None), **_WORDS},
            "compressed-tensors pack-quantized",
        ),
        (compressed({**_CHANNEL, "type": "int"}, {"num_bits": 8, "dynamic": False}), "compressed-tensors"),
        ("x", "quantization_config = 'x'"),
        (["fp8"], "quantization_config = ['fp8']"),
    ],
)
def test_formats_that_no_loader_reads_are_an_obstacle_in_words(config, words):
    model = model_of_config({**MIXTRAL, "quantization_config": config}, name="x")
    assert model.obstacles == (f"weights quantized as {words}: no loader reads this format",)
    with pytest.raises(UnsupportedProblemError, match=re.escape(words)):
        model.check()


@pytest.mark.parametrize("nothing", [None, {}, ""], ids=repr)
def test_an_empty_quantization_config_means_plain_weights(nothing):
    assert model_of_config({**MIXTRAL, "quantization_config": nothing}, name="x").formats == PLAIN


def test_experts_that_were_left_out_of_quantization_are_plain():
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    left_out = {**config, "modules_to_not_convert": ["model.layers.0.mlp.experts"]}
    assert model_of_config({**MIXTRAL, "quantization_config": left_out}, name="x").formats == PLAIN
    shared = {**config, "ignore": ["re:.*shared_experts.*", "lm_head"]}
    assert problem_of(MIXTRAL, **shared).w1_quant is not None


def router_of(model: str, **changes: Any) -> Router:
    """The router of a published config with other keys; None removes one."""
    config = {**CONFIGS[model][0], **changes}
    return model_of_config({key: value for key, value in config.items() if value is not None}, name="x").router


def test_every_family_has_a_router():
    assert set(READERS) == set(models._FAMILIES)


def test_routers_in_words():
    assert str(MODELS["deepseek-v3"].router) == (
        "sigmoid, then top-k, in 4 of 8 groups by top2_sum, renormalized, times 2.5, correction bias"
    )
    assert str(MODELS["gpt-oss-20b"].router) == "top-k, then softmax"
    assert str(find_model("H64,I64,E4,k2").router) == "not known"


@pytest.mark.parametrize(
    ("model", "changes", "field", "value"),
    [
        ("qwen3-30b-a3b", {"norm_topk_prob": None}, "renormalize", False),
        ("qwen3-30b-a3b", {"model_type": "qwen3_next", "norm_topk_prob": None}, "renormalize", True),
        ("deepseek-v3", {"n_group": None, "topk_group": None}, "num_groups", 8),
        ("deepseek-v3", {"topk_group": 2}, "topk_groups", 2),
        ("deepseek-v2", {"topk_method": None}, "num_groups", 1),
        ("glm-4.5-air", {"routed_scaling_factor": None}, "scaling_factor", 1.0),
        ("glm-4.5-air", {"model_type": "glm_moe_dsa", "routed_scaling_factor": None}, "scaling_factor", 2.5),
        ("glm-4.5-air", {"model_type": "dots1", "norm_topk_prob": None}, "renormalize", False),
        ("glm-4.5-air", {"model_type": "deepseek_v4"}, "scoring", Scoring.SQRT_SOFTPLUS),
        ("ernie-4.5-21b-a3b", {"moe_norm_min": 0.5}, "renormalize_min", 0.5),
        ("phi-3.5-moe", {"router_jitter_noise": None}, "jitter_eps", 0.01),
        ("kimi-linear-48b-a3b", {"num_expert_group": 4, "topk_group": 2}, "num_groups", 4),
        ("kimi-linear-48b-a3b", {"moe_renormalize": False}, "renormalize", False),
        (
            "olmoe-1b-7b",
            {"model_type": "cohere2_moe", "expert_selection_fn": "sigmoid", "norm_topk_prob": None},
            "renormalize",
            True,
        ),
        ("olmoe-1b-7b", {"model_type": "cohere2_moe"}, "scoring", Scoring.SOFTMAX),
        ("glm-4.5-air", {"model_type": "afmoe", "route_scale": 2.5}, "scaling_factor", 2.5),
        ("glm-4.5-air", {"model_type": "hy_v3"}, "scaling_factor", 2.826),
    ],
)
def test_routing_keys_and_their_defaults(model, changes, field, value):
    assert getattr(router_of(model, **changes).routing, field) == value


def test_correction_biases_are_known():
    assert [name for name, model in MODELS.items() if model.router.has_correction_bias] == [
        *("deepseek-v3", "kimi-k2", "moonlight-16b-a3b", "glm-4.5", "glm-4.5-air", "glm-4.7-flash", "glm-5"),
        *("kimi-linear-48b-a3b", "mimo-v2-flash", "minimax-m2"),
        *("ernie-4.5-21b-a3b", "ernie-4.5-300b-a47b", "lfm2-8b-a1b"),
    ]
    assert not router_of("lfm2-8b-a1b", use_expert_bias=False).has_correction_bias


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("deepseek-v3", {"scoring_func": "softmax"}, "softmax scores with topk_method noaux_tc"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "softmax scores with topk_method noaux_tc"),
        ("glm-4.5-air", {"model_type": "deepseek_v4", "scoring_func": "tanh"}, "tanh scores"),
        ("deepseek-v3", {"n_group": 7}, "num_groups: expected a divisor of E = 256, got 7"),
        ("deepseek-v3", {"topk_group": 9}, "topk_groups: expected a whole number from 1 to 8, got 9"),
        ("kimi-linear-48b-a3b", {"moe_router_activation_func": "softmax"}, "softmax scores"),
        ("olmoe-1b-7b", {"model_type": "cohere2_moe", "expert_selection_fn": "relu"}, "relu of the chosen experts"),
        ("mixtral-8x7b", {"num_local_experts": 64, "num_experts_per_tok": 33}, "top_k: expected"),
        ("mixtral-8x7b", {"num_local_experts": 2048}, "expected 1 to 1024 experts, got E = 2048"),
    ],
)
def test_a_router_that_jitmoe_does_not_have_is_known_in_words(model, changes, words):
    router = router_of(model, **changes)
    assert router.routing is None
    assert words in router.unknown


def test_dbrx_divides_by_a_norm_of_the_weights():
    config = CONFIGS["dbrx"][0]

    def with_norm(**norm: Any) -> Router:
        part = {key: value for key, value in config["ffn_config"].items() if key != "moe_normalize_expert_weights"}
        return model_of_config({**config, "ffn_config": {**part, **norm}}, name="x").router

    assert with_norm() == MODELS["dbrx"].router
    plain = with_norm(moe_normalize_expert_weights=None).routing
    assert plain is not None and not plain.renormalize
    assert with_norm(moe_normalize_expert_weights=2.0).unknown == "weights divided by their 2-norm"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("norm_topk_prob", 1, "true or false"),
        ("n_group", 0, "a whole number"),
        ("n_group", 8.0, "a whole number"),
        ("topk_group", True, "a whole number"),
        ("routed_scaling_factor", "2.5", "a number"),
        ("routed_scaling_factor", float("nan"), "a number"),
        ("scoring_func", 3, "a name"),
    ],
)
def test_a_routing_key_that_makes_no_sense_is_refused(key, value, expected):
    with pytest.raises(ModelError, match=f"{key} is .*, expected {expected}"):
        router_of("deepseek-v3", **{key: value})


def test_routers_see_the_experts_of_all_ranks():
    rank = MODELS["deepseek-v3"].sharded(expert_parallel=8)
    problem = rank.routing_problem(3, logits_dtype=DType.BF16, ids_dtype=DType.INT32)
    assert (problem.num_experts, problem.logits_row_stride, problem.bias_dtype) == (256, 256, DType.FP32)
    fused = rank.with_shared_experts()
    assert (fused.num_experts, fused.num_global_experts, fused.top_k) == (33, 257, 9)
    adjusted = rank.adjust_problem(3, ids_dtype=DType.INT32, weights_dtype=DType.BF16)
    assert (adjusted.first_shared_expert, adjusted.num_slots, adjusted.shared_dtype) == (256, 9, None)
    gated = MODELS["qwen3-next-80b-a3b"].adjust_problem(3, ids_dtype=DType.INT32, weights_dtype=DType.BF16)
    assert gated.shared_dtype is DType.BF16


def test_shards():
    model = MODELS["qwen3-30b-a3b"]
    assert model.sharded(tensor_parallel=4).intermediate_size == 192
    rank = model.sharded(expert_parallel=8)
    assert (rank.num_experts, rank.num_global_experts) == (16, 128)
    with pytest.raises(ModelError, match="I = 768 cannot be split"):
        model.sharded(tensor_parallel=7)


def test_llama4_weights_are_transposed_and_the_router_weight_is_on_the_input():
    problem = problem_of(CONFIGS["llama-4-scout"][0])
    assert (problem.w1_layout, problem.w1_stride, problem.w2_stride) == (Layout.KN, 2 * 8192, 5120)
    assert problem.router_weight_on_input

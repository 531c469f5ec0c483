# SPDX-License-Identifier: MIT
"""The model table and the reader of config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jitmoe.errors import UnsupportedProblemError
from jitmoe.models import MODELS, ModelError, find_model, model_of_config, read_config
from jitmoe.problem import Activation, DType, Layout

# What the MoE part of published config.json files says, and (H, I, E, k) of it.
CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "mixtral-8x7b": (
        {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8,
         "num_experts_per_tok": 2, "hidden_act": "silu", "torch_dtype": "bfloat16"},
        (4096, 14336, 8, 2),
    ),
    "qwen1.5-moe-a2.7b": (
        {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
         "num_experts": 60, "num_experts_per_tok": 4, "shared_expert_intermediate_size": 5632, "hidden_act": "silu"},
        (2048, 1408, 60, 4),
    ),
    "qwen3-30b-a3b": (
        {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
         "num_experts": 128, "num_experts_per_tok": 8, "hidden_act": "silu", "torch_dtype": "bfloat16"},
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
         "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "hidden_act": "silu"},
        (2048, 1408, 64, 6),
    ),
    "kimi-k2": (
        {"model_type": "kimi_k2", "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 384,
         "n_shared_experts": 1, "num_experts_per_tok": 8, "hidden_act": "silu"},
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
         "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "hidden_act": "silu"},
        (4096, 1408, 128, 8),
    ),
    "olmoe-1b-7b": (
        {"model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
         "num_experts_per_tok": 8, "hidden_act": "silu"},
        (2048, 1024, 64, 8),
    ),
    "phi-3.5-moe": (
        {"model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400, "num_local_experts": 16,
         "num_experts_per_tok": 2, "hidden_act": "silu"},
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
         "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2, "hidden_act": "silu"},
        (2560, 1536, 64, 6),
    ),
    "jamba-1.5-mini": (
        {"model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_experts": 16,
         "num_experts_per_tok": 2, "hidden_act": "silu"},
        (4096, 14336, 16, 2),
    ),
    "dbrx": (
        {"model_type": "dbrx", "d_model": 6144, "ffn_config": {
            "ffn_act_fn": {"name": "silu"}, "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}},
        (6144, 10752, 16, 4),
    ),
    "lfm2-8b-a1b": (
        {"model_type": "lfm2_moe", "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
         "num_experts": 32, "num_experts_per_tok": 4},
        (2048, 1792, 32, 4),
    ),
}  # fmt: skip
MIXTRAL = CONFIGS["mixtral-8x7b"][0]


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


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_table_makes_a_problem_or_says_why_not(name):
    model = MODELS[name]
    if model.obstacles:
        with pytest.raises(UnsupportedProblemError, match=name):
            model.check()
        return
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


def test_a_quantized_checkpoint_is_not_taken_for_the_plain_one():
    with pytest.raises(ModelError, match="no kernels for that format yet"):
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
    ],
)
def test_activation_names(hidden_act, activation):
    model = model_of_config({**MIXTRAL, "hidden_act": hidden_act}, name="x")
    assert model.activation == Activation(activation).value


@pytest.mark.parametrize("hidden_act", ["relu2", "quick_gelu", "xielu"])
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


def test_gpt_oss_is_refused_with_every_reason():
    model = model_of_config(
        {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
         "experts_per_token": 4, "hidden_act": "silu", "quantization_config": {"quant_method": "mxfp4"}},
        name="gpt-oss",
    )  # fmt: skip
    assert sizes(model) == sizes(MODELS["gpt-oss-20b"])
    assert model.obstacles == MODELS["gpt-oss-20b"].obstacles
    assert [word for word in ("swiglu_oai", "interleaved", "biases", "mxfp4") if word in " ".join(model.obstacles)] == [
        "swiglu_oai", "interleaved", "biases", "mxfp4",
    ]  # fmt: skip


def test_experts_without_a_gate_are_refused():
    model = model_of_config(
        {"model_type": "nemotron_h", "hidden_size": 2688, "moe_intermediate_size": 1856, "n_routed_experts": 128,
         "num_experts_per_tok": 6, "mlp_hidden_act": "relu2"},
        name="nemotron",
    )  # fmt: skip
    assert len(model.obstacles) == 2


def test_quantized_weights_are_an_obstacle_that_says_the_format():
    quantized = {**MIXTRAL, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert "fp8 blocks of 128x128" in model_of_config(quantized, name="x").obstacles[0]
    nested, _ = CONFIGS["llama-4-scout"]
    outer = {**nested, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    assert "gptq 4 bits groups of 128" in model_of_config(outer, name="x").obstacles[0]


def test_shards():
    model = MODELS["qwen3-30b-a3b"]
    assert model.sharded(tensor_parallel=4).intermediate_size == 192
    rank = model.sharded(expert_parallel=8)
    assert (rank.num_experts, rank.num_global_experts) == (16, 128)
    with pytest.raises(ModelError, match="I = 768 cannot be split"):
        model.sharded(tensor_parallel=7)


def test_llama4_weights_are_transposed_and_the_note_says_where_the_router_weight_goes():
    model = model_of_config(CONFIGS["llama-4-scout"][0], name="x")
    assert model.w1_layout is Layout.KN
    problem = model.problem(1, topk_ids_dtype=DType.INT32, topk_weights_dtype=DType.FP32, base_alignment=1)
    assert (problem.w1_stride, problem.w2_stride) == (2 * 8192, 5120)
    assert "multiplies the input" in model.note

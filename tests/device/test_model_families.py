# SPDX-License-Identifier: MIT
"""Routing and experts of real models: the MoE blocks of transformers give the same with jitmoe inside.

Blocks are tiny and random, nothing is downloaded. docs/models.md lists what is checked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jitmoe
from jitmoe import pipeline
from jitmoe.models import model_of_config
from jitmoe.problems.fused_moe import DType
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import stream_of

transformers = pytest.importorskip("transformers", reason="needs transformers (the test extra)")

from helpers import model_families  # noqa: E402
from helpers.model_families import (  # noqa: E402
    FAMILIES,
    FORMATS,
    inputs,
    make,
    output,
    replaced,
    requantized,
    rounded_inputs,
)

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
# Relative Frobenius error. Blocks round between all steps to bf16, jitmoe does once.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMOE_STRICT", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def same_choice(seen: model_families.Seen, dtype: torch.dtype) -> torch.Tensor:
    """Returns the tokens that a router treats the same; where it computes in bf16, the others were ties for it."""
    (choice,) = seen.chosen
    same = choice.same()
    if dtype is torch.float32:
        assert same.all()
    else:
        theirs, ours = (choice.values(ids)[~same] for ids in (choice.theirs, choice.ours))
        torch.testing.assert_close(theirs, ours, rtol=2**-7, atol=0)
        same &= ~choice.at_the_limit()
        assert same.double().mean() >= 0.8
    return same


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_gives_the_same_with_jitmoe_inside(name, dtype):
    block, _ = make(name, dtype)
    x = inputs(dtype)
    expected = output(block(x))
    with replaced(name, block) as seen:
        result = output(block(x))
    assert len(seen.calls) == len(seen.chosen) == 1
    rows = same_choice(seen, dtype)
    found = error(result[rows], expected[rows])
    assert found <= TOLERANCES[dtype], found
    assert torch.equal(output(block(x)), expected)  # the block is its own again


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, family in FAMILIES.items() for kind in family.formats]
)
def test_quantized_experts_give_what_the_dequantized_ones_give(name, kind):
    block, _ = make(name, torch.float32)
    weights = requantized(block, kind)
    x = inputs(torch.bfloat16).float()
    with_plain_inputs = output(block(x))
    with rounded_inputs(block, kind):
        expected = output(block(x))
    input_quant = FORMATS[kind].input_quant
    with replaced(name, block, weights=weights, input_quant=input_quant, dtype=torch.bfloat16) as seen:
        result = output(block(x))
    same_choice(seen, torch.float32)
    found = error(result, expected)
    assert found <= (2.5e-3 if input_quant else 1e-2), found
    assert error(with_plain_inputs, output(make(name, torch.float32)[0](x))) > 3e-3  # the format is in the weights
    assert (5e-3 < error(with_plain_inputs, expected) < 5e-2) == bool(input_quant)  # and in the inputs


# What jitmoe.model_routing reads besides E and k.
ROUTING_KEYS = {
    *("norm_topk_prob", "n_group", "topk_group", "routed_scaling_factor", "scoring_func", "topk_method"),
    *("moe_norm_min", "use_expert_bias", "moe_normalize_expert_weights", "router_jitter_noise", "moe_renormalize"),
    *("num_expert_group", "router_scaling_factor", "route_scale", "expert_selection_fn"),
}


# What config.json files say of checkpoints in these formats.
QUANTIZATION_CONFIGS = {
    "fp8 in 128x128 blocks": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "int8 with int8 inputs": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
            }
        },
    },
    "int4 of compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
                "input_activations": None,
            }
        },
    },
    "mxfp4": {"quant_method": "mxfp4"},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, family in FAMILIES.items()
        for kind in ("", *family.formats)
        if kind in ("", *QUANTIZATION_CONFIGS)
    ],
)
def test_warmup_compiles_what_the_call_asks_for(name, kind):
    """The problem that a family's config.json stands for has the plan of the call that its block makes."""
    block, config = make(name, torch.bfloat16)
    weights, input_quant = (requantized(block, kind), FORMATS[kind].input_quant) if kind else (None, "")
    with replaced(name, block, weights=weights, input_quant=input_quant) as seen:
        block(inputs(torch.bfloat16))
    ((arguments, options),) = seen.calls
    quantization = {"quantization_config": QUANTIZATION_CONFIGS[kind]} if kind else {}
    model = model_of_config({**config.to_dict(), "dtype": "bfloat16", **quantization}, name=name)
    problem = model.problem(
        arguments[0].shape[0],
        topk_ids_dtype=DType.INT64,
        topk_weights_dtype={torch.float32: DType.FP32, torch.bfloat16: DType.BF16}[arguments[3].dtype],
        base_alignment=1,
    )
    device = stream_of(cpu.default_queue().addressof_ref()).device
    assert pipeline.explain(problem, device) == jitmoe.explain(jitmoe.fused_moe, *arguments, **options)


def without_routing_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_routing_keys(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ROUTING_KEYS
    }


@pytest.mark.parametrize("with_keys", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_says_how_its_block_routes(name, with_keys):
    """Without the keys of routing, a config means the defaults of transformers' class."""
    family = FAMILIES[name]
    block, config = make(name, torch.float32, family.settings if with_keys else without_routing_keys(family.settings))
    routing, bias = family.routing(getattr(block, family.gate), block)
    said = config.to_dict()
    router = model_of_config(said if with_keys else without_routing_keys(said), name=name).router
    assert (router.routing, router.has_correction_bias) == (routing, bias is not None)


def test_the_documentation_lists_these_families():
    text = DOCS.read_text()
    assert f"transformers {transformers.__version__}" in text
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        model_families.described(name) for name in FAMILIES
    ]

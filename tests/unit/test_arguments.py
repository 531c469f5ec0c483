# SPDX-License-Identifier: MIT
"""Argument checks: every refusal names the argument, what came and what was expected."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.builders import tensor_info, tensor_infos
from hypothesis import given
from hypothesis import strategies as st

from jitmoe.arguments.fused_moe import FusedMoEOptions, fused_moe_problem
from jitmoe.errors import ArgumentError
from jitmoe.options import check_member
from jitmoe.problems.fused_moe import Activation, DType, Layout


def check(*, look_at_addresses: bool = False, **changes):
    return fused_moe_problem(
        tensor_infos(**changes), FusedMoEOptions(Activation.SILU), look_at_addresses=look_at_addresses
    )


def strided(shape, strides, dtype=DType.BF16, **changes):
    return tensor_info(shape, dtype, strides=strides, **changes)


REFUSED = [
    # rank
    ("rank 1", "hidden_states", {"hidden_states": tensor_info((64,))}, ["[64]", "[M, H] or [B, S, H]"]),
    ("rank 4", "hidden_states", {"hidden_states": tensor_info((1, 1, 5, 64))}, ["[1, 1, 5, 64]"]),
    ("rank 0", "hidden_states", {"hidden_states": tensor_info(())}, ["[]"]),
    ("rank 2", "w1", {"w1": tensor_info((64, 64))}, ["[64, 64]", "[E, 2*I, H]"]),
    ("rank 4", "w2", {"w2": tensor_info((1, 4, 64, 32))}, ["[E, H, I]"]),
    ("rank 1", "topk_ids", {"topk_ids": tensor_info((5,), DType.INT64)}, ["[5]", "[M, k]"]),
    ("rank 3", "topk_weights", {"topk_weights": tensor_info((5, 2, 1), DType.FP32)}, ["[M, k]"]),
    ("rank 2", "expert_map", {"expert_map": tensor_info((2, 4), DType.INT32)}, ["[2, 4]"]),
    ("rank", "out", {"out": tensor_info((5, 64, 1))}, ["[5, 64, 1]", "[5, 64]"]),
    # dtype
    ("fp64", "hidden_states", {"hidden_states": tensor_info((5, 64), DType.FP64)}, ["fp64", "bf16, fp16, fp32"]),
    ("int8", "hidden_states", {"hidden_states": tensor_info((5, 64), None)}, ["torch.int8", "bf16, fp16, fp32"]),
    ("other dtype", "w1", {"w1": tensor_info((4, 64, 64), DType.FP16)}, ["fp16", "bf16"]),
    ("other dtype", "w2", {"w2": tensor_info((4, 64, 32), DType.FP32)}, ["fp32", "bf16"]),
    ("other dtype", "out", {"out": tensor_info((5, 64), DType.FP32)}, ["fp32", "bf16"]),
    ("int8", "topk_ids", {"topk_ids": tensor_info((5, 2), None)}, ["torch.int8", "int32, int64"]),
    ("float", "topk_ids", {"topk_ids": tensor_info((5, 2), DType.FP32)}, ["fp32", "int32, int64"]),
    ("int", "topk_weights", {"topk_weights": tensor_info((5, 2), DType.INT32)}, ["int32", "bf16, fp16, fp32, fp64"]),
    ("int64", "expert_map", {"expert_map": tensor_info((8,), DType.INT64)}, ["int64", "int32"]),
    # shape
    ("H of w1", "w1", {"w1": tensor_info((4, 64, 63))}, ["[4, 64, 63]", "H = 64"]),
    ("odd rows", "w1", {"w1": tensor_info((4, 63, 64))}, ["[4, 63, 64]", "2*I"]),
    ("no rows", "w1", {"w1": tensor_info((4, 0, 64))}, ["[4, 0, 64]", "I >= 1"]),
    ("no experts", "w1", {"w1": tensor_info((0, 64, 64))}, ["[0, 64, 64]", "E"]),
    ("H = 0", "hidden_states", {"hidden_states": tensor_info((5, 0))}, ["[5, 0]", "H >= 1"]),
    ("E of w2", "w2", {"w2": tensor_info((5, 64, 32))}, ["[5, 64, 32]", "[4, 64, 32] (or"]),
    ("I of w2", "w2", {"w2": tensor_info((4, 64, 48))}, ["[4, 64, 48]", "[4, 64, 32] (or"]),
    ("transposed w2", "w2", {"w2": tensor_info((4, 32, 64))}, ["[4, 32, 64]", "[4, 64, 32] (or"]),
    ("k = 0", "topk_ids", {"k": 0}, ["[5, 0]", "k"]),
    ("k too large", "topk_ids", {"m": 1, "k": 40000}, ["[1, 40000]", "32767"]),
    ("M of ids", "topk_ids", {"topk_ids": tensor_info((4, 2), DType.INT64)}, ["[4, 2]", "M = 5"]),
    ("shape of weights", "topk_weights", {"topk_weights": tensor_info((5, 3), DType.FP32)}, ["[5, 3]", "[5, 2]"]),
    ("M of out", "out", {"out": tensor_info((4, 64))}, ["[4, 64]", "[5, 64]"]),
    ("too many pairs", "topk_ids",
     {"hidden_states": tensor_info((2**30, 64)), "out": tensor_info((2**30, 64)),
      "topk_ids": tensor_info((2**30, 2), DType.INT64), "topk_weights": tensor_info((2**30, 2), DType.FP32)},
     [str(2**31), str(2**31 - 1)]),
    # device
    *((f"{name} elsewhere", name, {name: dataclasses.replace(info, place="torch xpu:0")}, ["torch xpu:0", "torch cpu"])
      for name, info in {**tensor_infos(), "expert_map": tensor_info((8,), DType.INT32)}.items()
      if name != "hidden_states"),
    # strides
    ("columns apart", "hidden_states", {"hidden_states": strided((5, 64), (128, 2))}, ["(128, 2)", "unit stride"]),
    ("transposed", "hidden_states", {"hidden_states": strided((5, 64), (1, 5))}, ["(1, 5)", "unit stride"]),
    ("transposed", "out", {"out": strided((5, 64), (1, 5))}, ["(1, 5)", "unit stride"]),
    ("overlapping rows", "out", {"out": strided((5, 64), (63, 1))}, ["(63, 1)", "do not overlap"]),
    ("one row for all", "out", {"out": strided((5, 64), (0, 1))}, ["(0, 1)", "do not overlap"]),
    ("uneven rows", "hidden_states",
     {"hidden_states": strided((2, 3, 64), (1000, 64, 1)), "out": tensor_info((2, 3, 64)),
      "topk_ids": tensor_info((6, 2), DType.INT64), "topk_weights": tensor_info((6, 2), DType.FP32)},
     ["(1000, 64, 1)", "evenly spaced"]),
    ("overlapping batches", "out",
     {"hidden_states": tensor_info((2, 1, 64)), "out": strided((2, 1, 64), (32, 64, 1)),
      "topk_ids": tensor_info((2, 2), DType.INT64), "topk_weights": tensor_info((2, 2), DType.FP32)},
     ["(32, 64, 1)", "do not overlap"]),
    ("neither dense", "w1", {"w1": strided((4, 64, 64), (16384, 128, 2))}, ["(16384, 128, 2)", "unit stride"]),
    ("neither dense", "w2", {"w2": strided((4, 64, 32), (16384, 128, 2))}, ["(16384, 128, 2)", "unit stride"]),
    ("negative", "w2", {"w2": strided((4, 64, 32), (-2048, 32, 1))}, ["(-2048, 32, 1)", ">= 0"]),
    ("ids apart", "topk_ids", {"topk_ids": strided((5, 2), (4, 2), DType.INT64)}, ["(4, 2)", "unit stride"]),
    ("weights apart", "topk_weights", {"topk_weights": strided((5, 2), (1, 5), DType.FP32)}, ["(1, 5)"]),
    ("map apart", "expert_map", {"expert_map": strided((8,), (2,), DType.INT32)}, ["(2,)", "dense"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "changes", "parts"),
    [pytest.param(*case[1:], id=f"{case[1]}-{case[0]}") for case in REFUSED],
)
def test_refusals(argument, changes, parts):
    with pytest.raises(ArgumentError) as refused:
        check(**changes)
    assert refused.value.argument == argument
    for part in parts:
        assert part in str(refused.value), str(refused.value)


@pytest.mark.parametrize("value", ["swish", "", "SILU", None, 3, ["silu"]])
def test_activations_that_are_none(value):
    with pytest.raises(ArgumentError, match="activation: expected one of silu, gelu, gelu_tanh") as refused:
        check_member("activation", value, Activation)
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("value", ["silu", "gelu", "gelu_tanh", Activation.GELU])
def test_activations(value):
    assert check_member("activation", value, Activation) is Activation(value)


# what is accepted


def test_dense_tensors():
    problem = check(m=5, h=64, i=32, e=4, k=2)
    assert (problem.num_tokens, problem.hidden_size, problem.intermediate_size) == (5, 64, 32)
    assert (problem.num_experts, problem.top_k, problem.num_global_experts) == (4, 2, None)
    assert (problem.w1_layout, problem.w1_stride, problem.w1_expert_stride) == (Layout.NK, 64, 64 * 64)
    assert (problem.w2_layout, problem.w2_stride, problem.w2_expert_stride) == (Layout.NK, 32, 64 * 32)
    assert (problem.x_row_stride, problem.out_row_stride) == (64, 64)
    assert (problem.topk_ids_row_stride, problem.topk_weights_row_stride) == (2, 2)


def test_no_tokens():
    assert check(m=0).num_tokens == 0


def test_one_of_everything():
    problem = check(m=1, h=1, i=1, e=1, k=1)
    assert problem.num_pairs == 1


def test_transposed_weights_are_the_other_layout():
    problem = check(w1=strided((4, 64, 64), (4096, 1, 64)), w2=strided((4, 64, 32), (4096, 1, 128)))
    assert (problem.w1_layout, problem.w1_stride) == (Layout.KN, 64)
    assert (problem.w2_layout, problem.w2_stride) == (Layout.KN, 128)


def test_padded_and_interleaved_weights():
    problem = check(w1=strided((4, 64, 64), (64, 512, 1)), w2=strided((4, 64, 32), (5000, 40, 1)))
    assert (problem.w1_stride, problem.w1_expert_stride) == (512, 64)
    assert (problem.w2_stride, problem.w2_expert_stride) == (40, 5000)


def test_expanded_inputs_may_share_memory():
    problem = check(
        hidden_states=strided((5, 64), (0, 1)), w1=strided((4, 64, 64), (0, 64, 1)),
        topk_weights=strided((5, 2), (0, 1), DType.FP32),
    )  # fmt: skip
    assert (problem.x_row_stride, problem.w1_expert_stride, problem.topk_weights_row_stride) == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "strides", "row_stride"),
    [
        ((2, 3, 64), (192, 64, 1), 64),
        ((2, 3, 64), (600, 200, 1), 200),
        ((1, 6, 64), (7, 200, 1), 200),
        ((6, 1, 64), (200, 7, 1), 200),
        ((6, 1, 64), (200, 64, 1), 200),
        ((1, 1, 64), (5, 7, 1), 64),
    ],
)
def test_batches_of_rows(shape, strides, row_stride):
    m = shape[0] * shape[1]
    problem = check(
        hidden_states=strided(shape, strides), out=tensor_info(shape),
        topk_ids=tensor_info((m, 2), DType.INT64), topk_weights=tensor_info((m, 2), DType.FP32),
    )  # fmt: skip
    assert problem.num_tokens == m
    assert problem.x_row_stride == row_stride


@pytest.mark.parametrize("ids", [DType.INT32, DType.INT64])
@pytest.mark.parametrize("weights", [DType.BF16, DType.FP16, DType.FP32, DType.FP64])
def test_routing_dtypes(ids, weights):
    problem = check(topk_ids=tensor_info((5, 2), ids), topk_weights=tensor_info((5, 2), weights))
    assert (problem.topk_ids_dtype, problem.topk_weights_dtype) == (ids, weights)


def test_expert_map_gives_the_number_of_global_experts():
    assert check(expert_map=tensor_info((16,), DType.INT32)).num_global_experts == 16


def test_more_slots_than_experts_are_fine():
    assert check(e=2, k=8).top_k == 8


@pytest.mark.parametrize(("address", "alignment"), [(0, 64), (1 << 20, 64), (96, 32), (1026, 2), (64, 64), (65, 1)])
def test_addresses_count_only_where_they_matter(address, alignment):
    moved = tensor_info((5, 64), address=address)
    assert check(hidden_states=moved, look_at_addresses=True).base_alignment == alignment
    assert check(hidden_states=moved).base_alignment == 1


# properties

sizes = st.integers(min_value=1, max_value=40)


@given(m=st.integers(0, 40), h=sizes, i=sizes, e=sizes, k=st.integers(1, 12))
def test_every_dense_problem_is_accepted_as_it_is(m, h, i, e, k):
    problem = check(m=m, h=h, i=i, e=e, k=k)
    assert (problem.num_tokens, problem.hidden_size, problem.intermediate_size) == (m, h, i)
    assert (problem.num_experts, problem.top_k) == (e, k)
    assert problem.w1_layout is problem.w2_layout is Layout.NK
    small = problem.resized(num_tokens=m, hidden_size=h, intermediate_size=i, num_experts=e, top_k=k)
    if min(m, h, i) > 1:
        assert small == problem


@given(
    name=st.sampled_from(["hidden_states", "w1", "w2", "topk_weights", "topk_ids", "out"]),
    shape=st.lists(st.integers(0, 70), max_size=4).map(tuple),
)
def test_any_other_shape_is_refused_by_name(name, shape):
    """Changing one shape gives the same problem or an error about a tensor; never an exception of another kind."""
    infos = tensor_infos()
    infos[name] = tensor_info(shape, infos[name].dtype)
    try:
        problem = fused_moe_problem(infos, FusedMoEOptions(Activation.SILU), look_at_addresses=True)
    except ArgumentError as refused:
        assert refused.argument in infos and refused.got and refused.expected
    else:
        assert shape == tensor_infos()[name].shape or problem is not None


@given(strides=st.tuples(*[st.integers(-3, 5000)] * 3), shape=st.tuples(*[st.integers(1, 6)] * 3))
def test_accepted_weight_strides_address_the_right_elements(strides, shape):
    e, n, k = shape
    infos = tensor_infos(m=3, h=n, i=k, e=e, w2=strided((e, n, k), strides))
    try:
        problem = fused_moe_problem(infos, FusedMoEOptions(Activation.SILU), look_at_addresses=False)
    except ArgumentError as refused:
        assert refused.argument == "w2"
        return
    for expert in range(e):
        for row in range(n):
            for column in range(k):
                if problem.w2_layout is Layout.NK:
                    address = expert * problem.w2_expert_stride + row * problem.w2_stride + column
                else:
                    address = expert * problem.w2_expert_stride + column * problem.w2_stride + row
                assert address == expert * strides[0] + row * strides[1] + column * strides[2]


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    strides=st.tuples(*[st.integers(0, 40)] * 3),
)
def test_accepted_row_strides_address_the_right_elements(shape, strides):
    b, s, h = shape
    infos = tensor_infos(m=b * s, h=h, hidden_states=strided(shape, strides), out=tensor_info(shape))
    try:
        problem = fused_moe_problem(infos, FusedMoEOptions(Activation.SILU), look_at_addresses=False)
    except ArgumentError as refused:
        assert refused.argument == "hidden_states"
        return
    for batch in range(b):
        for row in range(s):
            for column in range(h):
                wanted = batch * strides[0] + row * strides[1] + column * strides[2]
                assert (batch * s + row) * problem.x_row_stride + column == wanted

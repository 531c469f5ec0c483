# SPDX-License-Identifier: MIT
"""fused_moe end to end on the CPU device, against float64."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
import torch
from helpers import moe
from helpers.moe import DTYPES, Call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitmoe

TOKENS = (0, 1, 2, 3, 7, 16, 33, 64, 257, 1024)
EXPERTS = (1, 2, 3, 8, 60, 128)
SLOTS = (1, 2, 6, 8)
SIZES = ((64, 48), (71, 33), (1, 1), (130, 17), (33, 96))


def cross_sample(count: int) -> list[tuple]:
    """A fixed sample of the whole cross (tools/check_cross.py runs all of it); every value of every axis is in it."""
    whole = list(itertools.product(DTYPES, TOKENS, EXPERTS, SLOTS, SIZES))
    chosen = random.Random(2).sample(whole, count)
    for axis in range(5):
        assert {case[axis] for case in chosen} == {case[axis] for case in whole}
    return chosen


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """A fallback to the reference would be right too; here it is a failure."""
    monkeypatch.setenv("JITMOE_STRICT", "1")


@pytest.mark.parametrize(
    ("dtype", "m", "e", "k", "sizes"), cross_sample(90), ids=lambda value: str(value).removeprefix("torch.")
)
def test_cross(dtype, m, e, k, sizes):
    call = moe.make(m, *sizes, e, k, dtype=dtype, seed=m + e)
    moe.check(call.run(), call)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(activation, dtype):
    call = moe.make(9, dtype=dtype, activation=activation)
    moe.check(call.run(), call)


@pytest.mark.parametrize("weights_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_routing_dtypes(weights_dtype, ids_dtype):
    call = moe.make(9, weights_dtype=weights_dtype, ids_dtype=ids_dtype)
    moe.check(call.run(), call)


# routing


@pytest.mark.parametrize("m", [1, 7, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_to_one_expert(m, dtype):
    call = moe.make(m, e=8, k=2, dtype=dtype)
    call.topk_ids.fill_(5)
    moe.check(call.run(), call)


def test_skewed_routing_over_many_blocks():
    call = moe.make(300, e=6, k=2, seed=3)
    call.topk_ids[torch.rand(300, 2, generator=torch.Generator().manual_seed(1)) < 0.8] = 2
    moe.check(call.run(), call)


@pytest.mark.parametrize("foreign", [-1, 4, 5, 2**31 - 1, -(2**31), 2**40, -(2**62)])
def test_ids_of_other_ranks_contribute_nothing(foreign):
    call = moe.make(6, e=4, k=3)
    call.topk_ids[::2, 1] = foreign
    moe.check(call.run(), call)


def test_rows_without_any_expert_are_exactly_zero():
    call = moe.make(6, k=2)
    call.topk_ids[2] = -1
    call.topk_ids[4] = 99
    result = call.run()
    moe.check(result, call)
    assert not result[[2, 4]].any()
    call.topk_ids.fill_(-1)
    assert not call.run().any()


def test_zeros_are_written_over_what_was_in_out():
    call = moe.make(6, k=2)
    call.topk_ids.fill_(7)
    out = torch.full_like(call.hidden_states, float("nan"))
    call.run(out=out)
    assert not out.any()


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_expert_map(ids_dtype):
    expert_map = torch.tensor([-1, 2, -1, 0, 9, 1, 3, -7], dtype=torch.int32)
    call = moe.make(20, e=4, k=3, ids_dtype=ids_dtype, expert_map=expert_map)
    call.topk_ids.copy_(torch.randint(-1, 10, (20, 3), generator=torch.Generator().manual_seed(4)))
    moe.check(call.run(), call)


def test_an_empty_expert_map_drops_everything():
    call = moe.make(3, expert_map=torch.empty(0, dtype=torch.int32))
    assert not call.run().any()


def test_the_parts_of_all_ranks_add_up():
    call = moe.make(12, e=6, k=3, dtype=torch.float32)
    whole = call.run()
    parts = []
    for first in (0, 3):
        expert_map = torch.full((6,), -1, dtype=torch.int32)
        expert_map[first : first + 3] = torch.arange(3, dtype=torch.int32)
        here = slice(first, first + 3)
        parts.append(call.changed(w1=call.w1[here], w2=call.w2[here], expert_map=expert_map).run())
    assert moe.error(parts[0] + parts[1], whole.double()) < 1e-6


def test_repeated_ids_in_a_row_each_count():
    call = moe.make(5, k=4)
    call.topk_ids[1] = 2
    call.topk_ids[3, :2] = 0
    moe.check(call.run(), call)


def test_more_slots_than_experts():
    call = moe.make(5, e=2, k=8)
    moe.check(call.run(), call)


# outputs


def test_inplace_writes_and_returns_the_input():
    call = moe.make(9)
    expected = call.expected()
    result = call.run(inplace=True)
    assert result is call.hidden_states
    assert moe.error(result, expected) < 1e-2
    assert torch.equal(result, moe.make(9).run())


def test_out_is_written_and_returned():
    call = moe.make(9)
    out = torch.full_like(call.hidden_states, float("nan"))
    assert call.run(out=out) is out
    assert torch.equal(out, call.run())


def test_out_with_strided_rows_leaves_the_gaps_alone():
    call = moe.make(9, h=64)
    storage = torch.full((9, 100), 7.0, dtype=torch.bfloat16)
    call.run(out=storage[:, 20:84])
    assert torch.equal(storage[:, 20:84], call.run())
    assert (storage[:, :20] == 7).all() and (storage[:, 84:] == 7).all()


def test_out_may_be_the_input():
    call, same = moe.make(9), moe.make(9)
    assert torch.equal(call.run(out=call.hidden_states), same.run())


@pytest.mark.parametrize("shape", [(3, 4), (1, 12), (12, 1), (2, 0), (0, 5)])
def test_batches(shape):
    m = shape[0] * shape[1]
    flat = moe.make(m)
    call = flat.changed(hidden_states=flat.hidden_states.reshape(*shape, 64))
    result = call.run()
    assert result.shape == (*shape, 64)
    assert torch.equal(result.reshape(m, 64), flat.run())


def test_no_tokens():
    call = moe.make(0)
    assert call.run().shape == (0, 64)
    out = torch.empty(0, 64, dtype=torch.bfloat16)
    assert call.run(out=out) is out
    assert call.run(inplace=True) is call.hidden_states


def test_inputs_are_not_changed():
    call = moe.make(9, expert_map=torch.tensor([1, 0, 3, 2], dtype=torch.int32))
    before = [tensor.clone() for tensor in (*call.tensors, call.options["expert_map"])]
    call.run()
    for tensor, was in zip((*call.tensors, call.options["expert_map"]), before, strict=True):
        assert torch.equal(tensor, was)


# strides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(64, 48), (71, 33)])
@pytest.mark.parametrize(("w1_swapped", "w2_swapped"), [(True, True), (True, False), (False, True)])
def test_layouts(dtype, sizes, w1_swapped, w2_swapped):
    call = moe.make(17, *sizes, dtype=dtype)
    other = call.changed(
        w1=moe.transposed_copy(call.w1) if w1_swapped else call.w1,
        w2=moe.transposed_copy(call.w2) if w2_swapped else call.w2,
    )
    moe.check(other.run(), call)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_strided_views_give_the_same_numbers(offset):
    call = moe.make(9, 64, 48, e=4)
    other = Call(
        moe.strided_copy(call.hidden_states, row_gap=5, offset=offset),
        moe.strided_copy(call.w1, row_gap=3, offset=offset),
        moe.strided_copy(call.w2, row_gap=7, offset=offset),
        moe.strided_copy(call.topk_weights, row_gap=1, offset=offset),
        moe.strided_copy(call.topk_ids, row_gap=2, offset=offset),
    )
    assert not other.w1.is_contiguous()
    moe.check(other.run(), call)


def test_every_second_expert_and_expanded_tensors():
    call = moe.make(9, e=8)
    other = call.changed(w1=call.w1[::2], w2=call.w2[::2])
    other.topk_ids.remainder_(4)
    moe.check(other.run(), other)
    one = call.changed(
        hidden_states=call.hidden_states[:1].expand(9, -1), w1=call.w1[:1].expand(4, -1, -1), w2=call.w2[:4]
    )
    one.topk_ids.remainder_(4)
    moe.check(one.run(), one)


def test_qkv_like_slice_of_a_wider_tensor():
    wide = torch.randn(6, 3, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    call = moe.make(6).changed(hidden_states=wide[:, 1])
    moe.check(call.run(), call)


# values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["hidden_states", "topk_weights", "w1", "w2"])
def test_what_is_not_finite_spreads_like_in_the_reference(value, where):
    call = moe.make(12, e=4, k=2, dtype=torch.float32)
    getattr(call, where).view(-1)[70 % getattr(call, where).numel()] = value
    result, expected = call.run(), call.expected()
    # An infinity may become NaN or infinity by the order of summation; both say that the result is lost.
    assert torch.equal(result.isfinite(), expected.isfinite())
    keep = expected.isfinite()
    assert moe.error(result[keep], expected[keep]) < 1e-5


def test_a_nan_of_an_expert_that_nobody_asked_for_stays_out():
    call = moe.make(12, e=4)
    call.topk_ids.remainder_(3)
    call.w1[3], call.w2[3] = float("nan"), float("nan")
    moe.check(call.run(), call)


def test_a_nan_under_weight_zero_spreads():
    call = moe.make(3, e=4, k=2, dtype=torch.float32)
    call.topk_weights[1, 0] = 0.0
    call.topk_ids[1, 0] = 3
    call.topk_ids[:, 1] = 0
    call.topk_ids[[0, 2], 0] = 1
    call.w2[3] = float("nan")
    assert torch.equal(call.run().isnan(), call.expected().isnan())


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_and_tiny_values(dtype):
    for scale in (0.05, 30.0):  # no subnormal numbers in float16
        call = moe.make(9, dtype=dtype)
        call.hidden_states.mul_(scale)
        moe.check(call.run(), call)


def test_saturated_activation_gives_no_nan():
    call = moe.make(4, dtype=torch.float32)
    call.hidden_states.mul_(1e4)
    result = call.run()
    assert result.isfinite().all()
    moe.check(result, call)


def test_negative_weights():
    call = moe.make(9)
    call.topk_weights.sub_(0.5)
    moe.check(call.run(), call)


# the same bits every time


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 33, 257])
def test_determinism(dtype, m):
    call = moe.make(m, 130, 66, e=8, k=3, dtype=dtype)
    first = call.run()
    for _ in range(5):
        assert torch.equal(moe.bits(call.run()), moe.bits(first))


def test_a_token_does_not_depend_on_where_the_batch_lies_in_memory():
    call = moe.make(20, dtype=torch.float32)
    first = call.run()
    for offset in (1, 5, 16):
        moved = call.changed(hidden_states=moe.strided_copy(call.hidden_states, offset=offset))
        assert torch.equal(moved.run(), first)


# threads


def test_threads_with_their_own_shapes():
    calls = [moe.make(m, h, 48, e=8, k=2, seed=m) for m in (1, 5, 33, 80) for h in (64, 72)]
    expected = [call.run() for call in calls]
    failures = []

    def work(call, right):
        for _ in range(25):
            if not torch.equal(call.run(), right):
                failures.append(call.hidden_states.shape)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_threads_with_the_same_shape():
    calls = [moe.make(16, seed=seed) for seed in range(8)]
    expected = [call.run() for call in calls]
    failures = []

    def work(call, right):
        for _ in range(25):
            if not torch.equal(call.run(), right):
                failures.append(1)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_first_calls_of_many_threads_at_once(private_cache):
    calls = [moe.make(4, activation=activation, seed=n) for n, activation in enumerate(["silu", "gelu"] * 4)]
    results = [None] * len(calls)

    def work(index):
        results[index] = calls[index].run()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for call, result in zip(calls, results, strict=True):
        moe.check(result, call)


# gradients


def test_gradients_come_from_the_reference(monkeypatch, caplog):
    monkeypatch.setenv("JITMOE_STRICT", "0")
    call = moe.make(4, dtype=torch.float32)
    call.w2.requires_grad_()
    result = call.run()
    result.sum().backward()
    assert call.w2.grad is not None and call.w2.grad.abs().sum() > 0
    assert "gradient" in caplog.text
    with torch.no_grad():
        assert not call.run().requires_grad


def test_gradients_in_strict_mode_are_an_error():
    call = moe.make(4, dtype=torch.float32)
    call.w2.requires_grad_()
    with pytest.raises(jitmoe.ArgumentError, match="gradient"):
        call.run()
    with torch.inference_mode():
        moe.check(call.run(), call)


# properties


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_stride_and_routing(data):
    draw = data.draw
    m, e, k = draw(st.integers(0, 70), "M"), draw(st.integers(1, 9), "E"), draw(st.integers(1, 5), "k")
    h, i = draw(st.integers(1, 150), "H"), draw(st.integers(1, 110), "I")
    dtype = draw(st.sampled_from(DTYPES), "dtype")
    call = moe.make(m, h, i, e, k, dtype=dtype, seed=draw(st.integers(0, 1000), "seed"))
    low, high = draw(st.sampled_from([(0, e), (-2, e + 2), (0, 1), (e - 1, e)]), "ids")
    call.topk_ids.copy_(torch.randint(low, high, (m, k), generator=torch.Generator().manual_seed(m)))
    gap, offset = draw(st.integers(0, 9), "gap"), draw(st.integers(0, 3), "offset")
    w1, w2 = call.w1, call.w2
    if draw(st.booleans(), "w1 swapped"):
        w1 = moe.strided_copy(w1.mT.contiguous(), row_gap=gap).mT
    if draw(st.booleans(), "w2 swapped"):
        w2 = moe.strided_copy(w2.mT.contiguous(), row_gap=gap, offset=offset).mT
    else:
        w2 = moe.strided_copy(w2, row_gap=gap)
    other = call.changed(
        hidden_states=moe.strided_copy(call.hidden_states, row_gap=gap, offset=offset), w1=w1, w2=w2,
        topk_ids=moe.strided_copy(call.topk_ids, row_gap=gap),
    )  # fmt: skip
    result = other.run()
    (moe.check if result.numel() >= 64 else moe.check_rounded)(result, call)
    assert torch.equal(moe.bits(other.run()), moe.bits(result))

# SPDX-License-Identifier: MIT
"""Calls on other queues: dpctl's, in order and out of order, USM memory, and torch.xpu's (with a stand-in)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import dpctl
import dpctl.memory
import pytest
import torch
from helpers import moe, usm
from helpers.moe import Call
from helpers.usm import from_usm, to_usm

import jitmoe
from jitmoe import UsmArray
from jitmoe.runtime import cpu
from jitmoe.runtime.launcher import BoundPlan


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")


def new_queue(in_order: bool = True) -> dpctl.SyclQueue:
    cpu.default_queue()  # registers the CPU runtime
    return dpctl.SyclQueue("cpu", property=["in_order"]) if in_order else dpctl.SyclQueue("cpu")


@pytest.fixture(params=[True, False], ids=["in-order", "out-of-order"])
def queue(request) -> Iterator[dpctl.SyclQueue]:
    yield new_queue(request.param)


def on_usm(call: Call, queue: dpctl.SyclQueue, kind=dpctl.memory.MemoryUSMDevice) -> Call:
    options = {n: to_usm(v, queue, kind) if isinstance(v, torch.Tensor) else v for n, v in call.options.items()}
    return Call(*(to_usm(tensor, queue, kind) for tensor in call.tensors), options=options)


# torch CPU tensors on a queue of the caller's


def test_cpu_tensors_on_a_given_queue(queue):
    call = moe.make(9)
    result = call.run(queue=queue)
    queue.wait()
    moe.check(result, call)


def test_the_address_of_a_queue_will_do(queue):
    call = moe.make(9)
    result = call.run(queue=queue.addressof_ref())
    queue.wait()
    moe.check(result, call)


def test_a_chain_of_calls_keeps_its_order(queue):
    """Each call reads what the one before wrote; nothing but the queue keeps them apart."""
    call = moe.make(64, 96, 96, e=4, dtype=torch.float32)
    for _ in range(6):
        call.run(queue=queue, inplace=True)
    queue.wait()
    again = moe.make(64, 96, 96, e=4, dtype=torch.float32)
    for _ in range(6):
        again.run(inplace=True)
    assert torch.equal(call.hidden_states, again.hidden_states)


@pytest.mark.parametrize("wrong", ["gpu", 0, 3.5, object, True], ids=str)
def test_what_is_no_queue_is_refused(wrong):
    with pytest.raises(jitmoe.ArgumentError, match=r"queue: expected a dpctl\.SyclQueue"):
        moe.make(3).run(queue=wrong)


def test_a_new_queue_at_the_address_of_a_dead_one_is_another_queue(monkeypatch):
    """Python reuses addresses at once; work on a queue that nobody waits for would be read too early."""
    used = []
    submit = BoundPlan.submit

    def spying(self, stream, addresses):
        used.append(stream)
        submit(self, stream, addresses)

    monkeypatch.setattr(BoundPlan, "submit", spying)
    call = moe.make(5)
    call.run()
    for _ in range(4):
        queue = new_queue()
        result = call.run(queue=queue)  # kept: the kernels still write to it
        assert used[-1].is_same_queue(queue.addressof_ref())
        queue.wait()
        del queue, result
        gc.collect()


# USM


@pytest.mark.parametrize("dtype", moe.DTYPES)
def test_usm_memory(queue, dtype):
    call = moe.make(9, dtype=dtype)
    result = on_usm(call, queue).run()
    assert isinstance(result, UsmArray)
    moe.check(from_usm(result, queue), call)


@pytest.mark.parametrize("kind", ["Device", "Shared", "Host"])
def test_kinds_of_usm_memory(queue, kind):
    call = moe.make(9)
    result = on_usm(call, queue, getattr(dpctl.memory, f"MemoryUSM{kind}")).run()
    moe.check(from_usm(result, queue), call)


def test_usm_memory_lives_until_the_kernels_have_finished_with_it(queue):
    call = moe.make(200, h=256, i=256)
    memories, results = [], []
    for _ in range(3):
        given = on_usm(call, queue)
        memories += [weakref.ref(array) for array in given.tensors]
        results.append(given.run())
        del given
    queue.wait()
    for result in results:
        moe.check(from_usm(result, queue), call)
    on_usm(moe.make(1), queue).run()  # looks what is finished
    gc.collect()
    assert not any(memory() for memory in memories)


def test_usm_with_every_option(queue):
    expert_map = torch.tensor([-1, 0, 2, 1, 3, 9], dtype=torch.int32)
    call = moe.make(9, expert_map=expert_map, activation="gelu", ids_dtype=torch.int32)
    out = to_usm(torch.zeros(9, 64, dtype=torch.bfloat16), queue)
    assert on_usm(call, queue).run(out=out) is out
    moe.check(from_usm(out, queue), call)


def test_usm_inplace_and_batches(queue):
    flat = moe.make(12)
    call = flat.changed(hidden_states=flat.hidden_states.reshape(3, 4, 64))
    there = on_usm(call, queue)
    expected = call.expected()
    assert there.run(inplace=True) is there.hidden_states
    assert moe.error(from_usm(there.hidden_states, queue), expected) < 1e-2


def test_usm_strided_views(queue):
    call = moe.make(9)
    other = Call(
        moe.strided_copy(call.hidden_states, row_gap=6), moe.transposed_copy(call.w1),
        moe.strided_copy(call.w2, row_gap=2), moe.strided_copy(call.topk_weights, row_gap=1),
        moe.strided_copy(call.topk_ids, row_gap=1),
    )  # fmt: skip
    there = Call(
        *(
            UsmArray(
                to_usm(t._base if t._base is not None else t, queue).memory, t.shape, usm.DTYPES[t.dtype], t.stride()
            )
            for t in other.tensors
        )
    )
    moe.check(from_usm(there.run(), queue), call)


def test_usm_and_torch_do_not_mix(queue):
    call = moe.make(3)
    with pytest.raises(
        jitmoe.ArgumentError, match=r"w1: expected usm \(context .*\), like hidden_states, got torch cpu"
    ):
        on_usm(call, queue).changed(w1=call.w1).run()


def test_usm_of_another_context_is_refused():
    one = new_queue()
    part = one.sycl_device.create_sub_devices(partition=1)[0]
    other = dpctl.SyclQueue(dpctl.SyclContext(part), part, property=["in_order"])
    if other.sycl_context == one.sycl_context:
        pytest.skip("one context holds both")
    call = moe.make(3)
    there = on_usm(call, one).changed(w2=to_usm(call.w2, other))
    with pytest.raises(jitmoe.ArgumentError, match="w2"):
        there.run()


def test_no_tokens_on_usm(queue):
    assert on_usm(moe.make(0), queue).run().shape == (0, 64)


def test_usm_array_checks_itself():
    memory = dpctl.memory.MemoryUSMShared(64, queue=new_queue())
    with pytest.raises(jitmoe.ArgumentError, match="memory: expected at least 128 bytes"):
        UsmArray(memory, (4, 8), "fp32")
    with pytest.raises(jitmoe.ArgumentError, match="strides"):
        UsmArray(memory, (4, 4), "fp32", (4,))
    with pytest.raises(jitmoe.ArgumentError, match="strides"):
        UsmArray(memory, (4, 4), "fp32", (4, -1))
    with pytest.raises(jitmoe.ArgumentError, match=r"dtype: .* got 'fp8'"):
        UsmArray(memory, (4, 4), "fp8")
    for wrong in (None, torch.zeros(16), object()):
        with pytest.raises(jitmoe.ArgumentError, match="memory: expected USM memory"):
            UsmArray(wrong, (4, 4), "fp32")
    assert UsmArray(memory, (4, 4), torch.float32).dtype.value == "fp32"
    assert UsmArray(memory, (4, 4), "fp32").strides == (4, 1)
    assert "shape=(4, 4)" in repr(UsmArray(memory, (4, 4), "fp32"))


def test_the_fallback_works_on_usm_too(queue, monkeypatch, private_cache):
    monkeypatch.setenv("JITMOE_STRICT", "0")

    def broken(self, problem, stream, names):
        raise jitmoe.errors.RuntimeUnavailableError(reason="a test", advice="none")

    monkeypatch.setattr("jitmoe.pipeline.Pipeline.prepare", broken)
    for shape in ((12, 64), (3, 4, 64), (12, 1, 64)):
        flat = moe.make(12)
        call = flat.changed(hidden_states=flat.hidden_states.reshape(shape))
        moe.check(from_usm(on_usm(call, queue).run(), queue), call)
        gaps = torch.zeros((*shape[:-1], 100), dtype=torch.bfloat16)
        out = UsmArray(to_usm(gaps, queue).memory, shape, "bf16", gaps[..., :64].stride())
        on_usm(call, queue).run(out=out)
        moe.check(from_usm(out, queue).reshape(shape), call)


# DLPack


def test_dlpack_producers_become_torch_tensors():
    call = moe.make(5, dtype=torch.float32)
    other = Call(*(tensor.numpy() for tensor in call.tensors))
    result = jitmoe.fused_moe(*other.tensors)
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, call.run())


# torch.xpu


class XpuTensor(torch.Tensor):
    """A CPU tensor that says it is on an XPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("xpu:0")


@pytest.fixture
def xpu(queue, monkeypatch):
    """torch.xpu with the current stream on a real queue of the CPU device."""

    class Stream:
        sycl_queue = queue.addressof_ref()

    monkeypatch.setattr(torch.xpu, "current_stream", lambda device=None: Stream)
    return queue


def on_xpu(call: Call) -> Call:
    options = {n: v.as_subclass(XpuTensor) if isinstance(v, torch.Tensor) else v for n, v in call.options.items()}
    return Call(*(tensor.as_subclass(XpuTensor) for tensor in call.tensors), options=options)


@pytest.mark.parametrize("dtype", moe.DTYPES)
def test_xpu_tensors_run_on_torch_s_current_stream(xpu, dtype):
    call = moe.make(9, dtype=dtype, expert_map=torch.tensor([1, -1, 0, 3], dtype=torch.int32))
    there = on_xpu(call)
    for _ in range(3):
        result = there.run()
        assert result.device.type == "xpu"
        xpu.wait()
        moe.check(result.as_subclass(torch.Tensor), call)


def test_xpu_calls_do_not_wait(xpu, monkeypatch):
    from jitmoe.runtime.stream import Stream

    # All tensors are kept until the queue is done: a real XPU's allocator does that, the stand-in's does not.
    call, another = moe.make(9), moe.make(11, seed=5)
    there, another_there = on_xpu(call), on_xpu(another)
    first = there.run()  # compiles and checks, which waits
    with monkeypatch.context() as patched:
        patched.setattr(Stream, "wait", lambda self: pytest.fail("the host waited"))
        patched.setattr(Stream, "copy", lambda self, *a: pytest.fail("the host read device data"))
        result, other = there.run(), another_there.run()
    xpu.wait()
    assert torch.equal(first, result)
    moe.check(result.as_subclass(torch.Tensor), call)
    moe.check(other.as_subclass(torch.Tensor), another)


def test_another_current_stream_is_another_call(xpu, monkeypatch):
    call = on_xpu(moe.make(9))
    result = call.run()
    xpu.wait()
    other = new_queue()

    class Stream:
        sycl_queue = other.addressof_ref()

    monkeypatch.setattr(torch.xpu, "current_stream", lambda device=None: Stream)
    used = []
    submit = BoundPlan.submit
    monkeypatch.setattr(BoundPlan, "submit", lambda self, s, a: (used.append(s), submit(self, s, a))[1])
    result = call.run()
    other.wait()
    assert result is not None
    assert used[0].is_same_queue(other.addressof_ref())


def test_a_stream_object_will_do_as_queue(queue):
    class Stream:
        sycl_queue = queue.addressof_ref()

    call = moe.make(9)
    result = call.run(queue=Stream)
    queue.wait()
    moe.check(result, call)


def test_mixed_devices_are_refused(xpu):
    call = on_xpu(moe.make(9))
    with pytest.raises(jitmoe.ArgumentError, match="topk_ids: expected torch xpu:0"):
        call.changed(topk_ids=moe.make(9).topk_ids).run()

# SPDX-License-Identifier: MIT
"""The ops: argument checks with clear messages, then the pipeline. The warm path is one lookup, packing, submitting."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from jitmoe import arguments, knobs, pipeline, tensors
from jitmoe.device import DeviceKind
from jitmoe.errors import ArgumentError, JitMoEError
from jitmoe.problem import MoEProblem
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, stream_of
from jitmoe.tensors import TensorInfo

logger = logging.getLogger("jitmoe")

_TENSOR_NAMES = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "expert_map", "out")
MAX_PREPARED_CALLS = 4096  # call signatures kept ready; the oldest goes first

# A signature (shapes, strides, dtypes, queue, options) -> what to do with such a call.
_prepared: dict[Any, Callable[..., Any]] = {}
_prepared_lock = threading.Lock()


def _forget_prepared() -> None:
    """In a forked child: the runtime's threads are gone, so ready calls would wait for ever."""
    global _prepared_lock
    _prepared_lock = threading.Lock()
    _prepared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_prepared)


def fused_moe(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    inplace: bool = False,
    out: Any = None,
    queue: Any = None,
) -> Any:
    """Returns y[t] = sum_j topk_weights[t, j] * (act(x[t] Wgate^T) * (x[t] Wup^T)) Wdown^T of expert topk_ids[t, j].

    The first call of a kind compiles its kernels (about 0.2 s each) and stores them in the cache; later calls, also
    of other processes, find them there. Accumulation is in float32; the activation's result is rounded once to the
    tensors' dtype, and so is the sum over experts. The same call gives the same bits every time.

    Args:
        hidden_states: x, [M, H] or [B, S, H], bfloat16, float16 or float32, dense rows. torch CPU or XPU tensors,
            objects with ``__sycl_usm_array_interface__`` (see ``UsmArray``), or DLPack objects (become torch tensors).
        w1: [E, 2*I, H], same dtype; rows 0..I-1 are the gate projection, rows I..2*I-1 the up projection. Unit
            stride in the last dimension, or in the second-last ([E, H, 2*I] storage seen through a transposed view).
        w2: [E, H, I], same dtype, strides as for w1.
        topk_weights: [M, k], bfloat16, float16, float32 or float64.
        topk_ids: [M, k], int32 or int64. Ids outside [0, E) mark experts of another rank and contribute nothing;
            an expert may appear several times in a row.
        activation: "silu", "gelu" or "gelu_tanh".
        expert_map: int32, [experts on all ranks]: the local expert of each id, anything outside [0, E) for experts
            that are not here. Without a map ids are local.
        inplace: write the result into ``hidden_states`` and return it.
        out: write the result there and return it; like ``hidden_states`` in shape and dtype, may have strided rows,
            must not overlap the weights.
        queue: run on this queue (a ``dpctl.SyclQueue``, ``torch.xpu.Stream`` or the address of a ``sycl::queue``)
            instead of torch's current XPU stream, the queue of the USM memory, or the default CPU queue. The device
            must be able to reach the tensors. The caller waits for the queue, and keeps the tensors alive until then.

    Returns:
        The result, like ``hidden_states`` in shape and dtype. Calls on torch CPU tensors return when it is there
        (unless ``queue`` was given); all others return after submitting.

    Raises:
        ArgumentError: an argument does not fit; nothing has run.
        JitMoEError: with ``JITMOE_STRICT=1``, whatever kept the kernels from being used. Otherwise that is a warning,
            once, and the result comes from ``jitmoe.reference``.

    Gradients: kernels have no backward pass. With gradients enabled and an input that requires one, the
    differentiable reference computes the result (an error with ``JITMOE_STRICT=1``).
    """
    torch = sys.modules.get("torch")
    signature: Any = None
    if torch is not None and isinstance(hidden_states, torch.Tensor) and queue is None:
        try:
            device = hidden_states.device
            signature = (
                device,
                None if device.type == "cpu" else _xpu_signature(hidden_states, w1, w2, out),
                activation,
                inplace,
                torch.is_grad_enabled(),
                _signature(hidden_states),
                _signature(w1),
                _signature(w2),
                _signature(topk_weights),
                _signature(topk_ids),
                expert_map is not None and _signature(expert_map),
                out is not None and _signature(out),
            )
            call = _prepared.get(signature)
        except (AttributeError, TypeError, RuntimeError):  # not all dense torch tensors: the general way explains
            signature, call = None, None
        if call is not None:
            return call(hidden_states, w1, w2, topk_weights, topk_ids, expert_map, out)
    named, facts = _adopt((hidden_states, w1, w2, topk_weights, topk_ids, expert_map, out))
    if signature is None:
        signature = _general_signature(named, facts, activation, inplace, queue)
        call = _prepared.get(signature)
    if call is None:
        call = _prepare(named, facts, activation, inplace, queue)
        with _prepared_lock:
            while len(_prepared) >= MAX_PREPARED_CALLS:
                del _prepared[next(iter(_prepared))]
            _prepared[signature] = call
    return call(*named.values())


def _adopt(given: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, TensorInfo | None]]:
    """Returns the seven tensors by name, taken over from whatever they are, and their facts."""
    named = {
        name: value if value is None and name in ("expert_map", "out") else tensors.adopt(name, value)
        for name, value in zip(_TENSOR_NAMES, given, strict=True)
    }
    facts = {name: None if value is None else tensors.describe(name, value) for name, value in named.items()}
    return named, facts


def _signature(tensor: Any) -> Any:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad


def _xpu_signature(*used: Any) -> Any:
    """Returns the stream and the addresses' alignment, which choose kernels on GPUs."""
    if used[0].device.type != "xpu":
        raise TypeError(used[0].device)
    stream = tensors.xpu_queue_ref(used[0].device)
    return stream, tuple(t.data_ptr() % 64 for t in used if t is not None)


def _general_signature(
    named: dict[str, Any], facts: dict[str, TensorInfo | None], activation: object, inplace: object, queue: Any
) -> Any:
    """Returns what ``_prepare`` depends on, for tensors of any kind."""
    torch = sys.modules.get("torch")
    x = named["hidden_states"]
    if queue is None and tensors.is_usm(x):
        queue = x.__sycl_usm_array_interface__["syclobj"]
    return (
        None if queue is None else stream_of(tensors.queue_ref_of(queue)),  # addresses of queues are used again
        str(activation),
        inplace is True,
        torch is not None and torch.is_grad_enabled(),
        tuple(
            fact and (fact.shape, fact.strides, fact.dtype_name, fact.place, fact.address % 64)
            for fact in facts.values()
        ),
        tuple(tensors.is_torch(value) and value.requires_grad for value in named.values()),
    )


def _prepare(
    named: dict[str, Any], facts: dict[str, TensorInfo | None], activation: object, inplace: bool, queue: Any
) -> Callable[..., Any]:
    """Checks everything and returns a function of the seven tensors that computes such calls."""
    if not isinstance(inplace, bool):
        raise ArgumentError(argument="inplace", got=repr(inplace), expected="True or False")
    if inplace and named["out"] is not None:
        raise ArgumentError(argument="out", got="a tensor together with inplace=True", expected="one of the two")
    x_facts = facts["hidden_states"]
    assert x_facts is not None
    if facts["out"] is None:
        facts = facts | {"out": x_facts if inplace else tensors.dense(x_facts)}
    _check_place(named["hidden_states"])
    on_host = tensors.is_torch(named["hidden_states"]) and named["hidden_states"].device.type == "cpu"
    problem = arguments.fused_moe_problem(facts, arguments.check_activation(activation), look_at_addresses=not on_host)
    if _wants_gradient(named):
        call = _reference_call(problem, queue, "gradients are wanted and the kernels have no backward pass")
    else:
        call = _kernel_call(problem, named["hidden_states"], queue)
    if inplace:
        return _with_inplace_output(call)
    return call if named["out"] is not None else _with_new_output(call)


def _check_place(hidden_states: Any) -> None:
    if tensors.is_torch(hidden_states) and hidden_states.device.type not in ("cpu", "xpu"):
        raise ArgumentError(
            argument="hidden_states", got=f"device {hidden_states.device}", expected="a tensor on cpu or xpu"
        )


def _wants_gradient(named: dict[str, Any]) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return False
    return any(tensors.is_torch(value) and value.requires_grad for value in named.values())


def _kernel_call(problem: MoEProblem, hidden_states: Any, queue: Any) -> Callable[..., Any]:
    """Returns a function of the seven tensors that launches kernels, or one that computes the reference instead."""
    if problem.num_tokens == 0:
        return _nothing_to_do
    try:
        stream, waits = tensors.stream_for(hidden_states, queue)
        bound = pipeline.default().prepare(problem, stream, _TENSOR_NAMES)
    except ArgumentError:
        raise
    except JitMoEError as error:
        return _reference_call(problem, queue, str(error), error)
    return _torch_call(bound, stream, waits) if tensors.is_torch(hidden_states) else _usm_call(bound, stream)


def _nothing_to_do(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
    return out


def _torch_call(bound: BoundPlan, stream: Stream, waits: bool) -> Callable[..., Any]:
    lock, wait = stream.lock, stream.wait
    submit = bound.submit

    def call(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
        addresses = (
            x.data_ptr(), w1.data_ptr(), w2.data_ptr(), weights.data_ptr(), ids.data_ptr(),
            None if expert_map is None else expert_map.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        with lock:
            submit(stream, addresses)
        if waits:
            wait()
        return out

    return call


def _usm_call(bound: BoundPlan, stream: Stream) -> Callable[..., Any]:
    def call(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
        addresses = [
            None if value is None else tensors.describe(name, value).address
            for name, value in zip(_TENSOR_NAMES, (x, w1, w2, weights, ids, expert_map, out), strict=True)
        ]
        with stream.lock:
            bound.submit(stream, addresses)
        return out

    return call


def _with_new_output(call: Callable[..., Any]) -> Callable[..., Any]:
    def with_new_output(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
        return call(x, w1, w2, weights, ids, expert_map, tensors.empty_like(x))

    return with_new_output


def _with_inplace_output(call: Callable[..., Any]) -> Callable[..., Any]:
    def with_inplace_output(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
        return call(x, w1, w2, weights, ids, expert_map, x)

    return with_inplace_output


_warned: set[str] = set()


def _reference_call(
    problem: MoEProblem, queue: Any, reason: str, error: JitMoEError | None = None
) -> Callable[..., Any]:
    """Returns a function that computes the reference; says why, once per reason. Raises in strict mode."""
    settings = knobs.current()
    if error is not None and (settings.strict or settings.disable_jit):
        raise error
    if settings.strict:
        raise ArgumentError(
            argument="hidden_states",
            got="a call whose result needs a gradient (JITMOE_STRICT=1)",
            expected="torch.no_grad() or inputs that require no gradient",
        )
    if reason not in _warned:
        _warned.add(reason)
        logger.warning("jitmoe: %s is computed by the slow reference: %s", problem, reason)

    def call(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any, out: Any) -> Any:
        from jitmoe import reference

        def compute(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, expert_map: Any) -> Any:
            return reference.fused_moe(x, w1, w2, weights, ids, activation=problem.activation, expert_map=expert_map)

        given = (x, w1, w2, weights, ids, expert_map)
        if tensors.is_torch(x):
            return out.copy_(compute(*given))
        stream, _ = tensors.stream_for(x, queue)
        result = compute(*(None if value is None else tensors.to_host(value, stream) for value in given))
        tensors.from_host(out, result, stream)
        return out

    return call


def explain(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    queue: Any = None,
) -> str:
    """Returns, as text, how ``fused_moe`` would run these arguments: device, kernels, tiles, launches and reasons.

    Compiles and runs nothing. Arguments as for ``fused_moe``; raises ``ArgumentError`` like it.
    """
    named, facts = _adopt((hidden_states, w1, w2, topk_weights, topk_ids, expert_map, None))
    facts["out"] = tensors.dense(tensors.describe("hidden_states", named["hidden_states"]))
    _check_place(named["hidden_states"])
    stream, _ = tensors.stream_for(named["hidden_states"], queue)
    problem = arguments.fused_moe_problem(
        facts,
        arguments.check_activation(activation),
        look_at_addresses=stream.device.kind is not DeviceKind.CPU,
    )
    return pipeline.explain(problem, stream.device)

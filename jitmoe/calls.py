# SPDX-License-Identifier: MIT
"""Calls of any op: the first of a kind is checked, planned and bound; the next ones are looked up and submitted.

A public function of an op collects its tensors in the order of ``Operation.tensors`` (None for those it goes without),
allocates the outputs, and hands them to ``run`` with its options as one hashable value.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from jitmoe import knobs, pipeline, tensors
from jitmoe.arguments.common import Facts
from jitmoe.errors import ArgumentError, JitMoEError
from jitmoe.operation import Operation, Problem
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.stream import Stream, stream_of
from jitmoe.tensors import TensorInfo

logger = logging.getLogger("jitmoe")

MAX_PREPARED_CALLS = 4096  # call signatures kept ready; the oldest goes first
# Bytes. A tensor without memory has its offset as address, which is less; so may few with memory have, in programs that
# are loaded at low addresses.
LOWEST_ADDRESS = 2**40

Given = tuple[Any, ...]  # a call's tensors, None for those it goes without
PreparedCall = Callable[[Given], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Op:
    """What ``run`` needs to know of an op."""

    operation: Operation
    optional: frozenset[str]  # tensors that may be None
    problem: Callable[[Facts, Any, bool], Problem]  # (facts, options, whether addresses matter); checks everything
    reference: Callable[[dict[str, Any], Any], tuple[Any, ...]]  # (torch tensors, options) -> the outputs, in order


# A signature (op, options, shapes, strides, dtypes, queue) -> what to do with such a call.
_prepared: dict[Any, PreparedCall] = {}
_prepared_lock = threading.Lock()
_warned: set[str] = set()


def _forget_prepared() -> None:
    """In a forked child: the runtime's threads are gone, so ready calls would wait for ever."""
    global _prepared_lock
    _prepared_lock = threading.Lock()
    _prepared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_prepared)


class Notes:
    """Stands in place of a call's queue: the call is not run, but written down as ``explain`` says it would run.

    An argument that every op hands on, so that calls which really run pay nothing for it.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue  # that the call would have
        self.texts: list[str] = []


def run(op: Op, given: Given, options: Hashable, queue: Any) -> None:
    """Computes one call: looks its kind up, prepares it if it is new, and submits it.

    Raises:
        ArgumentError: an argument does not fit; nothing has run.
        JitMoEError: with ``JITMOE_STRICT=1`` or ``JITMOE_DISABLE_JIT=1``, whatever kept the kernels from being used.
        RuntimeUnavailableError, LaunchError: the workspace or a submission failed, for which there is no fallback.
    """
    torch = sys.modules.get("torch")
    first = given[0]
    signature: Any = None
    if torch is not None and isinstance(first, torch.Tensor) and queue is None:
        try:
            device = first.device
            signature = (
                op,
                options,
                device,
                None if device.type == "cpu" else _xpu_signature(given),
                torch.is_grad_enabled(),
                *[
                    t if t is None else (t.dtype, t.device, t.shape, t.stride(), t.requires_grad, t.is_neg())
                    for t in given
                ],
            )
            call = _prepared.get(signature)
        except (AttributeError, TypeError, RuntimeError):  # not all dense torch tensors: the general way explains
            signature, call = None, None
        if call is not None:
            call(given)
            return
    if isinstance(queue, Notes):
        queue.texts.append(_explain(op, given, options, queue.queue))
        return
    given, facts = adopt(op, given)
    if signature is None:
        signature = _general_signature(op, given, facts, options, queue)
        call = _prepared.get(signature)
    if call is None:
        call = _prepare(op, given, facts, options, queue)
        with _prepared_lock:
            while len(_prepared) >= MAX_PREPARED_CALLS:
                del _prepared[next(iter(_prepared))]
            _prepared[signature] = call
    call(given)


def adopt(op: Op, given: Given) -> tuple[Given, dict[str, TensorInfo | None]]:
    """Returns the tensors, taken over from whatever they are, and their facts by name."""
    names = op.operation.tensors
    adopted = tuple(
        None if value is None and name in op.optional else tensors.adopt(name, value)
        for name, value in zip(names, given, strict=True)
    )
    facts = {
        name: None if value is None else tensors.describe(name, value)
        for name, value in zip(names, adopted, strict=True)
    }
    return adopted, facts


def _explain(op: Op, given: Given, options: Any, queue: Any) -> str:
    """Returns how ``run`` would compute these arguments; compiles and runs nothing."""
    given, facts = adopt(op, given)
    _check_place(op, given[0])
    problem = op.problem(facts, options, not _is_on_host(given[0]))
    if _wants_gradient(given):
        return f"{problem} by the reference: {_NO_GRADIENT}"
    if problem.is_empty:
        return f"{problem}: nothing to compute"
    stream, _ = tensors.stream_for(given[0], queue)
    return pipeline.explain(problem, stream.device)


def _xpu_signature(given: Given) -> Any:
    """Returns the stream and the addresses' alignment, which choose kernels on GPUs."""
    if given[0].device.type != "xpu":
        raise TypeError(given[0].device)
    stream = tensors.xpu_queue_ref(given[0].device)
    return stream, tuple(t.data_ptr() % 64 for t in given if t is not None)


def _general_signature(op: Op, given: Given, facts: Facts, options: Hashable, queue: Any) -> Any:
    """Returns what ``_prepare`` depends on, for tensors of any kind."""
    if queue is None and tensors.is_usm(given[0]):
        queue = given[0].__sycl_usm_array_interface__["syclobj"]
    return (
        op,
        options,
        None if queue is None else stream_of(tensors.queue_ref_of(queue)),  # addresses of queues are used again
        _wants_gradient(given),
        tuple(
            fact and (fact.shape, fact.strides, fact.dtype_name, fact.place, fact.address % 64)
            for fact in facts.values()
        ),
    )


def _prepare(op: Op, given: Given, facts: Facts, options: Any, queue: Any) -> PreparedCall:
    """Checks everything and returns a function that computes such calls."""
    _check_place(op, given[0])
    problem = op.problem(facts, options, not _is_on_host(given[0]))
    if _wants_gradient(given):
        return _reference_call(op, problem, options, queue, _NO_GRADIENT)
    if problem.is_empty:
        return _nothing_to_do
    present = {name: position for position, name in enumerate(op.operation.tensors) if given[position] is not None}
    try:
        stream, waits = tensors.stream_for(given[0], queue)
        bound = pipeline.default().prepare(problem, stream, tuple(present))
    except ArgumentError:
        raise
    except JitMoEError as error:
        return _reference_call(op, problem, options, queue, str(error), error)
    if tensors.is_torch(given[0]):
        return _torch_call(bound, stream, waits, present)
    return _usm_call(bound, stream, present)


def _check_place(op: Op, first: Any) -> None:
    if tensors.is_torch(first) and first.device.type not in ("cpu", "xpu"):
        raise ArgumentError(
            argument=op.operation.tensors[0], got=f"device {first.device}", expected="a tensor on cpu or xpu"
        )


def _is_on_host(first: Any) -> bool:
    return tensors.is_torch(first) and first.device.type == "cpu"


_NO_GRADIENT = "gradients are wanted and the kernels have no backward pass"


def _wants_gradient(given: Given) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return False
    return any(tensors.is_torch(value) and value.requires_grad for value in given)


def _nothing_to_do(given: Given) -> None:
    pass


def _torch_call(bound: BoundPlan, stream: Stream, waits: bool, present: Mapping[str, int]) -> PreparedCall:
    lock, wait = stream.lock, stream.wait
    submit = bound.submit

    def call(given: Given) -> None:
        try:
            addresses = [t.data_ptr() for t in given if t is not None]
        except RuntimeError:  # torch has no address to give
            addresses = [0]
        if min(addresses) < LOWEST_ADDRESS:
            for name, position in present.items():
                if not tensors.has_memory(given[position]):
                    tensors.describe(name, given[position])  # refuses it, if it has elements
        with lock:
            submit(stream, addresses)
        if waits:
            wait()

    return call


def _usm_call(bound: BoundPlan, stream: Stream, present: Mapping[str, int]) -> PreparedCall:
    def call(given: Given) -> None:
        addresses = [tensors.describe(name, given[position]).address for name, position in present.items()]
        with stream.lock:
            bound.submit(stream, addresses, keep=given)

    return call


def _reference_call(
    op: Op, problem: Problem, options: Any, queue: Any, reason: str, error: JitMoEError | None = None
) -> PreparedCall:
    """Returns a function that computes the reference; says why, once per reason. Raises in strict mode."""
    settings = knobs.current()
    if error is not None and (settings.strict or settings.disable_jit):
        raise error
    if settings.strict:
        raise ArgumentError(
            argument=op.operation.tensors[0],
            got="a call whose result needs a gradient (JITMOE_STRICT=1)",
            expected="torch.no_grad() or inputs that require no gradient",
        )
    if reason not in _warned:
        _warned.add(reason)
        logger.warning("jitmoe: %s is computed by the slow reference: %s", problem, reason)
    outputs = op.operation.outputs

    def call(given: Given) -> None:
        named = dict(zip(op.operation.tensors, given, strict=True))
        if tensors.is_torch(given[0]):
            for name, result in zip(outputs, op.reference(named, options), strict=True):
                if named[name] is not None:
                    named[name].copy_(result)
            return
        stream, _ = tensors.stream_for(given[0], queue)
        on_host = {name: None if value is None else tensors.to_host(value, stream) for name, value in named.items()}
        for name, result in zip(outputs, op.reference(on_host, options), strict=True):
            if named[name] is not None:
                tensors.from_host(named[name], result, stream)

    return call

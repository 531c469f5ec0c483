# SPDX-License-Identifier: MIT
"""``fused_moe`` and ``explain``: what a caller sees of the expert layer."""

from __future__ import annotations

from typing import Any, NamedTuple

from jitmoe import arguments, calls, tensors
from jitmoe.errors import ArgumentError
from jitmoe.operation import Problem
from jitmoe.problem import FUSED_MOE, Activation


class _Options(NamedTuple):
    """What is not a tensor. A tuple, because it is built and hashed in every call."""

    activation: Activation


def _problem(facts: calls.Facts, options: _Options, look_at_addresses: bool) -> Problem:
    return arguments.fused_moe_problem(facts, options.activation, look_at_addresses=look_at_addresses)


def _reference(named: dict[str, Any], options: _Options) -> tuple[Any, ...]:
    from jitmoe import reference

    inputs = {name: value for name, value in named.items() if name != "out"}
    return (reference.fused_moe(**inputs, activation=options.activation),)


_FUSED_MOE = calls.Op(operation=FUSED_MOE, optional=frozenset({"expert_map"}), problem=_problem, reference=_reference)


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
    if not isinstance(inplace, bool):
        raise ArgumentError(argument="inplace", got=repr(inplace), expected="True or False")
    if inplace:
        if out is not None:
            raise ArgumentError(argument="out", got="a tensor together with inplace=True", expected="one of the two")
        out = hidden_states
    elif out is None:
        hidden_states = tensors.adopt("hidden_states", hidden_states)
        out = tensors.empty_like(hidden_states)
    calls.run(
        _FUSED_MOE,
        (hidden_states, w1, w2, topk_weights, topk_ids, expert_map, out),
        _Options(arguments.check_activation(activation)),
        queue,
    )
    return out


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
    hidden_states = tensors.adopt("hidden_states", hidden_states)
    given = (hidden_states, w1, w2, topk_weights, topk_ids, expert_map, tensors.empty_like(hidden_states))
    return calls.explain(_FUSED_MOE, given, _Options(arguments.check_activation(activation)), queue)

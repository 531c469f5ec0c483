# SPDX-License-Identifier: MIT
"""``fused_moe``: what a caller sees of the expert layer."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from jitmoe import calls, tensors
from jitmoe.arguments.common import Facts
from jitmoe.arguments.fused_moe import (
    FusedMoEOptions,
    check_no_order,
    fused_moe_problem,
    input_block_k,
)
from jitmoe.arguments.routed import RoutedOptions, routed_moe_problem, routed_options
from jitmoe.errors import ArgumentError
from jitmoe.operation import Problem
from jitmoe.ops.grouped_gemm import routed_grouped_gemm
from jitmoe.options import check_flag, check_member, check_number
from jitmoe.problems.formats import InputQuant
from jitmoe.problems.fused_moe import FUSED_MOE, SWIGLU_ALPHA, Activation
from jitmoe.problems.routed import ROUTED_MOE
from jitmoe.problems.routing import Routing
from jitmoe.weights.quantized import QuantizedTensor


def _problem(facts: Facts, options: FusedMoEOptions, look_at_addresses: bool) -> Problem:
    return fused_moe_problem(facts, options, look_at_addresses=look_at_addresses)


def _reference(named: dict[str, Any], options: FusedMoEOptions) -> tuple[Any, ...]:
    from jitmoe import reference

    inputs = {
        name: value
        for name, value in named.items()
        if name != "out" and not name.endswith(("1_scale", "2_scale", "zero_point", "k_order"))
    }
    for name, form in (("w1", options.w1_format), ("w2", options.w2_format)):
        if form is not None:
            parts = (named.get(f"{name}_{part}") for part in ("scale", "zero_point", "k_order"))
            scale, zero_point, k_order = parts
            inputs[name] = QuantizedTensor(named[name], scale, form, zero_point, k_order)
    result = reference.fused_moe(
        **inputs,
        activation=options.activation,
        swiglu_alpha=options.swiglu_alpha,
        swiglu_limit=options.swiglu_limit,
        interleaved=options.interleaved,
        apply_router_weight_on_input=options.router_weight_on_input,
        input_quant=options.input_quant,
        input_block_k=input_block_k(options),
        a1_scale=named["a1_scale"],
        a2_scale=named["a2_scale"],
    )
    return (result,)


_FUSED_MOE = calls.Op(
    operation=FUSED_MOE,
    optional=frozenset(FUSED_MOE.tensors) - {"hidden_states", "w1", "w2", "topk_weights", "topk_ids", "out"},
    problem=_problem,
    reference=_reference,
)


def _routed_reference(named: dict[str, Any], options: RoutedOptions) -> tuple[Any, ...]:
    from jitmoe import reference

    if options.routing is not None:
        weights, ids = reference.route(
            named["router_logits"], options.routing, correction_bias=named["correction_bias"]
        )
    else:
        experts = named["w1"].shape[0] if named["expert_map"] is None else named["expert_map"].shape[0]
        weights, ids = reference.adjust_routing(
            named["topk_weights"],
            named["topk_ids"],
            renormalize=options.renormalize,
            num_shared_experts=options.num_shared_experts,
            first_shared_expert=experts - options.num_shared_experts,
            shared_weights=named["shared_weights"],
        )
    own = {name: named[name] for name in FUSED_MOE.tensors}
    return _reference(own | {"topk_weights": weights, "topk_ids": ids}, options.experts)


_ROUTED_MOE = calls.Op(
    operation=ROUTED_MOE,
    optional=frozenset(ROUTED_MOE.tensors) - {"hidden_states", "w1", "w2", "out"},
    problem=routed_moe_problem,
    reference=_routed_reference,
)


def _collect(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    activation: str,
    swiglu_alpha: float,
    swiglu_limit: float | None,
    interleaved: bool,
    w1_up: Any,
    w1_bias: Any,
    w2_bias: Any,
    apply_router_weight_on_input: bool,
    input_quant: str | None,
    a1_scale: Any,
    a2_scale: Any,
    expert_map: Any,
    out: Any,
    router_logits: Any,
    routing: Routing | None,
    correction_bias: Any,
    renormalize: bool,
    num_shared_experts: int,
    shared_weights: Any,
) -> tuple[calls.Op, calls.Given, FusedMoEOptions | RoutedOptions]:
    """Returns the op, its tensors in order, the output among them, and its options."""
    w1_scale = w1_zero_point = w1_k_order = w2_scale = w2_zero_point = None
    w1_format = w2_format = None
    if isinstance(w1, QuantizedTensor):
        w1_scale, w1_zero_point, w1_k_order, w1_format = w1.scale, w1.zero_point, w1.k_order, w1.format
        w1 = w1.data
    if isinstance(w2, QuantizedTensor):
        check_no_order(w2.format)
        w2_scale, w2_zero_point, w2_format = w2.scale, w2.zero_point, w2.format
        w2 = w2.data
    if out is None:
        hidden_states = tensors.adopt("hidden_states", hidden_states)
        out = tensors.empty_like(hidden_states)
    options = FusedMoEOptions(
        check_member("activation", activation, Activation),
        check_number("swiglu_alpha", swiglu_alpha),
        None if swiglu_limit is None else check_number("swiglu_limit", swiglu_limit, above=0),
        check_flag("interleaved", interleaved),
        check_flag("apply_router_weight_on_input", apply_router_weight_on_input),
        None if input_quant is None else check_member("input_quant", input_quant, InputQuant, also="None or "),
        w1_format,
        w2_format,
    )
    given = (
        *(hidden_states, w1, w2, topk_weights, topk_ids, expert_map, out, w1_up, w1_bias, w2_bias, a1_scale, a2_scale),
        *(w1_scale, w1_zero_point, w1_k_order, w2_scale, w2_zero_point),
    )
    router = (router_logits, routing, correction_bias, shared_weights)
    if all(value is None for value in router) and renormalize is False and num_shared_experts == 0:
        return _FUSED_MOE, given, options
    return (
        _ROUTED_MOE,
        (*given, router_logits, correction_bias, shared_weights),
        routed_options(
            options,
            given[3:5],
            router_logits,
            routing,
            correction_bias,
            renormalize,
            num_shared_experts,
            shared_weights,
        ),
    )


def fused_moe(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any = None,
    topk_ids: Any = None,
    *,
    router_logits: Any = None,
    routing: Routing | None = None,
    correction_bias: Any = None,
    renormalize: bool = False,
    num_shared_experts: int = 0,
    shared_weights: Any = None,
    activation: str = "silu",
    swiglu_alpha: float = SWIGLU_ALPHA,
    swiglu_limit: float | None = None,
    interleaved: bool = False,
    w1_up: Any = None,
    w1_bias: Any = None,
    w2_bias: Any = None,
    apply_router_weight_on_input: bool = False,
    input_quant: str | None = None,
    a1_scale: Any = None,
    a2_scale: Any = None,
    expert_map: Any = None,
    inplace: bool = False,
    out: Any = None,
    queue: Any = None,
    top_k: int | None = None,
) -> Any:
    """Returns y[t] = sum_j topk_weights[t, j] * (act(x[t] Wgate^T) * (x[t] Wup^T)) Wdown^T of expert topk_ids[t, j].

    The first call of a kind compiles its kernels (0.2 to 0.5 s each) and stores them in the cache; later calls, also
    of other processes, find them there. Accumulation is in float32; the activation's result is rounded once to the
    tensors' dtype, and so is the sum over experts. The same call gives the same bits every time.

    Args:
        hidden_states: x, [M, H] or [B, S, H], bfloat16, float16 or float32, dense rows. torch CPU or XPU tensors,
            objects with ``__sycl_usm_array_interface__`` (see ``UsmArray``), or DLPack objects (become torch tensors).
        w1: [E, 2*I, H], same dtype; rows 0..I-1 are the gate projection, rows I..2*I-1 the up projection (alternating
            with ``interleaved``). [E, I, H] if the up projection is ``w1_up``, or if there is no gate: then the
            activation alone is applied. Unit stride in the last dimension, or in the second-last ([E, H, 2*I] storage
            seen through a transposed view). Or a ``QuantizedTensor`` of the same shape.
        w2: [E, H, I], same dtype, strides as for w1; or a ``QuantizedTensor``.
        topk_weights: [M, k], bfloat16, float16, float32 or float64.
        topk_ids: [M, k], int32 or int64. Ids outside [0, E) mark experts of another rank and contribute nothing;
            an expert may appear several times in a row.
        router_logits: [M, experts that are routed to], instead of weights and ids, which one more launch then makes as
            ``routing`` (a ``Routing``) says, with the optional ``correction_bias``; see ``jitmoe.route``.
        renormalize: divide given topk_weights by their sum over a token's k.
        num_shared_experts: the last S experts of w1 and w2 (of ``expert_map``, if there is one) compute every token,
            besides the k given ones. ``routing`` has such a number of its own.
        shared_weights: [M, S], their weights; 1 without.
        activation: "silu", "gelu", "gelu_tanh", "relu2" (max(x, 0)^2) or "swiglu_oai"
            (gate * sigmoid(alpha * gate) * (up + 1), gpt-oss).
        swiglu_alpha: alpha of "swiglu_oai".
        swiglu_limit: L > 0: gate = min(gate, L) and up = clamp(up, -L, L) before any activation; None: no clamping.
        interleaved: gate and up rows of w1 alternate: g0 u0 g1 u1 ...
        w1_up: the up projection [E, I, H] as a tensor of its own, with the strides of w1.
        w1_bias: [E, rows of w1] in the order of w1's rows ([E, 2*I] gate, then up, with ``w1_up``), float32 or the
            tensors' dtype, dense. w2_bias: [E, H].
        apply_router_weight_on_input: the routing weight multiplies x instead of the expert's result (Llama 4).
        input_quant: "int8", "e4m3" or "e5m2": the inputs of both GEMMs are quantized too (W8A8), which needs weights of
            8 bits; see ``reference.round_input`` for the rounding. Scales are taken from each row (or each block of K
            that has a weight scale of its own), unless given:
        a1_scale, a2_scale: float32, one element or [E]: the scale of the first and the second GEMM's input.
        expert_map: int32, [experts on all ranks]: the local expert of each id, anything outside [0, E) for experts
            that are not here. Without a map ids are local.
        inplace: write the result into ``hidden_states`` and return it.
        out: write the result there and return it; like ``hidden_states`` in shape and dtype, may have strided rows,
            must not overlap the weights.
        queue: run on this queue (a ``dpctl.SyclQueue``, ``torch.xpu.Stream`` or the address of a ``sycl::queue``)
            instead of torch's current XPU stream, the queue of the USM memory, or the default CPU queue. The device
            must be able to reach the tensors. The caller waits for the queue, and keeps torch tensors alive until then
            (jitmoe keeps USM memory, that of the last call until the next one on the queue).
        top_k: makes this another op, ``fused_moe(tokens, expert_weights, routing_weights, top_k=8)``: tokens
            [B, S, H] (or [M, H]) times one matrix per expert, expert_weights [E, H, D], summed over the top_k largest
            of a token's routing_weights [B * S, E] (the lower index first among equal ones), which are the factors as
            they are. Returns [B, S, D]. Takes ``out`` and ``queue`` besides.

    Returns:
        The result, like ``hidden_states`` in shape and dtype. Calls on torch CPU tensors return when it is there
        (unless ``queue`` was given); all others return after submitting.

    Raises:
        ArgumentError: an argument does not fit; nothing has run.
        MissingKernelError: ``JITMOE_DISABLE_JIT=1`` and the cache lacks a kernel. With that setting whatever keeps the
            kernels from being used is an error, as it is with ``JITMOE_STRICT=1``; otherwise it is a warning, once, and
            the result comes from ``jitmoe.reference``.
        RuntimeUnavailableError: the device has no memory for the workspace; nothing has run.
        LaunchError: the runtime refused a kernel; what was submitted before it still runs.

    Gradients: kernels have no backward pass. With gradients enabled and an input that requires one, the
    differentiable reference computes the result (an error with ``JITMOE_STRICT=1``).
    """
    if check_flag("inplace", inplace):
        if out is not None:
            raise ArgumentError(argument="out", got="a tensor together with inplace=True", expected="one of the two")
        out = hidden_states
    if top_k is not None:
        _check_one_gemm(
            topk_weights=topk_weights, topk_ids=topk_ids, router_logits=router_logits, routing=routing,
            correction_bias=correction_bias, renormalize=renormalize, num_shared_experts=num_shared_experts,
            shared_weights=shared_weights, activation=activation, swiglu_alpha=swiglu_alpha,
            swiglu_limit=swiglu_limit, interleaved=interleaved, w1_up=w1_up, w1_bias=w1_bias, w2_bias=w2_bias,
            apply_router_weight_on_input=apply_router_weight_on_input, input_quant=input_quant, a1_scale=a1_scale,
            a2_scale=a2_scale, expert_map=expert_map, inplace=inplace,
        )  # fmt: skip
        return routed_grouped_gemm(hidden_states, w1, w2, top_k, out, queue)
    if topk_weights is None and router_logits is None:
        raise ArgumentError(
            argument="topk_weights",
            got="None",
            expected="weights with topk_ids, router_logits with routing instead, or top_k (one matrix per expert)",
        )
    op, given, options = _collect(
        *(hidden_states, w1, w2, topk_weights, topk_ids, activation, swiglu_alpha, swiglu_limit, interleaved, w1_up),
        *(w1_bias, w2_bias, apply_router_weight_on_input, input_quant, a1_scale, a2_scale, expert_map, out),
        *(router_logits, routing, correction_bias, renormalize, num_shared_experts, shared_weights),
    )
    calls.run(op, given, options, queue)
    return given[6]


@functools.cache
def _parameters() -> inspect.Signature:
    return inspect.signature(fused_moe)


def _check_one_gemm(**options: Any) -> None:
    """Refuses options of the expert layer in calls with ``top_k``: each has to be what it is by default."""
    parameters = _parameters().parameters
    for name, value in options.items():
        default = parameters[name].default
        if value is not default and (default is None or value != default):
            raise ArgumentError(argument=name, got="a value", expected="none: with top_k there is one GEMM alone")

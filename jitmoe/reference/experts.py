# SPDX-License-Identifier: MIT
"""What the twins of the expert ops are made of: activations, dequantized weights, experts, one GEMM over experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitmoe.errors import ArgumentError
from jitmoe.problems.formats import WHOLE, Encoding, InputQuant
from jitmoe.problems.fused_moe import SWIGLU_ALPHA, Activation, DType, GateUp

if TYPE_CHECKING:
    import torch

    from jitmoe.weights.quantized import QuantizedTensor

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # codes 0..7; 8..15 are their negatives


def activate(
    gate: torch.Tensor,
    up: torch.Tensor | None = None,
    activation: Activation | str = "silu",
    *,
    layout: GateUp | str | None = None,
    alpha: float = SWIGLU_ALPHA,
    limit: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns act(gate) * up, elementwise; act(gate) without up. Differentiable without ``out``.

    silu(g) = g * sigmoid(g); gelu(g) = g * Phi(g) with the exact normal distribution function; gelu_tanh is its
    tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415); relu2(g) = max(g, 0)^2 (So et al., arXiv 2109.08668);
    swiglu_oai: g * sigmoid(alpha * g) * (up + 1) (gpt-oss). With a ``limit`` L, gate = min(gate, L) and
    up = clamp(up, -L, L) come first.

    Args:
        gate: [*, I], or both halves [*, 2I]. Computed in float32 (float64 stays), rounded once to this dtype.
        up: like ``gate``, where it is a tensor of its own.
        activation: see above.
        layout: "separate", "concatenated" (g0 g1 ... u0 u1 ...), "interleaved" (g0 u0 g1 u1 ...) or "ungated".
            None: separate with ``up``, ungated without.
        alpha: of swiglu_oai.
        limit: see above; None: no clamping.
        out: write the result there and return it.
    """
    import torch
    from torch.nn import functional

    name = Activation(activation)
    dtype = gate.dtype
    where = GateUp(layout) if layout is not None else GateUp.UNGATED if up is None else GateUp.SEPARATE
    if (up is not None) != (where is GateUp.SEPARATE):
        got = f"{'no tensor' if up is None else 'a tensor'} with layout {where.value}"
        raise ArgumentError(argument="up", got=got, expected="a tensor with layout separate, none otherwise")
    if where is GateUp.CONCATENATED:
        gate, up = gate.chunk(2, dim=-1)
    elif where is GateUp.INTERLEAVED:
        gate, up = gate[..., 0::2], gate[..., 1::2]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    gate = gate.to(compute)
    up = None if up is None else up.to(compute)
    if limit is not None:
        gate = gate.clamp(max=limit)
        up = None if up is None else up.clamp(-limit, limit)
    if name is Activation.SWIGLU_OAI:
        result = gate * (alpha * gate).sigmoid()
        up = None if up is None else up + 1
    elif name is Activation.SILU:
        result = functional.silu(gate)
    elif name is Activation.RELU2:
        result = functional.relu(gate).square()
    else:
        result = functional.gelu(gate, approximate="tanh" if name is Activation.GELU_TANH else "none")
    result = (result if up is None else result * up).to(dtype)
    return result if out is None else out.copy_(result)


def silu_and_mul_moe(gate_output: torch.Tensor, up_output: torch.Tensor) -> None:
    """Writes silu(gate_output) * up_output into ``gate_output``; both [*, I]."""
    activate(gate_output, up_output, out=gate_output)


def unpacked(data: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Returns the values of codes as float32, [..., K]; ``UINT4`` codes as they are, 0..15.

    Args:
        data: one byte per code, or for 4 bits two codes per byte along the last dimension, the even one in the low
            nibble.
    """
    import torch

    if encoding.bits == 8:
        kinds = {Encoding.INT8: torch.int8, Encoding.E4M3: torch.float8_e4m3fn, Encoding.E5M2: torch.float8_e5m2}
        return data.view(kinds[encoding]).float()
    bytes_ = data.view(torch.uint8)
    codes = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-1).flatten(-2).to(torch.int64)
    if encoding is Encoding.UINT4:
        return codes.float()
    if encoding is Encoding.INT4:
        return (codes - 16 * (codes > 7)).float()
    table = torch.tensor((*E2M1_VALUES, *(-value for value in E2M1_VALUES)), device=data.device)
    return table[codes]


def scales(tensor: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Returns stored scales as float32; E8M0 bytes b as 2^(b - 127), 255 as NaN."""
    import torch

    if dtype is not DType.E8M0:
        return tensor.float()
    exponents = tensor.view(torch.uint8).to(torch.int32)
    powers = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents - 127)
    return torch.where(exponents == 255, torch.nan, powers)


def dequantize(
    weights: QuantizedTensor, *, expert: int | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Returns the matrices that quantized weights stand for, [E, N, K], or [N, K] of one ``expert``.

    ``dtype`` is float32 unless given; float64 makes the products of codes and scales exact.
    """
    import torch

    compute = torch.float32 if dtype is None else dtype
    form, k = weights.format, weights.shape[2]

    def of(tensor: torch.Tensor) -> torch.Tensor:
        if expert is None:
            return tensor
        return tensor[expert if tensor.shape[0] > 1 else 0]

    def spread(blocks: torch.Tensor) -> torch.Tensor:
        for dim, size, block in ((-2, weights.shape[1], form.block_n), (-1, k, form.block_k)):
            if block != WHOLE and block != 1:
                blocks = blocks.repeat_interleave(block, dim).narrow(dim, 0, size)
        return blocks

    values = unpacked(of(weights.data), form.encoding)[..., :k].to(compute)
    if form.encoding is Encoding.UINT4:
        zero = weights.zero_point
        values = values - (8 if zero is None else spread(of(zero)).to(compute))
    values = values * spread(scales(of(weights.scale), form.scale_dtype).to(compute))
    if weights.k_order is not None:
        order = of(weights.k_order).to(torch.int64).unsqueeze(-2).expand(values.shape)
        values = torch.empty_like(values).scatter_(-1, order, values)
    return values


def round_input(
    x: torch.Tensor, kind: InputQuant | str, *, scale: torch.Tensor | None = None, block_k: int = 0
) -> torch.Tensor:
    """Returns what rows x become when they are quantized: q * scale, in x's dtype (float64 keeps it exact).

    scale = absmax / largest over the row (or each ``block_k`` elements of it), 1 where absmax is 0, in float32;
    q = x / scale rounded to the nearest number of the format, ties to even, clamped to its range.

    Args:
        x: [rows, K].
        scale: given scale (static quantization): one element, or one per row.
        block_k: elements of K that share a scale; 0: the whole row.
    """
    import torch

    kind = InputQuant(kind)
    largest = {InputQuant.INT8: 127.0, InputQuant.E4M3: 448.0, InputQuant.E5M2: 57344.0}[kind]
    rows, k = x.shape
    block = block_k or max(k, 1)
    padded = torch.nn.functional.pad(x.float(), (0, -k % block)).reshape(rows, -1, block)
    if scale is None:
        absmax = padded.abs().amax(-1, keepdim=True)
        step = torch.where(absmax == 0, torch.ones_like(absmax), absmax / largest)
    else:
        step = scale.float().reshape(-1, 1, 1)
    quotient = (padded / step).clamp(-largest, largest)
    if kind is InputQuant.INT8:
        codes = quotient.round()
    else:
        codes = quotient.to(torch.float8_e4m3fn if kind is InputQuant.E4M3 else torch.float8_e5m2).float()
    return (codes.to(x.dtype) * step.to(x.dtype)).reshape(rows, -1)[:, :k]


def apply_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor | QuantizedTensor,
    w2: torch.Tensor | QuantizedTensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    activation: Activation | str = "silu",
    swiglu_alpha: float = SWIGLU_ALPHA,
    swiglu_limit: float | None = None,
    interleaved: bool = False,
    w1_up: torch.Tensor | None = None,
    w1_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    apply_router_weight_on_input: bool = False,
    input_quant: InputQuant | str | None = None,
    input_block_k: int = 0,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns y[t] = sum_j topk_weights[t, j] * (act(x[t] Wgate^T) * (x[t] Wup^T)) Wdown^T of expert topk_ids[t, j].

    Args:
        hidden_states: [M, H] or [B, S, H].
        w1: [E, 2*I, H]: gate rows, then up rows, or alternating if ``interleaved``; [E, I, H] with ``w1_up`` (the up
            rows) or without a gate. Quantized weights are dequantized.
        w2: [E, H, I], the down projection.
        topk_weights: [M, k], any float dtype.
        topk_ids: [M, k]; ids outside [0, E) contribute nothing.
        activation, swiglu_alpha, swiglu_limit: see ``activate``.
        w1_bias: [E, rows of w1], ordered like them. w2_bias: [E, H].
        apply_router_weight_on_input: multiply x instead of the result by the routing weight.
        input_quant, input_block_k, a1_scale, a2_scale: quantize both GEMMs' inputs, see ``round_input``; the scales
            have one element, or one per expert.
        expert_map: [experts on all ranks] int32, local expert of each id or a number outside [0, E).
        compute_dtype: of every intermediate; None for float32 (nothing is rounded to the weights' dtype between).

    Returns:
        The shape and dtype of ``hidden_states``; ``compute_dtype`` if that is float64. Differentiable.
    """
    import torch

    compute = torch.float32 if compute_dtype is None else compute_dtype
    num_experts, hidden_size = w1.shape[0], hidden_states.shape[-1]
    activation = Activation(activation)
    layout = GateUp.INTERLEAVED if interleaved else GateUp.CONCATENATED
    if w1_up is None and w1.shape[1] == w2.shape[2]:
        layout = GateUp.UNGATED
    x = hidden_states.reshape(-1, hidden_size)
    ids = topk_ids.to(torch.int64)
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.shape[0])
        mapped = torch.full_like(ids, -1)
        mapped[known] = expert_map.to(torch.int64)[ids[known]]
        ids = mapped

    def matrix(weights: Any, expert: int) -> torch.Tensor:
        if isinstance(weights, torch.Tensor):
            return weights[expert].to(compute)
        return dequantize(weights, expert=expert, dtype=compute)

    def rounded(rows: torch.Tensor, scale: torch.Tensor | None, expert: int) -> torch.Tensor:
        if input_quant is None:
            return rows
        if scale is not None and scale.numel() > 1:
            scale = scale.flatten()[expert]
        return round_input(rows, input_quant, scale=scale, block_k=input_block_k)

    y = torch.zeros(x.shape, dtype=compute, device=x.device)
    for expert in torch.unique(ids).tolist():
        if not 0 <= expert < num_experts:
            continue
        tokens, slots = torch.where(ids == expert)
        weights = topk_weights[tokens, slots].to(compute).unsqueeze(-1)
        rows = rounded(x[tokens].to(compute), a1_scale, expert)
        first = rows @ matrix(w1, expert).T
        if w1_up is not None:
            first = torch.cat((first, rows @ matrix(w1_up, expert).T), dim=-1)
        if apply_router_weight_on_input:
            first = first * weights
        if w1_bias is not None:
            first = first + w1_bias[expert].to(compute)
        inter = activate(first, None, activation, layout=layout, alpha=swiglu_alpha, limit=swiglu_limit)
        inter = rounded(inter, a2_scale, expert)
        down = inter @ matrix(w2, expert).T
        if w2_bias is not None:
            down = down + w2_bias[expert].to(compute)
        y = y.index_add(0, tokens, down if apply_router_weight_on_input else down * weights)
    result_dtype = compute if compute == torch.float64 else hidden_states.dtype
    return y.to(result_dtype).reshape(hidden_states.shape)


def weighted_products(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    *,
    trans_b: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns D[t] = sum_j topk_weights[t, j] * (A[t] B_e + C_e) of expert e = topk_indices[t, j].

    Args:
        A: [M, K] or [B, S, K]. B: [E, K, N], or [E, N, K] with ``trans_b`` (B_e^T is multiplied). C: [E, N], or None.
        topk_weights, topk_indices: [M, k]; indices outside [0, E) contribute nothing.
        compute_dtype: of every intermediate; None for float32.

    Returns:
        A's shape and dtype with N columns; ``compute_dtype`` if that is float64. Differentiable.
    """
    import torch

    compute = torch.float32 if compute_dtype is None else compute_dtype
    matrices = B.mT if trans_b else B
    x = A.reshape(-1, A.shape[-1])
    d = torch.zeros((x.shape[0], matrices.shape[2]), dtype=compute, device=A.device)
    for expert in torch.unique(topk_indices).tolist():
        if not 0 <= expert < B.shape[0]:
            continue
        tokens, slots = torch.where(topk_indices == expert)
        rows = x[tokens].to(compute) @ matrices[expert].to(compute)
        if C is not None:
            rows = rows + C[expert].to(compute)
        d = d.index_add(0, tokens, rows * topk_weights[tokens, slots].to(compute).unsqueeze(-1))
    return (d if compute == torch.float64 else d.to(A.dtype)).reshape(*A.shape[:-1], d.shape[1])


def adjust_routing(
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    renormalize: bool = False,
    num_shared_experts: int = 0,
    first_shared_expert: int = 0,
    shared_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (weights, int32 ids) [M, k + shared experts] of given routing.

    Args:
        topk_weights, topk_ids: [M, k].
        renormalize: divide the k weights of a token by their sum.
        num_shared_experts, first_shared_expert: ids first, first + 1, ... are appended to every token,
        shared_weights: [M, shared experts], with these weights (1 without).

    The weights are float32, or float64 if ``topk_weights`` are. Ids that do not fit int32 become -1.
    """
    import torch

    weights = topk_weights if topk_weights.dtype == torch.float64 else topk_weights.float()
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    ids = topk_ids.to(torch.int64)
    ids = torch.where(ids == ids.to(torch.int32), ids, -1)
    shape = (weights.shape[0], num_shared_experts)
    more = torch.ones(shape, device=weights.device) if shared_weights is None else shared_weights
    last = torch.arange(num_shared_experts, device=ids.device).expand(shape) + first_shared_expert
    return torch.cat((weights, more.to(weights.dtype)), -1), torch.cat((ids, last), -1).to(torch.int32)

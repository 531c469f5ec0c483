# SPDX-License-Identifier: MIT
"""Tensors of ``fused_moe`` calls, their float64 result, and how far a result may be from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

import jitmoe
from jitmoe import reference
from jitmoe.reference import experts

TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
DTYPES = tuple(TOLERANCES)


@dataclass
class Call:
    """The arguments of one call."""

    hidden_states: Any
    w1: Any
    w2: Any
    topk_weights: Any
    topk_ids: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Any, ...]:
        return self.hidden_states, self.w1, self.w2, self.topk_weights, self.topk_ids

    def run(self, **more: Any) -> Any:
        return jitmoe.fused_moe(*self.tensors, **{**self.options, **more})

    def expected(self) -> torch.Tensor:
        known = {name: value for name, value in self.options.items() if name not in ("inplace", "out", "queue")}
        return reference.fused_moe(*self.tensors, **known, compute_dtype=torch.float64)

    def changed(self, **values: Any) -> Call:
        fields = {name: values.pop(name) for name in list(values) if name in Call.__dataclass_fields__}
        return dataclasses.replace(self, **fields, options={**self.options, **values})


def make(
    m: int = 5, h: int = 64, i: int = 48, e: int = 4, k: int = 2, *,
    dtype: torch.dtype = torch.bfloat16, ids_dtype: torch.dtype = torch.int64,
    weights_dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any,
) -> Call:  # fmt: skip
    """Returns a call on dense CPU tensors with every id in range."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return Call(
        hidden_states=normal(m, h),
        w1=normal(e, 2 * i, h, scale=h**-0.5),
        w2=normal(e, h, i, scale=i**-0.5),
        topk_weights=torch.rand(m, k, generator=generator).to(weights_dtype),
        topk_ids=torch.randint(0, e, (m, k), generator=generator).to(ids_dtype),
        options=options,
    )


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the relative Frobenius error; 0 for two zeros, infinity for what is not finite."""
    wrong = (result.double() - expected).norm()
    if not bool(wrong.isfinite()):
        return float("inf")
    scale = expected.norm()
    return float(wrong / scale) if float(scale) else float(wrong)


def check(result: torch.Tensor, call: Call) -> None:
    """Asserts that ``result`` is right for ``call`` in shape, dtype and value."""
    x = call.hidden_states
    assert result.shape == x.shape and result.dtype == x.dtype
    found = error(result, call.expected())
    assert found <= TOLERANCES[x.dtype], f"relative error {found:.2e}"


def check_rounded(result: torch.Tensor, call: Call) -> None:
    """As ``check``, for outputs so small that cancellation decides: expects the documented rounding in between.

    One output element can be the small difference of large terms, whose 16-bit intermediate then alone exceeds any
    relative bound. The kernel's own rounding belongs to the expectation there.
    """
    x, compute = call.hidden_states, torch.float64
    real = experts.activate
    try:
        experts.activate = lambda *arguments, **options: real(*arguments, **options).to(x.dtype).to(compute)
        expected = call.expected()
    finally:
        experts.activate = real
    assert result.shape == x.shape and result.dtype == x.dtype
    found = error(result, expected)
    assert found <= TOLERANCES[x.dtype], f"relative error {found:.2e}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, so that NaN equals itself."""
    kinds = {2: torch.int16, 4: torch.int32}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def strided_copy(tensor: torch.Tensor, *, row_gap: int = 0, offset: int = 0) -> torch.Tensor:
    """Returns a copy whose rows lie ``row_gap`` elements apart, ``offset`` elements into its storage."""
    *lead, last = tensor.shape
    storage = torch.zeros(offset + tensor[..., 0].numel() * (last + row_gap), dtype=tensor.dtype)
    view = storage[offset:].view(*lead, last + row_gap)[..., :last]
    return view.copy_(tensor)


def transposed_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Returns an equal tensor stored with its last two dimensions swapped."""
    return tensor.mT.contiguous().mT

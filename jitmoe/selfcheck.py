# SPDX-License-Identifier: MIT
"""A freshly built kernel earns trust by reproducing the reference on the device it will run on.

Miscompiles, driver regressions and kernels that silently do nothing (an AVX-512 kernel on an AVX2 code generator was
built, launched and computed nothing) show up here instead of in a model's output.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from jitmoe.plan.launch import Plan
from jitmoe.problem import DType, Layout, MoEProblem
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.spec import KernelSpec

TENSOR_NAMES = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids", "expert_map", "out")

# Relative Frobenius error against float64 that a right kernel stays below, by activation dtype.
TOLERANCES = {DType.BF16: 1e-2, DType.FP16: 2e-3, DType.FP32: 1e-5}
# One wrong element hides in a norm; no element may be further off than this many tolerances of the result's RMS.
ELEMENT_FACTOR = 12.0
SEED = 20260101
_POISON = 0xFF  # NaN in every float format: what a kernel leaves out shows


def check(problem: MoEProblem, plan: Plan, kernels: Mapping[KernelSpec, Kernel], stream: Stream) -> tuple[float, str]:
    """Runs ``plan`` for the small ``problem`` and compares with the float64 reference.

    ``stream`` is private to the check: its workspace is overwritten and it is waited for.

    Returns:
        (relative Frobenius error, "" or what is wrong in words)
    """
    import torch

    from jitmoe import reference

    tensors = _inputs(problem)
    addresses: dict[str, int] = {}
    try:
        for name, tensor in tensors.items():
            addresses[name] = stream.upload(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        poison = ctypes.create_string_buffer(bytes([_POISON]) * plan.workspace_bytes)
        stream.copy(stream.workspace(plan.workspace_bytes), ctypes.addressof(poison), plan.workspace_bytes)
        bound = BoundPlan(plan, kernels, TENSOR_NAMES)
        bound.submit(stream, [addresses.get(name) for name in TENSOR_NAMES])
        stream.wait()
        result = torch.empty_like(tensors["out"])
        stream.copy(result.data_ptr(), addresses["out"], result.numel() * result.element_size())
    finally:
        for address in addresses.values():
            stream.free(address)

    w1, w2 = tensors["w1"], tensors["w2"]
    expected = reference.fused_moe(
        tensors["hidden_states"],
        w1.mT if problem.w1_layout is Layout.KN else w1,
        w2.mT if problem.w2_layout is Layout.KN else w2,
        tensors["topk_weights"],
        tensors["topk_ids"],
        activation=problem.activation,
        expert_map=tensors.get("expert_map"),
        compute_dtype=torch.float64,
    )
    return judge(result, expected, problem.dtype)


def judge(result: Any, expected: Any, dtype: DType) -> tuple[float, str]:
    """Returns (relative Frobenius error, what is wrong or "") of a torch tensor against its float64 expectation."""
    import torch

    wrong = (result.double() - expected).abs()
    if not bool(wrong.isfinite().all()):
        missing = int((~wrong.isfinite()).sum())
        return float("inf"), f"{missing} of {wrong.numel()} elements are not finite"
    error = float(wrong.norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))  # 0/0: nothing wrong
    tolerance = TOLERANCES[dtype]
    if error > tolerance:
        return error, f"relative error {error:.2e} exceeds {tolerance:.0e}"
    limit = ELEMENT_FACTOR * tolerance * float(expected.square().mean().sqrt())
    worst = int(wrong.argmax())
    if float(wrong.flatten()[worst]) > limit:
        return error, (
            f"element {worst} is {float(result.flatten()[worst]):.6g} instead of {float(expected.flatten()[worst]):.6g}"
        )
    return error, ""


def _inputs(problem: MoEProblem) -> dict[str, Any]:
    """Returns host tensors in the problem's dtypes and storage order, with every kind of routing case in them."""
    import torch

    dtypes = {
        DType.BF16: torch.bfloat16,
        DType.FP16: torch.float16,
        DType.FP32: torch.float32,
        DType.FP64: torch.float64,
        DType.INT32: torch.int32,
        DType.INT64: torch.int64,
    }
    m, h, i = problem.num_tokens, problem.hidden_size, problem.intermediate_size
    e, k = problem.num_experts, problem.top_k
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, scale: float, layout: Layout = Layout.NK) -> Any:
        values = torch.randn(*shape, generator=generator) * scale
        stored = values.mT if layout is Layout.KN else values
        return stored.to(dtypes[problem.dtype]).contiguous()

    ids = torch.randint(0, e, (m, k), generator=generator)
    ids[0, 0] = e + 3  # another rank's expert
    if m > 2:
        ids[1] = -1  # a token without any expert
        ids[2] = ids[2, 0]  # the same expert in every slot
    tensors = {
        "hidden_states": normal(m, h, scale=1.0),
        "w1": normal(e, 2 * i, h, scale=h**-0.5, layout=problem.w1_layout),
        "w2": normal(e, h, i, scale=i**-0.5, layout=problem.w2_layout),
        "topk_weights": torch.rand(m, k, generator=generator).to(dtypes[problem.topk_weights_dtype]),
        "topk_ids": ids.to(dtypes[problem.topk_ids_dtype]),
        "out": torch.full((m, h), float("nan"), dtype=dtypes[problem.dtype]),
    }
    if problem.num_global_experts is not None:
        permutation = torch.randperm(e, generator=generator).to(torch.int32)
        permutation[0] = -1
        tensors["expert_map"] = permutation
    return tensors

# SPDX-License-Identifier: MIT
"""A freshly built kernel earns trust by reproducing the reference on the device it will run on.

Miscompiles, driver regressions and kernels that silently do nothing (an AVX-512 kernel on an AVX2 code generator was
built, launched and computed nothing) show up here instead of in a model's output.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from jitmoe.operation import Problem
from jitmoe.plan.launch import Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.spec import KernelSpec

# Relative Frobenius error against float64 that a right kernel stays below, by activation dtype.
TOLERANCES = {DType.BF16: 1e-2, DType.FP16: 2e-3, DType.FP32: 1e-5}
# One wrong element hides in a norm; no element may be further off than this many tolerances of the result's RMS.
ELEMENT_FACTOR = 12.0
_POISON = 0xFF  # NaN in every float format: what a kernel leaves out shows


class Check(Protocol):
    """What a check module of an op offers."""

    def inputs(self, problem: Any) -> dict[str, Any]:
        """Returns host tensors by name, in the problem's dtypes and storage order, outputs included."""

    def judge(self, problem: Any, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[float, str]:
        """Returns (error, what is wrong or "") of the outputs, by name, that kernels made of ``inputs``."""


def check(problem: Problem, plan: Plan, kernels: Mapping[KernelSpec, Kernel], stream: Stream) -> tuple[float, str]:
    """Runs ``plan`` for the small ``problem`` and compares with the reference.

    ``stream`` is private to the check: its workspace is overwritten and it is waited for.

    Returns:
        (error, "" or what is wrong in words)
    """
    import torch

    operation = problem.OPERATION
    checker = cast(Check, importlib.import_module(operation.check))
    tensors = checker.inputs(problem)
    addresses: dict[str, int] = {}
    results = {}
    try:
        for name, tensor in tensors.items():
            addresses[name] = stream.upload(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        poison = ctypes.create_string_buffer(bytes([_POISON]) * plan.workspace_bytes)
        stream.copy(stream.workspace(plan.workspace_bytes), ctypes.addressof(poison), plan.workspace_bytes)
        bound = BoundPlan(plan, kernels, tuple(addresses), absent=operation.tensors)
        bound.submit(stream, tuple(addresses.values()))
        stream.wait()
        for name in operation.outputs:
            if name in tensors:
                results[name] = torch.empty_like(tensors[name])
                num_bytes = results[name].numel() * results[name].element_size()
                stream.copy(results[name].data_ptr(), addresses[name], num_bytes)
    finally:
        for address in addresses.values():
            stream.free(address)
    return checker.judge(problem, tensors, results)


def judge_floats(result: Any, expected: Any, dtype: DType) -> tuple[float, str]:
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

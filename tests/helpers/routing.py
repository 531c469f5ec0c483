# SPDX-License-Identifier: MIT
"""Runs routing and sorting problems on the CPU device, natively or as an emulated GPU, self-check included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from jitmoe import reference
from jitmoe.operation import Problem
from jitmoe.pipeline import Pipeline
from jitmoe.plan import planner_for
from jitmoe.plan.launch import Plan
from jitmoe.problems.fused_moe import DType
from jitmoe.problems.routing import Routing, RoutingProblem
from jitmoe.runtime import cpu
from jitmoe.runtime.stream import Stream, stream_of
from jitmoe.tensors import torch_dtypes


def stream(device: str) -> Stream:
    """Returns the default stream, as the CPU device itself or as the GPU ``device``."""
    queue_ref = cpu.default_queue().addressof_ref()
    return stream_of(queue_ref) if device == "cpu" else stream_of(queue_ref, emulated_arch=device)


def run(pipeline: Pipeline, problem: Problem, device: str, **tensors: torch.Tensor | None) -> None:
    """Runs the plan of ``problem`` on host tensors by name and waits."""
    on = stream(device)
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    pipeline.prepare(problem, on, tuple(there)).submit(on, [tensor.data_ptr() for tensor in there.values()])
    on.wait()


@dataclass
class Case:
    """One ``route`` call."""

    logits: torch.Tensor
    routing: Routing
    bias: torch.Tensor | None = None
    ids_dtype: DType = DType.INT32
    gap: int = 0  # elements between the rows of the outputs

    @property
    def problem(self) -> RoutingProblem:
        ours = {dtype: name for name, dtype in torch_dtypes().items()}
        tokens, experts = self.logits.shape
        slots = self.routing.num_slots + self.gap
        return RoutingProblem(
            num_tokens=tokens,
            num_experts=experts,
            routing=self.routing,
            dtype=ours[self.logits.dtype],
            bias_dtype=None if self.bias is None else ours[self.bias.dtype],
            ids_dtype=self.ids_dtype,
            logits_row_stride=self.logits.stride(0),
            weights_row_stride=slots,
            ids_row_stride=slots,
        )

    def plan(self, on: Stream) -> Plan:
        planner = planner_for(self.problem, on.device)
        return planner.launches(self.problem, on.device, planner.choose(self.problem, on.device))

    def run(self, pipeline: Pipeline, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, slots = self.logits.shape[0], self.routing.num_slots
        weights = torch.full((tokens, slots + self.gap), -5.0)
        ids = torch.full((tokens, slots + self.gap), -5, dtype=torch_dtypes()[self.ids_dtype])
        tensors: dict[str, Any] = {
            "router_logits": self.logits, "correction_bias": self.bias, "topk_weights": weights, "topk_ids": ids,
        }  # fmt: skip
        run(pipeline, self.problem, device, **tensors)
        assert bool((weights[:, slots:] == -5).all()) and bool((ids[:, slots:] == -5).all())
        return weights[:, :slots], ids[:, :slots]

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.route(
            self.logits, self.routing, correction_bias=self.bias, ids_dtype=torch_dtypes()[self.ids_dtype]
        )


def first_difference(case: Case, found: torch.Tensor, expected: torch.Tensor) -> str:
    """Returns the first row that differs, with the logits of both choices."""
    row = int((found != expected).any(dim=1).nonzero()[0])
    values = case.logits[row].float()

    def shown(ids: torch.Tensor) -> list[tuple[int, float]]:
        return [(int(e), float(values[e]) if 0 <= e < values.numel() else 0.0) for e in ids]

    return f"row {row}: {shown(found[row])} instead of {shown(expected[row])}"

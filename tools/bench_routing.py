#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Routing and sorting beside the torch compositions that models run: interleaved rounds, medians, equal results.

usage: tools/bench_routing.py [--tokens 4096] [--rounds 30] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import jitmoe

Call = Callable[[], Any]


def deepseek_v3(logits: torch.Tensor, bias: torch.Tensor) -> Call:
    """What DeepSeek-V3's gate does: 256 experts in 8 groups, 8 of the best 4 groups."""
    tokens, experts = logits.shape

    def call() -> Any:
        scores = logits.float().sigmoid()
        choice = scores + bias
        groups = choice.view(tokens, 8, -1).topk(2, dim=-1).values.sum(dim=-1).topk(4, dim=-1, sorted=False).indices
        mask = torch.zeros(tokens, 8, dtype=torch.bool).scatter_(1, groups, True)
        mask = mask.unsqueeze(-1).expand(tokens, 8, experts // 8).reshape(tokens, experts)
        ids = choice.masked_fill(~mask, float("-inf")).topk(8, dim=-1).indices
        weights = scores.gather(1, ids)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5, ids

    return call


def softmax(logits: torch.Tensor, top_k: int) -> Call:
    def call() -> Any:
        weights, ids = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), ids

    return call


def align(ids: torch.Tensor, experts: int, block_size: int) -> Call:
    """A stable sort and the places of padded blocks."""

    def call() -> Any:
        flat = ids.flatten()
        counts = torch.bincount(flat, minlength=experts)
        blocks = (counts + block_size - 1) // block_size
        order = torch.sort(flat, stable=True).indices
        chosen = flat[order]
        starts = (blocks.cumsum(0) - blocks) * block_size - (counts.cumsum(0) - counts)
        longest = (flat.numel() + experts * (block_size - 1)) // block_size * block_size
        places = torch.full((longest,), flat.numel(), dtype=torch.int32)
        places[starts[chosen] + torch.arange(flat.numel())] = order.int()
        used = torch.repeat_interleave(torch.arange(experts, dtype=torch.int32), blocks)
        padded = torch.nn.functional.pad(used, (0, longest // block_size - used.numel()), value=-1)
        return places, padded, blocks.sum().int() * block_size

    return call


def median_us(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.01)  # torch's threads spin for a while after each operation
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--pairs-tokens", type=int, default=32768, help="tokens of the sorting cell, 8 experts each")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)

    logits = torch.randn(options.tokens, 256).bfloat16()
    bias = torch.randn(256) / 10
    qwen = torch.randn(options.tokens, 128)  # fp32: torch.topk orders equal values as it likes
    ids = torch.randint(0, 256, (options.pairs_tokens, 8), dtype=torch.int32)
    cells: dict[str, tuple[Call, Call]] = {
        f"grouped_topk M={options.tokens} E=256 k=8 of 4/8 groups": (
            lambda: jitmoe.grouped_topk(logits, 8, True, 8, 4, "sigmoid", 2.5, bias),
            deepseek_v3(logits, bias),
        ),
        f"topk_softmax M={options.tokens} E=128 k=8": (
            lambda: jitmoe.topk_softmax(qwen, 8, True),
            softmax(qwen, 8),
        ),
        f"moe_align_block_size M={options.pairs_tokens} k=8 E=256 block 128": (
            lambda: jitmoe.moe_align_block_size(ids, 256, 128),
            align(ids, 256, 128),
        ),
    }
    rows = []
    for name, (ours, torchs) in cells.items():
        for found, expected in zip(ours(), torchs(), strict=True):
            same = torch.isclose(found.double(), expected.double(), rtol=1e-5)
            share = float(same.double().mean())
            if share < 0.999:
                raise SystemExit(f"{name}: only {share:.1%} of the results agree with torch")
        medians = median_us({"jitmoe": ours, "torch": torchs}, options.rounds)
        rows.append({"cell": name, **medians, "ratio": medians["torch"] / medians["jitmoe"]})
        print(f"{name}: jitmoe {medians['jitmoe']:.0f} us, torch {medians['torch']:.0f} us, {rows[-1]['ratio']:.1f} x")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""One real MoE layer from an empty private cache, twice: in a first process that compiles, in a second that does not.

usage: tools/demo            (makes its own environment; or run this file with a python that has jitmoe)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "Qwen3-30B-A3B"
NUM_EXPERTS, TOP_K, HIDDEN_SIZE, INTERMEDIATE_SIZE = 128, 8, 2048, 768
TOKEN_COUNTS = (1, 64)
TOLERANCE = 1e-2  # relative Frobenius error of bf16 against float32
WARM_UP_ROUNDS = 3
ROUNDS = 9


def eager(hidden_states, w1, w2, topk_weights, topk_ids):
    """The loop over experts that a model runs in eager mode."""
    import torch

    y = torch.zeros_like(hidden_states)
    for expert in topk_ids.unique().tolist():
        tokens, slots = torch.where(topk_ids == expert)
        gate, up = (hidden_states[tokens] @ w1[expert].T).chunk(2, dim=-1)
        down = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        y.index_add_(0, tokens, down * topk_weights[tokens, slots].to(down.dtype).unsqueeze(-1))
    return y


def interleaved_medians(functions):
    """Times the functions in turn, so that a busy machine disturbs all alike; returns seconds."""
    times = [[] for _ in functions]
    for round_number in range(WARM_UP_ROUNDS + ROUNDS):
        for position, function in enumerate(functions):
            started = time.perf_counter()
            function()
            if round_number >= WARM_UP_ROUNDS:
                times[position].append(time.perf_counter() - started)
    return [statistics.median(values) for values in times]


def run_layer(second: bool) -> bool:
    import torch

    import jitmoe
    from jitmoe import pipeline, reference
    from jitmoe.runtime import cpu
    from jitmoe.runtime.stream import stream_of

    torch.manual_seed(0)
    on_xpu = hasattr(torch, "xpu") and torch.xpu.is_available()
    place = "xpu" if on_xpu else "cpu"
    sizes = {"dtype": torch.bfloat16, "device": place}
    w1 = torch.randn(NUM_EXPERTS, 2 * INTERMEDIATE_SIZE, HIDDEN_SIZE, **sizes).mul_(HIDDEN_SIZE**-0.5)
    w2 = torch.randn(NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE, **sizes).mul_(INTERMEDIATE_SIZE**-0.5)
    router = torch.randn(NUM_EXPERTS, HIDDEN_SIZE, **sizes).mul_(HIDDEN_SIZE**-0.5)

    builds = []
    pipeline.default().on_build = builds.append

    def synchronize():
        if on_xpu:
            torch.xpu.synchronize()

    good = True
    for position, num_tokens in enumerate(TOKEN_COUNTS):
        x = torch.randn(num_tokens, HIDDEN_SIZE, **sizes)
        scores = torch.softmax((x @ router.T).float(), dim=-1)
        topk_weights, topk_ids = scores.topk(TOP_K)
        topk_weights /= topk_weights.sum(dim=-1, keepdim=True)
        arguments = (x, w1, w2, topk_weights, topk_ids)

        started = time.perf_counter()
        y = jitmoe.fused_moe(*arguments)
        synchronize()
        first_s = time.perf_counter() - started

        if position == 0:
            queue_ref = torch.xpu.current_stream().sycl_queue if on_xpu else cpu.default_queue().addressof_ref()
            print(f"  device    {stream_of(queue_ref).device}")
            used = ", ".join(compiler.identity.rsplit(" sha256", 1)[0] for compiler in pipeline.default().compilers[:1])
            print(f"  compiler  {used or 'none: everything comes from the cache'}")
        print(f"\n  M = {num_tokens}")
        for build in builds:
            where = "from the cache" if build.source == "cache" else f"compiled by {build.source}"
            print(f"    {build.spec.entry_name:<24} {where:<24} {build.seconds * 1e3:7.0f} ms")
        builds.clear()
        print(f"    {'first call, all included':<49} {first_s * 1e3:7.0f} ms")

        expected = reference.fused_moe(*arguments).float()
        error = float((y.float() - expected).norm() / expected.norm())
        good = good and error <= TOLERANCE
        verdict = "ok" if error <= TOLERANCE else f"WRONG, more than {TOLERANCE}"
        print(f"    error against float32 reference {error:.1e} ({verdict})")
        if not second:
            ours, loop = interleaved_medians(
                [
                    lambda a=arguments: (jitmoe.fused_moe(*a), synchronize()),
                    lambda a=arguments: (eager(*a), synchronize()),
                ]
            )
            print(
                f"    jitmoe {ours * 1e3:.2f} ms, torch eager loop {loop * 1e3:.2f} ms: "
                f"{loop / ours:.2f}x as fast (medians of {ROUNDS} interleaved rounds)"
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep-cache", action="store_true", help="leave the private cache folder where it is")
    options = parser.parse_args()
    if options.second_process:
        return 0 if run_layer(second=True) else 1

    cache = Path(tempfile.mkdtemp(prefix="jitmoe-demo-"))
    os.environ["JITMOE_CACHE_DIR"] = str(cache)
    try:
        print(
            f"{MODEL}: one MoE layer, E={NUM_EXPERTS} k={TOP_K} H={HIDDEN_SIZE} I={INTERMEDIATE_SIZE}, bf16, "
            "softmax top-8 routing\n"
        )
        print("First process, empty cache")
        good = run_layer(second=False)
        print("\nSecond process, same cache")
        sys.stdout.flush()
        again = subprocess.run([sys.executable, __file__, "--second-process"], check=False)
        good = good and again.returncode == 0
    finally:
        if options.keep_cache:
            print(f"\nThe cache stays in {cache}")
        else:
            shutil.rmtree(cache, ignore_errors=True)
    print("\nAll results match the reference." if good else "\nA result is WRONG: please report the output above.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

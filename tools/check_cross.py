#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs fused_moe over the whole cross of dtypes, tokens, experts, slots, sizes and layouts against float64.

usage: tools/check_cross.py [--quick]

Strict mode: nothing falls back to the reference. Prints counts, the worst error of each dtype beside its bound and the
worst cases; exits with 1 if a bound is broken or two runs of a case differ in a bit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP), str(TOP / "tests")]
os.environ["JITMOE_STRICT"] = "1"

import torch  # noqa: E402
from helpers import moe  # noqa: E402

TOKENS = (0, 1, 2, 3, 7, 16, 33, 64, 257, 1024)
EXPERTS = (1, 2, 3, 8, 60, 128)
SLOTS = (1, 2, 6, 8)
SIZES = ((64, 48), (71, 33), (130, 17))  # H, I: even, odd, H with a tail and I of one tile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every 17th case")
    options = parser.parse_args()
    cases = list(itertools.product(moe.DTYPES, TOKENS, EXPERTS, SLOTS, SIZES))
    if options.quick:
        cases = cases[::17]
    errors: dict[torch.dtype, list[tuple[float, str]]] = {dtype: [] for dtype in moe.DTYPES}
    different = []
    started = time.monotonic()
    for position, (dtype, m, e, k, (h, i)) in enumerate(cases):
        call = moe.make(m, h, i, e, k, dtype=dtype, seed=position)
        if position % 3 == 1:  # some ids of other ranks
            call.topk_ids[::3, 0] = -1
        if position % 4 == 3:
            call = call.changed(w1=moe.transposed_copy(call.w1), w2=moe.transposed_copy(call.w2))
        name = f"M={m} E={e} k={k} H={h} I={i} case {position}"
        result = call.run()
        errors[dtype].append((moe.error(result, call.expected()), name))
        if not torch.equal(moe.bits(result), moe.bits(call.run())):
            different.append(f"{dtype} {name}")
        if position % 20 == 0:
            print(f"\r{position + 1} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    broken = 0
    for dtype, found in errors.items():
        bound = moe.TOLERANCES[dtype]
        over = [case for case in found if not case[0] <= bound]
        broken += len(over)
        worst, where = max(found)
        print(f"{dtype}: {len(found)} cases, worst error {worst:.2e} of {bound:.0e} ({where}), {len(over)} over")
        for error, name in over[:10]:
            print(f"  OVER {error:.2e} {name}")
    print(f"{len(different)} cases gave other bits the second time; {time.monotonic() - started:.0f} s")
    for name in different[:10]:
        print(f"  DIFFERENT {name}")
    return 1 if broken or different else 0


if __name__ == "__main__":
    sys.exit(main())

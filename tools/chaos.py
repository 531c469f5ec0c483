#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kills cold starts at random moments and checks that the next start is right, and how long it takes.

usage: tools/chaos.py [--runs 100] [--crowd 32] [--seed 1] [--lock-timeout 10]

Each run starts a process on the cache folder, kills it with SIGKILL at a random moment of its first call, verifies
every entry that is there, and starts another process, which has to get the right numbers without a warning and within
the lock bound. Every third run begins with an empty folder. Then, once, a crowd starts on an empty folder: each kernel
has to be compiled once. Prints a summary; exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP), str(TOP / "tests")]

from helpers.cold_start import Nursery  # noqa: E402

from jitmoe.cache.files import FileStore  # noqa: E402


def damaged_entries(cache: Path) -> list[str]:
    store = FileStore(cache, writable=False)
    return [f"{folder}: {wrong}" for folder in store.folders() if (wrong := store.verify(folder))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--crowd", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lock-timeout", type=float, default=10.0, help="seconds")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    problems: list[str] = []
    found_by_next, next_seconds, killed = Counter[int](), [], 0
    with tempfile.TemporaryDirectory(prefix="jitmoe-chaos-") as top, Nursery() as nursery:
        cache = Path(top) / "cache"
        settings = {"JITMOE_LOCK_TIMEOUT": str(options.lock_timeout)}
        cold_seconds = nursery.run(cache, **settings)["seconds"]
        print(f"an undisturbed cold start takes {cold_seconds:.2f} s", flush=True)
        for run in range(options.runs):
            if run % 3 == 0:
                shutil.rmtree(cache, ignore_errors=True)
            moment = generator.uniform(0.0, 1.1 * cold_seconds)
            (answer,) = nursery.crowd(cache, 1, kill_after_s=moment, **settings)
            killed += answer is None
            problems += [f"run {run}, killed after {moment:.3f} s: {wrong}" for wrong in damaged_entries(cache)]
            after = nursery.run(cache, **settings)
            next_seconds.append(after["seconds"])
            found_by_next[3 - len(after["compiled"])] += 1
            if not after["right"]:
                problems.append(f"run {run}: relative errors {after['errors']}")
            if after["warnings"]:
                problems.append(f"run {run}: {after['warnings']}")
            if after["seconds"] > options.lock_timeout + 2 * cold_seconds:
                problems.append(f"run {run}: the next start took {after['seconds']:.2f} s")
            print(f"\r{run + 1} of {options.runs}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        leftovers = len(list((cache / "tmp").iterdir()))
        shutil.rmtree(cache)
        started = time.monotonic()
        answers = nursery.crowd(cache, options.crowd, JITMOE_LOCK_TIMEOUT="120")
        crowd_seconds = time.monotonic() - started
        compiled = Counter(spec for answer in answers if answer for spec in answer["compiled"])
        if not all(answer and answer["right"] and not answer["warnings"] for answer in answers):
            problems.append("not every process of the crowd was right and silent")
        if set(compiled.values()) != {1}:
            problems.append(f"the crowd compiled {dict(compiled)}")
    print(f"{killed} of {options.runs} starts were killed in time; {len(problems)} problems")
    print("kernels (of 3) that the next start found in the cache:", dict(sorted(found_by_next.items())))
    print(f"next start: median {statistics.median(next_seconds):.2f} s, longest {max(next_seconds):.2f} s")
    print(f"folders left in tmp/ (swept after a day): {leftovers}")
    print(
        f"{options.crowd} processes on an empty cache: {crowd_seconds:.1f} s, compilations {sorted(compiled.values())}"
    )
    for problem in problems:
        print("PROBLEM", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

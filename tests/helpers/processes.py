# SPDX-License-Identifier: MIT
"""Which processes are there, from /proc."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def _status(pid: int) -> tuple[str, int] | None:
    """Returns (state, parent) of a process, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def children_of(pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if (status := _status(child)) is not None and status[1] == pid]


def still_running(pids: Iterable[int], *, within_s: float = 60.0) -> list[int]:
    """Returns which processes have not ended ``within_s`` from now; returns at once when all have."""
    end = time.monotonic() + within_s
    left = list(pids)
    while left:
        left = [pid for pid in left if (status := _status(pid)) is not None and status[0] != "Z"]
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return left

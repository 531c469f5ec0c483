# SPDX-License-Identifier: MIT
"""How many compilations run at once: cores, wishes and free memory."""

from __future__ import annotations

import builtins
import io
import os

import pytest

from jitmoe.compilers import base

GIB = 1 << 30


@pytest.mark.parametrize(
    ("requests", "wanted", "available", "per_job", "jobs"),
    [
        (10, 4, 100 * GIB, GIB, 4),
        (3, 4, 100 * GIB, GIB, 3),
        (10, 0, 100 * GIB, GIB, 6),
        (10, 8, 4 * GIB, GIB, 3),  # 80 % of 4 GiB
        (10, 8, 5 * GIB, GIB, 4),
        (10, 8, GIB // 2, GIB, 1),
        (10, 8, 0, GIB, 1),
        (1, 0, None, GIB, 1),
        (10, 8, None, GIB, 8),
        (0, 8, 100 * GIB, GIB, 1),
    ],
)
def test_parallel_jobs(monkeypatch, requests, wanted, available, per_job, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(base, "available_memory_bytes", lambda: available)
    assert base.parallel_jobs(requests, wanted=wanted, memory_per_job_bytes=per_job) == jobs


MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


def system(monkeypatch, **files: str | None):
    """Replaces the files that are read; None stands for one that is not there."""
    names = {
        "meminfo": "/proc/meminfo",
        "maximum": "/sys/fs/cgroup/memory.max",
        "current": "/sys/fs/cgroup/memory.current",
        "stat": "/sys/fs/cgroup/memory.stat",
    }
    contents = {names[name]: text for name, text in files.items()}
    real = builtins.open

    def fake(path, *args, **kwargs):
        if str(path) in names.values():
            if contents.get(str(path)) is None:
                raise FileNotFoundError(path)
            return io.StringIO(contents[str(path)])
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fake)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"meminfo": MEMINFO}, 8_000_000 * 1024, id="no cgroup"),
        pytest.param({"meminfo": MEMINFO, "maximum": "max\n", "current": "5\n"}, 8_000_000 * 1024, id="no limit"),
        pytest.param(
            {"meminfo": MEMINFO, "maximum": "1000000000\n", "current": "400000000\n"}, 600_000_000, id="limit"
        ),
        pytest.param(
            {
                "meminfo": MEMINFO,
                "maximum": "1000000000\n",
                "current": "990000000\n",
                "stat": "anon 190000000\ninactive_file 500000000\nactive_file 300000000\n",
            },
            510_000_000,
            id="the page cache of a model that was read counts as free",
        ),
        pytest.param({"meminfo": MEMINFO, "maximum": "10\n", "current": "50\n"}, 0, id="over the limit"),
        pytest.param({"meminfo": MEMINFO, "maximum": "?\n", "current": "5\n"}, 8_000_000 * 1024, id="odd cgroup"),
        pytest.param({"meminfo": "odd\n"}, None, id="odd meminfo"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_available_memory(monkeypatch, files, expected):
    system(monkeypatch, **files)
    assert base.available_memory_bytes() == expected

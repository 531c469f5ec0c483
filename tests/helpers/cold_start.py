# SPDX-License-Identifier: MIT
"""Processes that start cold on some cache, call ``fused_moe``, check the numbers and say what they did.

A ``Nursery`` is one process that has imported torch and jitmoe (most of a start's time) and forks the processes from
there: before the SYCL runtime has started, so each child is as good as a new process. The caller itself may have a
runtime running, which is why the nursery is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
LIMIT_S = 600.0


class Nursery:
    """Starts children; use it as a context manager."""

    def __enter__(self) -> Nursery:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JITMOE_")}
        environment |= {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def crowd(
        self, cache: Path | None, size: int, *, kinds: int = 1, kill_after_s: float | None = None, **settings: str
    ) -> list[dict[str, Any] | None]:
        """Runs ``size`` processes that begin at the same moment; returns what each said, None for killed ones.

        Args:
            cache: JITMOE_CACHE_DIR, or None to leave it unset.
            kinds: how many kinds of call (each needs other kernels).
            kill_after_s: when to SIGKILL them all.
            settings: environment variables.
        """
        order = {"cache": str(cache) if cache else None, "size": size, "kinds": kinds, "kill": kill_after_s}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**order, "settings": settings}) + "\n")
        self._process.stdin.flush()
        answers: list[dict[str, Any] | None] = json.loads(self._process.stdout.readline())
        for answer in answers:
            assert answer is None or "traceback" not in answer, answer["traceback"]
        return answers

    def run(self, cache: Path | None, **options: Any) -> dict[str, Any]:
        """Runs one process to its end."""
        (answer,) = self.crowd(cache, 1, **options)
        assert answer is not None
        return answer


def _work(kinds: int) -> dict[str, Any]:
    import torch
    from helpers import moe

    from jitmoe import pipeline

    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("jitmoe").addHandler(handler)
    built: list[tuple[str, str]] = []
    options: list[dict[str, Any]] = [{}, {"dtype": torch.float32}, {"activation": "gelu"}, {"dtype": torch.float16}]
    calls = [moe.make(40, **chosen) for chosen in options[:kinds]]
    started = time.perf_counter()
    pipeline.default().on_build = lambda event: built.append((str(event.spec), event.source))
    results = [call.run() for call in calls]
    seconds = time.perf_counter() - started
    errors = [moe.error(result, call.expected()) for result, call in zip(results, calls, strict=True)]
    return {
        "seconds": seconds,
        "errors": errors,
        "right": all(e <= moe.TOLERANCES[r.dtype] for e, r in zip(errors, results, strict=True)),
        "compiled": [spec for spec, source in built if source != "cache"],
        "warnings": messages,
    }


def _child(order: dict[str, Any], gate: int, reply: int) -> None:
    import traceback

    try:
        os.environ.update(order["settings"])
        if order["cache"] is not None:
            os.environ["JITMOE_CACHE_DIR"] = order["cache"]
        os.read(gate, 1)  # ends when the nursery closes its side
        answer = _work(order["kinds"])
    except BaseException:
        answer = {"traceback": traceback.format_exc()}
    with os.fdopen(reply, "w") as stream:
        json.dump(answer, stream)
    os._exit(0)


def _run(order: dict[str, Any]) -> list[dict[str, Any] | None]:
    gate, opener = os.pipe()
    children: dict[int, int] = {}  # reply pipe -> pid
    for _ in range(order["size"]):
        reply, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            _child(order, gate, there)
        os.close(there)
        children[reply] = pid
    os.close(gate)
    os.close(opener)
    started = time.monotonic()
    limit = order["kill"] if order["kill"] is not None else LIMIT_S
    texts = dict.fromkeys(children, b"")
    open_replies = set(children)
    with selectors.DefaultSelector() as selector:
        for reply in children:
            selector.register(reply, selectors.EVENT_READ)
        while open_replies:
            left = limit - (time.monotonic() - started)
            ready = selector.select(max(0.0, left))
            if not ready and left <= 0:
                for reply in open_replies:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(children[reply], signal.SIGKILL)
                limit = float("inf") if limit == float("inf") else limit + 30.0
                continue
            for key, _ in ready:
                content = os.read(key.fd, 1 << 16)
                texts[key.fd] += content
                if not content:
                    selector.unregister(key.fd)
                    open_replies.discard(key.fd)
    for reply, pid in children.items():
        os.close(reply)
        os.waitpid(pid, 0)
    return [json.loads(text) if text.endswith(b"}") else None for text in texts.values()]


def main() -> None:
    import torch
    from helpers import moe  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

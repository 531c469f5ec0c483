# SPDX-License-Identifier: MIT
"""kernel -> trust: self-checks once per kernel, device and driver, and what they found out, kept in the cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from jitmoe import selfcheck
from jitmoe.builder import Builder
from jitmoe.cache import CacheKey, Entry
from jitmoe.device import Device
from jitmoe.errors import SelfCheckError
from jitmoe.operation import Problem
from jitmoe.plan.launch import Plan
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream, private_stream
from jitmoe.spec import KernelSpec

logger = logging.getLogger("jitmoe")


class Trust:
    """Which kernels have proven themselves on which devices."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._checked: set[tuple[str, str]] = set()
        self._rejected: dict[tuple[str, ...], SelfCheckError] = {}  # by device and kernels, see _group

    def covers(self, entries: Iterable[Entry], device: Device) -> bool:
        """Whether every kernel has passed on this device; raises if these have failed there together before."""
        entries = tuple(entries)
        group = _group(entries, device)
        if group in self._rejected:
            raise self._rejected[group]
        trusted = True
        for entry in entries:
            place = (entry.key.digest, device.fingerprint)
            if place in self._checked:
                continue
            verdict = self._builder.cache.get_verdict(_check_verdict(entry.key, device))
            if verdict is not None and verdict.get("status") == "passed":
                self._checked.add(place)
            elif verdict is not None and verdict.get("group") == list(group):
                raise self._reject(group, entries, device, f"{verdict.get('evidence')} (recorded)")
            else:  # not tried, or it failed beside other kernels, any of which may be to blame
                trusted = False
        return trusted

    def _reject(
        self, group: tuple[str, ...], entries: Iterable[Entry], device: Device, evidence: str
    ) -> SelfCheckError:
        names = tuple(entry.key.name for entry in entries)
        self._rejected[group] = SelfCheckError(kernels=names, device=str(device), evidence=evidence)
        return self._rejected[group]

    def check(
        self,
        problem: Problem,
        plan: Plan,
        entries: dict[KernelSpec, Entry],
        kernels: dict[KernelSpec, Kernel],
        stream: Stream,
    ) -> None:
        """Runs the self-check of ``plan`` for ``problem`` and records the verdict; raises ``SelfCheckError``."""
        started = time.perf_counter()
        with private_stream(stream) as own:
            error, wrong = selfcheck.check(problem, plan, kernels, own)
        verdict = {
            "status": "failed" if wrong else "passed",
            "evidence": wrong,
            "error": error,
            "problem": str(problem),
            "kernels": [str(spec) for spec in entries],
            "group": list(_group(entries.values(), stream.device)),
            "device": str(stream.device),
            "driver": stream.device.driver_version,
            "seconds": time.perf_counter() - started,
            "created": time.time(),
        }
        logger.info("self-check of %s: %s, error %.2e", problem, verdict["status"], error)
        for entry in entries.values():
            place = (entry.key.digest, stream.device.fingerprint)
            if place not in self._checked:  # a kernel that passed with others is not to blame
                self._builder.cache.put_verdict(_check_verdict(entry.key, stream.device), verdict)
                if not wrong:
                    self._checked.add(place)
        if wrong:
            raise self._reject(_group(entries.values(), stream.device), entries.values(), stream.device, wrong)


def _group(entries: Iterable[Entry], device: Device) -> tuple[str, ...]:
    """Returns what a failed self-check is about: the device and all kernels that took part."""
    return (device.fingerprint, *sorted(entry.key.digest for entry in entries))


def _check_verdict(key: CacheKey, device: Device) -> str:
    return f"{key.digest}-{device.fingerprint}"

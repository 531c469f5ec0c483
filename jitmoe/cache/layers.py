# SPDX-License-Identifier: MIT
"""The cache as the rest of jitmoe sees it: read-only layers, one writable layer, and memory behind them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jitmoe.cache.entry import Entry
from jitmoe.cache.files import FileStore
from jitmoe.cache.key import CacheKey, differences
from jitmoe.cache.location import open_writable

logger = logging.getLogger("jitmoe.cache")

DEFAULT_MAX_BYTES = 2 << 30  # a model needs about 1 MB; this holds every kernel of hundreds of versions
HOUSEKEEPING_INTERVAL_S = 24 * 3600.0


class Cache:
    """Looks entries up in all layers and stores new ones in the writable layer, or in memory if that fails.

    No method raises because of a file system: a cache that cannot store makes kernels slower to get, never wrong.
    """

    def __init__(self, writable: FileStore | None, readonly: tuple[FileStore, ...] = ()) -> None:
        self.writable = writable
        self.readonly = readonly
        self._memory: dict[str, Entry] = {}
        self._verdicts: dict[str, dict[str, Any]] = {}
        self._complained = False
        self._kept_house = False

    @property
    def layers(self) -> tuple[FileStore, ...]:
        return (*self.readonly, self.writable) if self.writable is not None else self.readonly

    @property
    def num_in_memory(self) -> int:
        """Entries that no folder would take; they end with this process."""
        return len(self._memory)

    @property
    def num_verdicts_in_memory(self) -> int:
        """Self-check records that no folder would take."""
        return len(self._verdicts)

    def get(self, key: CacheKey) -> Entry | None:
        """Returns the verified entry of ``key`` or None."""
        entry = self._memory.get(key.digest)
        if entry is not None:
            return entry
        for layer in self.layers:
            entry = layer.get(key)
            if entry is not None:
                return entry
        return None

    def siblings(self, key: CacheKey) -> Iterator[Entry]:
        """Yields entries that answer the same request but were built by another compiler or with other options."""
        for layer in self.layers:
            yield from layer.siblings(key)

    def put(self, entry: Entry) -> None:
        """Stores an entry."""
        if self.writable is not None:
            try:
                self.writable.put(entry)
                self._keep_house()
                return
            except OSError as error:
                self._complain(f"cannot store {entry.key.name} in {self.writable.root} ({error.strerror or error})")
        self._memory[entry.key.digest] = entry

    def get_verdict(self, name: str) -> dict[str, Any] | None:
        """Returns what a self-check found out before, or None."""
        if name in self._verdicts:
            return self._verdicts[name]
        for layer in self.layers:
            verdict = layer.get_verdict(name)
            if verdict is not None:
                return verdict
        return None

    def put_verdict(self, name: str, verdict: dict[str, Any]) -> None:
        """Stores what a self-check found out."""
        if self.writable is not None:
            try:
                self.writable.put_verdict(name, verdict)
                return
            except OSError as error:
                self._complain(f"cannot store a self-check record in {self.writable.root} ({error.strerror or error})")
        self._verdicts[name] = verdict

    @contextlib.contextmanager
    def build_lock(self, key: CacheKey, *, timeout_s: float) -> Iterator[None]:
        """Keeps other processes from building ``key`` at the same time, for at most ``timeout_s`` of waiting."""
        if self.writable is None:
            yield
            return
        with self.writable.build_lock(key, timeout_s=timeout_s):
            yield

    def keep_failure(self, name: str, files: dict[str, str]) -> Path | None:
        """Keeps the evidence of a failed compilation; returns its folder or None."""
        return self.writable.keep_failure(name, files) if self.writable is not None else None

    def explain_miss(self, key: CacheKey) -> str:
        """Returns in words why ``key`` is not in the cache: what differs from the nearest entry."""
        for entry in self.siblings(key):
            lines = differences(key.build, entry.key.build)
            return f"{entry.origin} answers the same request but differs in:\n  " + "\n  ".join(lines)
        same_name = [stored.key for layer in self.layers for stored in layer.iterate() if stored.key.name == key.name]
        if not same_name:
            return f"no entry of {key.name} is in the cache"
        nearest = min(
            same_name,
            key=lambda other: len(differences(key.request, other.request)) + len(differences(key.build, other.build)),
        )
        lines = differences(key.request, nearest.request) + differences(key.build, nearest.build)
        return f"the nearest entry of {key.name} differs in:\n  " + "\n  ".join(lines)

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("jitmoe cache: %s; such kernels stay in this process only", text)

    def _keep_house(self) -> None:
        """Once a day and at most once per process: remove leftovers, keep the size bounded."""
        if self._kept_house or self.writable is None:
            return
        self._kept_house = True
        marker = self.writable.root / "housekeeping"
        with contextlib.suppress(OSError):
            if marker.exists() and time.time() - marker.stat().st_mtime < HOUSEKEEPING_INTERVAL_S:
                return
            marker.touch(mode=0o600)
            self.writable.sweep()
            self.writable.prune(max_bytes=DEFAULT_MAX_BYTES)


def open_cache(configured: Path | None, readonly: tuple[Path, ...]) -> Cache:
    """Opens the layers that ``JITMOE_CACHE_DIR`` and ``JITMOE_CACHE_READONLY_DIRS`` (already parsed) name."""
    writable, unwritable = open_writable(configured)
    layers = [FileStore(path, writable=False) for path in readonly]
    if unwritable is not None:
        layers.append(unwritable)
    return Cache(writable, tuple(layers))

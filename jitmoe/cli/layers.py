# SPDX-License-Identifier: MIT
"""The cache folders that this process would use, looked at without making or changing any."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jitmoe.cache import Cache
from jitmoe.cache.files import FileStore, check_ownership
from jitmoe.cache.key import SCHEMA_VERSION
from jitmoe.cache.location import default_folder, temporary_folder
from jitmoe.knobs import Knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One cache folder and what can be done with it."""

    store: FileStore
    role: str  # "writable", "read-only" or "not usable"
    state: str  # "" or what a person should know

    @property
    def path(self) -> Path:
        return self.store.root

    @property
    def is_folder(self) -> bool:
        return _is_folder(self.path)

    @property
    def is_readable(self) -> bool:
        return self.role != "not usable" and self.is_folder


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # where even looking is forbidden
        return False


def _store_folders() -> tuple[str, ...]:
    """Returns the names of the folders in a cache folder that code is read from or written to."""
    return f"v{SCHEMA_VERSION}", "trust", "locks", "tmp"


def _state(folder: Path) -> tuple[str, str]:
    """Returns (role, what a person should know) of a folder that may not exist yet."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except OSError as error:
        return "not usable", error.strerror or str(error)
    if not _is_folder(existing):
        return "not usable", f"{existing} is no folder"
    can_write = os.access(existing, os.W_OK | os.X_OK)
    if existing != folder:
        return ("writable", "not made yet") if can_write else ("not usable", "this user cannot make it")
    if not os.access(folder, os.R_OK | os.X_OK):
        return "not usable", "this user cannot read it"
    try:
        for part in (folder, *(folder / name for name in _store_folders())):
            if part.exists():
                check_ownership(part, part.stat())
    except OSError as error:
        return "not usable", str(error)
    return ("writable", "") if can_write else ("read-only", "this user cannot write it")


def find_layers(settings: Knobs) -> tuple[Layer, ...]:
    """Returns the layers in the order of look-up, the same that ``open_cache`` would open."""
    layers = []
    for folder in settings.cache_readonly_dirs:
        role, state = _state(folder)
        if not _is_folder(folder):
            role, state = "not usable", "there is no such folder"
        layers.append(
            Layer(
                store=FileStore(folder, writable=False), role="read-only" if role == "writable" else role, state=state
            )
        )
    wanted = settings.cache_dir if settings.cache_dir is not None else default_folder()
    if wanted is not None:
        role, state = _state(wanted)
        layers.append(Layer(store=FileStore(wanted, writable=role == "writable"), role=role, state=state))
        if role == "writable":
            return tuple(layers)
    fallback = temporary_folder()
    role, state = _state(fallback) if not fallback.is_symlink() else ("not usable", "it is a symbolic link")
    reason = "used instead" if wanted is not None else "used because this user has no home folder"
    state = f"{reason}; {state}" if state else reason
    layers.append(Layer(store=FileStore(fallback, writable=role == "writable"), role=role, state=state))
    return tuple(layers)


def look_only_cache(settings: Knobs) -> Cache:
    """Returns a cache over the layers for looking things up; makes no folder."""
    layers = find_layers(settings)
    readable = tuple(layer.store for layer in layers if layer.role == "read-only")
    writable = next((layer.store for layer in layers if layer.role == "writable"), None)
    return Cache(writable, readable)

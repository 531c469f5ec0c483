# SPDX-License-Identifier: MIT
"""Cache keys: two ordered lists of named entries, each digested name by name with lengths in front.

``request`` says what is wanted (kernel spec, source, headers, target), ``build`` says how it is made (compiler,
options, ABI). Entries of one request lie in one folder, so a miss can be explained by its nearest neighbour, and a
machine that may not compile can use what another compiler version built.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

SCHEMA_VERSION = 1  # of key composition and entry layout; raise it and old entries are simply never looked at

KeyEntries = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CacheKey:
    """The identity of one compiled artifact. ``name`` is for people; the digests identify."""

    name: str
    request: KeyEntries
    build: KeyEntries

    @functools.cached_property
    def request_digest(self) -> str:
        return _digest((("schema", str(SCHEMA_VERSION)), ("name", self.name), *self.request))

    @functools.cached_property
    def digest(self) -> str:
        return _digest((("request", self.request_digest), *self.build))


def _digest(entries: KeyEntries) -> str:
    state = hashlib.sha256(usedforsecurity=False)
    for entry in entries:
        for part in entry:
            payload = part.encode()
            state.update(len(payload).to_bytes(8, "little"))
            state.update(payload)
    return state.hexdigest()


def differences(wanted: KeyEntries, found: KeyEntries) -> list[str]:
    """Returns, per entry that differs, a line that names it and both values (long ones by digest)."""
    left, right = dict(wanted), dict(found)
    lines = []
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            lines.append(f"{name}: wanted {_short(left.get(name))}, found {_short(right.get(name))}")
    return lines


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    if len(value) <= 120 and "\n" not in value:
        return repr(value)
    return "sha256 " + hashlib.sha256(value.encode(), usedforsecurity=False).hexdigest()[:16]

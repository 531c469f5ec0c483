# SPDX-License-Identifier: MIT
"""One entry: files and a manifest that vouches for them. Serialization and verification, without folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jitmoe.cache.key import CacheKey

MANIFEST_NAME = "manifest.json"


class DamagedEntryError(Exception):
    """Bytes on disk are not what the manifest promises. Never leaves the cache package: damage is a miss."""


@dataclass(frozen=True)
class Entry:
    """An immutable cache entry: the artifact and what belongs to it.

    Attributes:
        key: identity; its entries are stored in the manifest.
        files: name -> content (image, source, log).
        info: JSON-able facts for people and tools (versions, times, compiler properties).
        origin: where it was read from, for messages; empty if it was never stored.
    """

    key: CacheKey
    files: Mapping[str, bytes]
    info: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(len(content) for content in self.files.values())

    def manifest(self) -> bytes:
        """Returns the sealed manifest."""
        return seal(
            {
                "name": self.key.name,
                "digest": self.key.digest,
                "request": list(self.key.request),
                "build": list(self.key.build),
                "files": {
                    name: {"size": len(content), "sha256": _sha256(content)}
                    for name, content in sorted(self.files.items())
                },
                "info": dict(self.info),
            }
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content, usedforsecurity=False).hexdigest()


def seal(record: Mapping[str, Any]) -> bytes:
    """Returns ``record`` as JSON behind one line with the SHA-256 of that JSON."""
    body = json.dumps(record, indent=1, sort_keys=True).encode()
    return _sha256(body).encode() + b"\n" + body + b"\n"


def unseal(content: bytes) -> dict[str, Any]:
    """Returns the sealed record; raises ``DamagedEntryError`` unless every byte is as it was written."""
    head, _, body = content.partition(b"\n")
    if not body.endswith(b"\n") or _sha256(body[:-1]).encode() != head:
        raise DamagedEntryError("the record does not match its own checksum")
    record: dict[str, Any] = json.loads(body)
    return record


def key_of(manifest: Mapping[str, Any]) -> CacheKey:
    """Returns the key a manifest was written for; raises ``DamagedEntryError`` if its digest disagrees."""
    key = CacheKey(
        name=manifest["name"],
        request=tuple((name, value) for name, value in manifest["request"]),
        build=tuple((name, value) for name, value in manifest["build"]),
    )
    if key.digest != manifest["digest"]:
        raise DamagedEntryError("the key entries do not give the digest in the manifest")
    return key


def check_file(name: str, content: bytes, manifest: Mapping[str, Any]) -> None:
    """Raises ``DamagedEntryError`` unless ``content`` has the size and digest that the manifest promises."""
    promised = manifest["files"][name]
    if len(content) != promised["size"]:
        raise DamagedEntryError(f"{name} has {len(content)} bytes instead of {promised['size']}")
    if _sha256(content) != promised["sha256"]:
        raise DamagedEntryError(f"{name} does not match its checksum")

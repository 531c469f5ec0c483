# SPDX-License-Identifier: MIT
"""Bundles: cache entries in one tar file, to carry them to another machine.

    jitmoe-bundle.json               sealed index: format, cache schema, the digests and names of the entries
    <entry digest>/manifest.json     the sealed manifest, as in the cache
    <entry digest>/<file>            each file that the manifest lists

A bundle is read member by member into memory, never extracted. Nothing is published before all of it was verified.
Digests prove that nothing was damaged, not who made it: whoever makes a bundle runs code where it is imported.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jitmoe.cache.entry import MANIFEST_NAME, DamagedEntryError, Entry, check_file, key_of, seal, unseal
from jitmoe.cache.key import SCHEMA_VERSION
from jitmoe.errors import CacheError

FORMAT = "jitmoe-bundle"
FORMAT_VERSION = 1
INDEX_NAME = "jitmoe-bundle.json"
MAX_FILE_BYTES = 256 << 20  # of one member; kernels are far below 1 MB
MAX_BUNDLE_BYTES = 4 << 30  # of all members together, since they are held in memory

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Names become paths below the cache folder, so they are plain words.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_KERNEL_NAME = _FILE_NAME


def write_bundle(path: Path, entries: Sequence[Entry], *, version: str) -> int:
    """Writes verified entries into a new bundle (appears by one rename) and returns its size in bytes.

    Args:
        path: the file to write; replaced if it exists.
        entries: what to put in.
        version: of the program, for people.

    Raises:
        CacheError: the file cannot be written.
    """
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "schema": SCHEMA_VERSION,
        "jitmoe": version,
        "created": time.time(),
        "entries": [{"name": entry.key.name, "digest": entry.key.digest} for entry in entries],
    }
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(staging, "xb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, INDEX_NAME, seal(index))
                for entry in entries:
                    _add(archive, f"{entry.key.digest}/{MANIFEST_NAME}", entry.manifest())
                    for name, content in sorted(entry.files.items()):
                        _add(archive, f"{entry.key.digest}/{name}", content)
            stream.flush()
            os.fsync(stream.fileno())
            num_bytes = stream.tell()
        os.replace(staging, path)
    except OSError as error:
        raise CacheError(path=path, reason=f"cannot be written ({error.strerror or error})") from error
    finally:
        staging.unlink(missing_ok=True)
    return num_bytes


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member without traces of this machine: no owner, no time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o600
    archive.addfile(member, io.BytesIO(content))


def read_bundle(path: Path) -> tuple[Entry, ...]:
    """Returns the verified entries of a bundle.

    Raises:
        CacheError: it cannot be read, is damaged, is incomplete, or was made for another cache schema. No part of
            such a bundle is returned.
    """
    try:
        members = _read_members(path)
        index = unseal(members.pop(INDEX_NAME, b""))
        _check_index(index)
        expected = [item["digest"] for item in index["entries"]]
        entries = tuple(_entry_of(digest, _take(members, digest)) for digest in expected)
    except tarfile.TarError as error:
        raise CacheError(path=path, reason=f"is no bundle, or cut off ({error})") from error
    except OSError as error:
        raise CacheError(path=path, reason=f"cannot be read ({error.strerror or error})") from error
    except DamagedEntryError as error:
        raise CacheError(path=path, reason=f"damaged bundle: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(path=path, reason=f"damaged bundle: its records cannot be understood ({error!r})") from error
    if members:
        raise CacheError(path=path, reason=f"damaged bundle: {sorted(members)[0]} is not in its index")
    return entries


def _read_members(path: Path) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    total = 0
    with tarfile.open(path, mode="r:") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            is_index = not members and member.name == INDEX_NAME
            if not members and not is_index:
                raise DamagedEntryError(f"it does not begin with {INDEX_NAME}")
            if not is_index and not (_DIGEST.fullmatch(folder) and _FILE_NAME.fullmatch(name)):
                raise DamagedEntryError(f"it holds {member.name!r}, which is no file of an entry")
            if not member.isreg() or member.name in members:
                raise DamagedEntryError(f"{member.name} is no plain file, or is there twice")
            total += member.size
            if member.size > MAX_FILE_BYTES or total > MAX_BUNDLE_BYTES:
                raise DamagedEntryError(f"{member.name} has {member.size} bytes, more than kernels ever have")
            stream = archive.extractfile(member)
            content = stream.read() if stream is not None else b""
            if len(content) != member.size:
                raise DamagedEntryError(f"{member.name} is cut off")
            members[member.name] = content
    return members


def _check_index(index: Mapping[str, Any]) -> None:
    if index["format"] != FORMAT or index["format_version"] != FORMAT_VERSION:
        raise DamagedEntryError(
            f"its format is {index['format']} {index['format_version']}, this jitmoe reads {FORMAT} {FORMAT_VERSION}"
        )
    if index["schema"] != SCHEMA_VERSION:
        raise DamagedEntryError(
            f"it was made by jitmoe {index.get('jitmoe')} for cache schema {index['schema']}, "
            f"this jitmoe uses schema {SCHEMA_VERSION}"
        )


def _take(members: dict[str, bytes], digest: str) -> dict[str, bytes]:
    """Removes and returns the files of one entry."""
    names = [name for name in members if name.startswith(f"{digest}/")]
    return {name.rpartition("/")[2]: members.pop(name) for name in names}


def _entry_of(digest: str, files: dict[str, bytes]) -> Entry:
    """Returns one entry; raises ``DamagedEntryError`` unless manifest, key and every file agree."""
    if MANIFEST_NAME not in files:
        raise DamagedEntryError(f"entry {digest[:12]} has no manifest")
    manifest = unseal(files.pop(MANIFEST_NAME))
    key = key_of(manifest)
    if key.digest != digest:
        raise DamagedEntryError(f"entry {digest[:12]} was written for another key")
    if not _KERNEL_NAME.fullmatch(key.name):
        raise DamagedEntryError(f"entry {digest[:12]} has the name {key.name!r}")
    if set(files) != set(manifest["files"]):
        missing = sorted(set(manifest["files"]) ^ set(files))
        raise DamagedEntryError(f"entry {digest[:12]}: {missing[0]} is missing or not in its manifest")
    for name, content in files.items():
        check_file(name, content, manifest)
    return Entry(key=key, files=files, info=manifest["info"])

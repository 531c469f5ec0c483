# SPDX-License-Identifier: MIT
"""Entries in a folder tree that many processes share.

    <root>/v<schema>/<2 hex>/<name>-<request digest>/<build digest>/   one entry, never changed after its rename
    <root>/trust/<digest>-<device fingerprint>.json                    self-check verdicts
    <root>/locks/<digest>.lock                                         never unlinked; only saves work
    <root>/tmp/                                                        entries being written
    <root>/damaged/                                                    entries moved aside, for a look
    <root>/failed/                                                     sources and logs of failed compilations

Correctness rests on two facts: a folder appears by one rename, and nothing is used before its digest was verified.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jitmoe.cache.entry import MANIFEST_NAME, DamagedEntryError, Entry, check_file, key_of, seal, unseal
from jitmoe.cache.key import SCHEMA_VERSION, CacheKey

logger = logging.getLogger("jitmoe.cache")

STALE_TEMPORARY_S = 24 * 3600.0  # age after which a folder in tmp/, damaged/ or failed/ belongs to nobody
PUBLISH_ATTEMPTS = 20  # each is lost only if a prune hits the same microseconds
HOLDER_SUFFIX = ".holder"
# What reading a damaged entry gives. Other errors (too many open files, a network file system's bad moment) say
# nothing about the entry, so it stays where it is.
DAMAGE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class UntrustedFolderError(PermissionError):
    """A folder or file that somebody else could write. Whoever writes the cache runs code in this process."""


@dataclass(frozen=True)
class StoredEntry:
    """What a listing knows of an entry without reading its files."""

    path: Path
    key: CacheKey
    info: dict[str, Any]
    num_bytes: int
    last_used: float  # seconds since the epoch


def check_ownership(path: Path, status: os.stat_result) -> None:
    """Raises ``UntrustedFolderError`` if someone other than this user and root owns or may write ``path``."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise UntrustedFolderError(f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} or root")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFolderError(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")


def _read_owned(path: Path) -> bytes:
    """Reads a file and checks its owner through the same descriptor."""
    with open(path, "rb") as stream:
        check_ownership(path, os.fstat(stream.fileno()))
        return stream.read()


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse fsync on folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FileStore:
    """One cache folder, writable or read-only."""

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root
        self.writable = writable
        self._entries = root / f"v{SCHEMA_VERSION}"
        self._reported: set[str] = set()

    def prepare(self) -> None:
        """Makes the folders of a writable store; raises ``OSError`` or ``UntrustedFolderError`` if that is no place."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ownership(self.root, self.root.stat())
        for name in (self._entries.name, "trust", "locks", "tmp"):
            folder = self.root / name
            folder.mkdir(mode=0o700, exist_ok=True)
            check_ownership(folder, folder.stat())
        if not os.access(self.root / "tmp", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(self.root))

    # entries

    def _request_folder(self, key: CacheKey) -> Path:
        return self._entries / key.request_digest[:2] / f"{key.name}-{key.request_digest}"

    def entry_path(self, key: CacheKey) -> Path:
        return self._request_folder(key) / key.digest

    def get(self, key: CacheKey) -> Entry | None:
        """Returns the verified entry, or None. Damage is moved aside (where possible), reported and a miss."""
        return self._read(self.entry_path(key), key)

    def siblings(self, key: CacheKey) -> Iterator[Entry]:
        """Yields the verified entries that answer the same request but were built another way, newest first."""
        try:
            folders = sorted(self._request_folder(key).iterdir(), key=lambda path: -path.stat().st_mtime)
        except OSError:
            return
        for folder in folders:
            if folder.name != key.digest:
                entry = self._read(folder, None)
                if entry is not None and entry.key.request_digest == key.request_digest:
                    yield entry

    def _read(self, folder: Path, key: CacheKey | None) -> Entry | None:
        try:
            status = folder.stat()
        except OSError:
            return None
        try:
            self._check_path_to(folder, status)
            manifest = unseal(_read_owned(folder / MANIFEST_NAME))
            stored_key = key_of(manifest)
            if stored_key.digest != folder.name or (key is not None and stored_key != key):
                raise DamagedEntryError("it was written for another key")
            files = {}
            for name in manifest["files"]:
                files[name] = _read_owned(folder / name)
                check_file(name, files[name], manifest)
        except UntrustedFolderError as error:
            self._report(f"ignoring what is stored there: {error}")
            return None
        except (DamagedEntryError, OSError, ValueError, KeyError, TypeError) as error:
            if not os.path.lexists(folder):  # removed by another process between two reads
                return None
            if isinstance(error, OSError) and error.errno not in DAMAGE_ERRNOS:
                self._report(f"cannot read {folder} ({error.strerror or error}); it is built again")
            elif self._move_aside(folder):
                logger.warning("jitmoe cache: damaged entry %s (%s); it is built again", folder, error)
            else:
                self._report(f"damaged entry {folder} ({error}); it is built again")
            return None
        if self.writable:
            with contextlib.suppress(OSError):
                os.utime(folder)  # last use, for eviction
        return Entry(key=stored_key, files=files, info=manifest["info"], origin=str(folder))

    def _check_path_to(self, folder: Path, status: os.stat_result) -> None:
        check_ownership(folder, status)
        for parent in (folder.parent, folder.parent.parent, self._entries, self.root):
            check_ownership(parent, parent.stat())

    def _report(self, text: str) -> None:
        """Warns, but not again about what stays as it is."""
        if text not in self._reported:
            self._reported.add(text)
            logger.warning("jitmoe cache: %s", text)

    def _move_aside(self, path: Path) -> bool:
        """Moves a damaged entry or verdict to damaged/; returns whether it is out of the way."""
        if not self.writable:
            return False
        try:
            aside = self.root / "damaged"
            aside.mkdir(mode=0o700, exist_ok=True)
            os.rename(path, aside / f"{path.name[:16]}-{uuid.uuid4().hex[:8]}")
        except OSError:
            return False
        return True

    def _staging(self) -> Path:
        """Returns a fresh path in tmp/; makes the store's folders again if somebody has deleted them meanwhile."""
        if not (self.root / "tmp").is_dir():
            self.prepare()
        return self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"

    def put(self, entry: Entry) -> Path:
        """Publishes ``entry`` by one rename; a rename that another process won is as good. Raises ``OSError``."""
        final = self.entry_path(entry.key)
        staging = self._staging()
        staging.mkdir(mode=0o700)
        try:
            for name, content in entry.files.items():
                _write_durably(staging / name, content)
            _write_durably(staging / MANIFEST_NAME, entry.manifest())
            _sync_folder(staging)
            self._publish(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return final

    def _publish(self, staging: Path, final: Path) -> None:
        """Renames; starts again where another process removes the emptied request folder in between."""
        for attempt in range(PUBLISH_ATTEMPTS):
            try:
                for folder in (final.parent.parent, final.parent):
                    folder.mkdir(mode=0o700, exist_ok=True)
                os.rename(staging, final)
            except OSError as error:
                if final.is_dir():
                    return  # another process won
                raced = error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
                if not raced or attempt == PUBLISH_ATTEMPTS - 1:
                    raise
            else:
                _sync_folder(final.parent)
                return

    def remove(self, path: Path) -> None:
        """Removes one entry: first out of sight by a rename, then its bytes."""
        doomed = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # succeeds when it was the last of its request

    def iterate(self) -> Iterator[StoredEntry]:
        """Yields every entry with a readable manifest (files are not verified)."""
        for folder in sorted(self._entries.glob("??/*/*")):
            try:
                manifest = unseal(_read_owned(folder / MANIFEST_NAME))
                key = key_of(manifest)
                status = folder.stat()
            except (DamagedEntryError, UntrustedFolderError, OSError, ValueError, KeyError, TypeError):
                continue
            num_bytes = sum(promised["size"] for promised in manifest["files"].values())
            yield StoredEntry(folder, key, manifest["info"], num_bytes, status.st_mtime)

    def folders(self) -> Iterator[Path]:
        """Yields every entry folder, whatever is in it."""
        yield from sorted(self._entries.glob("??/*/*"))

    def verify(self, folder: Path) -> str:
        """Returns what is wrong with an entry folder, or an empty string. Changes nothing."""
        try:
            self._check_path_to(folder, folder.stat())
            manifest = unseal(_read_owned(folder / MANIFEST_NAME))
            if key_of(manifest).digest != folder.name:
                return "it was written for another key"
            for name in manifest["files"]:
                check_file(name, _read_owned(folder / name), manifest)
        except (DamagedEntryError, UntrustedFolderError, OSError, ValueError, KeyError, TypeError) as error:
            return str(error) or type(error).__name__
        return ""

    # verdicts

    def get_verdict(self, name: str) -> dict[str, Any] | None:
        """Returns a stored verdict, or None if there is none that can be believed."""
        path = self.root / "trust" / f"{name}.json"
        try:
            check_ownership(self.root, self.root.stat())
            check_ownership(path.parent, path.parent.stat())
            verdict = unseal(_read_owned(path))
            if not isinstance(verdict, dict):
                raise DamagedEntryError("it holds no record")
            return verdict
        except FileNotFoundError:
            return None
        except UntrustedFolderError as error:
            self._report(f"ignoring what is stored there: {error}")
            return None
        except (DamagedEntryError, OSError, ValueError) as error:
            if self._move_aside(path):
                logger.warning("jitmoe cache: damaged self-check record %s (%s); the check runs again", path, error)
            else:
                self._report(f"damaged self-check record {path} ({error}); the check runs again")
            return None

    def put_verdict(self, name: str, verdict: dict[str, Any]) -> None:
        """Writes a verdict by rename. Raises ``OSError``."""
        staging = self._staging().with_suffix(".json")
        try:
            _write_durably(staging, seal(verdict))
            os.replace(staging, self.root / "trust" / f"{name}.json")
        finally:
            staging.unlink(missing_ok=True)

    def remove_verdict(self, path: Path) -> None:
        """Removes one verdict by the path that ``verdicts`` gave."""
        path.unlink(missing_ok=True)

    def verdicts(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields (path, verdict) of every readable verdict."""
        for path in sorted((self.root / "trust").glob("*.json")):
            with contextlib.suppress(DamagedEntryError, UntrustedFolderError, OSError, ValueError):
                yield path, unseal(_read_owned(path))

    # evidence

    def keep_failure(self, name: str, files: dict[str, str]) -> Path | None:
        """Keeps source and log of a failed compilation for the person who reads the error; None if it cannot."""
        folder = self.root / "failed" / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file_name, text in files.items():
                (folder / file_name).write_text(text)
        except OSError:
            return None
        return folder

    # work saving

    @contextlib.contextmanager
    def build_lock(self, key: CacheKey, *, timeout_s: float) -> Iterator[None]:
        """Holds the key's lock if it can be had in time; otherwise says who has it and goes on without.

        The lock only keeps several processes from building the same thing at once.
        """
        import filelock  # here, because a warm cache never needs it

        path = self.root / "locks" / f"{key.digest}.lock"
        holder = path.with_suffix(HOLDER_SUFFIX)
        lock = filelock.FileLock(path, mode=0o600)
        try:
            lock.acquire(timeout=timeout_s, poll_interval=0.02)
        except filelock.Timeout:
            logger.warning(
                "jitmoe cache: %s has been building %s for %g s; going on without waiting (JITMOE_LOCK_TIMEOUT)",
                _holder_name(holder),
                key.name,
                timeout_s,
            )
        except (OSError, NotImplementedError) as error:
            logger.debug("no lock at %s (%s); going on without", path, error)
        try:
            if lock.is_locked:
                with contextlib.suppress(OSError):
                    holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            lock.release()

    # housekeeping

    def sweep(self) -> int:
        """Removes temporary and set-aside folders that nobody will come back for; returns how many."""
        removed = 0
        for folder in ("tmp", "damaged", "failed"):
            for path in (self.root / folder).glob("*"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > STALE_TEMPORARY_S:
                        if path.is_dir():
                            shutil.rmtree(path, ignore_errors=True)
                        else:
                            path.unlink()
                        removed += 1
        return removed

    def prune(self, *, max_bytes: int, dry_run: bool = False) -> list[StoredEntry]:
        """Removes the least recently used entries until at most ``max_bytes`` remain; returns what was removed.

        With ``dry_run`` nothing is removed and the result says what would be.
        """
        entries = sorted(self.iterate(), key=lambda stored: stored.last_used)
        total = sum(stored.num_bytes for stored in entries)
        removed = []
        for stored in entries:
            if total <= max_bytes:
                break
            with contextlib.suppress(OSError):
                if stored.path.stat().st_mtime != stored.last_used:
                    continue  # used since the listing
                if not dry_run:
                    self.remove(stored.path)
                total -= stored.num_bytes
                removed.append(stored)
        return removed


def _holder_name(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()[:200] or "another process"
    return "another process"

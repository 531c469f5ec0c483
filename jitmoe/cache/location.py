# SPDX-License-Identifier: MIT
"""Where the writable cache folder is, and what happens when it cannot be used."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from jitmoe.cache.files import FileStore, UntrustedFolderError

logger = logging.getLogger("jitmoe.cache")


def default_folder() -> Path | None:
    """Returns the user's cache folder for jitmoe, or None where the user has no home at all."""
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("jitmoe", appauthor=False))
    except RuntimeError:  # how recent platformdirs says that; earlier ones return "~/.cache"
        return None
    return folder if folder.is_absolute() else None


def temporary_folder() -> Path:
    """Returns this user's fallback folder below the system's temporary folder."""
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    return Path(tempfile.gettempdir()) / f"jitmoe-cache-{user}"


def open_writable(configured: Path | None) -> tuple[FileStore | None, FileStore | None]:
    """Returns (writable store or None, read-only store or None) and warns once about what could not be had.

    The order is: the configured or default folder; if it cannot be written, this user's temporary folder (and the
    first is still read); if that fails too, None: the kernels stay in memory.
    """
    wanted = configured if configured is not None else default_folder()
    problems = []
    readable = None
    if wanted is None:
        problems.append("this user has no home folder")
    else:
        store = FileStore(wanted, writable=True)
        try:
            store.prepare()
            return store, None
        except UntrustedFolderError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{wanted} cannot be written ({error.strerror or error})")
            if os.access(wanted, os.R_OK | os.X_OK):
                readable = FileStore(wanted, writable=False)
    fallback = temporary_folder()
    store = FileStore(fallback, writable=True)
    try:
        if fallback.is_symlink():  # anybody may put one there
            raise UntrustedFolderError("it is a symbolic link")
        store.prepare()
    except OSError as error:
        problems.append(f"{fallback}: {error}")
        logger.warning("jitmoe cache: %s; kernels are kept in memory only", "; ".join(problems))
        return None, readable
    logger.warning("jitmoe cache: %s; using %s instead (set JITMOE_CACHE_DIR)", "; ".join(problems), fallback)
    return store, readable

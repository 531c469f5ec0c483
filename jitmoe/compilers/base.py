# SPDX-License-Identifier: MIT
"""The contract of a compiler: text in, bytes out, ``CompileError`` with all the evidence otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from jitmoe.errors import CompileError

INCLUDE_PLACEHOLDER = "{include}"  # stands for the packaged header folder in argv entries of the cache key
SOURCE_PLACEHOLDER = "{source}"
OUTPUT_PLACEHOLDER = "{output}"
BUILD_KEY_PLACEHOLDER = "{build_key}"
PACKAGE_PLACEHOLDER = "{package}"  # the header folder of CompileRequest.headers
OVERLAY_PLACEHOLDER = "{overlay}"  # a private folder with the headers that shadow some of it


class ArtifactKind(str, Enum):
    """What a compiler makes; the value is also the file name in a cache entry."""

    SPIRV = "kernel.spv"
    SHARED_LIBRARY = "kernel.so"
    NATIVE = "kernel.bin"  # one device's machine code


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderPackage:
    """Headers of another installed package, and texts that shadow some of them while a kernel is compiled."""

    name: str
    version: str
    digest: str  # of every header that can be included, and of the overlay
    folder: Path
    overlay: tuple[tuple[str, str], ...]  # relative path, text
    defines: tuple[str, ...]  # -D options

    @property
    def identity(self) -> str:
        """Name, version and content digest; part of the cache key."""
        return f"{self.name} {self.version} {self.digest}"

    @property
    def options(self) -> tuple[str, ...]:
        """Compiler options with placeholders. System folders: warnings in them are not ours."""
        return ("-isystem", OVERLAY_PLACEHOLDER, "-isystem", PACKAGE_PLACEHOLDER, *self.defines)

    def write_overlay(self, folder: Path) -> None:
        """Writes the overlay below ``folder``."""
        for name, text in self.overlay:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """One translation unit to compile."""

    kernel: str  # entry point name
    spec: str  # for messages
    source: str
    arch: str  # of the device, as in Device.arch
    large_grf: bool
    headers: HeaderPackage | None = None  # that the source includes besides ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A compiled kernel."""

    kind: ArtifactKind
    image: bytes
    log: str
    seconds: float
    properties: Mapping[str, Any] = field(default_factory=dict)  # what the compiler says about the image


class Compiler(Protocol):
    """A compiler. ``argv`` and ``identity`` are part of the cache key, so they hold no path of this machine."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> ArtifactKind: ...

    @property
    def identity(self) -> str:
        """Name, version and content digest or build id: changes whenever the compiler's output may change."""

    @property
    def runtime_abi(self) -> str:
        """The libsycl soname that its artifacts are bound to; empty when they are bound to none (SPIR-V)."""

    @property
    def memory_per_job_bytes(self) -> int:
        """Peak memory of one compilation, as a bound for parallel jobs."""

    def argv(self, request: CompileRequest) -> tuple[str, ...]:
        """Returns the options with placeholders instead of paths."""

    def compile(self, request: CompileRequest, *, build_key: str, timeout_s: float) -> Artifact:
        """Compiles ``request``; raises ``CompileError``. ``build_key`` is embedded where the artifact has room."""


@contextlib.contextmanager
def overlay_folder(request: CompileRequest) -> Iterator[dict[str, str]]:
    """Gives the paths that stand for the placeholders of ``HeaderPackage.options`` while a compilation runs."""
    if request.headers is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="jitmoe-overlay-") as folder:
        request.headers.write_overlay(Path(folder))
        yield {OVERLAY_PLACEHOLDER: folder, PACKAGE_PLACEHOLDER: str(request.headers.folder)}


def with_paths(options: tuple[str, ...], paths: Mapping[str, str]) -> list[str]:
    """Returns ``options`` with paths instead of placeholders."""
    filled = []
    for option in options:
        for placeholder, path in paths.items():
            option = option.replace(placeholder, path)
        filled.append(option)
    return filled


@dataclass(frozen=True, slots=True)
class Finished:
    """A child process that ended in time."""

    returncode: int
    stdout: bytes
    stderr: str


def run(command: tuple[str, ...], *, request: CompileRequest, stdin: bytes, timeout_s: float) -> Finished:
    """Runs a compiler process in a process group of its own and returns what it printed.

    Raises ``CompileError`` if it cannot be started, takes longer than ``timeout_s`` or is killed by a signal.
    """

    def failed(reason: str, log: str = "", *, is_passing: bool) -> CompileError:
        return CompileError(
            kernel=request.kernel,
            reason=reason,
            command=command,
            log=log,
            source_path=None,
            spec=request.spec,
            is_passing=is_passing,
        )

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise failed(f"cannot start the compiler: {error}", is_passing=True) from error
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill_group(process)
        _, stderr = process.communicate()
        raise failed(
            f"no result within {timeout_s:g} s (JITMOE_COMPILE_TIMEOUT), killed",
            stderr.decode(errors="replace"),
            is_passing=False,
        ) from error
    except BaseException:
        _kill_group(process)
        process.wait()
        raise
    log = stderr.decode(errors="replace")
    if process.returncode < 0:
        number = -process.returncode
        hint = " (out of memory? lower JITMOE_JOBS)" if number == signal.SIGKILL else ""
        raise failed(f"the compiler was killed by signal {number}{hint}", log, is_passing=number == signal.SIGKILL)
    return Finished(process.returncode, stdout, log)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def parallel_jobs(num_requests: int, *, wanted: int, memory_per_job_bytes: int) -> int:
    """Returns how many compilations may run at once: ``wanted`` (0: one per usable core), bounded by free memory."""
    if wanted <= 0:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    available = available_memory_bytes()
    if available is not None:
        wanted = min(wanted, max(1, int(available * 0.8) // memory_per_job_bytes))
    return max(1, min(wanted, num_requests))


def available_memory_bytes() -> int | None:
    """Returns the memory that new processes can get (the smaller of /proc/meminfo and the cgroup), or None."""
    try:
        with open("/proc/meminfo") as meminfo:
            available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as maximum, open("/sys/fs/cgroup/memory.current") as used:
            limit = maximum.read().strip()
            if limit != "max":
                available = min(available, int(limit) - int(used.read()) + _reclaimable_bytes())
    except (OSError, ValueError):
        pass
    return max(0, available)


def _reclaimable_bytes() -> int:
    """Returns the cgroup's page cache that nobody looked at lately: a model that was read fills a container with it."""
    try:
        with open("/sys/fs/cgroup/memory.stat") as statistics:
            return next(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError):
        return 0

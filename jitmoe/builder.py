# SPDX-License-Identifier: MIT
"""spec -> key -> cache entry: finds what the cache has, compiles what it lacks, keeps the evidence of failures."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import jitmoe
from jitmoe import knobs
from jitmoe.cache import Cache, CacheKey, Entry, open_cache
from jitmoe.compilers.base import ArtifactKind, Compiler, CompileRequest, HeaderPackage, parallel_jobs
from jitmoe.compilers.find import find_compilers
from jitmoe.compilers.sycl_tla import find_headers
from jitmoe.device import Device, DeviceKind
from jitmoe.errors import CompileError, HeadersNotFoundError, LoadError, MissingKernelError, ToolchainNotFoundError
from jitmoe.runtime import sycl
from jitmoe.source import header_digest, render
from jitmoe.spec import KernelSpec

logger = logging.getLogger("jitmoe")

MAX_THREADS = 16  # that wait for compilers and drivers at once

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """What happened to get one kernel, for progress displays."""

    spec: KernelSpec
    source: str  # "cache" or the compiler's name
    seconds: float


class Builder:
    """Gets cache entries for specs, with one cache and one list of compilers; opens and looks for both when needed."""

    def __init__(
        self,
        settings: knobs.Knobs | None = None,
        cache: Cache | None = None,
        compilers: Sequence[Compiler] | None = None,
    ) -> None:
        self.settings = settings if settings is not None else knobs.current()
        self._cache = cache
        self._compilers = tuple(compilers) if compilers is not None else None
        self._searched: tuple[str, ...] = ()
        self._broken: set[str] = set()  # compilers that failed on something another one could compile
        self._broken_lock = threading.Lock()
        self._failures: dict[str, CompileError] = {}  # by digest, of the compiler of last resort
        self.on_build: Callable[[BuildEvent], None] = lambda event: None

    @property
    def cache(self) -> Cache:
        if self._cache is None:
            self._cache = open_cache(self.settings.cache_dir, self.settings.cache_readonly_dirs)
        return self._cache

    @property
    def compilers(self) -> tuple[Compiler, ...]:
        """The usable compilers, preferred one first."""
        if self._compilers is None:
            self._compilers, self._searched = find_compilers(self.settings.compiler, sycl.runtime_soname_or_none())
        return tuple(compiler for compiler in self._compilers if compiler.name not in self._broken)

    def obtain(
        self, specs: tuple[KernelSpec, ...], device: Device, finish: Callable[[KernelSpec, Entry], _T]
    ) -> dict[KernelSpec, _T]:
        """Returns ``finish(spec, entry)`` per spec.

        Each spec has a thread of its own, so one kernel is finished while others still compile; how many compile at
        once is bounded by cores and memory.
        """
        found: dict[KernelSpec, Entry] = {}
        for spec in specs:
            started = time.perf_counter()
            entry = self.find(spec, device)
            if entry is not None:
                found[spec] = entry
                self.on_build(BuildEvent(spec=spec, source="cache", seconds=time.perf_counter() - started))
        missing = [spec for spec in specs if spec not in found]
        if missing and self.settings.disable_jit:
            raise self._missing_kernel(missing[0], device)
        if missing and not self.compilers:
            raise ToolchainNotFoundError(searched=self._searched, wanted=self.settings.compiler)
        memory_per_job = max((c.memory_per_job_bytes for c in self.compilers), default=1)
        slots = threading.BoundedSemaphore(
            parallel_jobs(max(1, len(missing)), wanted=self.settings.jobs, memory_per_job_bytes=memory_per_job)
        )

        def obtain(spec: KernelSpec) -> _T:
            entry = found.get(spec)
            if entry is None:
                with slots:
                    entry = self._compile(spec, device)
            return finish(spec, entry)

        with ThreadPoolExecutor(min(MAX_THREADS, max(1, len(specs))), thread_name_prefix="jitmoe-build") as pool:
            return dict(zip(specs, pool.map(obtain, specs), strict=True))

    def key(self, spec: KernelSpec, device: Device, compiler: Compiler | None) -> CacheKey:
        """Returns the cache key of ``spec`` built by ``compiler`` (None: only what is asked, not how it is made)."""
        request = (("spec", str(spec)), ("source", render(spec)), ("headers", header_digest()))
        if compiler is None:
            return CacheKey(spec.entry_name, request, ())
        package, _ = _header_package(spec)
        build = [
            ("compiler", compiler.identity),
            ("argv", "\n".join(compiler.argv(_request(spec, device)))),
            ("runtime", compiler.runtime_abi),
        ]
        if spec.HEADERS:
            build.append(("package", package.identity if package is not None else f"no {spec.HEADERS}"))
        if compiler.kind is not ArtifactKind.SPIRV:
            build += [("device", device.arch), ("driver", device.driver_version), ("machine", platform.machine())]
        return CacheKey(spec.entry_name, request, tuple(build))

    def find(self, spec: KernelSpec, device: Device) -> Entry | None:
        """Returns the entry that would be used without compiling, or None."""
        can_build = bool(self.compilers) and (not spec.HEADERS or _header_package(spec)[0] is not None)
        for compiler in self.compilers if can_build else ():
            entry = self.cache.get(self.key(spec, device, compiler))
            if entry is not None:
                return entry
            if not self._compile_failed_before(self.key(spec, device, compiler)):
                break
        if self.settings.disable_jit or not can_build:
            # Nothing can be built here, so an image by another compiler version is as good: SPIR-V is the interface.
            for entry in self.cache.siblings(self.key(spec, device, None)):
                if ArtifactKind.SPIRV.value in entry.files:
                    return entry
        return None

    def build_one(self, spec: KernelSpec, device: Device) -> Entry:
        """Returns the entry of one spec, compiled if need be; raises ``CompileError``."""
        return self.find(spec, device) or self._compile(spec, device)

    def _compile(self, spec: KernelSpec, device: Device) -> Entry:
        package, words = _header_package(spec)
        if spec.HEADERS and package is None:
            raise HeadersNotFoundError(kernel=spec.entry_name, package=spec.HEADERS, searched=words)
        failure: CompileError | None = None
        for compiler in self.compilers:
            key = self.key(spec, device, compiler)
            if key.digest in self._failures:  # other token counts ask for the same kernels
                raise self._failures[key.digest]
            if self._compile_failed_before(key) and compiler is not self.compilers[-1]:
                continue
            with self.cache.build_lock(key, timeout_s=self.settings.lock_timeout_s):
                started = time.perf_counter()
                entry = self.cache.get(key)
                if entry is not None:  # another process was faster
                    self.on_build(BuildEvent(spec=spec, source="cache", seconds=time.perf_counter() - started))
                    return entry
                try:
                    entry = self._compile_with(compiler, key, spec, device)
                except CompileError as error:
                    failure = self._keep_evidence(error, key, spec)
                    if compiler is not self.compilers[-1]:
                        self._give_up_on(compiler, key, failure)
                    elif not failure.is_passing:
                        self._failures[key.digest] = failure
                    continue
                self.cache.put(entry)
                self.on_build(BuildEvent(spec=spec, source=compiler.name, seconds=time.perf_counter() - started))
                return entry
        assert failure is not None
        raise failure

    def _compile_with(self, compiler: Compiler, key: CacheKey, spec: KernelSpec, device: Device) -> Entry:
        request = _request(spec, device)
        logger.info("compiling %s with %s", spec, compiler.name)
        artifact = compiler.compile(request, build_key=key.digest, timeout_s=self.settings.compile_timeout_s)
        logger.info("compiled %s in %.2f s", spec.entry_name, artifact.seconds)
        info = {
            "spec": str(spec),
            "compiler": compiler.identity,
            "device": device.arch,
            "headers": header_digest(),
            "jitmoe": jitmoe.__version__,
            "created": time.time(),
            "seconds": artifact.seconds,
            "properties": dict(artifact.properties),
        }
        files = {
            artifact.kind.value: artifact.image,
            "kernel.cpp": request.source.encode(),
            "build.log": artifact.log.encode(),
        }
        return Entry(key=key, files=files, info=info)

    def _keep_evidence(self, error: CompileError, key: CacheKey, spec: KernelSpec) -> CompileError:
        folder = self.cache.keep_failure(
            f"{key.name}-{key.digest[:16]}", {f"{key.name}.cpp": render(spec), "error.log": f"{error}\n\n{error.log}"}
        )
        if folder is not None:
            error.source_path = folder / f"{key.name}.cpp"
        return error

    def _give_up_on(self, compiler: Compiler, key: CacheKey, failure: CompileError) -> None:
        with self._broken_lock:
            is_news = compiler.name not in self._broken
            self._broken.add(compiler.name)
        if is_news:
            logger.warning("jitmoe: %s failed, going on with another compiler. %s", compiler.name, failure)
        if not failure.is_passing:
            self.cache.put_verdict(_compile_verdict(key), {"status": "failed", "reason": failure.reason})

    def _compile_failed_before(self, key: CacheKey) -> bool:
        verdict = self.cache.get_verdict(_compile_verdict(key))
        return verdict is not None and verdict.get("status") == "failed"

    def _missing_kernel(self, spec: KernelSpec, device: Device) -> MissingKernelError:
        compiler = self.compilers[0] if self.compilers else None
        return MissingKernelError(
            kernel=spec.entry_name,
            spec=str(spec),
            warmup=f"jitmoe-warmup MODEL --device {device.arch if device.arch != 'x86-64' else 'cpu'}",
            near_miss=self.cache.explain_miss(self.key(spec, device, compiler)),
        )

    def give_up_on_libraries(self, error: LoadError) -> None:
        """Stops using compilers that make shared libraries, because one cannot be loaded here.

        Raises:
            LoadError: ``error``, if there is no other compiler.
        """
        with self._broken_lock:
            makers = {c.name for c in self.compilers if c.kind is ArtifactKind.SHARED_LIBRARY}
            if len(makers) == len(self.compilers):
                raise error
            self._broken |= makers
        if makers:  # else another kernel's thread has said so
            logger.warning("jitmoe: %s; going on with another compiler", error)


def compile_request(spec: KernelSpec, arch: str) -> CompileRequest:
    """Returns what a compiler is asked for to build ``spec`` for a device's architecture."""
    return CompileRequest(
        kernel=spec.entry_name,
        spec=str(spec),
        source=render(spec),
        arch=arch,
        large_grf=spec.large_grf,
        headers=_header_package(spec)[0],
    )


def _request(spec: KernelSpec, device: Device) -> CompileRequest:
    return compile_request(spec, "x86-64" if device.kind is DeviceKind.XE_EMULATED else device.arch)


def _header_package(spec: KernelSpec) -> tuple[HeaderPackage | None, str]:
    """Returns the other package whose headers ``spec`` includes, and what was found of it in words."""
    return find_headers(spec.HEADERS) if spec.HEADERS else (None, "")


def _compile_verdict(key: CacheKey) -> str:
    return f"{key.digest}-compile"

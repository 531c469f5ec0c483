# SPDX-License-Identifier: MIT
"""The wiring: problem -> plan -> spec -> key -> memory | disk | compile -> kernel -> self-check -> bound plan.

The only module that sees every stage. Stages get their collaborators as arguments; this one makes the defaults.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import jitmoe
from jitmoe import knobs, selfcheck
from jitmoe.cache import Cache, CacheKey, Entry, open_cache
from jitmoe.compilers.base import ArtifactKind, Compiler, CompileRequest, parallel_jobs
from jitmoe.compilers.find import find_compilers
from jitmoe.compilers.ocloc import Ocloc, find_ocloc
from jitmoe.device import Device, DeviceKind
from jitmoe.errors import CompileError, LoadError, MissingKernelError, SelfCheckError, ToolchainNotFoundError
from jitmoe.plan import planner_for
from jitmoe.plan.launch import Plan
from jitmoe.problem import MoEProblem
from jitmoe.runtime import loader, sycl
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream, private_stream
from jitmoe.source import header_digest, render
from jitmoe.spec import KernelSpec

logger = logging.getLogger("jitmoe")

OCLOC_MAKER = "ocloc"
MAX_THREADS = 16  # that wait for compilers and drivers at once

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEvent:
    """What happened to get one kernel, for progress displays."""

    spec: KernelSpec
    source: str  # "cache" or the compiler's name
    seconds: float


class Pipeline:
    """Everything between a plan and launchable kernels, with one cache and one list of compilers."""

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
        self._failures: dict[str, CompileError] = {}  # by digest, of the compiler of last resort
        self._kernels: dict[tuple[str, int], Kernel] = {}
        # Loaded and trusted kernels: all that a new shape of a known kind needs.
        self._ready: dict[tuple[KernelSpec, int, str | None], Kernel] = {}
        self._checked: set[tuple[str, str]] = set()
        self._rejected: dict[tuple[str, ...], SelfCheckError] = {}  # by device and kernels, see _group
        self._lock = threading.RLock()
        self._broken_lock = threading.Lock()
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

    # problem -> launchable plan

    def prepare(self, problem: MoEProblem, stream: Stream, tensor_names: Sequence[str]) -> BoundPlan:
        """Returns the plan for ``problem`` with trusted kernels; compiles what is missing."""
        planner = planner_for(stream.device)
        choice = planner.choose(problem, stream.device)
        plan = planner.launches(problem, stream.device, choice)
        places = {spec: (spec, stream.context_id, stream.emulated_arch) for spec in plan.specs}
        if not all(place in self._ready for place in places.values()):
            with self._lock:
                obtained = self._obtain(
                    plan.specs, stream.device, lambda spec, entry: (entry, self._load(spec, entry, stream))
                )
                entries = {spec: entry for spec, (entry, _) in obtained.items()}
                kernels = {spec: kernel for spec, (_, kernel) in obtained.items()}
                if not self._is_trusted(entries.values(), stream.device):
                    small = planner.check_problem(problem, choice)
                    self._check(small, planner.launches(small, stream.device, choice), entries, kernels, stream)
                self._ready.update((place, kernels[spec]) for spec, place in places.items())
        return BoundPlan(plan, {spec: self._ready[place] for spec, place in places.items()}, tensor_names)

    # spec -> entry

    def build(self, specs: Iterable[KernelSpec], device: Device) -> dict[KernelSpec, Entry]:
        """Returns a cache entry per spec, compiling the missing ones in parallel; needs no device.

        For GPUs, where ocloc is present, their machine code is stored beside it.
        """
        ocloc = find_ocloc()[0] if device.kind is DeviceKind.GPU else None

        def finish(spec: KernelSpec, entry: Entry) -> Entry:
            if ocloc is not None and ArtifactKind.SPIRV.value in entry.files:
                self._add_machine_code(ocloc, spec, entry, device)
            return entry

        return self._obtain(tuple(specs), device, finish)

    def _add_machine_code(self, ocloc: Ocloc, spec: KernelSpec, entry: Entry, device: Device) -> None:
        key = native_key(entry.key, device, maker=f"{OCLOC_MAKER} {ocloc.version}")
        if self.cache.get(key) is not None:
            return
        try:
            made = ocloc.compile(
                entry.files[ArtifactKind.SPIRV.value],
                kernel=spec.entry_name,
                arch=device.arch,
                large_grf=spec.large_grf,
                timeout_s=self.settings.compile_timeout_s,
            )
        except CompileError as error:
            logger.warning("jitmoe: no machine code beforehand, the driver will make it: %s", error)
            return
        self._keep_machine_code(key, spec, device, made.image)

    def _keep_machine_code(self, key: CacheKey, spec: KernelSpec, device: Device, image: bytes) -> None:
        info = {
            "spec": str(spec),
            "device": str(device),
            "driver": device.driver_version,
            "headers": header_digest(),
            "jitmoe": jitmoe.__version__,
            "created": time.time(),
        }
        self.cache.put(Entry(key=key, files={ArtifactKind.NATIVE.value: image}, info=info))

    def _obtain(
        self, specs: tuple[KernelSpec, ...], device: Device, finish: Callable[[KernelSpec, Entry], _T]
    ) -> dict[KernelSpec, _T]:
        """Returns ``finish(spec, entry)`` per spec.

        Each spec has a thread of its own, so one kernel is finished while others still compile; how many compile at
        once is bounded by cores and memory.
        """
        found: dict[KernelSpec, Entry] = {}
        for spec in specs:
            started = time.perf_counter()
            entry = self._find(spec, device)
            if entry is not None:
                found[spec] = entry
                self.on_build(BuildEvent(spec=spec, source="cache", seconds=time.perf_counter() - started))
        missing = [spec for spec in specs if spec not in found]
        if missing and self.settings.disable_jit:
            raise self._missing_kernel(missing[0], device)
        if missing and not self.compilers:
            raise ToolchainNotFoundError(searched=self._searched)
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

    def cached(self, spec: KernelSpec, device: Device) -> Entry | None:
        """Returns the entry that ``build`` would use without compiling, or None."""
        return self._find(spec, device)

    def key(self, spec: KernelSpec, device: Device, compiler: Compiler | None) -> CacheKey:
        """Returns the cache key of ``spec`` built by ``compiler`` (None: only what is asked, not how it is made)."""
        request = (("spec", str(spec)), ("source", render(spec)), ("headers", header_digest()))
        if compiler is None:
            return CacheKey(spec.entry_name, request, ())
        build = [
            ("compiler", compiler.identity),
            ("argv", "\n".join(compiler.argv(_request(spec, device)))),
            ("runtime", compiler.runtime_abi),
        ]
        if compiler.kind is not ArtifactKind.SPIRV:
            build += [("device", device.arch), ("driver", device.driver_version), ("machine", platform.machine())]
        return CacheKey(spec.entry_name, request, tuple(build))

    def _find(self, spec: KernelSpec, device: Device) -> Entry | None:
        for compiler in self.compilers:
            entry = self.cache.get(self.key(spec, device, compiler))
            if entry is not None:
                return entry
            if not self._compile_failed_before(self.key(spec, device, compiler)):
                break
        if self.settings.disable_jit or not self.compilers:
            # Nothing can be built here, so an image by another compiler version is as good: SPIR-V is the interface.
            for entry in self.cache.siblings(self.key(spec, device, None)):
                if ArtifactKind.SPIRV.value in entry.files:
                    return entry
        return None

    def _compile(self, spec: KernelSpec, device: Device) -> Entry:
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

    # entry -> kernel

    def _load(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        place = (entry.key.digest, stream.context_id)
        kernel = self._kernels.get(place)
        if kernel is None:
            if ArtifactKind.SHARED_LIBRARY.value in entry.files:
                kernel = self._load_shared_library(spec, entry, stream)
            elif ArtifactKind.SPIRV.value in entry.files:
                kernel = self._load_spirv(spec, entry, stream)
            else:
                raise LoadError(kernel=spec.entry_name, reason=f"entry {entry.origin} holds {sorted(entry.files)}")
            self._kernels[place] = kernel
        return kernel

    def _load_shared_library(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        """Loads what icpx made; where that cannot be loaded, another compiler's image takes its place."""
        image = entry.files[ArtifactKind.SHARED_LIBRARY.value]
        try:
            return loader.load_shared_library(spec.entry_name, image, entry.key.digest, stream)
        except LoadError as error:
            with self._broken_lock:
                makers = {c.name for c in self.compilers if c.kind is ArtifactKind.SHARED_LIBRARY}
                if len(makers) == len(self.compilers):
                    raise
                self._broken |= makers
            if makers:  # else another kernel's thread has said so
                logger.warning("jitmoe: %s; going on with another compiler", error)
            return self._load(spec, self._find(spec, stream.device) or self._compile(spec, stream.device), stream)

    def _load_spirv(self, spec: KernelSpec, entry: Entry, stream: Stream) -> Kernel:
        """Loads with the machine code that the driver made last time, or keeps what it makes now."""
        device = stream.device
        key = native_key(entry.key, device, maker=f"driver {device.driver_version} {device.fingerprint}")
        kept = self.cache.get(key)
        if kept is None and device.kind is DeviceKind.GPU:
            kept = next((made for made in self.cache.siblings(key) if _made_by_ocloc(made)), None)
        machine_code = kept.files[ArtifactKind.NATIVE.value] if kept is not None else b""

        def load(machine_code: bytes) -> tuple[Kernel, bytes]:
            return loader.load_spirv(
                spec.entry_name,
                entry.files[ArtifactKind.SPIRV.value],
                len(spec.ARGUMENTS),
                stream,
                large_grf=spec.large_grf,
                is_vectorized=spec.WORK_GROUP_SIZE == 1,
                machine_code=machine_code,
            )

        try:
            kernel, made = load(machine_code)
        except LoadError as error:
            if not machine_code:
                raise
            logger.warning("jitmoe: machine code of %s is not taken (%s); building it again", spec.entry_name, error)
            return load(b"")[0]
        if made and not machine_code:
            self._keep_machine_code(key, spec, device, made)
        return kernel

    # kernel -> trust

    def _is_trusted(self, entries: Iterable[Entry], device: Device) -> bool:
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
            verdict = self.cache.get_verdict(_check_verdict(entry.key, device))
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

    def _check(
        self,
        problem: MoEProblem,
        plan: Plan,
        entries: dict[KernelSpec, Entry],
        kernels: dict[KernelSpec, Kernel],
        stream: Stream,
    ) -> None:
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
                self.cache.put_verdict(_check_verdict(entry.key, stream.device), verdict)
                if not wrong:
                    self._checked.add(place)
        if wrong:
            raise self._reject(_group(entries.values(), stream.device), entries.values(), stream.device, wrong)


def _request(spec: KernelSpec, device: Device) -> CompileRequest:
    return CompileRequest(
        kernel=spec.entry_name,
        spec=str(spec),
        source=render(spec),
        arch="x86-64" if device.kind is DeviceKind.XE_EMULATED else device.arch,
        large_grf=spec.large_grf,
    )


def native_key(key: CacheKey, device: Device, *, maker: str) -> CacheKey:
    """Returns the key of the machine code that ``maker`` (a driver on its device, or ocloc) makes of an image."""
    return CacheKey(f"{key.name}.native", (("image", key.digest), ("arch", device.arch)), (("maker", maker),))


def _made_by_ocloc(entry: Entry) -> bool:
    return dict(entry.key.build)["maker"].startswith(OCLOC_MAKER)


def _group(entries: Iterable[Entry], device: Device) -> tuple[str, ...]:
    """Returns what a failed self-check is about: the device and all kernels that took part."""
    return (device.fingerprint, *sorted(entry.key.digest for entry in entries))


def _check_verdict(key: CacheKey, device: Device) -> str:
    return f"{key.digest}-{device.fingerprint}"


def _compile_verdict(key: CacheKey) -> str:
    return f"{key.digest}-compile"


_default: Pipeline | None = None
_default_lock = threading.Lock()


def default() -> Pipeline:
    """Returns the process-wide pipeline, made at the first call."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Pipeline()
    return _default


def explain(problem: MoEProblem, device: Device) -> str:
    """Returns the plan for ``problem`` on ``device`` as text: decisions, kernels, launches, workspace."""
    planner = planner_for(device)
    plan = planner.launches(problem, device, planner.choose(problem, device))
    lines = [f"{problem} on {device}"]
    lines += [f"  {decision}" for decision in plan.decisions]
    for launch in plan.launches:
        ranges = "x".join(map(str, launch.global_size)) + " / " + "x".join(map(str, launch.local_size))
        lines.append(f"  launch {launch.spec} over {ranges} work-items")
    lines.append(f"  workspace {plan.workspace_bytes} bytes")
    return "\n".join(lines)

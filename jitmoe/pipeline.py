# SPDX-License-Identifier: MIT
"""The wiring: problem -> plan -> spec -> key -> memory | disk | compile -> kernel -> self-check -> bound plan.

The only module that sees every stage. Stages get their collaborators as arguments; this one makes the defaults.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from jitmoe import knobs
from jitmoe.builder import Builder, BuildEvent
from jitmoe.cache import Cache, CacheKey, Entry
from jitmoe.compilers.base import ArtifactKind, Compiler
from jitmoe.compilers.ocloc import find_ocloc
from jitmoe.device import Device, DeviceKind
from jitmoe.kernels import KernelStore
from jitmoe.operation import Problem, parts_of
from jitmoe.plan import plan_for, planner_for
from jitmoe.runtime.launcher import BoundPlan
from jitmoe.runtime.loader import Kernel
from jitmoe.runtime.stream import Stream
from jitmoe.spec import KernelSpec
from jitmoe.trust import Trust

__all__ = ["BuildEvent", "Pipeline", "default", "explain"]


class Pipeline:
    """Everything between a problem and launchable kernels."""

    def __init__(
        self,
        settings: knobs.Knobs | None = None,
        cache: Cache | None = None,
        compilers: Sequence[Compiler] | None = None,
    ) -> None:
        self._builder = Builder(settings, cache, compilers)
        self._store = KernelStore(self._builder)
        self._trust = Trust(self._builder)
        # Loaded and trusted kernels: all that a new shape of a known kind needs.
        self._ready: dict[tuple[KernelSpec, int, str | None], Kernel] = {}
        self._lock = threading.Lock()

    @property
    def settings(self) -> knobs.Knobs:
        return self._builder.settings

    @property
    def cache(self) -> Cache:
        return self._builder.cache

    @property
    def compilers(self) -> tuple[Compiler, ...]:
        """The usable compilers, preferred one first."""
        return self._builder.compilers

    @property
    def on_build(self) -> Callable[[BuildEvent], None]:
        """Called for each kernel that was found or compiled, from any thread."""
        return self._builder.on_build

    @on_build.setter
    def on_build(self, listener: Callable[[BuildEvent], None]) -> None:
        self._builder.on_build = listener

    def prepare(self, problem: Problem, stream: Stream, tensor_names: Sequence[str]) -> BoundPlan:
        """Returns the plan for ``problem`` with trusted kernels; compiles what is missing.

        ``tensor_names`` are the tensors that each call will bring, in the order of their addresses.
        """
        plan = plan_for(problem, stream.device)
        kernels: dict[KernelSpec, Kernel] = {}
        for part in parts_of(problem):
            kernels |= self._trusted_kernels(part, stream)
        return BoundPlan(plan, kernels, tensor_names, absent=problem.OPERATION.tensors)

    def _trusted_kernels(self, problem: Problem, stream: Stream) -> dict[KernelSpec, Kernel]:
        """Returns the kernels of ``problem``, built, loaded and checked where that has not happened yet."""
        device = stream.device
        planner = planner_for(problem, device)
        choice = planner.choose(problem, device)
        plan = planner.launches(problem, device, choice)
        places = {spec: (spec, stream.context_id, stream.emulated_arch) for spec in plan.specs}
        if not all(place in self._ready for place in places.values()):
            with self._lock:
                obtained = self._builder.obtain(
                    plan.specs, device, lambda spec, entry: (entry, self._store.load(spec, entry, stream))
                )
                entries = {spec: entry for spec, (entry, _) in obtained.items()}
                kernels = {spec: kernel for spec, (_, kernel) in obtained.items()}
                if not self._trust.covers(entries.values(), device):
                    small = planner.check_problem(problem, choice)
                    self._trust.check(small, planner.launches(small, device, choice), entries, kernels, stream)
                self._ready.update((place, kernels[spec]) for spec, place in places.items())
        return {spec: self._ready[place] for spec, place in places.items()}

    def build(self, specs: Iterable[KernelSpec], device: Device) -> dict[KernelSpec, Entry]:
        """Returns a cache entry per spec, compiling the missing ones in parallel; needs no device.

        For GPUs, where ocloc is present, their machine code is stored beside it.
        """
        ocloc = find_ocloc()[0] if device.kind is DeviceKind.GPU else None

        def finish(spec: KernelSpec, entry: Entry) -> Entry:
            if ocloc is not None and ArtifactKind.SPIRV.value in entry.files:
                self._store.add_machine_code(ocloc, spec, entry, device)
            return entry

        return self._builder.obtain(tuple(specs), device, finish)

    def cached(self, spec: KernelSpec, device: Device) -> Entry | None:
        """Returns the entry that ``build`` would use without compiling, or None."""
        return self._builder.find(spec, device)

    def key(self, spec: KernelSpec, device: Device, compiler: Compiler | None) -> CacheKey:
        """Returns the cache key of ``spec`` built by ``compiler`` (None: only what is asked, not how it is made)."""
        return self._builder.key(spec, device, compiler)


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


def explain(problem: Problem, device: Device) -> str:
    """Returns the plan for ``problem`` on ``device`` as text: decisions, kernels, launches, workspace."""
    plan = plan_for(problem, device)
    lines = [f"{problem} on {device}"]
    lines += [f"  {decision}" for decision in plan.decisions]
    for launch in plan.launches:
        ranges = "x".join(map(str, launch.global_size)) + " / " + "x".join(map(str, launch.local_size))
        lines.append(f"  launch {launch.spec} over {ranges} work-items")
    lines.append(f"  workspace {plan.workspace_bytes} bytes")
    return "\n".join(lines)

# SPDX-License-Identifier: MIT
"""What is wrong, risky or worth knowing, and what to do about it: pure judgements over ``Facts``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jitmoe.cli.facts import Facts
from jitmoe.cli.layers import Layer
from jitmoe.cli.terminal import format_size

LOW_DISK_BYTES = 100 << 20
LOW_MEMORY_BYTES = 1 << 30  # one compilation takes up to 0.7 GB (compilers/sycl_jit.py)
MINIMUM_DPCTL = (0, 22)
OPENMP_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how long OpenMP threads spin

Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement."""

    level: Level
    what: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Where ``fused_moe`` runs its kernels: devices in words."""

    fresh: tuple[str, ...] = ()  # any kernel, compiled when it is needed
    cached: tuple[str, ...] = ()  # the kernels that are in the cache, because nothing can be compiled
    why_not: str = ""  # where it runs nowhere

    @property
    def text(self) -> str:
        if self.fresh:
            return "\n  ".join(["fused_moe runs on", *self.fresh])
        if self.cached:
            return "\n  ".join(["fused_moe runs, with cached kernels only, on", *self.cached])
        return self.why_not


def verdict(facts: Facts, cached_devices: Sequence[str]) -> Verdict:
    """Returns where a call with these settings runs.

    Args:
        facts: the machine.
        cached_devices: architectures for which the cache has kernels of the installed sources.
    """
    if facts.knob_errors or facts.tuned_error:
        return Verdict(why_not="fused_moe fails until the settings are corrected (see the findings)")
    targets = facts.sycl.get("targets", ())
    settings = facts.settings
    can_compile = not settings.disable_jit and any(c["used"] and c["works"] for c in facts.compilers)
    fresh = tuple(target["words"] for target in targets if can_compile and target.get("runs"))
    cached = tuple(
        target["words"]
        for target in targets
        if target["words"] not in fresh and target.get("runs") is not False and target["arch"] in cached_devices
    )
    if fresh or cached:
        return Verdict(fresh=fresh, cached=cached)
    if settings.disable_jit:
        what = "it raises an error (JITMOE_DISABLE_JIT=1, and the cache holds no kernel for a device that is here)"
    elif settings.strict:
        what = "it raises an error (JITMOE_STRICT=1)"
    else:
        what = "it computes with the slow reference"
    return Verdict(why_not=f"fused_moe cannot run its kernels here; {what}")


def find_all(facts: Facts, layers: Sequence[Layer]) -> list[Finding]:
    """Returns every finding, the worst first."""
    found = [
        *_knobs(facts),
        *_runtime(facts),
        *_devices(facts),
        *_compilers(facts),
        *_cache(facts, layers),
        *_traps(facts),
    ]
    order: dict[Level, int] = {"problem": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _knobs(facts: Facts) -> Iterator[Finding]:
    for error in facts.knob_errors:
        yield Finding("problem", error, "correct or unset it; every jitmoe call fails until then")
    if facts.tuned_error:
        what = f"JITMOE_TUNED_CONFIG cannot be used: {facts.tuned_error}"
        yield Finding("problem", what, "correct or unset it; fused_moe fails on every GPU until then")
    for variable, meant in facts.unknown_knobs.items():
        yield Finding(
            "warning" if meant else "note",
            f"nothing in jitmoe reads the environment variable {variable}",
            f"did you mean {meant}?" if meant else "its settings are those listed above",
        )
    if facts.settings.disable_jit:
        yield Finding(
            "note",
            "JITMOE_DISABLE_JIT=1: nothing is compiled while serving",
            "run jitmoe-warmup MODEL without it to fill the cache",
        )


def _runtime(facts: Facts) -> Iterator[Finding]:
    dpctl = facts.packages.get("dpctl")
    if dpctl is None:
        yield Finding("problem", "dpctl is not installed: there is no way to a device", "pip install 'jitmoe[cpu]'")
    elif tuple(int(part) for part in dpctl.split(".")[:2] if part.isdigit()) < MINIMUM_DPCTL:
        yield Finding("problem", f"dpctl {dpctl} is too old", "pip install -U 'dpctl>=0.22'")
    if dpctl is not None and "error" in facts.sycl:
        yield Finding(
            "problem",
            f"the SYCL runtime cannot be started: {facts.sycl['error']}",
            "pip install --force-reinstall dpctl intel-sycl-rt",
        )
    for problem in facts.sycl.get("problems", ()):
        yield Finding("warning", f"a device cannot be used: {problem}", "update its driver")
    if facts.packages.get("torch") is None:
        yield Finding(
            "warning", "torch is not installed: no self-checks, no reference, no torch tensors", "pip install torch"
        )
    elif "error" in facts.torch:
        yield Finding("warning", f"torch cannot be imported: {facts.torch['error']}", "reinstall torch")
    other = [name for name in facts.torch.get("libsycl", ()) if facts.needed_libsycl and name != facts.needed_libsycl]
    if other:
        yield Finding(
            "problem",
            f"torch loads {other[0]}, dpctl needs {facts.needed_libsycl}: the two cannot share queues in one process",
            "use versions of one oneAPI major: torch 2.13 or later (XPU build) goes with dpctl 0.22",
        )
    strays = [path for path in facts.path_libsycl if facts.needed_libsycl and not path.endswith(facts.needed_libsycl)]
    if strays:
        yield Finding(
            "warning",
            f"LD_LIBRARY_PATH offers {strays[0]}, dpctl needs {facts.needed_libsycl}",
            "start without that toolkit's setvars.sh, or use its newer version",
        )
    if facts.torch.get("xpu_error"):
        yield Finding(
            "warning", f"torch.xpu does not answer: {facts.torch['xpu_error']}", "update torch and the driver"
        )


def _devices(facts: Facts) -> Iterator[Finding]:
    targets = facts.sycl.get("targets", ())
    gpus = [target for target in targets if target["kind"] == "gpu"]
    for target in targets:
        if target.get("runs") is False:
            yield Finding(
                "problem",
                f"{target['words']}: the probe kernel failed: {target['error']}",
                "update the driver or runtime; jitmoe does not use kernels that fail their self-check",
            )
    blocked = [node["path"] for node in facts.render_nodes if not node["accessible"]]
    if blocked and not gpus:
        yield Finding(
            "problem",
            f"there is an Intel GPU, but this user may not open {blocked[0]}",
            "sudo usermod -aG render $USER, then log in again (containers: --device /dev/dri --group-add render)",
        )
    elif facts.render_nodes and not gpus and "error" not in facts.sycl and not facts.hidden_devices:
        yield Finding(
            "warning",
            "there is an Intel GPU, but SYCL does not show it",
            "install its compute driver (libze-intel-gpu1 and libze1, or intel-level-zero-gpu)",
        )
    has_cpu = any(target["kind"] == "cpu" for target in targets)
    if not has_cpu and facts.packages.get("dpctl") is not None and "error" not in facts.sycl:
        if facts.packages.get("intel-opencl-rt") is None:
            level: Level = "note" if gpus else "problem"
            yield Finding(
                level, "no CPU device: intel-opencl-rt is not installed", "pip install 'jitmoe[cpu]' brings it"
            )
        elif not facts.hidden_devices:
            yield Finding(
                "warning" if gpus else "problem",
                "no CPU device although intel-opencl-rt is installed",
                "unset OCL_ICD_FILENAMES, or let it name libintelocl.so as well"
                if facts.environment.get("OCL_ICD_FILENAMES")
                else "pip install --force-reinstall intel-opencl-rt",
            )
    if facts.hidden_devices:
        selector = facts.environment.get("ONEAPI_DEVICE_SELECTOR", "")
        yield Finding(
            "warning" if targets else "problem",
            f"ONEAPI_DEVICE_SELECTOR={selector} hides {', '.join(facts.hidden_devices)}",
            "unset it, or add what is missing, e.g. level_zero:*;opencl:cpu",
        )
    if gpus and "error" not in facts.torch and facts.packages.get("torch") and not facts.torch.get("xpu_available"):
        yield Finding(
            "note",
            f"torch {facts.torch.get('version')} has no XPU support: torch tensors run on the CPU",
            "install torch's XPU build for tensors on the GPU; dpctl USM arrays work without it",
        )
    if any(target["arch"] == "unknown" for target in gpus):
        yield Finding(
            "warning", "a GPU's architecture is not known: it gets portable kernels", "report its name, please"
        )


def _compilers(facts: Facts) -> Iterator[Finding]:
    used = [compiler for compiler in facts.compilers if compiler["used"]]
    for compiler in facts.compilers:
        if not compiler["works"]:
            others = any(other["works"] for other in used)
            yield Finding(
                "warning" if others or not compiler["used"] else "problem",
                f"{compiler['name']} cannot compile a kernel of three lines\n{compiler['error']}",
                "JITMOE_COMPILER=sycl-jit uses the compiler of intel-sycl-rt instead"
                if compiler["name"] == "icpx"
                else "pip install --force-reinstall intel-sycl-rt",
            )
    if not used:
        wanted = facts.settings.compiler
        yield Finding(
            "problem",
            "no compiler: "
            + ("; ".join(facts.searched) if wanted == "auto" else f"JITMOE_COMPILER={wanted} is not here"),
            "pip install 'intel-sycl-rt>=2026,<2027'" if wanted == "auto" else "unset JITMOE_COMPILER",
        )
    if facts.environment.get("ONEAPI_ROOT") and not any(c["name"] == "icpx" for c in facts.compilers):
        yield Finding(
            "note",
            "ONEAPI_ROOT is set, but there is no usable icpx on PATH (other oneAPI tools set it too)",
            "nothing to do: the compiler of intel-sycl-rt is used",
        )
    if facts.free_memory is not None and facts.free_memory < LOW_MEMORY_BYTES:
        yield Finding(
            "warning",
            f"only {format_size(facts.free_memory)} of memory are free; a compilation takes up to 0.7 GB",
            "JITMOE_JOBS=1 compiles one kernel at a time",
        )


def _cache(facts: Facts, layers: Sequence[Layer]) -> Iterator[Finding]:
    writable = [layer for layer in layers if layer.role == "writable"]
    for layer in layers:
        if layer.role == "not usable":
            yield Finding(
                "warning", f"cache folder {layer.path}: {layer.state}", "correct its owner and mode, or its name"
            )
    if not writable:
        yield Finding("warning", "no cache folder can be written: every process compiles again", "set JITMOE_CACHE_DIR")
    elif writable[0].state.startswith("used"):
        yield Finding(
            "warning",
            f"kernels are cached in {writable[0].path}, which may not outlive a reboot ({writable[0].state})",
            "set JITMOE_CACHE_DIR to a folder that this user can write",
        )
    if facts.free_disk is not None and facts.free_disk < LOW_DISK_BYTES:
        yield Finding("warning", f"only {format_size(facts.free_disk)} are free for the cache", "jitmoe-cache prune")
    for failed in facts.failed_checks:
        yield Finding(
            "warning",
            f"a kernel failed its self-check and is not used: {failed}",
            "update the driver or runtime, then jitmoe-cache clear --stale",
        )


def _traps(facts: Facts) -> Iterator[Finding]:
    environment = facts.environment
    if environment.get("SYCL_CACHE_PERSISTENT", "0").strip().lower() not in ("", "0", "false", "off"):
        yield Finding(
            "warning",
            "SYCL_CACHE_PERSISTENT is set: it crashes the Level Zero V2 adapter (intel/llvm issue 22853)",
            "unset it; jitmoe has its own cache",
        )
    if environment.get("CL_CONFIG_CPU_TARGET_ARCH"):
        yield Finding(
            "warning",
            f"CL_CONFIG_CPU_TARGET_ARCH={environment['CL_CONFIG_CPU_TARGET_ARCH']}: "
            "the CPU device generates code for less than this CPU has",
            "unset it unless that is what you are testing",
        )
    gpus = [target for target in facts.sycl.get("targets", ()) if target["kind"] == "gpu"]
    if any(gpu["arch"] == "bmg-g31" for gpu in gpus) and environment.get("SYCL_UR_USE_LEVEL_ZERO_V2") != "0":
        yield Finding(
            "note",
            "Arc Pro B70: runtimes of 2026.1 may crash in the Level Zero V2 adapter (intel/llvm issue 22958)",
            "if a process dies without a message, try SYCL_UR_USE_LEVEL_ZERO_V2=0",
        )
    on_cpu = not gpus and any(target["kind"] == "cpu" for target in facts.sycl.get("targets", ()))
    if on_cpu and facts.torch.get("version") and not any(environment.get(name) for name in OPENMP_WAITS):
        yield Finding(
            "note",
            "torch's OpenMP threads spin for some milliseconds after each operation, on the cores that kernels need",
            "OMP_WAIT_POLICY=passive, set before Python starts, makes calls between torch operations up to 1.7 times "
            "as fast (docs/cpu-kernels.md)",
        )
    if facts.start_method == "fork":
        yield Finding(
            "note",
            "multiprocessing forks here, and SYCL does not survive a fork",
            "start workers with the 'spawn' method, or call jitmoe only in the workers",
        )

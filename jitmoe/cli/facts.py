# SPDX-License-Identifier: MIT
"""What jitmoe-info looks at. Whatever may crash, hang or end its process is asked in a child process.

Run as ``python -m jitmoe.cli.facts torch`` or ``sycl [IMAGE]`` it is that child: the last line it prints is JSON.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jitmoe
from jitmoe import knobs
from jitmoe.errors import ArgumentError, JitMoEError
from jitmoe.spec import Argument, KernelSpec, arguments

CHILD_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 60.0
PROBE_ITEMS = 64
PROBE_VALUE = 1000
INTEL_VENDOR = "0x8086"

PACKAGES = (
    "torch",
    "dpctl",
    "intel-sycl-rt",
    "intel-opencl-rt",
    "numpy",
    "filelock",
    "platformdirs",
    "sycl-tla",
    "intel-extension-for-pytorch",
)
# Variables of others that change what jitmoe meets.
VARIABLES = (
    "ONEAPI_DEVICE_SELECTOR",
    "ZE_AFFINITY_MASK",
    "SYCL_CACHE_PERSISTENT",
    "SYCL_CACHE_DIR",
    "SYCL_UR_USE_LEVEL_ZERO_V2",
    "CL_CONFIG_CPU_TARGET_ARCH",
    "CL_CONFIG_CPU_TBB_NUM_WORKERS",
    "OCL_ICD_FILENAMES",
    "ONEAPI_ROOT",
    "LD_LIBRARY_PATH",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MAX_JOBS",
    "HOME",
    "XDG_CACHE_HOME",
)

PROBE_SOURCE = """\
#include <jitmoe/entry.hpp>
extern "C" JITMOE_ND_RANGE(1) void jitmoe_probe(void* out, jitmoe::int32 value) {
  const auto i = jitmoe::nd_item<1>().get_global_id(0);
  static_cast<jitmoe::int32*>(out)[i] = value + static_cast<jitmoe::int32>(i);
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec(KernelSpec):
    """A kernel of three lines that shows whether compiling, loading and launching work."""

    KERNEL: ClassVar[str] = "probe"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments("out out, int32 value")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that jitmoe-info shows and judges, as plain values."""

    jitmoe: str
    python: str
    system: str
    packages: Mapping[str, str | None]
    environment: Mapping[str, str]
    knob_rows: tuple[Mapping[str, str], ...]  # variable, value, origin, help
    knob_errors: tuple[str, ...]
    tuned_error: str  # why the file that JITMOE_TUNED_CONFIG names cannot be used
    unknown_knobs: Mapping[str, str]  # JITMOE_* variables that nothing reads: the knob that may be meant, or ""
    settings: knobs.Knobs
    compilers: tuple[Mapping[str, Any], ...]  # name, identity, works, seconds, error
    searched: tuple[str, ...]  # where compilers were looked for, and what was there
    needed_libsycl: str  # by dpctl
    torch: Mapping[str, Any]  # see torch_facts; or {"error": ...}
    sycl: Mapping[str, Any]  # see sycl_facts; or {"error": ...}
    hidden_devices: tuple[str, ...]  # shown once ONEAPI_DEVICE_SELECTOR is unset
    path_libsycl: tuple[str, ...]  # libsycl files in LD_LIBRARY_PATH
    render_nodes: tuple[Mapping[str, Any], ...]  # Intel GPUs the kernel driver knows: path, accessible
    free_memory: int | None  # bytes
    free_disk: int | None  # bytes where the cache is
    start_method: str  # of multiprocessing
    failed_checks: tuple[str, ...] = field(default=())  # self-checks on record that failed

    def record(self) -> dict[str, Any]:
        """Returns the facts for --json."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "settings"}


# in the child


def torch_facts() -> dict[str, Any]:
    """Returns what torch has: version, XPU build, XPU devices, the libsycl that importing it loads."""
    import torch

    from jitmoe.runtime import sycl

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "xpu_version": getattr(torch.version, "xpu", None),
        "xpu_available": False,
        "devices": [],
    }
    try:
        xpu: Any = getattr(torch, "xpu", None)
        facts["xpu_available"] = bool(xpu is not None and xpu.is_available())
        if facts["xpu_available"]:
            for index in range(xpu.device_count()):
                properties = xpu.get_device_properties(index)
                facts["devices"].append(
                    {"name": properties.name, "driver": str(getattr(properties, "driver_version", ""))}
                )
    except Exception as error:
        facts["xpu_error"] = str(error)
    facts["libsycl"] = list(sycl.loaded_libsycl())
    return facts


def sycl_facts(image: bytes) -> dict[str, Any]:
    """Returns the devices that SYCL shows, and whether the compiled probe runs right on those we would use."""
    from jitmoe.cli.devices import present_targets
    from jitmoe.runtime import cpu, sycl

    cpu.register_runtime()
    import dpctl

    devices = [
        {
            "name": device.name.strip(),
            "type": str(device.device_type).rpartition(".")[2],
            "backend": str(device.backend).rpartition(".")[2],
            "vendor": device.vendor,
            "driver": device.driver_version,
        }
        for device in dpctl.get_devices()
    ]
    targets, problems = present_targets()
    found = []
    for target in targets:
        facts: dict[str, Any] = {
            "kind": target.device.kind.value,
            "arch": target.device.arch,
            "name": target.device.name,
            "isa": target.device.cpu_isa.value if target.device.cpu_isa is not None else None,
            "compute_units": target.device.num_compute_units,
            "driver": target.device.driver_version,
            "backend": target.device.backend,
            "words": str(target.device),
            "runs": None,
        }
        if image:
            started = time.perf_counter()
            try:
                wrong = _run_probe(image, target.queue.addressof_ref())
            except JitMoEError as error:
                wrong = str(error)
            facts.update(runs=not wrong, error=wrong, seconds=time.perf_counter() - started)
        found.append(facts)
    return {
        "devices": devices,
        "targets": found,
        "problems": list(problems),
        "libsycl": list(sycl.loaded_libsycl()),
        "cpu_runtime": str(cpu.find_runtime() or ""),
    }


def _run_probe(image: bytes, queue_ref: int) -> str:
    """Runs the probe kernel; returns what is wrong with its result, or an empty string."""
    from jitmoe.plan.launch import Launch, Plan
    from jitmoe.runtime import loader
    from jitmoe.runtime.launcher import BoundPlan
    from jitmoe.runtime.stream import stream_of

    spec = ProbeSpec()
    stream = stream_of(queue_ref)
    kernel, _ = loader.load_spirv(spec.entry_name, image, spec.num_parameters, stream)
    launch = Launch(spec=spec, global_size=(PROBE_ITEMS,), local_size=(16,), scalars={"value": PROBE_VALUE})
    host = (ctypes.c_int32 * PROBE_ITEMS)()
    address = stream.upload(ctypes.addressof(host), ctypes.sizeof(host))
    try:
        BoundPlan(Plan(launches=(launch,), buffers=()), {spec: kernel}, ("out",)).submit(stream, [address])
        stream.wait()
        stream.copy(ctypes.addressof(host), address, ctypes.sizeof(host))
    finally:
        stream.free(address)
    if list(host) != [PROBE_VALUE + i for i in range(PROBE_ITEMS)]:
        return "the probe kernel ran without an error but computed nothing right"
    return ""


# in the parent


def ask_child(*what: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns what the child found, or {"error": why there is no answer}."""
    command = (sys.executable, "-m", "jitmoe.cli.facts", *what)
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHILD_TIMEOUT_S,
            env=dict(environment) if environment is not None else None,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {CHILD_TIMEOUT_S:g} s"}
    except OSError as error:
        return {"error": f"cannot start {sys.executable}: {error}"}
    lines = finished.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        if isinstance(answer, dict):
            return answer
    except (IndexError, ValueError):
        pass
    evidence = finished.stderr.strip().splitlines()[-1:] or ["no output"]
    how = f"signal {-finished.returncode}" if finished.returncode < 0 else f"exit code {finished.returncode}"
    return {"error": f"{evidence[0]} ({how})"}


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def read_knobs(environment: Mapping[str, str]) -> tuple[knobs.Knobs, tuple[dict[str, str], ...], tuple[str, ...]]:
    """Returns (the settings, each knob's value and where it comes from, what could not be read)."""
    errors = {}
    readable = dict(environment)
    for knob in dataclasses.fields(knobs.Knobs):
        variable = knob.metadata["variable"]
        if variable in readable:
            try:
                knobs.read({variable: readable[variable]})
            except ArgumentError as error:
                errors[variable] = str(error)
                del readable[variable]
    settings = knobs.read(readable)
    rows = []
    for knob in dataclasses.fields(knobs.Knobs):
        variable = knob.metadata["variable"]
        value = getattr(settings, knob.name)
        origin = "environment" if variable in readable else "default"
        if origin == "default" and value != knob.default:
            origin = "MAX_JOBS"
        if isinstance(value, bool):
            shown = str(int(value))
        elif isinstance(value, tuple):
            shown = os.pathsep.join(map(str, value)) or "-"
        else:
            shown = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        if variable in errors:
            shown, origin = environment[variable], "environment, cannot be read"
        rows.append({"variable": variable, "value": shown, "origin": origin, "help": str(knob.metadata["help"])})
    return settings, tuple(rows), tuple(errors.values())


def _tuned_error(settings: knobs.Knobs) -> str:
    from jitmoe.plan import tuned

    try:
        if settings.tuned_config is not None:
            tuned.read(settings.tuned_config)
    except ArgumentError as error:
        return str(error)
    return ""


def _probe_compilers(settings: knobs.Knobs) -> tuple[list[dict[str, Any]], tuple[str, ...], bytes]:
    """Compiles the probe with every compiler; returns (results, places searched, a SPIR-V image or b"")."""
    from jitmoe.compilers.base import ArtifactKind, CompileRequest
    from jitmoe.compilers.find import find_compilers
    from jitmoe.errors import CompileError
    from jitmoe.runtime import sycl

    compilers, searched = find_compilers("auto", sycl.runtime_soname_or_none())
    request = CompileRequest(kernel="jitmoe_probe", spec="probe", source=PROBE_SOURCE, arch="x86-64", large_grf=False)
    results = []
    image = b""
    for compiler in compilers:
        result: dict[str, Any] = {
            "name": compiler.name,
            "identity": compiler.identity,
            "used": settings.compiler in ("auto", compiler.name),
            "works": False,
            "error": "",
        }
        started = time.perf_counter()
        try:
            artifact = compiler.compile(request, build_key="probe", timeout_s=PROBE_TIMEOUT_S)
        except CompileError as error:
            result["error"] = str(error)
        else:
            result["works"] = True
            if artifact.kind is ArtifactKind.SPIRV:
                image = artifact.image
        result["seconds"] = time.perf_counter() - started
        results.append(result)
    return results, searched, image


def _render_nodes() -> list[dict[str, Any]]:
    nodes = []
    for node in sorted(Path("/dev/dri").glob("renderD*")):
        try:
            vendor = (Path("/sys/class/drm") / node.name / "device" / "vendor").read_text().strip()
        except OSError:
            vendor = ""
        if vendor == INTEL_VENDOR:
            nodes.append({"path": str(node), "accessible": os.access(node, os.R_OK | os.W_OK)})
    return nodes


def _libsycl_on_path(environment: Mapping[str, str]) -> list[str]:
    found = []
    for folder in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if folder:
            found += [str(path) for path in sorted(Path(folder).glob("libsycl.so.*")) if path.suffix[1:].isdigit()]
    return found


def _free_disk(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def collect(cache_folder: Path | None, failed_checks: tuple[str, ...]) -> Facts:
    """Looks at everything; takes a few seconds, most of them for importing torch in a child process."""
    from concurrent.futures import ThreadPoolExecutor

    from jitmoe.compilers.base import available_memory_bytes
    from jitmoe.runtime import sycl

    environment = dict(os.environ)
    settings, knob_rows, knob_errors = read_knobs(environment)
    with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory(prefix="jitmoe-info-") as folder:
        torch_answer = pool.submit(ask_child, "torch")
        compilers, searched, image = _probe_compilers(settings)
        probe_file = Path(folder) / "probe.spv"
        probe_file.write_bytes(image)
        sycl_answer = ask_child("sycl", str(probe_file))
        hidden: tuple[str, ...] = ()
        if environment.get("ONEAPI_DEVICE_SELECTOR"):
            unfiltered = {name: value for name, value in environment.items() if name != "ONEAPI_DEVICE_SELECTOR"}
            everything = ask_child("sycl", environment=unfiltered)
            shown = {device["name"] for device in sycl_answer.get("devices", ())}
            hidden = tuple(d["name"] for d in everything.get("devices", ()) if d["name"] not in shown)
        return Facts(
            jitmoe=jitmoe.__version__,
            python=f"{platform.python_version()} ({sys.executable})",
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            packages=_package_versions(),
            environment={name: environment[name] for name in VARIABLES if name in environment},
            knob_rows=knob_rows,
            knob_errors=knob_errors,
            tuned_error=_tuned_error(settings),
            unknown_knobs=knobs.unknown(environment),
            settings=settings,
            compilers=tuple(compilers),
            searched=searched,
            needed_libsycl=sycl.runtime_soname_or_none(),
            torch=torch_answer.result(),
            sycl=sycl_answer,
            hidden_devices=hidden,
            path_libsycl=tuple(_libsycl_on_path(environment)),
            render_nodes=tuple(_render_nodes()),
            free_memory=available_memory_bytes(),
            free_disk=_free_disk(cache_folder) if cache_folder is not None else None,
            start_method=multiprocessing.get_start_method(allow_none=True)
            or multiprocessing.get_all_start_methods()[0],
            failed_checks=failed_checks,
        )


def _child(what: list[str]) -> int:
    try:
        if what[0] == "torch":
            answer = torch_facts()
        else:
            answer = sycl_facts(Path(what[1]).read_bytes() if len(what) > 1 else b"")
    except Exception as error:  # the parent shows whatever it is
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # runtimes may crash in their static destructors; the answer is out


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))

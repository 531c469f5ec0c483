# SPDX-License-Identifier: MIT
"""icpx of the oneAPI toolkit: SYCL to a shared library with code for the detected device.

No registry that this project builds on has icpx, so it was never run here. Its command line is exercised with a
stand-in that accepts exactly these arguments, the host part of the source is checked by g++ against the SYCL headers
and the device part by the wheel's compiler (tests/toolchain).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jitmoe.compilers.base import (
    BUILD_KEY_PLACEHOLDER,
    INCLUDE_PLACEHOLDER,
    OUTPUT_PLACEHOLDER,
    SOURCE_PLACEHOLDER,
    Artifact,
    ArtifactKind,
    CompileRequest,
    overlay_folder,
    run,
    with_paths,
)
from jitmoe.errors import CompileError
from jitmoe.source import INCLUDE_DIR

MEMORY_PER_JOB_BYTES = 3 << 30  # peers plan 3-8 GB for one CUTLASS unit; our units are far smaller
VERSION_TIMEOUT_S = 20.0
HOST_INCLUDE = "#include <jitmoe/host/shared_library.hpp>\n"
# Where icpx has no target of ocloc's name. A GPU that is not known gets SPIR-V, like a CPU.
_TARGETS = {
    "x86-64": "spir64",
    "unknown": "spir64",
    "dg2": "intel_gpu_acm_g10,intel_gpu_acm_g11,intel_gpu_acm_g12",
    "mtl": "intel_gpu_mtl_u,intel_gpu_mtl_h",
}
SONAME_OF_MAJOR = {"2025": "libsycl.so.8", "2026": "libsycl.so.9"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Icpx:
    """One installed icpx."""

    executable: Path
    version: str  # first line of --version

    @property
    def name(self) -> str:
        return "icpx"

    @property
    def kind(self) -> ArtifactKind:
        return ArtifactKind.SHARED_LIBRARY

    @property
    def identity(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def runtime_abi(self) -> str:
        found = re.search(r"\b(20\d\d)\.\d", self.version)
        return SONAME_OF_MAJOR.get(found.group(1), "libsycl.so") if found else "libsycl.so"

    @property
    def memory_per_job_bytes(self) -> int:
        return MEMORY_PER_JOB_BYTES

    def argv(self, request: CompileRequest) -> tuple[str, ...]:
        options = [
            "-fsycl",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-O3",
            "-std=c++20",
            "-fno-math-errno",
            f"-fsycl-targets={sycl_target(request.arch)}",
            f"-I{INCLUDE_PLACEHOLDER}",
            f'-DJITMOE_BUILD_KEY="{BUILD_KEY_PLACEHOLDER}"',
            f'-DJITMOE_ENTRY_NAME="{request.kernel}"',
            f"-DJITMOE_KERNEL_NAME={request.kernel}",
            # The runtime finds kernels of all loaded libraries by name: two configurations of one must not share it.
            f"-D{request.kernel}={request.kernel}_{BUILD_KEY_PLACEHOLDER}",
        ]
        if request.headers is not None:
            options += request.headers.options
        if request.large_grf:
            options += ["-Xsycl-target-backend", "-options -ze-opt-large-register-file"]
        return (*options, "-o", OUTPUT_PLACEHOLDER, SOURCE_PLACEHOLDER)

    def compile(self, request: CompileRequest, *, build_key: str, timeout_s: float) -> Artifact:
        with tempfile.TemporaryDirectory(prefix="jitmoe-icpx-") as folder, overlay_folder(request) as overlay_paths:
            source = Path(folder) / f"{request.kernel}.cpp"
            output = Path(folder) / ArtifactKind.SHARED_LIBRARY.value
            source.write_text(request.source + HOST_INCLUDE)
            paths = {
                INCLUDE_PLACEHOLDER: str(INCLUDE_DIR),
                SOURCE_PLACEHOLDER: str(source),
                OUTPUT_PLACEHOLDER: str(output),
                BUILD_KEY_PLACEHOLDER: build_key,
                **overlay_paths,
            }
            command = (str(self.executable), *with_paths(self.argv(request), paths))
            started = time.perf_counter()
            finished = run(command, request=request, stdin=b"", timeout_s=timeout_s)
            log = finished.stdout.decode(errors="replace") + finished.stderr
            if finished.returncode != 0 or not output.is_file():
                reason = f"icpx failed (exit code {finished.returncode})"
                if finished.returncode == 0:
                    reason = "icpx reported success but wrote no library"
                raise CompileError(
                    kernel=request.kernel, reason=reason, command=command, log=log, source_path=None, spec=request.spec
                )
            return Artifact(kind=self.kind, image=output.read_bytes(), log=log, seconds=time.perf_counter() - started)


def sycl_target(arch: str) -> str:
    """Returns the -fsycl-targets value for a device: ahead-of-time for Intel GPUs, SPIR-V for everything else."""
    return _TARGETS.get(arch, f"intel_gpu_{arch.replace('-', '_')}")


def find_icpx() -> tuple[Icpx | None, str]:
    """Looks for icpx on PATH; returns (compiler or None, what was found in words).

    Environment variables such as ONEAPI_ROOT are no evidence: other tools' set-up scripts define them too.
    """
    found = shutil.which("icpx")
    if found is None:
        return None, "icpx: not on PATH"
    try:
        answer = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{found}: --version failed ({error})"
    lines = answer.stdout.strip().splitlines()
    if not lines:
        return None, f"{found}: --version printed nothing"
    return Icpx(executable=Path(found), version=lines[0]), f"{found}: {lines[0]}"

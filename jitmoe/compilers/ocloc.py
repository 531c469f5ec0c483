# SPDX-License-Identifier: MIT
"""ocloc: SPIR-V to one GPU's machine code, without that GPU. For reports and tests; nothing at run time needs it.

The driver finishes SPIR-V images itself when they are loaded, and does it again for each driver version, so images for
running stay SPIR-V.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jitmoe.errors import CompileError

LARGE_GRF_OPTION = "-ze-opt-large-register-file"
PRIVATE_FOLDER = "jitmoe-ocloc"  # in the user's cache folder; where tools/get-ocloc installs by default


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeKernel:
    """One kernel's machine code for one GPU, with what the compiler says about it."""

    arch: str
    image: bytes
    assembly: str  # of the kernel; empty unless asked for
    facts: dict[str, str]  # execution environment: grf_count, simd_size, spill_size, private_size, has_dpas, ...
    log: str
    seconds: float

    @property
    def spill_bytes(self) -> int:
        """Bytes of registers that went to memory, per hardware thread."""
        return int(self.facts.get("spill_size", "0"))

    @property
    def objections(self) -> tuple[str, ...]:
        """What makes a kernel unfit: spills, private memory, calls, a degraded second compilation."""
        found = []
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} B spilled")
        if int(self.facts.get("private_size", "0")):
            found.append(f"{self.facts['private_size']} B of private memory")
        if self.facts.get("has_stack_calls") == "true":
            found.append("stack calls (an unresolved function)")
        if "RetryManager" in self.log:
            found.append("recompiled with fewer optimizations")
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ocloc:
    """One ocloc program."""

    path: Path
    version: str

    def compile(
        self, spirv: bytes, *, kernel: str, arch: str, large_grf: bool, assembly: bool = False, timeout_s: float = 300.0
    ) -> NativeKernel:
        """Returns machine code for ``arch`` (ocloc's device name).

        Args:
            kernel: entry point name, for messages and for picking the assembly.
            large_grf: build in 256-GRF mode, as a loader must.
            assembly: also return the assembly text.

        Raises:
            CompileError: ocloc refuses, crashes or takes too long.
        """
        with tempfile.TemporaryDirectory(prefix="jitmoe-ocloc-") as name:
            folder = Path(name)
            (folder / "kernel.spv").write_bytes(spirv)
            (folder / "dump").mkdir()
            command = [
                *(str(self.path), "compile", "-spirv_input", "-file", "kernel.spv", "-device", arch),
                *("-output", "kernel", "-output_no_suffix"),
                *(("-options", LARGE_GRF_OPTION) if large_grf else ()),
            ]
            environment = {**os.environ, "IGC_ShaderDumpEnable": "1", "IGC_DumpToCustomDir": f"{folder}/dump/"}
            started = time.perf_counter()
            try:
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s
                )
                log, reason = done.stdout + done.stderr, f"ocloc ended with code {done.returncode}"
            except (OSError, subprocess.TimeoutExpired) as error:
                done, log, reason = None, "", str(error)
            seconds = time.perf_counter() - started
            image = next((path for path in folder.glob("kernel*") if path.suffix != ".spv"), None)
            if done is None or done.returncode != 0 or image is None:
                raise CompileError(
                    kernel=kernel,
                    reason=f"{reason} for {arch}",
                    command=tuple(command),
                    log=log,
                    source_path=None,
                    spec=f"{kernel} for {arch}",
                )
            facts_file = next(iter((folder / "dump").glob("*.zeinfo")), None)
            return NativeKernel(
                arch=arch,
                image=image.read_bytes(),
                assembly=_assembly(folder / "dump", kernel) if assembly else "",
                facts=execution_environment(facts_file.read_text() if facts_file is not None else ""),
                log=log,
                seconds=seconds,
            )


def execution_environment(ze_info: str) -> dict[str, str]:
    """Returns the first kernel's ``execution_env`` of a ``.ze_info`` text as strings."""
    match = re.search(r"execution_env:\s*\n((?:\s{6,}\S+:.*\n)+)", ze_info)
    if match is None:
        return {}
    pairs = (line.split(":", 1) for line in match.group(1).splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def _assembly(folder: Path, kernel: str) -> str:
    """Returns the last assembly dump of ``kernel``: a retried compilation leaves one per try, the last one is used."""
    texts = [path.read_text() for path in sorted(folder.glob("*.asm"), key=lambda path: path.stat().st_mtime_ns)]
    own = [text for text in texts if f"//.kernel __sycl_kernel_{kernel}\n" in text]
    return own[-1] if own else ""


def default_path() -> Path:
    """Returns where tools/get-ocloc puts the program when no folder is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / PRIVATE_FOLDER / "bin" / "ocloc"


def find_ocloc() -> tuple[Ocloc | None, str]:
    """Looks on PATH, then in the private folder; returns (program or None, what was found in words)."""
    on_path = shutil.which("ocloc")
    path = Path(on_path) if on_path is not None else default_path()
    if not path.is_file():
        return None, f"ocloc: neither on PATH nor {path} (tools/get-ocloc installs it)"
    try:
        # The query writes a file into the current folder.
        with tempfile.TemporaryDirectory(prefix="jitmoe-ocloc-") as folder:
            done = subprocess.run(
                [str(path), "query", "OCL_DRIVER_VERSION"], cwd=folder, capture_output=True, text=True, timeout=60
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{path}: {error}"
    version = re.search(r"\d+\.\d+\.\d+\S*", done.stdout)
    if done.returncode != 0 or version is None:
        return None, f"{path}: {(done.stdout + done.stderr).strip()[:200]}"
    return Ocloc(path=path, version=version.group()), f"ocloc {version.group()} at {path}"

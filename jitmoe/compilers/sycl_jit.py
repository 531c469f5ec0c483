# SPDX-License-Identifier: MIT
"""The SYCL compiler library of the intel-sycl-rt wheel (libsycl-jit.so): SYCL to SPIR-V with nothing but pip."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from jitmoe.compilers.base import (
    INCLUDE_PLACEHOLDER,
    Artifact,
    ArtifactKind,
    CompileRequest,
    overlay_folder,
    run,
    with_paths,
)
from jitmoe.errors import CompileError
from jitmoe.source import INCLUDE_DIR

PACKAGE = "intel-sycl-rt"
LIBRARY = "libsycl-jit.so"
SUPPORTED_MAJORS = ("2026",)  # whose compileSYCL has the signature that the worker declares
WORKER = Path(__file__).with_name("sycl_jit_worker.py")
MEMORY_PER_JOB_BYTES = 700 << 20  # measured peak of one kernel, 2026.2: 330-450 MB; the 250 MB library included
EXIT_MEANINGS = {18: "the SPIR-V translator refused an extension"}

OPTIONS = (
    "-O3",
    "-std=c++20",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-math-errno",
    f"-I{INCLUDE_PLACEHOLDER}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyclJit:
    """The compiler library of one installed wheel."""

    library: Path
    version: str
    digest: str  # of the library, as the wheel's RECORD states it

    @property
    def name(self) -> str:
        return "sycl-jit"

    @property
    def kind(self) -> ArtifactKind:
        return ArtifactKind.SPIRV

    @property
    def identity(self) -> str:
        return f"{self.name} {self.version} {self.digest}"

    @property
    def runtime_abi(self) -> str:
        return ""

    @property
    def memory_per_job_bytes(self) -> int:
        return MEMORY_PER_JOB_BYTES

    def argv(self, request: CompileRequest) -> tuple[str, ...]:
        return OPTIONS if request.headers is None else (*OPTIONS, *request.headers.options)

    def compile(self, request: CompileRequest, *, build_key: str, timeout_s: float) -> Artifact:
        with overlay_folder(request) as paths:
            options = with_paths(self.argv(request), {INCLUDE_PLACEHOLDER: str(INCLUDE_DIR), **paths})
            return self._compile(request, options, timeout_s)

    def _compile(self, request: CompileRequest, options: list[str], timeout_s: float) -> Artifact:
        file_name = f"{request.kernel}.cpp"
        job = {
            "library": str(self.library),
            "kernel": request.kernel,
            "path": file_name,
            "source": request.source,
            "options": options,
        }
        # -I -S: nothing of the user's Python set-up runs in the worker, and it starts in 15 ms.
        command = (sys.executable, "-I", "-S", str(WORKER))
        finished = run(command, request=request, stdin=json.dumps(job).encode(), timeout_s=timeout_s)
        shown_command = (LIBRARY, *options, file_name)

        def failed(reason: str, log: str) -> CompileError:
            return CompileError(
                kernel=request.kernel,
                reason=reason,
                command=(*map(shlex.quote, shown_command), f"# {self.identity}"),
                log=log,
                source_path=None,
                spec=request.spec,
            )

        if finished.returncode != 0:
            meaning = EXIT_MEANINGS.get(finished.returncode, "the compiler library ended its process")
            raise failed(f"{meaning} (exit code {finished.returncode})", finished.stderr)
        head, newline, image = finished.stdout.partition(b"\n")
        try:
            answer = json.loads(head)
            complete = bool(newline) and len(image) == answer["image_size"]
        except (ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise failed("the compiler process gave an incomplete answer", finished.stderr)
        log = answer["log"] + finished.stderr
        if answer["error"] != 0:
            raise failed(f"the compiler reported an error (code {answer['error']})", log)
        return Artifact(
            kind=self.kind, image=image, log=log, seconds=answer["seconds"], properties=answer.get("properties", {})
        )


def find_sycl_jit() -> tuple[SyclJit | None, str]:
    """Looks for the wheel; returns (compiler or None, what was found in words)."""
    from importlib import metadata  # here: it alone would double the time that importing jitmoe takes

    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None, f"{PACKAGE}: not installed"
    version = distribution.version
    if version.split(".")[0] not in SUPPORTED_MAJORS:
        return None, f"{PACKAGE} {version}: jitmoe needs {' or '.join(f'{m}.x' for m in SUPPORTED_MAJORS)}"
    # Scanning RECORD's text is 20 times faster than importlib.metadata.files() on its 2,400 entries.
    record = distribution.read_text("RECORD") or ""
    for line in record.splitlines():
        path, _, rest = line.partition(",")
        if path.endswith("/" + LIBRARY):
            library = Path(str(distribution.locate_file(path))).resolve()
            if not library.is_file():
                return None, f"{PACKAGE} {version}: {library} is missing (reinstall the package)"
            return SyclJit(library=library, version=version, digest=rest.split(",")[0]), f"{PACKAGE} {version}"
    return None, f"{PACKAGE} {version}: its RECORD names no {LIBRARY}"

# SPDX-License-Identifier: MIT
"""Stand-ins with the contract of the real thing: compilers that count, planners of one toy kernel."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from jitmoe.compilers.base import Artifact, ArtifactKind, CompileRequest
from jitmoe.errors import CompileError


@dataclass
class FakeCompiler:
    """Returns ``image`` or raises ``failure``; counts requests."""

    name: str = "fake"
    version: str = "1"
    kind: ArtifactKind = ArtifactKind.SPIRV
    options: tuple[str, ...] = ("-O3",)
    runtime_abi: str = ""
    memory_per_job_bytes: int = 1 << 20
    image: bytes = b"image"
    failure: str = ""
    is_passing: bool = False
    requests: list[CompileRequest] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    build_keys: list[str] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def identity(self) -> str:
        return f"{self.name} {self.version}"

    def argv(self, request: CompileRequest) -> tuple[str, ...]:
        return self.options

    def compile(self, request: CompileRequest, *, build_key: str, timeout_s: float) -> Artifact:
        with self._lock:
            self.requests.append(request)
            self.timeouts.append(timeout_s)
            self.build_keys.append(build_key)
        if self.failure:
            raise CompileError(
                kernel=request.kernel,
                reason=self.failure,
                command=("fake", "-O3"),
                log="toy.cpp:3:1: error: no",
                source_path=None,
                spec=request.spec,
                is_passing=self.is_passing,
            )
        return Artifact(kind=self.kind, image=self.image, log="", seconds=0.01)

# SPDX-License-Identifier: MIT
"""The one exception tree. Fields first; ``str()`` is built from the fields.

Every error pickles (it crosses process pools) and says what happened, with the evidence, and what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG_TAIL_LINES = 30  # lines of a log shown in a message; the full log is in the file the message names


class JitMoEError(Exception):
    """Base of every error that jitmoe raises on purpose."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._fields().items())})"

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("__")}  # no __notes__

    def __str__(self) -> str:
        raise NotImplementedError


def _rebuild(cls: type[JitMoEError], fields: dict[str, Any]) -> JitMoEError:
    return cls(**fields)


def _tail(text: str) -> str:
    lines = text.strip().splitlines()
    if len(lines) <= LOG_TAIL_LINES:
        return "\n".join(lines)
    return "\n".join([f"... ({len(lines) - LOG_TAIL_LINES} lines before)", *lines[-LOG_TAIL_LINES:]])


class ArgumentError(JitMoEError, ValueError):
    """An argument of a public function is not what it has to be. Raised before any kernel runs."""

    def __init__(self, *, argument: str, got: str, expected: str) -> None:
        super().__init__(argument=argument, got=got, expected=expected)

    argument: str
    got: str
    expected: str

    def renamed(self, names: Mapping[str, str]) -> ArgumentError:
        """Returns the error as a function says it that calls its arguments otherwise; ``names`` are old to new."""

        def own(text: str) -> str:
            return re.sub(r"(?<=\blike )\w+|\w+_\w+", lambda word: names.get(word[0], word[0]), text)

        return ArgumentError(
            argument=names.get(self.argument, self.argument), got=own(self.got), expected=own(self.expected)
        )

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {self.got}"


class ModelError(JitMoEError):
    """A model name, shape or config.json that cannot be read; ``advice`` says what to do."""

    def __init__(self, *, model: str, reason: str, advice: str = "") -> None:
        super().__init__(model=model, reason=reason, advice=advice)

    model: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.model}: {self.reason}" + (f"\n{self.advice}" if self.advice else "")


class UnsupportedProblemError(JitMoEError):
    """No kernel of ours computes this problem on this device; ``reasons`` say why, with numbers."""

    def __init__(self, *, problem: str, reasons: tuple[str, ...]) -> None:
        super().__init__(problem=problem, reasons=reasons)

    problem: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"no kernel for {self.problem}", *(f"  - {reason}" for reason in self.reasons)])


class ToolchainNotFoundError(JitMoEError):
    """No usable compiler; ``searched`` lists each place that was looked at and what was found there.

    ``wanted`` is what ``JITMOE_COMPILER`` said: "auto", or the only compiler that was looked for.
    """

    def __init__(self, *, searched: tuple[str, ...], wanted: str = "auto") -> None:
        super().__init__(searched=searched, wanted=wanted)

    searched: tuple[str, ...]
    wanted: str

    def __str__(self) -> str:
        what = "no SYCL compiler found"
        advice = "pip install 'jitmoe[cpu]' (or intel-sycl-rt>=2026)"
        if self.wanted != "auto":
            what += f": JITMOE_COMPILER={self.wanted} allows no other"
            advice = f"unset JITMOE_COMPILER (or install {self.wanted})"
        places = (f"  - {place}" for place in self.searched)
        return "\n".join([what, *places, f"next step: {advice}, then run jitmoe-info"])


class HeadersNotFoundError(JitMoEError):
    """A kernel includes headers of another package that is not here or not usable; ``searched`` says what was found."""

    def __init__(self, *, kernel: str, package: str, searched: str) -> None:
        super().__init__(kernel=kernel, package=package, searched=searched)

    kernel: str
    package: str
    searched: str

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.kernel} needs the headers of {self.package}",
                f"  - {self.searched}",
                "next step: pip install 'jitmoe[cutlass]', or unset JITMOE_IMPL",
            ]
        )


class CompileError(JitMoEError):
    """A compiler failed, crashed or timed out on a rendered source.

    ``is_passing`` marks failures that say nothing about the source (no memory, no processes): worth another try.
    """

    def __init__(
        self,
        *,
        kernel: str,
        reason: str,
        command: tuple[str, ...],
        log: str,
        source_path: Path | None,
        spec: str,
        is_passing: bool = False,
    ) -> None:
        super().__init__(
            kernel=kernel,
            reason=reason,
            command=command,
            log=log,
            source_path=source_path,
            spec=spec,
            is_passing=is_passing,
        )

    kernel: str
    reason: str
    command: tuple[str, ...]
    log: str
    source_path: Path | None
    spec: str
    is_passing: bool

    def __str__(self) -> str:
        lines = [f"compiling {self.kernel} failed: {self.reason}"]
        if self.log.strip():
            lines.append(_tail(self.log))
        lines.append(f"command: {' '.join(self.command)}")
        lines.append(f"spec: {self.spec}")
        if self.source_path is not None:
            lines.append(f"source: {self.source_path}")
        lines.append("next step: run jitmoe-info; it compiles a probe with each compiler and says what is wrong")
        return "\n".join(lines)


class MissingKernelError(JitMoEError):
    """Compiling is forbidden (``JITMOE_DISABLE_JIT=1``) and the cache does not hold the kernel."""

    def __init__(self, *, kernel: str, spec: str, warmup: str, near_miss: str = "") -> None:
        super().__init__(kernel=kernel, spec=spec, warmup=warmup, near_miss=near_miss)

    kernel: str
    spec: str
    warmup: str
    near_miss: str

    def __str__(self) -> str:
        lines = [
            f"{self.kernel} is not in the cache and JITMOE_DISABLE_JIT=1 forbids compiling it",
            f"spec: {self.spec}",
        ]
        if self.near_miss:
            lines.append(self.near_miss)
        lines.append(
            f"next step: where compiling is allowed, run {self.warmup}, or this very call, which fills the cache too"
        )
        return "\n".join(lines)


class LoadError(JitMoEError):
    """A compiled artifact was refused by the runtime, or by our own checks before it reached the runtime."""

    def __init__(self, *, kernel: str, reason: str, path: Path | None = None) -> None:
        super().__init__(kernel=kernel, reason=reason, path=path)

    kernel: str
    reason: str
    path: Path | None

    def __str__(self) -> str:
        where = f" ({self.path})" if self.path is not None else ""
        return f"loading {self.kernel}{where} failed: {self.reason}"


class SelfCheckError(JitMoEError):
    """A freshly built kernel did not reproduce the reference on this device; it is not used there."""

    def __init__(self, *, kernels: tuple[str, ...], device: str, evidence: str) -> None:
        super().__init__(kernels=kernels, device=device, evidence=evidence)

    kernels: tuple[str, ...]
    device: str
    evidence: str

    def __str__(self) -> str:
        return (
            f"self-check failed on {self.device} for {', '.join(self.kernels)}: {self.evidence}\n"
            "next step: update the driver or runtime (jitmoe-info names both) and run jitmoe-cache clear --stale"
        )


class RuntimeUnavailableError(JitMoEError):
    """There is no SYCL runtime or device to run on."""

    def __init__(self, *, reason: str, advice: str) -> None:
        super().__init__(reason=reason, advice=advice)

    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.reason}\nnext step: {self.advice}"


class LaunchError(JitMoEError):
    """The runtime refused a submission."""

    def __init__(self, *, kernel: str, detail: str) -> None:
        super().__init__(kernel=kernel, detail=detail)

    kernel: str
    detail: str

    def __str__(self) -> str:
        return f"launching {self.kernel} failed: {self.detail}"


class CacheError(JitMoEError):
    """A cache operation that a person asked for (CLI) could not be done."""

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(path=path, reason=reason)

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

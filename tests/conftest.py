# SPDX-License-Identifier: MIT
"""What every test gets: a cache folder of its own, no JITMOE_* of the caller, and jitmoe as if just imported.

Tests are sorted by what they need: ``unit`` nothing, ``toolchain`` the compiler of the intel-sycl-rt wheel, ``device``
the SYCL CPU device. The folder gives the marker; what is missing on a machine is skipped with its name.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jitmoe.builder import Builder
    from jitmoe.pipeline import Pipeline

TESTS = Path(__file__).parent

# Before torch is imported, here and in the processes that tests start: test processes share the cores, and what torch's
# idle threads spend on spinning was two fifths of the time that a test of the CPU kernels spent in its own process.
os.environ["OMP_NUM_THREADS"] = "1"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "toolchain": ("intel-sycl-rt", lambda: _is_installed("intel-sycl-rt")),
    "device": (
        "dpctl and intel-opencl-rt (the SYCL CPU device)",
        lambda: _is_installed("dpctl") and _is_installed("intel-opencl-rt"),
    ),
    "gxx": ("g++", lambda: shutil.which("g++") is not None),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in ("toolchain", "device"):
            item.add_marker(folder)
    for marker, (what, is_there) in _NEEDS.items():
        if not is_there():
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


@pytest.fixture(scope="session")
def shared_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests of a run that compile (of all xdist workers): each kernel is compiled once."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "jitmoe-shared-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


# Made before a test's own settings are, so these two take none from the environment: it may name the user's cache.
@pytest.fixture(scope="session")
def pipeline(shared_cache_dir: Path) -> Pipeline:
    """A pipeline on the shared cache, for tests that choose device and plan themselves."""
    from jitmoe.knobs import Knobs
    from jitmoe.pipeline import Pipeline

    return Pipeline(Knobs(cache_dir=shared_cache_dir))


@pytest.fixture(scope="session")
def builder(shared_cache_dir: Path) -> Builder:
    """A builder on the shared cache, for tests that look at compiled kernels: it leaves their machine code alone."""
    from jitmoe.builder import Builder
    from jitmoe.knobs import Knobs

    return Builder(Knobs(cache_dir=shared_cache_dir, compiler="sycl-jit"))


@pytest.fixture
def private_cache(tmp_path: Path) -> Path:
    """A cache folder of the test's own; a device test that asks for it also gets a pipeline of its own."""
    return tmp_path / "cache"


class _State:
    """The parts of jitmoe that remember something, emptied and put back."""

    def __init__(self) -> None:
        from jitmoe import calls, knobs, pipeline

        self.calls, self.knobs, self.pipeline = calls, knobs, pipeline
        self.prepared = dict(calls._prepared)
        self.warned = set(calls._warned)
        self.default = pipeline._default

    def clear(self, *, pipeline: bool) -> None:
        self.calls._prepared.clear()
        self.calls._warned.clear()
        self.knobs._current = None
        if pipeline:
            self.pipeline._default = None

    def restore(self) -> None:
        self.clear(pipeline=False)
        self.calls._prepared.update(self.prepared)
        self.calls._warned.update(self.warned)
        self.pipeline._default = self.default


@pytest.fixture(autouse=True)
def jitmoe_as_new(
    request: pytest.FixtureRequest, tmp_path: Path, shared_cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Private settings and state. Device tests share one cache and one pipeline unless they use ``private_cache``."""
    for variable in list(os.environ):
        if variable.startswith("JITMOE_") or variable in ("MAX_JOBS", "SYCL_CACHE_PERSISTENT"):
            monkeypatch.delenv(variable)
    shares = request.node.get_closest_marker("device") and "private_cache" not in request.fixturenames
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(shared_cache_dir if shares else tmp_path / "cache"))
    if shares:
        state = _State()
        state.clear(pipeline=False)  # prepared calls remember what the settings were
        yield
        state.clear(pipeline=False)
        return
    state = _State()
    state.clear(pipeline=True)
    yield
    state.restore()

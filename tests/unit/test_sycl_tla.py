# SPDX-License-Identifier: MIT
"""The overlay on sycl-tla's headers: what it changes, when it refuses, and that the key sees every change."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.builders import gpu_device, moe_problem
from helpers.fakes import FakeCompiler

from jitmoe import builder, knobs
from jitmoe.builder import Builder
from jitmoe.cache import Cache, open_cache
from jitmoe.compilers import sycl_tla
from jitmoe.compilers.base import HeaderPackage, overlay_folder, with_paths
from jitmoe.errors import HeadersNotFoundError
from jitmoe.plan import cutlass
from jitmoe.plan.cutlass import CutlassGateUp
from jitmoe.plan.xe_specs import XeGateUp

MESSAGES = ["lsc_load_block2d.ugm a", "lsc_load_block2d.ugm b", "lsc_load_block2d.ugm c", "lsc_load_block2d.ugm.ca d"]
MESSAGES.append("lsc_store_block2d.ugm e")


def header(messages: list[str], statement: str = "asm (\n      ") -> str:
    return "#pragma once\n" + "".join(f'  {statement}"{text}"\n  : "=rw"(x));\n' for text in messages)


def package_folder(tmp_path: Path, text: str | None = None) -> Path:
    folder = tmp_path / "include"
    files = {
        "cute/tensor.hpp": "tensor",
        "cute/arch/copy_xe_2d.hpp": header(MESSAGES) if text is None else text,
        "cute/util/compat.hpp": "compat",
        "cute/atom/mma_traits_sm80.hpp": "other hardware",
        "cute/atom/mma_traits_xe.hpp": "needed",
        "cute/atom/copy_traits_xe_2d.hpp": "needed",
        "cutlass/gpu_generics.h": "generics",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_every_block_message_becomes_volatile_and_nothing_else_changes() -> None:
    before = header(MESSAGES)
    after = sycl_tla.volatile_copies(before)
    assert after.count("asm volatile") == len(MESSAGES)
    assert after.replace("asm volatile (", "asm (") == before


def test_a_header_that_is_volatile_already_stays_as_it_is() -> None:
    fixed = header(MESSAGES, "asm volatile (\n")
    assert sycl_tla.volatile_copies(fixed).split() == fixed.split()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(header(MESSAGES[:4]), id="a message less"),
        pytest.param(header([*MESSAGES, MESSAGES[0]]), id="a message more"),
        pytest.param(header([*MESSAGES[:4], "mov a b"]), id="another statement"),
        pytest.param(header(MESSAGES) + 'asm goto ("x" : : : : l);', id="an asm of another form"),
        pytest.param(header(MESSAGES).replace('"lsc_store', 'MESSAGE "lsc_store'), id="a message behind a macro"),
        pytest.param("", id="empty"),
    ],
)
def test_a_header_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(sycl_tla.OverlayError, match=r"copy_xe_2d\.hpp has \d+ asm statements.*lose loads"):
        sycl_tla.make_overlay(package_folder(tmp_path, text))


def test_overlay_shadows_what_kernels_do_not_use(tmp_path: Path) -> None:
    overlay = dict(sycl_tla.make_overlay(package_folder(tmp_path)))
    assert "cute/atom/mma_traits_sm80.hpp" in overlay
    assert {"sycl/sycl.hpp", "cute/util/compat.hpp", "cutlass/gpu_generics.h"} <= overlay.keys()
    assert not {"cute/atom/mma_traits_xe.hpp", "cute/atom/copy_traits_xe_2d.hpp"} & overlay.keys()


def test_a_stand_in_for_a_header_that_is_gone_is_refused(tmp_path: Path) -> None:
    folder = package_folder(tmp_path)
    (folder / "cute/util/compat.hpp").unlink()
    with pytest.raises(sycl_tla.OverlayError, match=r"lack cute/util/compat\.hpp"):
        sycl_tla.make_overlay(folder)


@pytest.mark.parametrize("name", ["cute/tensor.hpp", "cute/arch/copy_xe_2d.hpp", "cutlass/gpu_generics.h"])
def test_any_edit_of_a_header_changes_the_digest(name: str, tmp_path: Path) -> None:
    folder = package_folder(tmp_path)
    overlay = sycl_tla.make_overlay(folder)
    before = sycl_tla.digest_of(folder, overlay)
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert sycl_tla.digest_of(folder, overlay) != before
    assert sycl_tla.digest_of(folder, (*overlay, ("new.hpp", ""))) != sycl_tla.digest_of(folder, overlay)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes importlib.metadata find a distribution in a folder, or none."""

    def install(folder: Path | None) -> None:
        def distribution(name: str) -> Any:
            if folder is None:
                raise importlib.metadata.PackageNotFoundError(name)
            record = "cutlass_library/source/include/cute/tensor.hpp,sha256=x,6\n"
            return SimpleNamespace(version="9.9", read_text=lambda _: record, locate_file=lambda _: folder)

        monkeypatch.setattr(importlib.metadata, "distribution", distribution)
        sycl_tla.find_sycl_tla.cache_clear()

    yield install
    sycl_tla.find_sycl_tla.cache_clear()


def test_the_package_is_found_by_its_record(installed: Any, tmp_path: Path) -> None:
    folder = package_folder(tmp_path)
    installed(folder / "cute/tensor.hpp")
    package, words = sycl_tla.find_sycl_tla()
    assert package is not None and words == "sycl-tla 9.9"
    assert package.folder == folder
    assert package.identity.startswith("sycl-tla 9.9 ")
    assert "/" not in package.identity


def test_a_missing_package_names_the_extra(installed: Any) -> None:
    installed(None)
    assert sycl_tla.find_sycl_tla() == (None, "sycl-tla: not installed (pip install 'jitmoe[cutlass]')")


def test_a_package_of_another_form_is_refused_with_its_version(installed: Any, tmp_path: Path) -> None:
    installed(package_folder(tmp_path, "asm") / "cute/tensor.hpp")
    package, words = sycl_tla.find_sycl_tla()
    assert package is None
    assert words.startswith("sycl-tla 9.9: cute/arch/copy_xe_2d.hpp has 1 asm statements")


# The compile contract


def spec() -> CutlassGateUp:
    problem = moe_problem(hidden_size=64, intermediate_size=64, base_alignment=64)
    gate_up = cutlass.choose(problem, gpu_device(), configs=()).gate_up
    assert isinstance(gate_up, CutlassGateUp)
    return gate_up


def a_package(**changes: Any) -> HeaderPackage:
    values: dict[str, Any] = {
        "name": "sycl-tla",
        "version": "1",
        "digest": "abc",
        "folder": Path("/somewhere"),
        "overlay": (("cute/x.hpp", "text"),),
        "defines": ("-DX",),
    }
    return HeaderPackage(**{**values, **changes})


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the builder finds."""

    def use(found: HeaderPackage | None) -> None:
        monkeypatch.setattr(builder, "find_headers", lambda name: (found, f"{name}: not installed"))

    use(a_package())
    return use


def cache(tmp_path: Path) -> Cache:
    return open_cache(tmp_path / "cache", ())


@pytest.mark.parametrize("changes", [{"version": "2"}, {"digest": "abd"}])
def test_another_package_is_another_key(changes: dict[str, str], package: Any, tmp_path: Path) -> None:
    built = Builder(compilers=[FakeCompiler()], cache=cache(tmp_path))
    before = built.build_one(spec(), gpu_device()).key
    package(a_package(**changes))
    after = built.key(spec(), gpu_device(), FakeCompiler())
    assert after.request_digest == before.request_digest
    assert after.digest != before.digest
    assert built.find(spec(), gpu_device()) is None


def test_no_path_of_the_package_is_in_the_key(package: Any) -> None:
    from jitmoe.compilers.find import find_compilers

    for compiler in find_compilers("auto")[0]:
        entries = dict(Builder(compilers=()).key(spec(), gpu_device(), compiler).build)
        assert entries["package"] == "sycl-tla 1 abc"
        assert "{package}" in entries["argv"] and "-DX" in entries["argv"]
        assert "/" not in entries["argv"]


def test_the_overlay_exists_while_a_compiler_runs_and_comes_first(package: Any) -> None:
    request = builder.compile_request(spec(), "bmg-g21")
    with overlay_folder(request) as paths:
        options = with_paths(a_package().options, paths)
        folder = Path(options[1])
        assert options == ["-isystem", str(folder), "-isystem", "/somewhere", "-DX"]
        assert (folder / "cute/x.hpp").read_text() == "text"
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_without_the_package_the_kernel_is_refused_with_the_next_step(package: Any, tmp_path: Path) -> None:
    package(None)
    compiler = FakeCompiler()
    with pytest.raises(HeadersNotFoundError, match=r"sycl-tla: not installed[\s\S]*pip install 'jitmoe\[cutlass\]'"):
        Builder(compilers=[compiler], cache=cache(tmp_path)).build_one(spec(), gpu_device())
    assert compiler.requests == []


def test_without_the_package_what_was_built_with_it_is_used(package: Any, tmp_path: Path) -> None:
    compiler = FakeCompiler()
    entry = Builder(compilers=[compiler], cache=cache(tmp_path)).build_one(spec(), gpu_device())
    package(None)
    again = Builder(compilers=[compiler], cache=cache(tmp_path)).build_one(spec(), gpu_device())
    assert again.key.digest == entry.key.digest
    assert len(compiler.requests) == 1


def test_other_kernels_do_not_ask_for_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "find_headers", lambda name: pytest.fail("looked for headers"))
    values = {name: getattr(spec(), name) for name, _ in spec().constants()}
    entry = Builder(compilers=[FakeCompiler()], cache=cache(tmp_path)).build_one(XeGateUp(**values), gpu_device())
    assert "package" not in dict(entry.key.build)


def test_the_knob_is_for_the_whole_process() -> None:
    assert knobs.read({"JITMOE_IMPL": "cutlass"}).impl == "cutlass"
    assert knobs.read({}).impl == "auto"

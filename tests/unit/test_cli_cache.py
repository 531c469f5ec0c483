# SPDX-License-Identifier: MIT
"""jitmoe-cache on a folder of made-up entries."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.builders import cache_entry, cache_key, cpu_device, gpu_device

from jitmoe import knobs
from jitmoe.cache import CacheKey, Entry
from jitmoe.cache.files import FileStore
from jitmoe.cli import cache, layers, stale
from jitmoe.cli.stale import Present

CPU = cpu_device()
PRESENT = Present(headers="h" * 64, compilers=("sycl-jit 2026.2.0 abc",), runtime="libsycl.so.9", devices=(CPU,))


def entry(name: str, *, device: str = "x86-64", driver: str = "", **changes: str) -> Entry:
    key = cache_key(name=name, spec=f"{name}(tile=1)", **changes)
    if driver:
        key = dataclasses.replace(key, build=(*key.build, ("device", device), ("driver", driver)))
    return dataclasses.replace(
        cache_entry(key),
        info={**cache_entry().info, "device": device, "spec": f"{name}(tile=1)", "compiler": "sycl-jit 1"},
    )


NATIVE = Entry(
    key=CacheKey(
        "jitmoe_toy.native",
        (("image", entry("jitmoe_toy").key.digest),),
        (("device", CPU.fingerprint), ("driver", CPU.driver_version)),
    ),
    files={"kernel.bin": b"code"},
    info={"device": str(CPU), "driver": CPU.driver_version, "spec": "toy(tile=1)"},
)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path / "cache", writable=True)
    store.prepare()
    for made in (entry("jitmoe_toy"), entry("jitmoe_other"), entry("jitmoe_xe", device="bmg-g21"), NATIVE):
        store.put(made)
    toy = entry("jitmoe_toy").key.digest
    store.put_verdict(
        f"{toy}-{CPU.fingerprint}",
        {"status": "passed", "device": str(CPU), "driver": CPU.driver_version, "error": 1e-3},
    )
    return store


@pytest.fixture(autouse=True)
def present(monkeypatch) -> None:
    monkeypatch.setattr(cache, "what_is_present", lambda: PRESENT)


def names(store: FileStore) -> list[str]:
    return sorted(stored.key.name for stored in store.iterate())


def run_json(capsys: Any, *arguments: str) -> Any:
    assert cache.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list(store, capsys):
    assert cache.main(["list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["ENTRY", "KERNEL", "DEVICE", "COMPILER", "SIZE", "USED", "SPEC"]
    assert "4 entries" in out and "bmg-g21" in out and "driver 2026.20.1" in out
    assert [record["kernel"] for record in run_json(capsys, "list", "xe")] == ["jitmoe_xe"]
    digest = entry("jitmoe_other").key.digest
    assert [record["digest"] for record in run_json(capsys, "list", digest[:6])] == [digest]
    assert run_json(capsys, "list", "nothing") == []


def test_machine_code_is_listed_with_the_architecture_of_its_device(store, capsys):
    (record,) = run_json(capsys, "list", "*.native")
    assert record["device"] == "x86-64"


def test_an_empty_cache_is_no_error_and_is_not_made(capsys, tmp_path):
    assert cache.main(["list"]) == 0
    assert cache.main(["info"]) == 0
    assert "not made yet" in capsys.readouterr().out
    assert cache.main(["verify"]) == 0
    assert not (tmp_path / "cache").exists()


def test_info_of_the_folders(store, capsys):
    (layer,) = run_json(capsys, "info")["layers"]
    assert (layer["role"], layer["entries"], layer["self_checks"]) == ("writable", 4, 1)


def test_info_of_one_entry(store, capsys):
    assert cache.main(["info", "jitmoe_toy"]) == 0
    out = capsys.readouterr().out
    assert "passed, error 1.0e-03" in out and "every digest verified" in out and "sycl-jit 1" in out
    assert cache.main(["info", "zzzz"]) == 2
    assert "no entry" in capsys.readouterr().err


def test_verify_finds_damage_and_repair_removes_it(store, capsys):
    assert cache.main(["verify"]) == 0
    assert "4 entries verified, all whole" in capsys.readouterr().out
    image = store.entry_path(entry("jitmoe_toy").key) / "kernel.spv"
    image.chmod(0o600)
    image.write_bytes(b"\x03\x02\x23\x07imagE")
    next((store.root / "trust").glob("*.json")).write_text("{}")
    assert cache.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "kernel.spv does not match its checksum" in out and "2 problems" in out
    assert cache.main(["verify", "--repair"]) == 0
    assert "2 removed" in capsys.readouterr().out
    assert cache.main(["verify"]) == 0
    assert "jitmoe_toy" not in names(store)


def test_clear_needs_to_know_what(store, capsys):
    assert cache.main(["clear"]) == 2
    assert cache.main(["clear", "--all", "toy"]) == 2
    assert "exactly one" in capsys.readouterr().err
    assert len(names(store)) == 4


def test_clear_asks_or_wants_yes(store, capsys, monkeypatch):
    assert cache.main(["clear", "--all"]) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(cache.terminal, "is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert cache.main(["clear", "--all"]) == 1
    assert len(names(store)) == 4
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert cache.main(["clear", "--all"]) == 0
    assert names(store) == []


def test_clear_all_takes_everything_but_the_locks(store):
    lock = store.root / "locks" / "x.lock"
    lock.touch()
    (store.root / "damaged" / "x").mkdir(parents=True)
    (store.root / "v0" / "ab").mkdir(parents=True)
    assert cache.main(["clear", "--all", "--yes"]) == 0
    assert [path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()] == [
        "locks/x.lock"
    ]
    assert not (store.root / "v0").exists()


def test_clear_by_name_takes_records_and_machine_code_along(store):
    assert cache.main(["clear", "toy", "--yes"]) == 0
    assert names(store) == ["jitmoe_other", "jitmoe_xe"]
    assert list(store.verdicts()) == []


def test_dry_run_removes_nothing(store, capsys):
    assert cache.main(["clear", "--all", "--dry-run"]) == 0
    assert "would remove 4 entries and 1 record" in capsys.readouterr().out
    assert cache.main(["prune", "--max-size", "0", "--dry-run"]) == 0
    assert len(names(store)) == 4


def test_stale_is_nothing_at_first(store, capsys):
    assert cache.main(["clear", "--stale"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"headers": "i" * 64}, {"jitmoe_toy", "jitmoe_other", "jitmoe_xe", "jitmoe_toy.native"}),
        ({"compilers": ("sycl-jit 2026.3.0 def",)}, {"jitmoe_toy", "jitmoe_other", "jitmoe_xe", "jitmoe_toy.native"}),
        ({"compilers": ()}, set()),
        ({"devices": (cpu_device(driver_version="2027.1"),)}, {"jitmoe_toy.native"}),
        ({"devices": ()}, set()),
    ],
    ids=["other sources", "other compiler", "no compiler here", "other driver", "no device here"],
)
def test_stale_entries(store, monkeypatch, change, gone):
    before = set(names(store))
    monkeypatch.setattr(cache, "what_is_present", lambda: dataclasses.replace(PRESENT, **change))
    assert cache.main(["clear", "--stale", "--yes"]) == 0
    assert before - set(names(store)) == gone
    other_driver = bool(change.get("devices"))
    assert bool(list(store.verdicts())) == (not other_driver and "jitmoe_toy" not in gone)


def test_stale_native_images_are_those_of_another_driver_of_a_device_that_is_here(store, monkeypatch):
    store.put(entry("jitmoe_old", device="pvc", driver="1.13.0"))
    store.put(entry("jitmoe_new", device="pvc", driver="1.14.0"))
    store.put(entry("jitmoe_far", device="dg2", driver="1.0.0"))
    store.put(entry("jitmoe_soname", runtime="libsycl.so.8"))
    here = dataclasses.replace(PRESENT, devices=(CPU, gpu_device("pvc")))
    monkeypatch.setattr(cache, "what_is_present", lambda: here)
    before = set(names(store))
    assert cache.main(["clear", "--stale", "--yes"]) == 0
    assert before - set(names(store)) == {"jitmoe_old", "jitmoe_soname"}


@pytest.mark.parametrize(
    ("made_with", "here", "is_stale"),
    [
        ("sycl-tla 0.9.1 aa", ("sycl-tla 0.9.1 aa",), False),
        ("sycl-tla 0.9.1 aa", ("sycl-tla 0.9.1 bb",), True),
        ("sycl-tla 0.9.1 aa", (), False),  # without the package what it made is used
        (None, ("sycl-tla 0.9.1 aa",), False),
    ],
)
def test_entries_of_other_headers_are_stale(store, made_with, here, is_stale):
    base = next(one for one in store.iterate() if one.key.name == "jitmoe_toy")
    build = base.key.build if made_with is None else (*base.key.build, ("package", made_with))
    stored = dataclasses.replace(base, key=dataclasses.replace(base.key, build=build))
    why = stale.why_entry_is_stale(stored, dataclasses.replace(PRESENT, packages=here))
    assert bool(why) == is_stale
    assert not is_stale or why == "made with the headers of another sycl-tla"


def test_records_without_a_kernel_are_stale():
    assert stale.why_verdict_is_stale("a-b", {}, ["c"], PRESENT) == "its kernel is gone"
    assert stale.why_verdict_is_stale("a-compile", {}, ["a"], PRESENT)
    emulated = {"device": f"{CPU.name} (xe-emulated, bmg-g21, ...)", "driver": CPU.driver_version}
    assert stale.why_verdict_is_stale("a-b", emulated, ["a"], PRESENT) == ""


def test_prune_takes_the_least_recently_used(store, capsys):
    old = store.entry_path(entry("jitmoe_other").key)
    os.utime(old, (time.time() - 99999, time.time() - 99999))
    total = sum(stored.num_bytes for stored in store.iterate())
    result = run_json(capsys, "prune", "--max-size", str(total - 1))
    assert result["removed"] == [str(old)]
    assert result["bytes"] + result["bytes_left"] == total


def test_export_and_import(store, capsys, tmp_path, monkeypatch):
    bundle = tmp_path / "kernels.tar"
    assert cache.main(["export", str(bundle)]) == 0
    assert "4 entries" in capsys.readouterr().out
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(tmp_path / "second"))
    monkeypatch.setattr(knobs, "_current", None)
    assert run_json(capsys, "import", str(bundle))["added"] == 4
    assert run_json(capsys, "import", str(bundle)) == {
        "file": str(bundle), "added": 0, "present": 4, "folder": str(tmp_path / "second"),
    }  # fmt: skip
    second = FileStore(tmp_path / "second", writable=True)
    assert names(second) == names(store)
    assert second.get(NATIVE.key).files == NATIVE.files
    assert cache.main(["import", str(tmp_path / "no.tar")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_import_replaces_what_is_damaged_here(store, capsys, tmp_path):
    bundle = tmp_path / "kernels.tar"
    cache.main(["export", str(bundle)])
    image = store.entry_path(entry("jitmoe_toy").key) / "kernel.spv"
    image.write_bytes(b"")
    capsys.readouterr()
    assert run_json(capsys, "import", str(bundle))["added"] == 1
    assert cache.main(["verify"]) == 0


def test_export_chooses(store, capsys, tmp_path):
    chosen = run_json(capsys, "export", str(tmp_path / "a.tar"), "--device", "bmg-g21")
    assert chosen["entries"] == [entry("jitmoe_xe").key.digest]
    assert cache.main(["export", str(tmp_path / "b.tar"), "nothing"]) == 2
    assert not (tmp_path / "b.tar").exists()


def test_damaged_entries_are_left_out_of_an_export(store, capsys, tmp_path):
    (store.entry_path(entry("jitmoe_toy").key) / "kernel.spv").write_bytes(b"")
    assert cache.main(["export", str(tmp_path / "a.tar")]) == 1
    assert "1 damaged entry left out" in capsys.readouterr().out


def test_read_only_layers_are_listed_first_and_never_changed(store, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JITMOE_CACHE_READONLY_DIRS", f"{store.root}:{tmp_path / 'nothing'}")
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(knobs, "_current", None)
    shown = run_json(capsys, "info")["layers"]
    assert [(layer["role"], layer["entries"]) for layer in shown] == [
        ("read-only", 4),
        ("not usable", 0),
        ("writable", 0),
    ]
    assert cache.main(["clear", "--all", "--yes"]) == 0
    assert len(names(store)) == 4


def test_path(store, capsys):
    assert cache.main(["path"]) == 0
    assert capsys.readouterr().out.strip() == str(store.root)


def test_a_folder_that_others_can_write_is_not_usable(store, capsys, tmp_path, monkeypatch):
    store.root.chmod(0o777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    first, second = layers.find_layers(knobs.current())
    assert first.role == "not usable" and "can be written by others" in first.state
    assert second.role == "writable" and second.state.startswith("used instead")
    for command in (["list"], ["clear", "--all"], ["prune", "--max-size", "1G"]):
        assert cache.main(command) == 0
        assert f"warning: cache folder {store.root} is not used: " in capsys.readouterr().err
    assert cache.main(["export", str(tmp_path / "a.tar")]) == cache.main(["info", "toy"]) == 2
    assert capsys.readouterr().err.count("warning: ") == 2
    for more in ([], ["--repair"]):
        assert cache.main(["verify", *more]) == 1
        out = capsys.readouterr().out
        assert "can be written by others" in out and "1 problem" in out and "correct them" in out
        assert "--repair removes them" not in out
    assert len(names(store)) == 4


def test_damage_in_a_folder_that_is_only_read_is_not_promised_to_go(store, capsys, tmp_path, monkeypatch):
    (store.entry_path(entry("jitmoe_toy").key) / "kernel.spv").write_bytes(b"")
    assert cache.main(["verify"]) == 1
    assert "verify --repair removes them" in capsys.readouterr().out
    monkeypatch.setenv("JITMOE_CACHE_READONLY_DIRS", str(store.root))
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(knobs, "_current", None)
    assert cache.main(["verify"]) == 1
    assert "--repair removes them" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "allowed", "role", "words"),
    [
        (0o700, os.R_OK | os.X_OK, "read-only", "cannot write"),
        (0o775, os.R_OK | os.X_OK, "not usable", "can be written by others"),
        (0o700, os.X_OK, "not usable", "cannot read"),
    ],
)
def test_folders_that_this_user_cannot_write(store, tmp_path, monkeypatch, mode, allowed, role, words):
    store.root.chmod(mode)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    access = os.access
    monkeypatch.setattr(
        layers.os, "access", lambda path, wanted: not wanted & ~allowed if path == store.root else access(path, wanted)
    )
    first, second = layers.find_layers(knobs.current())
    assert first.role == role and words in first.state
    assert second.role == "writable"


def test_folders_inside_the_cache_are_looked_at_too(store):
    (store.root / "v1").chmod(0o777)
    assert layers.find_layers(knobs.current())[0].role == "not usable"


def test_without_a_home_the_temporary_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("JITMOE_CACHE_DIR")
    monkeypatch.setattr(layers, "default_folder", lambda: None)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (layer,) = layers.find_layers(knobs.Knobs())
    assert (layer.role, "no home" in layer.state) == ("writable", True)


def test_without_any_writable_folder_changes_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JITMOE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    assert cache.main(["path"]) == 1
    assert cache.main(["clear", "--all", "--yes"]) == 1
    assert "JITMOE_CACHE_DIR" in capsys.readouterr().err

# SPDX-License-Identifier: MIT
"""FileStore: entries appear whole or not at all, are never changed, and nothing odd is ever returned."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from pathlib import Path

import pytest
from helpers.builders import cache_entry, cache_key
from helpers.damage import extensions, flips, overwrite, truncations

from jitmoe.cache import files as files_module
from jitmoe.cache.entry import MANIFEST_NAME, DamagedEntryError, Entry, seal, unseal
from jitmoe.cache.files import FileStore


@pytest.fixture
def store(private_cache) -> FileStore:
    made = FileStore(private_cache, writable=True)
    made.prepare()
    return made


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# publishing and reading


def test_what_was_put_is_got_back(store):
    entry = cache_entry()
    path = store.put(entry)
    got = store.get(entry.key)
    assert got is not None
    assert (got.key, dict(got.files), dict(got.info)) == (entry.key, dict(entry.files), dict(entry.info))
    assert got.origin == str(path)
    assert got.num_bytes == sum(map(len, entry.files.values()))


def test_another_object_on_the_same_folder_sees_it(store):
    store.put(cache_entry())
    assert FileStore(store.root, writable=False).get(cache_key()) is not None


def test_a_key_that_was_never_put_is_a_silent_miss(store, caplog):
    store.put(cache_entry())
    assert store.get(cache_key(argv="-O0")) is None
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\n" * 3, os.urandom(1 << 16)], ids=["empty", "zero", "lines", "random"]
)
def test_any_bytes_survive(store, content):
    store.put(cache_entry(image=content))
    assert store.get(cache_key()).files["kernel.spv"] == content


def test_an_entry_is_one_private_folder_with_a_readable_manifest(store):
    path = store.put(cache_entry())
    assert sorted(p.name for p in path.iterdir()) == ["build.log", "kernel.cpp", "kernel.spv", MANIFEST_NAME]
    assert path.parent.parent.parent == store.root / "v1"
    for folder in (path, path.parent, path.parent.parent, path.parent.parent.parent, store.root):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    manifest = json.loads((path / MANIFEST_NAME).read_text().split("\n", 1)[1])
    assert manifest["files"]["kernel.spv"]["size"] == len(cache_entry().files["kernel.spv"])
    assert dict(manifest["build"]) == dict(cache_key().build)


def test_nothing_is_left_in_tmp(store):
    store.put(cache_entry())
    store.put(cache_entry())
    store.put_verdict("v", {"status": "passed"})
    assert list((store.root / "tmp").iterdir()) == []


def test_the_first_one_published_stays(store):
    """Entries never change: a second build of the same key is thrown away."""
    path = store.put(cache_entry(image=b"first"))
    before = tree(path)
    store.put(cache_entry(image=b"second"))
    assert tree(path) == before
    assert store.get(cache_key()).files["kernel.spv"] == b"first"


def test_everything_is_synced_before_the_rename(store, monkeypatch):
    order = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        order.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(source, target):
        order.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.put(cache_entry())
    before = [Path(name).name for name in order[: order.index("rename")]]
    assert {"kernel.spv", "kernel.cpp", "build.log", MANIFEST_NAME} <= set(before)
    assert before.index(MANIFEST_NAME) == len(before) - 2  # the manifest last, then its folder


def test_a_cache_deleted_under_a_running_process_is_made_again(store):
    import shutil

    shutil.rmtree(store.root)
    store.put(cache_entry())
    store.put_verdict("v", {"status": "passed"})
    assert store.get(cache_key()) is not None
    assert store.get_verdict("v") == {"status": "passed"}


def test_siblings_answer_the_same_request_newest_first(store):
    for index, compiler in enumerate(("one", "two", "three")):
        path = store.put(cache_entry(cache_key(compiler=compiler)))
        os.utime(path, (1000 + index, 1000 + index))
    store.put(cache_entry(cache_key(spec="another request")))
    found = [dict(entry.key.build)["compiler"] for entry in store.siblings(cache_key(compiler="two"))]
    assert found == ["three", "one"]
    assert list(store.siblings(cache_key(spec="nobody asked"))) == []


# damage


def damaged_variants(samples: int):
    path_names = ["kernel.spv", "kernel.cpp", "build.log", MANIFEST_NAME]
    entry = cache_entry(image=bytes(range(256)) * 4, **{"build.log": b"warning: none\n"})
    contents = {**entry.files, MANIFEST_NAME: entry.manifest()}
    for name in path_names:
        for how, content in (
            *flips(contents[name], samples),
            *truncations(contents[name], samples),
            *extensions(contents[name]),
        ):
            yield name, how, content


def test_every_flip_truncation_and_extension_is_one_warning_and_a_miss(store, caplog):
    entry = cache_entry(image=bytes(range(256)) * 4, **{"build.log": b"warning: none\n"})
    count = 0
    for name, how, content in damaged_variants(samples=60):
        path = store.put(entry)
        original = (path / name).read_bytes()
        overwrite(path / name, content)
        assert content != original, (name, how)
        caplog.clear()
        assert store.get(entry.key) is None, (name, how)
        (message,) = warnings(caplog)
        assert str(path) in message and "built again" in message, (name, how, message)
        assert not path.exists()
        caplog.clear()
        assert store.get(entry.key) is None and warnings(caplog) == [], (name, how)
        count += 1
    assert len(list((store.root / "damaged").iterdir())) == count > 250
    store.put(entry)
    assert store.get(entry.key) is not None


@pytest.mark.parametrize("name", ["kernel.spv", "kernel.cpp", "build.log", MANIFEST_NAME])
def test_a_missing_file_is_damage(store, caplog, name):
    path = store.put(cache_entry())
    (path / name).unlink()
    assert store.get(cache_key()) is None
    assert len(warnings(caplog)) == 1
    assert not path.exists()


def test_an_empty_folder_or_a_file_in_place_of_the_entry_is_damage(store, caplog):
    path = store.entry_path(cache_key())
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    path.parent.parent.chmod(0o700)
    assert store.get(cache_key()) is None
    store.put(cache_entry())
    assert store.get(cache_key()) is not None
    store.remove(path)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_bytes(b"?")
    path.chmod(0o600)
    assert store.get(cache_key()) is None
    store.put(cache_entry())
    assert store.get(cache_key()) is not None
    assert len(warnings(caplog)) == 2


def test_an_entry_moved_to_another_key_is_refused(store, caplog):
    right, wrong = cache_key(), cache_key(argv="-O0")
    path = store.put(cache_entry(right))
    path.rename(store.entry_path(wrong))
    assert store.get(wrong) is None
    assert "another key" in warnings(caplog)[0]


def test_a_manifest_that_vouches_for_itself_but_not_for_its_key_is_refused(store, caplog):
    path = store.put(cache_entry())
    manifest = unseal((path / MANIFEST_NAME).read_bytes())
    manifest["build"][0][1] = "another compiler"
    overwrite(path / MANIFEST_NAME, seal(manifest))
    assert store.get(cache_key()) is None
    assert "digest" in warnings(caplog)[0]


@pytest.mark.parametrize(
    "record",
    [[], "text", None, {}, {"files": []}, {"name": 1, "request": 2, "build": 3, "digest": 4}],
    ids=["list", "text", "null", "empty", "half", "types"],
)
def test_a_sealed_manifest_of_nonsense_is_damage(store, caplog, record):
    path = store.put(cache_entry())
    overwrite(path / MANIFEST_NAME, seal(record))
    assert store.get(cache_key()) is None
    assert len(warnings(caplog)) == 1
    assert not path.exists()


def test_a_passing_trouble_of_the_process_is_not_damage(store, monkeypatch):
    """Too many open files says nothing about the entry: it must not be moved aside for everybody."""
    path = store.put(cache_entry())

    def no_descriptors(path):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(files_module, "_read_owned", no_descriptors)
        assert store.get(cache_key()) is None
    assert path.exists()
    assert store.get(cache_key()) is not None


def test_damage_in_a_read_only_layer_is_reported_once_and_left_there(store, caplog):
    path = store.put(cache_entry())
    overwrite(path / "kernel.spv", b"x")
    layer = FileStore(store.root, writable=False)
    assert layer.get(cache_key()) is None
    assert layer.get(cache_key()) is None
    assert list(layer.siblings(cache_key(compiler="other"))) == []
    assert len(warnings(caplog)) == 1
    assert path.exists()


def test_seal_and_unseal():
    record = {"a": 1, "ü": [1.5, None, "\n"]}
    assert unseal(seal(record)) == record
    for how, content in (*flips(seal(record), 200), *truncations(seal(record), 200), *extensions(seal(record))):
        with pytest.raises(DamagedEntryError):
            print(how, unseal(content))


# verdicts


def test_verdicts_are_stored_and_replaced(store):
    assert store.get_verdict("v") is None
    store.put_verdict("v", {"status": "failed"})
    store.put_verdict("v", {"status": "passed", "error": 1e-3})
    assert store.get_verdict("v") == {"status": "passed", "error": 1e-3}
    assert [verdict for _, verdict in store.verdicts()] == [{"status": "passed", "error": 1e-3}]


def test_every_damaged_verdict_is_one_warning_and_gone(store, caplog):
    verdict = {"status": "passed", "evidence": "", "error": 1.5e-3}
    store.put_verdict("v", verdict)
    path = store.root / "trust" / "v.json"
    content = path.read_bytes()
    for how, damaged in (*flips(content, 120), *truncations(content, 120), *extensions(content)):
        store.put_verdict("v", verdict)
        overwrite(path, damaged)
        caplog.clear()
        assert store.get_verdict("v") is None, how
        assert len(warnings(caplog)) == 1, how
        assert not path.exists()
        caplog.clear()
        assert store.get_verdict("v") is None and warnings(caplog) == []


@pytest.mark.parametrize("record", [[], "passed", None, 3], ids=["list", "text", "null", "number"])
def test_a_sealed_verdict_of_nonsense_is_damage(store, caplog, record):
    (store.root / "trust" / "v.json").write_bytes(seal(record))
    (store.root / "trust" / "v.json").chmod(0o600)
    assert store.get_verdict("v") is None
    assert len(warnings(caplog)) == 1


# ownership


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
@pytest.mark.parametrize("what", ["root", "v1", "prefix", "request", "entry"])
def test_a_folder_that_others_can_write_is_not_read(store, caplog, what, mode):
    path = store.put(cache_entry())
    folder = {
        "root": store.root,
        "v1": path.parent.parent.parent,
        "prefix": path.parent.parent,
        "request": path.parent,
        "entry": path,
    }[what]
    folder.chmod(mode)
    assert store.get(cache_key()) is None
    assert store.get(cache_key()) is None
    assert list(store.siblings(cache_key(compiler="x"))) == []
    (message,) = warnings(caplog)
    assert "can be written by others" in message and str(folder) in message
    assert path.exists(), "a foreign-writable entry is evidence, not damage"
    folder.chmod(0o700)
    assert store.get(cache_key()) is not None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize("name", ["kernel.spv", MANIFEST_NAME])
def test_a_file_that_others_can_write_is_not_read(store, caplog, name, mode):
    path = store.put(cache_entry())
    (path / name).chmod(mode)
    assert store.get(cache_key()) is None
    assert "can be written by others" in warnings(caplog)[0]


@pytest.mark.parametrize("what", ["root", "trust", "file"])
def test_a_verdict_that_others_can_write_is_not_believed(store, caplog, what):
    store.put_verdict("v", {"status": "passed"})
    place = {"root": store.root, "trust": store.root / "trust", "file": store.root / "trust" / "v.json"}[what]
    place.chmod(0o777)
    assert store.get_verdict("v") is None
    assert store.get_verdict("v") is None
    assert len(warnings(caplog)) == 1
    place.chmod(0o700)
    assert store.get_verdict("v") == {"status": "passed"}


@pytest.mark.parametrize("what", ["root", "entry", "kernel.spv"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_not_read(store, caplog, what):
    path = store.put(cache_entry())
    os.chown({"root": store.root, "entry": path}.get(what, path / what), 4321, -1)
    assert store.get(cache_key()) is None
    assert "belongs to user 4321" in warnings(caplog)[0]


@pytest.mark.parametrize("name", ["v1", "trust", "locks", "tmp"])
def test_prepare_refuses_folders_of_others(store, name):
    (store.root / name).chmod(0o777)
    with pytest.raises(files_module.UntrustedFolderError):
        store.prepare()


# housekeeping


def put_aged(store, index: int, age_s: float, size: int = 1000) -> Path:
    path = store.put(cache_entry(cache_key(compiler=f"c{index}"), image=b"x" * size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_prune_removes_the_least_recently_used(store):
    paths = [put_aged(store, index, age_s=1000 - 100 * index) for index in range(4)]
    store.get(cache_key(compiler="c0"))  # used just now
    each = next(store.iterate()).num_bytes
    removed = store.prune(max_bytes=2 * each)
    assert [stored.path for stored in removed] == [paths[1], paths[2]]
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert list((store.root / "tmp").iterdir()) == []


def test_prune_with_room_removes_nothing(store):
    put_aged(store, 0, 100)
    assert store.prune(max_bytes=1 << 30) == []


def test_prune_to_zero_empties_the_tree(store):
    for index in range(3):
        put_aged(store, index, 10)
    assert len(store.prune(max_bytes=0)) == 3
    assert list((store.root / "v1").glob("??/*/*")) == []
    assert list((store.root / "v1").glob("??/*")) == []


def test_prune_leaves_what_was_used_meanwhile(store, monkeypatch):
    path = put_aged(store, 0, 100)
    real = list(store.iterate())
    monkeypatch.setattr(store, "iterate", lambda: iter(real))
    os.utime(path)
    assert store.prune(max_bytes=0) == []
    assert path.exists()


def test_prune_and_iterate_tolerate_orphans(store):
    put_aged(store, 0, 10)
    (store.root / "v1" / "ab" / "stray").mkdir(parents=True)
    (store.root / "v1" / "ab" / "stray" / "empty").mkdir()
    (store.root / "v1" / "ab" / "file").write_text("?")
    (store.root / "v1" / "note.txt").write_text("?")
    assert len(list(store.iterate())) == 1
    assert len(store.prune(max_bytes=0)) == 1


def test_sweep_removes_only_what_is_old(store):
    old, new = store.root / "tmp" / "1-old", store.root / "tmp" / "1-new"
    aside = store.root / "damaged" / "x"
    failed = store.root / "failed" / "toy-1"
    for folder in (old, new, aside, failed):
        folder.mkdir(parents=True)
        (folder / "kernel.spv").write_bytes(b"x")
    file = store.root / "tmp" / "1-old.json"
    file.write_bytes(b"x")
    long_ago = time.time() - 2 * files_module.STALE_TEMPORARY_S
    for path in (old, aside, file):
        os.utime(path, (long_ago, long_ago))
    assert store.sweep() == 3
    assert new.exists() and failed.exists()
    assert not old.exists() and not aside.exists() and not file.exists()


def test_verify_says_what_is_wrong_and_changes_nothing(store):
    path = store.put(cache_entry())
    assert store.verify(path) == ""
    overwrite(path / "kernel.spv", b"short")
    before = tree(store.root)
    assert "kernel.spv has 5 bytes instead of" in store.verify(path)
    assert tree(store.root) == before
    assert list(store.folders()) == [path]


def test_keep_failure_keeps_source_and_log(store):
    folder = store.keep_failure("toy-1", {"toy.cpp": "void f();", "error.log": "no"})
    assert (folder / "toy.cpp").read_text() == "void f();"
    assert (folder / "error.log").read_text() == "no"


def test_keep_failure_without_room_is_no_error(store):
    (store.root / "failed").write_text("in the way")
    assert store.keep_failure("toy-1", {"toy.cpp": ""}) is None


# when the file system says no


@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "rename"])
def test_a_full_disk_is_an_oserror_and_leaves_nothing_behind(store, monkeypatch, call):
    """Every step of publishing can meet ENOSPC; no half entry may be seen afterwards."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if call == "mkdir":
            patched.setattr(Path, "mkdir", full)
        elif call == "open":
            patched.setattr(files_module, "_write_durably", full)
        else:
            patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            store.put(cache_entry())
    assert list((store.root / "v1").glob("??/*/*")) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert store.get(cache_key()) is None
    store.put(cache_entry())
    assert isinstance(store.get(cache_key()), Entry)


def test_a_rename_that_fails_because_the_entry_is_there_is_a_success(store, monkeypatch):
    store.put(cache_entry())
    assert store.put(cache_entry()) == store.entry_path(cache_key())

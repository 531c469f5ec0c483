# SPDX-License-Identifier: MIT
"""The cache as the pipeline sees it: layers, memory behind them, and places that cannot be written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.builders import cache_entry, cache_key
from helpers.damage import overwrite

import jitmoe
from jitmoe.cache import Cache, location, open_cache
from jitmoe.cache.files import FileStore

ROOT = Path(jitmoe.__file__).parent.parent
IS_ROOT = os.geteuid() == 0


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where the fallback folder is made in these tests."""
    folder = tmp_path / "system-tmp"
    folder.mkdir()
    monkeypatch.setattr(location.tempfile, "gettempdir", lambda: str(folder))
    return folder


def filled(folder: Path, *keys, **entry) -> Path:
    store = FileStore(folder, writable=True)
    store.prepare()
    for key in keys or (cache_key(),):
        store.put(cache_entry(key, **entry))
    return folder


# layers


def test_a_read_only_layer_answers_before_the_writable_one(tmp_path):
    baked = filled(tmp_path / "baked", image=b"baked")
    own = filled(tmp_path / "own", image=b"own")
    cache = open_cache(own, (baked,))
    assert cache.get(cache_key()).files["kernel.spv"] == b"baked"
    assert open_cache(own, ()).get(cache_key()).files["kernel.spv"] == b"own"


def test_new_entries_go_to_the_writable_layer_only(tmp_path):
    baked = filled(tmp_path / "baked", cache_key(argv="-O0"))
    before = sorted(baked.rglob("*"))
    cache = open_cache(tmp_path / "own", (baked,))
    cache.put(cache_entry())
    cache.put_verdict("v", {"status": "passed"})
    assert sorted(baked.rglob("*")) == before
    assert FileStore(tmp_path / "own", writable=False).get(cache_key()) is not None
    assert open_cache(tmp_path / "own", ()).get_verdict("v") == {"status": "passed"}


def test_verdicts_are_found_in_read_only_layers(tmp_path):
    baked = filled(tmp_path / "baked")
    FileStore(baked, writable=True).put_verdict("v", {"status": "passed"})
    assert open_cache(tmp_path / "own", (baked,)).get_verdict("v") == {"status": "passed"}


def test_a_read_only_layer_that_is_not_there_is_no_matter(tmp_path, caplog):
    cache = open_cache(tmp_path / "own", (tmp_path / "nowhere",))
    assert cache.get(cache_key()) is None
    assert list(cache.siblings(cache_key())) == []
    assert warnings(caplog) == []


def test_a_foreign_writable_read_only_layer_is_ignored_with_one_warning(tmp_path, caplog):
    baked = filled(tmp_path / "baked", cache_key(), cache_key(argv="-O0"))
    baked.chmod(0o777)
    cache = open_cache(tmp_path / "own", (baked,))
    assert cache.get(cache_key()) is None
    assert cache.get(cache_key(argv="-O0")) is None
    assert cache.get_verdict("v") is None
    assert len(warnings(caplog)) == 1


def test_a_damaged_entry_is_built_again_into_the_same_place(tmp_path, caplog):
    cache = open_cache(tmp_path / "own", ())
    cache.put(cache_entry())
    path = FileStore(tmp_path / "own", writable=True).entry_path(cache_key())
    overwrite(path / "kernel.spv", b"")
    assert cache.get(cache_key()) is None
    cache.put(cache_entry())
    assert cache.get(cache_key()).files == cache_entry().files
    assert len(warnings(caplog)) == 1


# places that cannot be written


def test_opening_makes_a_private_folder_and_says_nothing(tmp_path, caplog):
    cache = open_cache(tmp_path / "a" / "b", ())
    assert cache.writable is not None
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert warnings(caplog) == []


def test_a_file_in_the_way_falls_back_to_the_temporary_folder(tmp_path, caplog, temporary):
    (tmp_path / "file").write_text("")
    cache = open_cache(tmp_path / "file", ())
    assert cache.writable.root.parent == temporary
    (message,) = warnings(caplog)
    assert str(tmp_path / "file") in message and "JITMOE_CACHE_DIR" in message


def test_a_foreign_writable_cache_folder_is_not_used(tmp_path, caplog, temporary):
    folder = filled(tmp_path / "open")
    folder.chmod(0o777)
    cache = open_cache(folder, ())
    assert cache.writable.root.parent == temporary
    assert cache.get(cache_key()) is None, "what somebody else could write must not be loaded"
    cache.put(cache_entry())
    assert cache.get(cache_key()) is not None
    (message,) = warnings(caplog)
    assert "can be written by others" in message and str(folder) in message


@pytest.mark.skipif(not IS_ROOT, reason="only root can give folders away")
def test_a_folder_of_another_user_is_not_used(tmp_path, caplog, temporary):
    folder = filled(tmp_path / "theirs")
    os.chown(folder, 4321, -1)
    cache = open_cache(folder, ())
    assert cache.writable.root.parent == temporary
    assert "belongs to user 4321" in warnings(caplog)[0] and len(warnings(caplog)) == 1


@pytest.mark.skipif(not IS_ROOT, reason="only root can give folders away")
def test_a_temporary_folder_of_another_user_is_not_used_either(tmp_path, caplog, temporary):
    location.temporary_folder().mkdir()
    os.chown(location.temporary_folder(), 4321, -1)
    (tmp_path / "file").write_text("")
    cache = open_cache(tmp_path / "file", ())
    assert cache.writable is None
    (message,) = warnings(caplog)
    assert "memory only" in message and "4321" in message


def test_a_temporary_folder_that_is_a_link_is_not_followed(tmp_path, caplog, temporary):
    """Anybody may put a link into /tmp; following it would fill a folder of the link maker's choice."""
    (tmp_path / "target").mkdir(mode=0o700)
    location.temporary_folder().symlink_to(tmp_path / "target")
    (tmp_path / "file").write_text("")
    cache = open_cache(tmp_path / "file", ())
    assert cache.writable is None
    assert list((tmp_path / "target").iterdir()) == []
    assert len(warnings(caplog)) == 1


def test_memory_holds_what_no_folder_takes(caplog):
    cache = Cache(None)
    cache.put(cache_entry())
    cache.put_verdict("v", {"status": "passed"})
    with cache.build_lock(cache_key(), timeout_s=1.0):
        pass
    assert cache.get(cache_key()).files == cache_entry().files
    assert cache.get_verdict("v") == {"status": "passed"}
    assert cache.keep_failure("toy-1", {}) is None
    assert warnings(caplog) == []


def test_without_a_home_the_temporary_folder_is_used(monkeypatch, caplog, temporary):
    monkeypatch.setattr(location, "default_folder", lambda: None)
    cache = open_cache(None, ())
    assert cache.writable.root.parent == temporary
    assert "no home" in warnings(caplog)[0] and len(warnings(caplog)) == 1


def test_default_folder_without_home_and_passwd_entry(monkeypatch):
    import pwd

    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert location.default_folder() is None


def test_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert location.default_folder() == tmp_path / "jitmoe"


# a disk that fills up


def test_a_store_that_fails_hands_over_to_memory_with_one_warning(tmp_path, caplog, monkeypatch):
    cache = open_cache(tmp_path / "own", ())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jitmoe.cache.files._write_durably", full)
    for argv in ("-O1", "-O2", "-O3"):
        cache.put(cache_entry(cache_key(argv=argv)))
    cache.put_verdict("v", {"status": "passed"})
    assert cache.get(cache_key(argv="-O2")) is not None
    assert cache.get_verdict("v") == {"status": "passed"}
    (message,) = warnings(caplog)
    assert "No space left on device" in message and str(tmp_path / "own") in message


@contextlib.contextmanager
def small_disk(folder: Path, kib: int):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not IS_ROOT or shutil.which("mount") is None, reason="mounting needs root")
def test_a_full_disk(tmp_path, caplog):
    disk = tmp_path / "disk"
    with small_disk(disk, kib=96):
        cache = open_cache(disk / "cache", ())
        keys = [cache_key(argv=f"-O{index}") for index in range(12)]
        for key in keys:
            cache.put(cache_entry(key, image=os.urandom(20_000)))
        assert all(cache.get(key) is not None for key in keys)
        stored = FileStore(disk / "cache", writable=False)
        on_disk = [key for key in keys if stored.get(key) is not None]
        assert 1 <= len(on_disk) < len(keys)
        assert all(stored.verify(path) == "" for path in stored.folders()), "a half entry was published"
        assert list((disk / "cache" / "tmp").iterdir()) == []
        assert len(warnings(caplog)) == 1


@pytest.mark.skipif(not IS_ROOT or shutil.which("mount") is None, reason="mounting needs root")
def test_a_read_only_file_system(tmp_path, caplog, temporary):
    disk = tmp_path / "disk"
    with small_disk(disk, kib=256):
        filled(disk / "cache", image=b"baked")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        cache = open_cache(disk / "cache", ())
        assert cache.writable.root.parent == temporary
        assert cache.get(cache_key()).files["kernel.spv"] == b"baked"
        cache.put(cache_entry(cache_key(argv="-O0")))
        assert cache.get(cache_key(argv="-O0")) is not None
        assert len(warnings(caplog)) == 1


_AS_ANOTHER_USER = """
import json, logging, os, sys
import filelock, platformdirs  # everything before the user changes: the checkout may be private
from pathlib import Path
from helpers.builders import cache_entry, cache_key
from jitmoe.cache import location, open_cache
os.setgroups([]); os.setgid(4321); os.setuid(4321)
records = []
class Keep(logging.Handler):
    def emit(self, record): records.append(record.getMessage())
logging.getLogger("jitmoe").addHandler(Keep())
location.tempfile.gettempdir = lambda: sys.argv[2]
cache = open_cache(Path(sys.argv[1]), ())
found = cache.get(cache_key())
cache.put(cache_entry(cache_key(argv="-O0")))
print(json.dumps({
    "found": found is not None,
    "writable": str(cache.writable.root) if cache.writable else None,
    "stored": cache.get(cache_key(argv="-O0")) is not None,
    "warnings": records,
}))
"""


def as_another_user(folder: Path, temporary: Path) -> dict:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HOME": "/nonexistent"}
    answer = subprocess.run(
        [sys.executable, "-c", _AS_ANOTHER_USER, str(folder), str(temporary)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(answer.stdout)


@pytest.fixture
def common_ground(monkeypatch):
    """A folder that other users can enter: pytest's own are private."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="jitmoe-tests-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "tmp").mkdir()
        (Path(folder) / "tmp").chmod(0o1777)
        yield Path(folder)


needs_another_user = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")


@needs_another_user
def test_a_cache_of_root_is_read_by_other_users_but_not_written(common_ground):
    folder = filled(common_ground / "cache")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = sorted(folder.rglob("*"))
    seen = as_another_user(folder, common_ground / "tmp")
    assert seen["found"] and seen["stored"]
    assert seen["writable"] == str(common_ground / "tmp" / "jitmoe-cache-4321")
    assert len(seen["warnings"]) == 1 and "cannot be written" in seen["warnings"][0]
    assert sorted(folder.rglob("*")) == before


@needs_another_user
def test_a_cache_folder_that_cannot_even_be_looked_at(common_ground):
    folder = filled(common_ground / "closed" / "cache")
    (common_ground / "closed").chmod(0o700)
    seen = as_another_user(folder, common_ground / "tmp")
    assert not seen["found"] and seen["stored"]
    assert len(seen["warnings"]) == 1


@needs_another_user
def test_nothing_can_be_written_anywhere(common_ground):
    (common_ground / "tmp").chmod(0o755)
    seen = as_another_user(common_ground / "cache", common_ground / "tmp")
    assert seen["writable"] is None and seen["stored"]
    assert len(seen["warnings"]) == 1 and "memory only" in seen["warnings"][0]


# why was it a miss?


def test_explain_miss_without_anything(tmp_path):
    assert "no entry of jitmoe_toy" in open_cache(tmp_path / "own", ()).explain_miss(cache_key())


def test_explain_miss_names_what_differs_from_a_sibling(tmp_path):
    filled(tmp_path / "own", cache_key(compiler="sycl-jit 2026.0.0 abc"))
    text = open_cache(tmp_path / "own", ()).explain_miss(cache_key())
    assert "same request" in text
    assert "compiler: wanted 'sycl-jit 2026.2.0 abc', found 'sycl-jit 2026.0.0 abc'" in text
    assert "argv" not in text


def test_explain_miss_chooses_the_nearest(tmp_path):
    filled(tmp_path / "own", cache_key(source="other", headers="other", compiler="other"), cache_key(headers="edited"))
    text = open_cache(tmp_path / "own", ()).explain_miss(cache_key())
    assert "headers: wanted" in text and "'edited'" in text
    assert "source:" not in text and "compiler:" not in text


def test_explain_miss_ignores_entries_of_other_kernels(tmp_path):
    filled(tmp_path / "own", cache_key(name="jitmoe_other"))
    assert "no entry of jitmoe_toy" in open_cache(tmp_path / "own", ()).explain_miss(cache_key())


# housekeeping


def test_house_is_kept_once_a_day(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(FileStore, "sweep", lambda self: calls.append("sweep"))
    monkeypatch.setattr(FileStore, "prune", lambda self, max_bytes: calls.append(max_bytes))
    for argv in ("-O1", "-O2"):
        open_cache(tmp_path / "own", ()).put(cache_entry(cache_key(argv=argv)))
    assert calls == ["sweep", 2 << 30]
    os.utime(tmp_path / "own" / "housekeeping", (0, 0))
    open_cache(tmp_path / "own", ()).put(cache_entry(cache_key(argv="-O3")))
    assert len(calls) == 4


def test_getting_never_scans_the_tree(tmp_path, monkeypatch):
    filled(tmp_path / "own")
    monkeypatch.setattr(FileStore, "iterate", lambda self: pytest.fail("scanned"))
    monkeypatch.setattr(FileStore, "sweep", lambda self: pytest.fail("scanned"))
    assert open_cache(tmp_path / "own", ()).get(cache_key()) is not None

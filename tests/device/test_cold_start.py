# SPDX-License-Identifier: MIT
"""Cold starts: many at once, killed in the middle, on damaged, full and forbidden caches."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from helpers import cold_start
from helpers.damage import flips, overwrite, truncations

from jitmoe.cache.files import FileStore


@pytest.fixture(scope="module")
def nursery():
    with cold_start.Nursery() as made:
        yield made


@pytest.fixture(scope="module")
def warm(nursery, tmp_path_factory) -> Path:
    """A cache that one cold start has filled; tests work on copies."""
    folder = tmp_path_factory.mktemp("warm") / "cache"
    answer = nursery.run(folder)
    assert answer["right"] and len(answer["compiled"]) == 3 and answer["warnings"] == []
    return folder


@pytest.fixture
def cache(warm, tmp_path) -> Path:
    return Path(shutil.copytree(warm, tmp_path / "copy"))


def whole(cache: Path) -> bool:
    store = FileStore(cache, writable=False)
    return all(store.verify(folder) == "" for folder in store.folders())


@pytest.mark.slow
def test_32_processes_on_one_empty_cache(nursery, tmp_path):
    answers = nursery.crowd(tmp_path / "cache", 32)
    assert all(answer["right"] for answer in answers)
    compiled = Counter(spec for answer in answers for spec in answer["compiled"])
    assert len(compiled) == 3 and set(compiled.values()) == {1}, compiled
    assert [message for answer in answers for message in answer["warnings"]] == []
    assert whole(tmp_path / "cache")


def test_a_second_process_compiles_nothing(nursery, cache):
    answer = nursery.run(cache)
    assert answer["right"] and answer["compiled"] == [] and answer["warnings"] == []


@pytest.mark.slow
def test_sigkill_at_any_moment_of_a_cold_start(nursery, tmp_path):
    """tools/chaos.py does the same a hundred times."""
    generator = random.Random(11)
    cache = tmp_path / "cache"
    run_time = nursery.run(cache)["seconds"]
    for attempt in range(12):
        if attempt % 3 == 0:
            shutil.rmtree(cache)
        nursery.crowd(cache, 1, kill_after_s=generator.uniform(0, 1.1 * run_time))
        assert whole(cache), "a killed process left half an entry"
        if attempt % 3 == 2:
            answer = nursery.run(cache)
            assert answer["right"] and answer["warnings"] == [], "the locks of dead processes are free"


def files_of(cache: Path) -> list[Path]:
    kinds: dict[str, Path] = {}
    for path in sorted([*cache.glob("v1/??/*/*/*"), *cache.glob("trust/*.json")]):
        kinds.setdefault(path.suffix if path.parent.name == "trust" else path.name, path)
    return list(kinds.values())


def test_damage_of_each_kind_of_file_is_repaired_with_one_warning(nursery, cache):
    """Each file once in a process of its own; unit/test_store.py goes through the bytes."""
    generator = random.Random(3)
    names = [path.name for path in files_of(cache)]
    assert len(names) >= 5, names
    for path in files_of(cache):
        content = path.read_bytes()
        if not content:
            continue
        how, damaged = generator.choice([*flips(content, 9), *truncations(content, 9)])
        overwrite(path, damaged)
        answer = nursery.run(cache)
        assert answer["right"], (path, how)
        assert len(answer["warnings"]) == 1, (path, how, answer["warnings"])
        again = nursery.run(cache)
        assert again["right"] and again["warnings"] == [] and again["compiled"] == [], (path, how)


def test_a_full_disk(nursery, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(disk)], capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a tmpfs")
    try:
        answer = nursery.run(disk / "cache")
        assert answer["right"]
        assert len(answer["warnings"]) == 1 and "No space left" in answer["warnings"][0], answer["warnings"]
        assert whole(disk / "cache")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_foreign_writable_folder(nursery, cache, tmp_path):
    cache.chmod(0o777)
    (tmp_path / "tmp").mkdir()
    answer = nursery.run(cache, TMPDIR=str(tmp_path / "tmp"))
    assert answer["right"] and len(answer["compiled"]) == 3, "nothing of it is loaded"
    assert len(answer["warnings"]) == 1 and "can be written by others" in answer["warnings"][0]


def test_a_read_only_layer_is_enough(nursery, cache, tmp_path):
    answer = nursery.run(
        tmp_path / "empty", JITMOE_CACHE_READONLY_DIRS=str(cache), JITMOE_DISABLE_JIT="1", JITMOE_STRICT="1"
    )
    assert answer["right"] and answer["compiled"] == [] and answer["warnings"] == []


def test_no_home(nursery, tmp_path):
    """Neither HOME nor a configured folder: the temporary folder serves, with one warning."""
    answer = nursery.run(None, HOME="/nonexistent/home", TMPDIR=str(tmp_path), XDG_CACHE_HOME="/proc/nowhere")
    assert answer["right"]
    assert len(answer["warnings"]) == 1, answer["warnings"]

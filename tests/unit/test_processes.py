# SPDX-License-Identifier: MIT
"""Many processes on one cache folder: publishing, dying in the middle of it, waiting for each other."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.builders import cache_entry, cache_key

import jitmoe
from jitmoe.cache import open_cache
from jitmoe.cache.files import FileStore

ROOT = Path(jitmoe.__file__).parent.parent


@pytest.fixture
def store(private_cache) -> FileStore:
    made = FileStore(private_cache, writable=True)
    made.prepare()
    return made


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_PUBLISH = """
import os, sys
from pathlib import Path
from helpers.builders import cache_entry, cache_key
from jitmoe.cache.files import FileStore
store = FileStore(Path(sys.argv[1]), writable=True)
store.prepare()
print("ready", flush=True)
sys.stdin.readline()
for round in range(20):
    key = cache_key(argv=f"-O{round}")
    store.put(cache_entry(key, image=b"%d" % os.getpid() * 5000))
    entry = store.get(key)
    assert entry is not None and len(set(entry.files["kernel.spv"][i:i+len(str(os.getpid()))] for i in (0,))) == 1
    print(entry.files["kernel.spv"][:12].hex(), flush=True)
"""


def test_processes_that_publish_the_same_keys_agree(store):
    crowd = [start(_PUBLISH, store.root) for _ in range(8)]
    for process in crowd:
        assert process.stdout.readline() == "ready\n"
    for process in crowd:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=300) for process in crowd]
    assert [process.returncode for process in crowd] == [0] * len(crowd), answers
    assert {errors for _, errors in answers} == {""}
    assert len({out for out, _ in answers}) == 1, "after publishing, all read the same winner"
    assert len(list(store.folders())) == 20
    assert all(store.verify(folder) == "" for folder in store.folders())
    assert list((store.root / "tmp").iterdir()) == []


_PUBLISH_FOREVER = """
import os, sys
from pathlib import Path
from helpers.builders import cache_entry, cache_key
from jitmoe.cache.files import FileStore
store = FileStore(Path(sys.argv[1]), writable=True)
print("ready", flush=True)
round = 0
while True:
    key = cache_key(argv=f"{sys.argv[2]}-{round}")
    with store.build_lock(key, timeout_s=5.0):
        store.put(cache_entry(key, image=os.urandom(50_000)))
        store.put_verdict(key.digest, {"status": "passed", "round": round})
    round += 1
"""


def test_kill_9_while_publishing_leaves_whole_entries_or_none(store, caplog):
    generator = random.Random(7)
    seen, attempt = 0, 0
    while attempt < 12 or (seen < 5 and attempt < 300):  # on a busy machine many die before their first entry
        process = start(_PUBLISH_FOREVER, store.root, attempt)
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        folders = list(store.folders())
        assert all(store.verify(folder) == "" for folder in folders)
        seen, attempt = len(folders), attempt + 1
    assert seen >= 5
    assert len(list(store.verdicts())) >= seen - attempt
    for round in range(200):  # every lock that a dead process held is free again
        key = cache_key(argv=f"0-{round}")
        started = time.monotonic()
        with store.build_lock(key, timeout_s=60.0):
            assert time.monotonic() - started < 30.0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


_HOLD = """
import sys
from pathlib import Path
from helpers.builders import cache_key
from jitmoe.cache.files import FileStore
with FileStore(Path(sys.argv[1]), writable=True).build_lock(cache_key(), timeout_s=100.0):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_that_is_not_given_back_is_waited_for_and_then_passed_by(store, caplog):
    holder = start(_HOLD, store.root)
    assert holder.stdout.readline() == "held\n"
    started = time.monotonic()
    with store.build_lock(cache_key(), timeout_s=0.3):
        waited = time.monotonic() - started
        store.put(cache_entry())
    assert 0.25 < waited < 15.0
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"process {holder.pid} on " in message
    assert "0.3 s" in message and "JITMOE_LOCK_TIMEOUT" in message and "jitmoe_toy" in message
    assert store.get(cache_key()) is not None
    with store.build_lock(cache_key(argv="-O0"), timeout_s=0.3):
        pass
    assert len(caplog.records) == 1, "other keys do not wait"
    holder.communicate("\n")


def test_a_holder_that_dies_lets_the_next_one_in_at_once(store, caplog):
    holder = start(_HOLD, store.root)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    started = time.monotonic()
    with store.build_lock(cache_key(), timeout_s=60.0):
        assert time.monotonic() - started < 30.0
    assert caplog.records == []


def test_a_stopped_holder_does_not_hang_anybody(store, caplog):
    holder = start(_HOLD, store.root)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with store.build_lock(cache_key(), timeout_s=0.2):
            pass
        assert len(caplog.records) == 1
    finally:
        os.kill(holder.pid, signal.SIGCONT)
        holder.communicate("\n")


def test_lock_files_are_never_unlinked(store):
    path = store.root / "locks" / f"{cache_key().digest}.lock"
    with store.build_lock(cache_key(), timeout_s=1.0):
        inode = path.stat().st_ino
    for _ in range(3):
        with store.build_lock(cache_key(), timeout_s=1.0):
            pass
        assert path.stat().st_ino == inode
    store.sweep()
    store.prune(max_bytes=0)
    assert path.stat().st_ino == inode


def test_the_lock_is_given_back_when_the_block_raises(store, caplog):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), store.build_lock(cache_key(), timeout_s=0.2):
            raise ZeroDivisionError
    assert caplog.records == []


def test_no_place_for_locks_is_no_obstacle(private_cache):
    store = FileStore(private_cache / "nowhere", writable=True)
    with store.build_lock(cache_key(), timeout_s=0.2):
        pass


def test_threads_of_one_process_wait_for_each_other(store):
    import threading

    inside, most = 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most
        with store.build_lock(cache_key(), timeout_s=100.0):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


_PRUNE_FOREVER = """
import sys
from pathlib import Path
from jitmoe.cache.files import FileStore
store = FileStore(Path(sys.argv[1]), writable=True)
print("ready", flush=True)
while True:
    store.prune(max_bytes=0)
    store.sweep()
"""


def test_reading_while_others_prune_gives_whole_entries_or_misses(store, caplog):
    """An entry that vanishes between two reads is a miss, not damage."""
    pruner = start(_PRUNE_FOREVER, store.root)
    assert pruner.stdout.readline() == "ready\n"
    hits = 0
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            store.put(cache_entry(image=b"x" * 30_000))
            entry = store.get(cache_key())
            if entry is not None:
                assert entry.files["kernel.spv"] == b"x" * 30_000
                hits += 1
    finally:
        pruner.kill()
        pruner.communicate()
    assert hits > 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_open_cache_by_many_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jitmoe.cache import open_cache; "
        "assert open_cache(Path(sys.argv[1]), ()).writable.root == Path(sys.argv[1])"
    )
    crowd = [start(code, tmp_path / "new" / "cache") for _ in range(8)]
    assert [(process.communicate(), process.returncode) for process in crowd] == [(("", ""), 0)] * 8
    assert open_cache(tmp_path / "new" / "cache", ()).writable is not None

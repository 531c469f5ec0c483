# SPDX-License-Identifier: MIT
"""Bundles: what goes in comes out, and nothing that was touched on the way gets in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from helpers.builders import cache_entry, cache_key

from jitmoe.cache import CacheKey
from jitmoe.cache.bundle import INDEX_NAME, read_bundle, write_bundle
from jitmoe.cache.entry import seal, unseal
from jitmoe.errors import CacheError

ENTRIES = [cache_entry(), cache_entry(cache_key(compiler="icpx 2026.1"), image=b"other")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "kernels.tar"
    write_bundle(path, ENTRIES, version="1.0")
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def rewrite(path: Path, members: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if link and name != INDEX_NAME:
                member.type, member.linkname, member.size = kind, link, 0
            archive.addfile(member, io.BytesIO(content))


def test_round_trip(bundle: Path):
    entries = read_bundle(bundle)
    assert [entry.key for entry in entries] == [entry.key for entry in ENTRIES]
    assert [entry.files for entry in entries] == [entry.files for entry in ENTRIES]
    assert [entry.info for entry in entries] == [entry.info for entry in ENTRIES]


def test_it_says_nothing_about_the_machine_it_was_made_on(bundle: Path):
    with tarfile.open(bundle) as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path):
    (tmp_path / "is-a-folder").mkdir()
    with pytest.raises(CacheError, match="cannot be written"):
        write_bundle(tmp_path / "is-a-folder", ENTRIES, version="1.0")
    assert [path.name for path in tmp_path.iterdir()] == ["is-a-folder"]


def test_every_truncation_is_refused(bundle: Path):
    content = bundle.read_bytes()
    end = content.rstrip(b"\0")
    for length in [*range(0, len(end), 97), len(end) - 1]:
        bundle.write_bytes(content[:length])
        with pytest.raises(CacheError):
            read_bundle(bundle)


def test_flipped_content_is_refused_or_harmless(bundle: Path):
    content = bundle.read_bytes()
    accepted = [entry.files for entry in ENTRIES]
    for position in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[position] ^= 0x20
        bundle.write_bytes(bytes(damaged))
        try:
            assert [entry.files for entry in read_bundle(bundle)] == accepted  # padding of the tar format
        except CacheError as error:
            assert str(bundle) in str(error)


def test_members_of_an_entry_cannot_be_left_out_or_added(bundle: Path):
    members = members_of(bundle)
    for name in list(members)[1:]:
        rewrite(bundle, {key: value for key, value in members.items() if key != name})
        with pytest.raises(CacheError, match=r"missing|manifest"):
            read_bundle(bundle)
    rewrite(bundle, {**members, "f" * 64 + "/kernel.spv": b"x"})
    with pytest.raises(CacheError, match="not in its index"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b/c", "f" * 64 + "/../x", "f" * 64 + "/.hidden", "x"])
def test_names_that_are_no_file_of_an_entry_are_refused(bundle: Path, name: str):
    rewrite(bundle, {**members_of(bundle), name: b"x"})
    with pytest.raises(CacheError, match="no file of an entry"):
        read_bundle(bundle)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_plain_files_are_read(bundle: Path, kind: bytes):
    rewrite(bundle, members_of(bundle), kind=kind, link="/etc/passwd")
    with pytest.raises(CacheError, match="no plain file"):
        read_bundle(bundle)


def test_kernel_names_cannot_lead_out_of_the_cache(tmp_path: Path):
    key = CacheKey("../../evil", (("spec", "x"),), ())
    write_bundle(tmp_path / "b.tar", [cache_entry(key)], version="1.0")
    with pytest.raises(CacheError, match="has the name"):
        read_bundle(tmp_path / "b.tar")


def test_file_names_in_a_manifest_cannot_lead_out_of_the_cache(tmp_path: Path):
    write_bundle(tmp_path / "b.tar", [cache_entry(**{"../evil": b"x"})], version="1.0")
    with pytest.raises(CacheError, match="no file of an entry"):
        read_bundle(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "cache schema 99"),
        ({"format": "zip"}, "its format is zip"),
        ({"format_version": 2}, "bundle 2"),
    ],
)
def test_other_formats_and_schemas_are_named(bundle: Path, change, words):
    members = members_of(bundle)
    members[INDEX_NAME] = seal({**unseal(members[INDEX_NAME]), **change})
    rewrite(bundle, members)
    with pytest.raises(CacheError, match=words):
        read_bundle(bundle)


def test_other_files_are_no_bundles(tmp_path: Path):
    for content in (b"", b"hello", json.dumps({}).encode(), b"\0" * 4096):
        path = tmp_path / "x.tar"
        path.write_bytes(content)
        with pytest.raises(CacheError):
            read_bundle(path)
    with pytest.raises(CacheError, match="cannot be read"):
        read_bundle(tmp_path / "nothing.tar")


def test_huge_members_are_refused_before_they_are_read(bundle: Path, monkeypatch):
    monkeypatch.setattr("jitmoe.cache.bundle.MAX_FILE_BYTES", 4)
    with pytest.raises(CacheError, match="more than kernels ever have"):
        read_bundle(bundle)

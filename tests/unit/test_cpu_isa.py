# SPDX-License-Identifier: MIT
"""The CPU's instruction set from made-up facts: what Linux lists, what the C library adds, what Linux allows."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from jitmoe.device import CpuIsa
from jitmoe.runtime import cpu

AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
COOPER_LAKE = (*AVX512, "avx512_vnni", "avx512_bf16")
BF16 = (*COOPER_LAKE, "gfni")
TILES = (*BF16, "amx_tile", "amx_bf16", "amx_int8")


@pytest.mark.parametrize(
    ("flags", "target", "expected"),
    [
        ((), "", CpuIsa.GENERIC),
        (AVX2, "", CpuIsa.AVX2),
        (AVX512, "", CpuIsa.AVX512),
        (COOPER_LAKE, "", CpuIsa.AVX512),
        (BF16, "", CpuIsa.AVX512_BF16),
        (TILES, "", CpuIsa.AMX_BF16),
        ((*TILES, "amx_fp16"), "", CpuIsa.AMX_FP16),
        ((*BF16, "amx_fp16"), "", CpuIsa.AVX512_BF16),  # without the tile registers
        ((*TILES, "amx_fp16"), "skx", CpuIsa.AVX512),
        ((*TILES, "amx_fp16"), "core-avx2", CpuIsa.AVX2),
        ((*TILES, "amx_fp16"), "spr", CpuIsa.AMX_FP16),  # not known to be less
        (AVX2, "skx", CpuIsa.AVX2),
    ],
    ids=lambda value: value.value if isinstance(value, CpuIsa) else None,
)
def test_the_best_that_flags_offer_and_the_target_allows(flags, target, expected):
    assert cpu.isa_of(frozenset(flags), target) is expected


def c_library(eax_by_leaf):
    """A C library with glibc's function, as a real C function over a table of eight registers per leaf."""
    tables = {leaf: (ctypes.c_uint32 * 8)(eax) for leaf, eax in eax_by_leaf.items()}
    nothing = (ctypes.c_uint32 * 8)()
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint)(
        lambda leaf: ctypes.addressof(tables.get(leaf, nothing))
    )
    return SimpleNamespace(__x86_get_cpuid_feature_leaf=function)


@pytest.fixture
def flags_of(monkeypatch, tmp_path):
    """Returns what ``host_flags`` finds with this line of /proc/cpuinfo and this C library."""

    def flags_of(listed, library):
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {' '.join(listed)}\nvmx flags\t: vnmi\n")
        monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
        monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: library)
        return cpu.host_flags.__wrapped__()

    return flags_of


@pytest.mark.parametrize(
    ("listed", "library", "has_fp16"),
    [
        (TILES, c_library({6: 1 << 21}), True),
        (TILES, c_library({6: 0xFFFFFFFF & ~(1 << 21), 5: 1 << 21, 7: 1 << 21}), False),
        (TILES, SimpleNamespace(), False),  # an older or another C library
        ((*TILES, "amx_fp16"), SimpleNamespace(), True),  # a Linux that lists it
        ((*TILES, "amx_fp16"), c_library({}), True),
        (AVX512, c_library({6: 1 << 21}), False),  # Linux does not offer tiles at all
    ],
)
def test_fp16_tiles_are_listed_or_the_c_library_knows(flags_of, listed, library, has_fp16):
    assert flags_of(listed, library) == {*listed, *(["amx_fp16"] if has_fp16 else [])}


def test_without_a_c_library_or_cpuinfo_there_is_less(flags_of, monkeypatch, tmp_path):
    def no_library(name):
        raise OSError("static")

    flags_of(TILES, None)
    monkeypatch.setattr(cpu.ctypes, "CDLL", no_library)
    assert cpu.host_flags.__wrapped__() == set(TILES)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "nothing")
    assert cpu.host_flags.__wrapped__() == frozenset()


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("flags", [TILES, (*TILES, "amx_fp16")], ids=["bf16", "fp16"])
def test_without_permission_there_are_no_tiles(monkeypatch, flags, allowed):
    monkeypatch.delenv(cpu.TARGET_VARIABLE, raising=False)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "host_flags", lambda: frozenset(flags))
    monkeypatch.setattr(cpu, "request_tiles", lambda: allowed)
    assert cpu.isa() is (cpu.isa_of(frozenset(flags), "") if allowed else CpuIsa.AVX512_BF16)


def test_a_verdict_does_not_outlive_fp16_tiles(monkeypatch):
    """Machine code and self-checks are kept under the digest."""
    digests = set()
    for flags in (TILES, (*TILES, "amx_fp16")):
        monkeypatch.setattr(cpu, "host_flags", lambda flags=flags: frozenset(flags))
        digests.add(cpu.features_digest())
    assert len(digests) == 2


def test_the_weaker_of_two():
    order = tuple(CpuIsa)
    for i, isa in enumerate(order):
        for j, limit in enumerate(order):
            assert isa.at_most(limit) is order[min(i, j)]
    assert [isa for isa in order if isa.has_tiles] == [CpuIsa.AMX_BF16, CpuIsa.AMX_FP16]

# SPDX-License-Identifier: MIT
"""What the vISA assembly of arch/codes.hpp and arch/scale.hpp computes, taken from the SPIR-V and interpreted here.

The CPU device runs the portable bodies instead; this is the other half: the instructions that a GPU gets, applied to
the register images that arch/block2d.hpp describes, for every code.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from jitmoe import reference
from jitmoe.compilers.base import CompileRequest
from jitmoe.compilers.sycl_jit import find_sycl_jit
from jitmoe.problems.formats import Encoding

Bytes = npt.NDArray[np.uint8]
OP_ASM_INTEL = 5610  # result type, id, asm type, target, "instructions", "constraints"
_TYPES: dict[str, Any] = {
    "b": np.int8,
    "ub": np.uint8,
    "w": np.int16,
    "uw": np.uint16,
    "hf": np.float16,
    "f": np.float32,
}
_EIGHT = (Encoding.E4M3, Encoding.E5M2, Encoding.INT8)
_FOUR = ((Encoding.INT4, False), (Encoding.UINT4, False), (Encoding.UINT4, True), (Encoding.E2M1, False))

_SOURCE = """\
#include <jitmoe/entry.hpp>
#include <jitmoe/arch/codes.hpp>
#include <jitmoe/arch/scale.hpp>
using namespace jitmoe;
using namespace jitmoe::arch;
extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16)
void probe([[maybe_unused]] const void* in, [[maybe_unused]] void* out) {
  [[maybe_unused]] const auto bytes = static_cast<const u8x8*>(in)[lane_id()];
  @BODY@
}
"""


class Machine:
    """Operands $0, $1, ..., registers of 64 bytes, and the few instructions that the headers use."""

    def __init__(self, operands: list[Bytes]) -> None:
        self.operands = operands  # %0, %1, ...
        self.names: dict[str, tuple[Bytes, Any]] = {}

    def declare(self, name: str, kind: str, count: int, alias: str | None) -> None:
        dtype = _TYPES[kind.lower()]
        if alias is None:
            self.names[name] = (np.zeros(count * dtype().itemsize, np.uint8), dtype)
            return
        of, offset = alias.split(",")
        memory = self.operands[int(of[1:])] if of.startswith("$") else self.names[of][0]
        self.names[name] = (memory[int(offset) :], dtype)

    def elements(self, text: str, width: int) -> tuple[Bytes, Any, npt.NDArray[np.int64]]:
        """Memory, type and byte positions of the operand NAME(r,c)<region>."""
        found = re.fullmatch(r"(\w+)\((\d+),(\d+)\)<(\d+)(?:;(\d+),(\d+))?>", text)
        assert found is not None, text
        memory, dtype = self.names[found[1]]
        size = dtype().itemsize
        start = int(found[2]) * 64 + int(found[3]) * size
        lanes = np.arange(width)
        if found[5] is None:
            steps = lanes * int(found[4])
        else:
            rows = int(found[5])
            steps = lanes // rows * int(found[4]) + lanes % rows * int(found[6])
        return memory, dtype, start + steps * size

    def read(self, text: str, width: int) -> Any:
        immediate = re.fullmatch(r"(0x[0-9a-fA-F]+):(\w+)", text)
        if immediate is not None:
            bits, kind = int(immediate[1], 16), immediate[2]
            value = np.array([bits], np.uint16).view(_TYPES[kind])[0]
            return np.full(width, value)
        memory, dtype, positions = self.elements(text, width)
        size = dtype().itemsize
        raw = np.stack([memory[positions + byte] for byte in range(size)], axis=1)
        return np.ascontiguousarray(raw).view(dtype).reshape(-1)

    def write(self, text: str, values: Any) -> None:
        memory, dtype, positions = self.elements(text, len(values))
        size = dtype().itemsize
        if dtype in (np.float16, np.float32):
            assert values.dtype == dtype
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)
        else:
            raw = (values.astype(np.int64) & ((1 << 8 * size) - 1)).astype(f"<u{size}").view(np.uint8).reshape(-1, size)
        for byte in range(size):
            memory[positions + byte] = raw[:, byte]

    def run(self, text: str) -> None:
        for line in filter(None, (part.strip() for part in text.splitlines())):
            if line in "{}":
                continue
            declared = re.fullmatch(
                r"\.decl (\w+) v_type=G type=(\w+) num_elts=(\d+) (?:align=GRF|alias=<([^>]+)>)", line
            )
            if declared is not None:
                self.declare(declared[1], declared[2], int(declared[3]), declared[4])
                continue
            found = re.fullmatch(r"([\w.]+) \(M1_NM, (\d+)\) (\S+) (.+)", line)
            assert found is not None, line
            width = int(found[2])
            sources = [self.read(source, width) for source in found[4].split()]
            integers = [s.astype(np.int64) for s in sources] if sources[0].dtype.kind in "iu" else []
            results = {
                "mov": lambda s, i: i[0],
                "shl": lambda s, i: i[0] << i[1],
                "asr": lambda s, i: i[0] >> i[1],
                "and": lambda s, i: i[0] & i[1],
                "xor": lambda s, i: i[0] ^ i[1],
                "bfn.x6A": lambda s, i: i[0] ^ (i[1] & i[2]),
                "add": lambda s, i: s[0] + s[1],
                "mul": lambda s, i: s[0] * s[1],
            }
            self.write(found[3], results[found[1]](sources, integers))


@pytest.fixture(scope="module")
def assembly() -> dict[str, str]:
    """The assembly of every body, by name."""
    bodies = {
        e.value: f"static_cast<i16x8*>(out)[lane_id()] = decode_bytes<false, Encoding::{e.value}>(bytes);"
        for e in _EIGHT
    }
    for encoding, zero_point in _FOUR:
        for upper in (False, True) if zero_point else (False,):
            flags = f"{str(zero_point).lower()}, {str(upper).lower()}"
            bodies[f"{encoding.value} {flags}"] = (
                f"const auto both = decode_nibbles<false, Encoding::{encoding.value}, {flags}>(bytes, bytes[0]); "
                "static_cast<i16x8*>(out)[lane_id()] = both.even; static_cast<i16x8*>(out)[16 + lane_id()] = both.odd;"
            )
    for name in ("scale_elements<false, false>", "scale_elements<false, true>", "scale_lanes<false>"):
        bodies[name] = f"auto& acc = static_cast<f32x8*>(out)[lane_id()]; acc = {name}(acc, float(bytes[0]));"
    compiler, words = find_sycl_jit()
    assert compiler is not None, words
    texts = {}
    # One kernel with all of them: the order of the assembly in the image is the order in the source.
    source = _SOURCE.replace("@BODY@", "\n  ".join("{ " + body + " }" for body in bodies.values()))
    request = CompileRequest(kernel="probe", spec="codes", source=source, arch="", large_grf=False)
    found = _asm_of(compiler.compile(request, build_key="", timeout_s=300.0).image)
    assert len(found) == len(bodies)
    texts.update(zip(bodies, found, strict=True))
    return texts


def _asm_of(spirv: bytes) -> list[str]:
    """The instruction strings of OpAsmINTEL, in the order of their first use (OpAsmCallINTEL, 5611)."""
    words = np.frombuffer(spirv, np.uint32)
    position, texts, order = 5, dict[int, str](), list[int]()
    while position < len(words):
        count, opcode = int(words[position]) >> 16, int(words[position]) & 0xFFFF
        if opcode == OP_ASM_INTEL:
            text = words[position + 5 : position + count].tobytes().split(b"\0", 1)[0].decode()
            texts[int(words[position + 2])] = text
        elif opcode == OP_ASM_INTEL + 1:
            order.append(int(words[position + 3]))
        position += count
    return [texts[one] for one in dict.fromkeys(order)]


def _tiles() -> list[Bytes]:
    """Every byte in A operands' registers of bytes: element m of lane t at 16 m + t."""
    return [np.arange(128 * half, 128 * half + 128, dtype=np.uint8) for half in (0, 1)]


def _halves(image: Bytes) -> npt.NDArray[np.float16]:
    return image.view(np.float16)


@pytest.mark.parametrize("encoding", _EIGHT)
def test_bytes(assembly: dict[str, str], encoding: Encoding) -> None:
    for tile in _tiles():
        out = np.zeros(256, np.uint8)
        Machine([out, tile.copy()]).run(assembly[encoding.value])
        expected = reference.unpacked(torch.from_numpy(tile), encoding).numpy()
        if encoding is Encoding.E4M3:  # documented: NaN codes read as 480
            expected = np.where(np.isnan(expected), np.where(tile < 128, 480.0, -480.0), expected)
        np.testing.assert_array_equal(_halves(out), expected.astype(np.float16))


@pytest.mark.parametrize(
    ("encoding", "has_zero_point", "upper"), [(e, z, u) for e, z in _FOUR for u in (False, True) if z or not u]
)
def test_nibbles(assembly: dict[str, str], encoding: Encoding, has_zero_point: bool, upper: bool) -> None:
    text = assembly[f"{encoding.value} {str(has_zero_point).lower()}, {str(upper).lower()}"]
    zeros = np.arange(16) * 7 % 16
    minus = (0xD400 + (zeros << 4)).astype(np.uint16).view(np.uint8)  # lane t: -(64 + zero point of row t)
    np.testing.assert_array_equal(_halves(minus), -(64.0 + zeros))
    for tile in _tiles():
        even, odd = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        Machine([even, odd, tile.copy(), minus.copy()]).run(text)
        expected = reference.unpacked(torch.from_numpy(tile), encoding).numpy().reshape(-1, 2)
        if encoding is Encoding.UINT4:
            rows = np.repeat(zeros[8:] if upper else zeros[:8], 16) if has_zero_point else 8
            expected = expected - np.reshape(rows, (-1, 1) if has_zero_point else ())
        np.testing.assert_array_equal(_halves(even), expected[:, 0].astype(np.float16))
        np.testing.assert_array_equal(_halves(odd), expected[:, 1].astype(np.float16))


@pytest.mark.parametrize("name", ["scale_elements<false, false>", "scale_elements<false, true>", "scale_lanes<false>"])
def test_scales(assembly: dict[str, str], name: str) -> None:
    rng = np.random.default_rng(1)
    acc, factor = rng.standard_normal((8, 16), np.float32), rng.standard_normal(16, np.float32)
    out = np.zeros(512, np.uint8)
    Machine([out, acc.copy().view(np.uint8).reshape(-1), factor.copy().view(np.uint8)]).run(assembly[name])
    rows = factor[8:] if "true" in name else factor[:8]
    expected = acc * factor if "lanes" in name else acc * rows[:, None]
    np.testing.assert_array_equal(out.view(np.float32).reshape(8, 16), expected)

# SPDX-License-Identifier: MIT
"""Tiny kernels around single Xe intrinsics: portable bodies to run on the CPU device, native ones to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jitmoe.compilers.base import Artifact, CompileRequest
from jitmoe.compilers.sycl_jit import find_sycl_jit
from jitmoe.spec import Argument, KernelSpec, arguments

_HEAD = """\
#include <jitmoe/entry.hpp>
#include <jitmoe/arch/block1d.hpp>
#include <jitmoe/arch/block2d.hpp>
#include <jitmoe/arch/convert.hpp>
#include <jitmoe/arch/dpas.hpp>
using namespace jitmoe;
using namespace jitmoe::arch;
[[maybe_unused]] constexpr bool kEmulated = @EMULATED@;
"""

# Registers travel as [lane][element] arrays.
_DPAS = """
extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(@SIMD@)
void @NAME@(const void* a, const void* b, const void* c, void* out) {
  const int32 t = lane_id();
  static_cast<@ACC@*>(out)[t] = @CALL@(static_cast<const @A@*>(a)[t], static_cast<const @B@*>(b)[t],
                                       static_cast<const @ACC@*>(c)[t]);
}
"""
_SURFACE = """
extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16)
void @NAME@([[maybe_unused]] const void* base, [[maybe_unused]] void* out, int32 width, int32 height, int32 pitch,
            int32 x, int32 y) {
  [[maybe_unused]] const Surface surface{base, width, height, pitch};
  @BODY@
}
"""
_KEEP = "for (int32 i = 0; i < @N@; ++i) static_cast<@T@*>(out)[lane_id() * @N@ + i] = values[i];"
_OTHER = """
extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(@SIMD@)
void @NAME@([[maybe_unused]] const void* base, [[maybe_unused]] void* out) {
  @BODY@
}
"""


@dataclass(frozen=True)
class Probe:
    """One probe kernel: its source after _HEAD, sub-group size, and the ARGUMENTS of its entry."""

    name: str
    text: str
    simd: int = 16
    arguments: str = "in base, out out"


def _fill(template: str, **values: Any) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def _dpas(name: str, call: str, a: str, b: str = "u32x8", acc: str = "f32x8", simd: int = 16) -> Probe:
    text = _fill(_DPAS, NAME=name, CALL=call, A=a, B=b, ACC=acc, SIMD=simd)
    return Probe(name, text, simd, "in a, in b, in c, out out")


def _surface(name: str, body: str, count: int = 0, element: str = "uint16") -> Probe:
    body += _fill(_KEEP, N=count, T=element) if count else ""
    return Probe(
        name,
        _fill(_SURFACE, NAME=name, BODY=body),
        16,
        "in base, out out, int32 width, int32 height, int32 pitch, int32 x, int32 y",
    )


def _load(rows: int, dx: int = 0, dy: int = 0) -> str:
    return f"""uint16 values[{2 * rows}]; LoadPayload<kEmulated, {rows}, 2> block(surface, x, y);
  load(block, {dx}, {dy}, values); """


PROBES = {
    probe.name: probe
    for probe in (
        _dpas("dpas_bf16", "dpas<kEmulated, 16, DType::bf16>", "i16x8"),
        _dpas("dpas_fp16", "dpas<kEmulated, 16, DType::fp16>", "i16x8"),
        _dpas("dpas_int8", "dpas_int8<kEmulated>", "i16x8", acc="i32x8"),
        _dpas("dpas_tf32", "dpas_tf32<kEmulated>", "f32x4", b="f32x8"),
        _dpas("dpas_bf16_simd8", "dpas<kEmulated, 8, DType::bf16>", "i32x8", simd=8),
        _dpas("dpas_fp16_simd8", "dpas<kEmulated, 8, DType::fp16>", "i32x8", simd=8),
        _surface("load_8", _load(8), 16),
        _surface("load_16", _load(16), 32),
        _surface("load_32", _load(32), 64),
        _surface(
            "load_moved",
            "uint16 values[16]; LoadPayload<kEmulated, 8, 2> block(surface, x, y); block.add_x(32); block.add_y(3); "
            "load(block, 16, 8, values); ",
            16,
        ),
        _surface(
            "load_vnni_1",
            "uint32 values[16]; LoadPayload<kEmulated, 32, 1> block(surface, x, y); load_vnni(block, 0, 0, values); ",
            16,
            "uint32",
        ),
        _surface(
            "load_vnni_2",
            "uint32 values[32]; LoadPayload<kEmulated, 32, 2> block(surface, x, y); load_vnni(block, 0, 0, values); ",
            32,
            "uint32",
        ),
        _surface(
            "load_transposed",
            "TransposedPayload<kEmulated> block(surface, x, y); const u32x8 values = load_transposed(block, 0, 0); ",
            8,
            "uint32",
        ),
        _surface(
            "store_8",
            """i16x8 value;
  for (int32 r = 0; r < 8; ++r) value[r] = int16(100 * r + lane_id());
  const StorePayload<kEmulated> block(Surface{out, width, height, pitch}, x, y); store(block, 0, 0, value); """,
        ),
        _surface(
            "prefetch_32",
            "LoadPayload<kEmulated, 32, 2> block(surface, x, y); prefetch(block, 0, 0); "
            "static_cast<int32*>(out)[lane_id()] = 1;",
        ),
        Probe(
            "split_barrier",
            _fill(
                _OTHER,
                SIMD=16,
                NAME="split_barrier",
                BODY="barrier_signal<kEmulated>(); static_cast<int32*>(out)[nd_item<1>().get_global_id(0)] = 1; "
                "barrier_wait<kEmulated>();",
            ),
        ),
        *(
            Probe(
                f"read_row_{simd}",
                _fill(
                    _OTHER,
                    SIMD=simd,
                    NAME=f"read_row_{simd}",
                    BODY=f"static_cast<u32x2*>(out)[lane_id()] = read_row<kEmulated, {simd}>(base);",
                ),
                simd,
            )
            for simd in (8, 16)
        ),
        Probe(
            "read_lane",
            _fill(
                _OTHER,
                SIMD=16,
                NAME="read_lane",
                BODY="static_cast<u32x8*>(out)[lane_id()] = "
                "read_lane(static_cast<const uint16*>(base) + 34 * lane_id());",
            ),
        ),
        *(
            Probe(
                f"narrow_{dtype}",
                _fill(
                    _OTHER,
                    SIMD=16,
                    NAME=f"narrow_{dtype}",
                    BODY=f"const auto i = nd_item<1>().get_global_id(0); static_cast<uint16*>(out)[i] = "
                    f"narrow<kEmulated, DType::{dtype}>(static_cast<const float*>(base)[i]);",
                ),
            )
            for dtype in ("bf16", "fp16")
        ),
        Probe(
            "read_double",
            _fill(
                _OTHER,
                SIMD=16,
                NAME="read_double",
                BODY="const auto i = nd_item<1>().get_global_id(0); "
                "static_cast<float*>(out)[i] = read_float<DType::fp64>(base, i);",
            ),
        ),
    )
}


def source(probe: Probe, *, emulated: bool) -> str:
    """Returns the translation unit of one probe."""
    return _fill(_HEAD, EMULATED=str(emulated).lower()) + probe.text


def compile_probe(probe: Probe, *, emulated: bool) -> Artifact:
    """Compiles one probe with the wheel's compiler."""
    compiler, words = find_sycl_jit()
    assert compiler is not None, words
    request = CompileRequest(
        kernel=probe.name,
        spec=f"probe {probe.name}",
        source=source(probe, emulated=emulated),
        arch="",
        large_grf=False,
    )
    return compiler.compile(request, build_key="", timeout_s=300.0)


def probe_spec(probe: Probe) -> KernelSpec:
    """Returns a spec that a plan can launch the probe with."""

    class ProbeSpec(KernelSpec):
        KERNEL: ClassVar[str] = probe.name
        ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments(probe.arguments)

    return ProbeSpec()

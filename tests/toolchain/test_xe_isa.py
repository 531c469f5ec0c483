# SPDX-License-Identifier: MIT
"""The Xe kernels' native code, made offline: expected instructions, no spills, dense main loops, quick compiles."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.report import TOOLS, control_barriers, isa_report
from helpers.xe_probes import PROBES, compile_probe

from jitmoe.builder import Builder
from jitmoe.compilers.base import Artifact, ArtifactKind
from jitmoe.compilers.ocloc import Ocloc, default_path, execution_environment, find_ocloc
from jitmoe.plan import xe, xe_single
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.xe_specs import XeDown, XeGateUp, XeGemm, XeSpec
from jitmoe.problems.formats import Encoding, InputQuant, WeightFormat
from jitmoe.problems.fused_moe import Activation, DType
from jitmoe.source import render

BLOCK2D_GPUS = [name for name, arch in ARCHITECTURES.items() if arch.has_block2d]


@pytest.fixture(scope="module")
def ocloc() -> Ocloc:
    found, words = find_ocloc()
    if found is None:
        pytest.skip(words)
    return found


def compile_spec(builder: Builder, spec: XeSpec, arch: str) -> Artifact:
    entry = builder.build_one(spec, offline_device(arch))
    image = entry.files[ArtifactKind.SPIRV.value]
    return Artifact(kind=ArtifactKind.SPIRV, image=image, log="", seconds=entry.info["seconds"])


def gemms(arch: str, m: int, **changes: Any) -> tuple[XeGateUp, XeDown]:
    one = isa_report.moe_problem(num_tokens=m, hidden_size=2048, intermediate_size=768, **changes)
    choice = xe.choose(one, offline_device(arch), configs=())
    assert isinstance(choice.gate_up, XeGateUp)
    assert isinstance(choice.down, XeDown)
    return choice.gate_up, choice.down


# probe -> patterns that its assembly must hold, for bmg-g21 (2D blocks) or dg2
_INSTRUCTIONS = {
    "dpas_bf16": [r"dpas\.8x8 \(16\|M0\).*:f .*:bf .*:bf"],
    "dpas_fp16": [r"dpas\.8x8 \(16\|M0\).*:f .*:hf .*:hf"],
    "dpas_int8": [r"dpas\.8x8 \(16\|M0\).*:d .*:b .*:b"],
    "dpas_tf32": [r"dpas\.8x8 \(16\|M0\).*:f .*:tf32 .*:tf32"],
    "dpas_bf16_simd8": [r"dpas\.8x8 \(8\|M0\).*:f .*:bf .*:bf"],
    "dpas_fp16_simd8": [r"dpas\.8x8 \(8\|M0\).*:f .*:hf .*:hf"],
    "load_8": [r"load_block2d\.ugm\.d16\.a64"],
    "load_16": [r"load_block2d\.ugm\.d16\.a64"],
    "load_32": [r"load_block2d\.ugm\.d16\.a64"],
    "load_moved": [r"load_block2d\.ugm\.d16\.a64"],
    "load_vnni_1": [r"load_block2d\.ugm\.d16v\.a64"],
    "load_vnni_2": [r"load_block2d\.ugm\.d16v\.a64"],
    "load_transposed": [r"load_block2d\.ugm\.d32t\.a64"],
    "store_8": [r"store_block2d\.ugm\.d16\.a64"],
    "prefetch_32": [r"load_block2d\.ugm\.d16\.a64 .*\)\s+null"],
    "split_barrier": [r"send\.gtwy.*signal barrier", r"sync\.bar"],
    "read_row_8": [r"load\.ugm\.d32x16t\.a64"],
    "read_row_16": [r"load\.ugm\.d32x32t\.a64"],
    "read_lane": [r"load\.ugm\.d32x8\.a64 \(16\|M0\)"],
    "narrow_bf16": [r"mov \(16\|M0\).*:bf .*:f"],
    "narrow_fp16": [r"mov \(16\|M0\).*:hf .*:f"],
    "read_double": [r"load\.ugm\.d(64|32x2)"],
}


@pytest.mark.ocloc
def test_each_intrinsic_becomes_its_instruction(ocloc: Ocloc) -> None:
    assert _INSTRUCTIONS.keys() == PROBES.keys()

    def look(name: str) -> list[str]:
        probe = PROBES[name]
        arch = "dg2" if probe.simd == 8 else "bmg-g21"
        image = compile_probe(probe, emulated=False).image
        native = ocloc.compile(image, kernel=name, arch=arch, large_grf=False, assembly=True)
        missing = [pattern for pattern in _INSTRUCTIONS[name] if not re.search(pattern, native.assembly)]
        problems = [f"{name}: no {pattern}" for pattern in missing]
        problems += [f"{name}: {objection}" for objection in native.objections]
        if re.search(r":df\b", native.assembly):
            problems.append(f"{name}: fp64 instructions")
        return problems

    with ThreadPoolExecutor(2) as pool:
        assert [problem for problems in pool.map(look, PROBES) for problem in problems] == []


@pytest.mark.ocloc
@pytest.mark.parametrize(
    ("arch", "gather", "packed"), [("bmg-g21", 73, 62), ("pvc", 92, 92), ("lnl-m", 73, 62), ("ptl-h", 73, 62)]
)
def test_prefill_loop_is_dense(builder: Builder, ocloc: Ocloc, arch: str, gather: int, packed: int) -> None:
    """32 dpas per K step of 32, with every load, the prefetches and the split barrier inside."""
    gate_up, down = gemms(arch, 8192)
    for spec, limit, loads in ((gate_up, gather, 2 + 4), (down, packed, 2 + 4)):
        image = compile_spec(builder, spec, arch)
        row = isa_report.measure(spec, arch, image.image, image.seconds, ocloc)
        assert row.objections == ()
        assert row.grf == 256
        assert (row.loop_dpas, row.loop_loads, row.loop_barriers) == (32, loads, 1)
        assert row.loop_prefetches == (1 if spec is gate_up else 2)  # packed tokens are prefetched too
        assert row.loop_instructions <= limit


@pytest.mark.ocloc
@pytest.mark.parametrize(
    ("arch", "m", "grf", "share"),
    # XE measurements of the same sub-group tile 16x(32+32) in the same GRF mode, gather inside
    [
        ("bmg-g21", 1, 256, 0.400),
        ("pvc", 1, 256, 0.302),
        ("bmg-g21", 512, 128, 0.364),
        ("pvc", 512, 128, 0.262),
    ],
)
def test_decode_and_middle_loops_are_dense(
    builder: Builder, ocloc: Ocloc, arch: str, m: int, grf: int, share: float
) -> None:
    gate_up, _ = gemms(arch, m)
    image = compile_spec(builder, gate_up, arch)
    row = isa_report.measure(gate_up, arch, image.image, image.seconds, ocloc)
    assert row.grf == grf
    assert row.objections == ()
    assert row.dpas_share is not None
    assert row.dpas_share >= share


@pytest.mark.ocloc
@pytest.mark.parametrize(
    ("quant", "input_quant", "share"),
    # 1.5 times what vllm-xpu-kernels' loops have in FP8 and INT4, and sycl-tla's 16-bit loop for INT8
    [
        (WeightFormat(encoding=Encoding.E4M3, scale_dtype=DType.FP32, block_n=1, block_k=0), None, 0.10),
        (WeightFormat(encoding=Encoding.INT4, scale_dtype=DType.BF16, block_n=1, block_k=128), None, 0.08),
        (WeightFormat(encoding=Encoding.INT8, scale_dtype=DType.FP32, block_n=1, block_k=0), InputQuant.INT8, 0.40),
    ],
    ids=["fp8", "int4", "int8"],
)
def test_quantized_prefill_loops_are_dense(
    builder: Builder, ocloc: Ocloc, quant: WeightFormat, input_quant: InputQuant | None, share: float
) -> None:
    gate_up, _ = gemms("bmg-g21", 8192, quant=quant, input_quant=input_quant)
    image = compile_spec(builder, gate_up, "bmg-g21")
    row = isa_report.measure(gate_up, "bmg-g21", image.image, image.seconds, ocloc)
    assert row.objections == ()
    assert (gate_up.tile_rows, row.grf) == (32, 256)
    assert row.dpas_share is not None
    assert row.dpas_share >= share


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (1, {"xe_route": 6, "xe_gate_up": 2, "xe_down": 2, "xe_combine": 0, "xe_single": 16}),
        (8192, {"xe_route_count": 1, "xe_route_scan": 1, "xe_route_place": 2}),
    ],
)
def test_no_barrier_is_lost_before_the_gpu_compiler(builder: Builder, m: int, expected: dict[str, int]) -> None:
    """Lanes run in step and sub-groups one after the other on the CPU device, which hides missing barriers."""
    one = isa_report.moe_problem(num_tokens=m, hidden_size=2048, intermediate_size=768)
    found = {
        spec.KERNEL: control_barriers(compile_spec(builder, spec, "bmg-g21").image)
        for spec in isa_report.specs_for("bmg-g21", [one])
        if spec.KERNEL in expected
    }
    assert found == expected


@pytest.mark.ocloc
@pytest.mark.parametrize("arch", ["pvc", "bmg-g21", "dg2"])
def test_no_barrier_is_lost(builder: Builder, ocloc: Ocloc, arch: str) -> None:
    """The same in native code, for those of work-groups."""
    # K slices: before and after the sum. One launch: those of the kernels, the first ticket, three waits (for route,
    # gate_up and down) and the next ticket of each of four steps.
    barriers = {"xe_route": 3, "xe_gate_up": 2, "xe_down": 2, "xe_combine": 0, "xe_single": 15}
    one = isa_report.moe_problem(num_tokens=1, hidden_size=2048, intermediate_size=768)
    for spec in isa_report.specs_for(arch, [one]):
        image = compile_spec(builder, spec, arch).image
        native = ocloc.compile(image, kernel=spec.entry_name, arch=arch, large_grf=spec.large_grf, assembly=True)
        instructions, _ = isa_report.parse_assembly(native.assembly)
        assert sum("sync.bar" in line for line in instructions) == barriers.pop(spec.KERNEL)
    assert not barriers


@pytest.mark.ocloc
@pytest.mark.parametrize("arch", ["pvc", "bmg-g21", "ptl-h", "cri", "dg2"])
@pytest.mark.parametrize("m", [1, 512])
def test_a_single_launch_has_the_fences_and_loops_of_its_steps(
    builder: Builder, ocloc: Ocloc, arch: str, m: int
) -> None:
    """A wait ends in one fence that drops the core's cache; every step's end has one that waits for its stores."""
    one = isa_report.moe_problem(num_tokens=m, hidden_size=2048, intermediate_size=768)
    choice = xe.choose(one, offline_device(arch), configs=())
    spec = xe_single.single_kernel(choice)
    row = isa_report.measure(spec, arch, (built := compile_spec(builder, spec, arch)).image, built.seconds, ocloc)
    assert row.objections == ()
    alone = isa_report.measure(choice.gate_up, arch, compile_spec(builder, choice.gate_up, arch).image, 0.0, ocloc)
    assert arch == "dg2" or row.loop_dpas == alone.loop_dpas  # ocloc adds some of its own there
    assert row.loop_instructions is not None and alone.loop_instructions is not None
    assert row.loop_instructions <= 1.1 * alone.loop_instructions
    native = ocloc.compile(built.image, kernel=spec.entry_name, arch=arch, large_grf=spec.large_grf, assembly=True)
    fences = [
        line for line in isa_report.parse_assembly(native.assembly)[0] if re.search(r"fence\S*\.(gpu|tile)\b", line)
    ]
    dropped = [line for line in fences if "invalidate" in line]
    assert len(dropped) == 3 + 1  # waits for route, gate_up and down; leaving
    assert len(fences) - len(dropped) == 2 * 4 + 1  # steps: every sub-group's, and the release; leaving


@pytest.mark.ocloc
@pytest.mark.parametrize("arch", ["pvc", "bmg-g21", "ptl-h", "cri", "dg2", "mtl"])
def test_nothing_spills(builder: Builder, ocloc: Ocloc, arch: str) -> None:
    """Every kernel and tile of a bf16 plan with aligned and with odd sizes, and the epilogue that needs the most
    registers; docs/isa-report.md has the full cross."""
    shapes = [(2048, 768), (2049, 769)]
    most = {
        "activation": Activation.GELU,
        "swiglu_limit": 7.0,
        "w1_bias_dtype": DType.BF16,
        "w2_bias_dtype": DType.BF16,
        "router_weight_on_input": True,
    }
    problems = [
        dataclasses.replace(isa_report.moe_problem(num_tokens=m, hidden_size=h, intermediate_size=i), **most)
        for m in (1, 512, 8192)
        for h, i in shapes
    ]
    # The conversion that takes the most registers, with the scales that do, by 2D blocks or rows and by bytes.
    codes = WeightFormat(encoding=Encoding.UINT4, scale_dtype=DType.FP16, block_n=1, block_k=64, has_zero_point=True)
    problems += [
        dataclasses.replace(
            isa_report.moe_problem(num_tokens=8192, hidden_size=h, intermediate_size=i, quant=codes), **most
        )
        for h, i in ((2048, 768), (2050, 770))
    ]

    def look(spec: XeSpec) -> list[str]:
        image = compile_spec(builder, spec, arch)
        native = ocloc.compile(image.image, kernel=spec.entry_name, arch=arch, large_grf=spec.large_grf)
        problems = [f"{spec} on {arch}: {objection}" for objection in native.objections]
        if isinstance(spec, XeGemm) and native.facts.get("has_dpas") != "true":
            problems.append(f"{spec} on {arch}: no dpas")
        if isinstance(spec, XeGemm) and int(native.facts["simd_size"]) != spec.simd:
            problems.append(f"{spec} on {arch}: SIMD{native.facts['simd_size']}")
        return problems

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(look, isa_report.specs_for(arch, problems))
        assert [problem for problems in found for problem in problems] == []


def test_emulated_and_native_sources_differ_in_one_constant() -> None:
    gate_up, _ = gemms("bmg-g21", 1)
    native = render(gate_up).splitlines()[1:]
    emulated = render(dataclasses.replace(gate_up, emulated=True)).splitlines()[1:]
    changed = [(a, b) for a, b in zip(native, emulated, strict=True) if a != b]
    assert len(changed) == 1
    assert "emulated = true" in changed[0][1]


def test_report_counts_a_loop() -> None:
    text = """\
//.kernel __sycl_kernel_x
        mov (16|M0)              r1.0<1>:d     r2.0<1;1,0>:d
L10:
        load_block2d.ugm.d16.a64 (1|M0)  r3:16   [r98:1]            {I@2,$12} // comment
        load.ugm.d32x8.a64 (16|M0)  r38:8       [r88:2]            {$14}
        load_block2d.ugm.d16.a64 (1|M0)  null:0 [r93:1]            {$15}
        dpas.8x8 (16|M0)         r54:f         r54:f             r38:bf            r3.0:bf          {Atomic}
        sync.bar                             0x0
(W&f2.0) jmpi                                L10                                  //  ALU pipe: int; $716
        ret (16|M0)              r2.0
"""
    instructions, loop = isa_report.parse_assembly(text)
    assert len(instructions) == 8
    assert (len(loop.instructions), loop.dpas, loop.loads, loop.prefetches, loop.barriers) == (6, 1, 2, 1, 1)


def test_report_counts_messages_of_xe3() -> None:
    loop = isa_report.Loop(
        (
            "(W)  send.ugm (1|M0)  r5  r250  null:0  0x0  0x03F00203  {$25} // wr:1+0, rd:31; load_block2d",
            "send.ugm (16|M0)  r72  r238  null:0  0x0  0x04804580  {$27} // wr:2+0, rd:8; load.ugm.d32x8",
            "(W)  send.ugm (1|M0)  null  r249  null:0  0x0  0x02000203  {$31} // wr:1+0, rd:0; load_block2d",
            "(W)  send.gtwy (1|M0)  null  r4  null:0  0x0  0x02000004  {$3} // wr:1+0, rd:0; signal barrier",
        )
    )
    assert (loop.loads, loop.prefetches) == (2, 1)


def test_report_counts_messages_of_cri() -> None:
    loop = isa_report.Loop(
        (
            "sendg.ugm (1|M0)  r4  r251:1  null:0  0x8803 {A@1,$29} // load_block2d.ugm.d16.a64 [src0] // $570",
            "sendg.ugm (1|M0)  null  r250:1  null:0  0x88803 {$4} // rd:0 B; load_block2d.ugm.d16.a64.ca.ca.uc [src0]",
            "sendg.ugm (16|M0)  null  r8  r12:4  0x3 {$5} // store.ugm.d32x4.a64 [src0]",
        )
    )
    assert (loop.loads, loop.prefetches) == (1, 1)


def test_execution_environment_is_read() -> None:
    text = (
        "kernels:\n  - name:            k\n    execution_env:\n      grf_count:       256\n"
        "      has_dpas:        true\n      spill_size:      64\n    payload_arguments:\n      - arg_type: x\n"
    )
    assert execution_environment(text) == {"grf_count": "256", "has_dpas": "true", "spill_size": "64"}
    assert execution_environment("") == {}


def test_get_ocloc_installs_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    namespace: dict[str, Any] = {"__name__": "get_ocloc", "__file__": str(TOOLS / "get-ocloc")}
    exec(compile((TOOLS / "get-ocloc").read_text(), "get-ocloc", "exec"), namespace)
    assert namespace["default_folder"]() / "bin" / "ocloc" == default_path()

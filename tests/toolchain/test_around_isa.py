# SPDX-License-Identifier: MIT
"""The native code of the kernels around the experts: no spills on any kind of GPU, no barrier lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.report import control_barriers, isa_report

from jitmoe.builder import Builder
from jitmoe.compilers.base import ArtifactKind
from jitmoe.compilers.ocloc import find_ocloc
from jitmoe.plan.architectures import ARCHITECTURES, offline_device
from jitmoe.plan.xe_specs import XeSpec

# The tightest of each kind of registers and instructions; tools/isa-report looks at all.
GPUS = ["pvc", "ptl-h", "dg2", "mtl"]


def all_specs() -> dict[XeSpec, list[str]]:
    """Returns the GPUs of each kernel; those of one sub-group size share it."""
    users: dict[XeSpec, list[str]] = {}
    for arch in ARCHITECTURES:
        for spec in isa_report.around_specs(arch):
            users.setdefault(spec, []).append(arch)
    return users


@pytest.mark.ocloc
def test_nothing_spills(builder: Builder) -> None:
    ocloc, words = find_ocloc()
    if ocloc is None:
        pytest.skip(words)

    def look(item: tuple[XeSpec, list[str]]) -> list[str]:
        spec, arches = item
        made = builder.build_one(spec, offline_device(arches[0]))
        image = made.files[ArtifactKind.SPIRV.value]
        problems = []
        for arch in (name for name in arches if name in GPUS):
            row = isa_report.measure(spec, arch, image, made.info["seconds"], ocloc)
            problems += [f"{spec} on {arch}: {objection}" for objection in row.objections]
        return problems

    with ThreadPoolExecutor(2) as pool:
        assert [problem for problems in pool.map(look, all_specs().items()) for problem in problems] == []


def test_no_barrier_is_lost_before_the_gpu_compiler(builder: Builder) -> None:
    """Lanes run in step and sub-groups one after the other on the CPU device, which hides missing barriers."""
    expected = {
        "xe_topk": 2,  # before a column is read, after the last read; one more before groups are scored
        "xe_topk_capped": 4,  # the same, and around the room of the experts
        "xe_align": 6,
        "xe_align_count": 1,
        "xe_align_scan": 1,
        "xe_align_place": 2,
        "xe_expert_load": 3,
    }
    for spec in isa_report.around_specs("bmg-g21"):
        if spec.KERNEL in expected:
            wanted = expected[spec.KERNEL] + (getattr(spec, "num_groups", 1) > 1)
            wanted -= 2 if getattr(spec, "is_counted", False) else 0
            entry = builder.build_one(spec, offline_device("bmg-g21"))
            image = entry.files[ArtifactKind.SPIRV.value]
            assert control_barriers(image) == wanted, spec

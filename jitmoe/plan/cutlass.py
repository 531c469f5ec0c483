# SPDX-License-Identifier: MIT
"""The plan for Intel GPUs with grouped GEMMs written with CuTe (sycl-tla): the Xe plan with other main loops.

Routing, packing, tiles, grids, workspace and the sum over experts are those of ``plan.xe``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jitmoe.device import Device
from jitmoe.errors import UnsupportedProblemError
from jitmoe.plan import xe
from jitmoe.plan.architectures import architecture
from jitmoe.plan.tuned import TunedConfig
from jitmoe.plan.xe_specs import XeDown, XeGateUp, XeGemm, XeWeights
from jitmoe.problems.fused_moe import MoEProblem

IMPL = "cutlass"
CUTLASS_LARGE_GRF_ACCUMULATORS = 64  # registers; asm operands and a descriptor per message leave less than 128 GRF hold


@dataclass(frozen=True, kw_only=True)  # no slots: it is mixed into classes that have slots of their own
class CutlassGemm(XeGemm):
    """What both grouped GEMMs have."""

    HEADERS: ClassVar[str] = "sycl-tla"  # the package of CuTe for Xe, the extra jitmoe[cutlass]

    @property
    def large_grf(self) -> bool:
        return self.accumulator_registers >= CUTLASS_LARGE_GRF_ACCUMULATORS


@dataclass(frozen=True, slots=True, kw_only=True)
class CutlassGateUp(CutlassGemm, XeGateUp):
    """First grouped GEMM with the activation; main loop by CuTe."""

    KERNEL: ClassVar[str] = "cutlass_gate_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutlassDown(CutlassGemm, XeDown):
    """Second grouped GEMM with the routing weight; main loop by CuTe."""

    KERNEL: ClassVar[str] = "cutlass_down"


FAMILY = xe.Family(impl=IMPL, gate_up=CutlassGateUp, down=CutlassDown, gathers=False)


def objections(problem: MoEProblem, device: Device) -> list[str]:
    """Returns why CuTe kernels cannot compute ``problem`` on ``device``; none if they can."""
    arch = architecture(device.arch)
    found = []
    if not (arch.has_dpas and arch.has_block2d and arch.simd == 16):
        found.append(f"{arch.name} has no 2D block loads with dpas at sub-group size 16")
    if problem.dtype not in xe.DPAS_DTYPES:
        found.append(f"{problem.dtype.value} has no exact dpas")
    if problem.w1_quant is not None or problem.w2_quant is not None or problem.input_quant is not None:
        found.append("quantized weights and inputs are for the xe kernels")
    if found:
        return found
    for which in ("w1", "w2"):
        weights, reason = xe.weights_class(problem, arch, which)
        if weights is not XeWeights.BLOCK2D:
            found.append(f"CuTe's copies are 2D block loads; {reason}")
    return found


def choose(problem: MoEProblem, device: Device, configs: Sequence[TunedConfig] | None = None) -> xe.XeChoice:
    """Returns the kernels for ``problem`` on ``device``; arguments as for ``xe.choose``.

    Raises:
        UnsupportedProblemError: the device, dtype or alignment is one that these kernels do not take.
    """
    found = objections(problem, device)
    if found:
        raise UnsupportedProblemError(problem=f"{problem} with impl={IMPL!r}", reasons=tuple(found))
    return xe.choose(problem, device, configs, FAMILY)

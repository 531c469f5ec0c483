# SPDX-License-Identifier: MIT
"""One valid value of each kind; a test names only what it varies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from jitmoe.cache import CacheKey, Entry
from jitmoe.device import CpuIsa, Device, DeviceKind
from jitmoe.problems.fused_moe import Activation, DType, Layout, MoEProblem
from jitmoe.spec import Argument, KernelSpec, arguments
from jitmoe.tensors import TensorInfo


def cpu_device(**changes: Any) -> Device:
    values: dict[str, Any] = {
        "kind": DeviceKind.CPU,
        "arch": "x86-64",
        "name": "A CPU",
        "driver_version": "2026.20.1",
        "backend": "opencl",
        "num_compute_units": 8,
        "max_work_group_size": 8192,
        "local_mem_bytes": 256 << 10,
        "cpu_isa": CpuIsa.AVX512_BF16,
        "l2_bytes": 1 << 20,
        "l3_bytes": 32 << 20,
    }
    return Device(**{**values, **changes})


def gpu_device(arch: str = "bmg-g21", **changes: Any) -> Device:
    values: dict[str, Any] = {
        "kind": DeviceKind.GPU,
        "arch": arch,
        "name": "A GPU",
        "driver_version": "1.14.0",
        "backend": "level_zero",
        "num_compute_units": 160,
        "max_work_group_size": 1024,
        "local_mem_bytes": 128 << 10,
    }
    return Device(**{**values, **changes})


def moe_problem(**changes: Any) -> MoEProblem:
    """A densely packed problem; strides follow the sizes unless they are given."""
    m, h = changes.get("num_tokens", 7), changes.get("hidden_size", 64)
    i, e, k = changes.get("intermediate_size", 32), changes.get("num_experts", 4), changes.get("top_k", 2)
    w1_nk = changes.get("w1_layout", Layout.NK) is Layout.NK
    w2_nk = changes.get("w2_layout", Layout.NK) is Layout.NK
    values: dict[str, Any] = {
        "num_tokens": m,
        "hidden_size": h,
        "intermediate_size": i,
        "num_experts": e,
        "top_k": k,
        "dtype": DType.BF16,
        "activation": Activation.SILU,
        "topk_ids_dtype": DType.INT64,
        "topk_weights_dtype": DType.FP32,
        "w1_layout": Layout.NK,
        "w2_layout": Layout.NK,
        "num_global_experts": None,
        "x_row_stride": h,
        "out_row_stride": h,
        "w1_expert_stride": 2 * i * h,
        "w1_stride": h if w1_nk else 2 * i,
        "w2_expert_stride": h * i,
        "w2_stride": i if w2_nk else h,
        "topk_ids_row_stride": k,
        "topk_weights_row_stride": k,
    }
    return MoEProblem(**{**values, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySpec(KernelSpec):
    """A kernel family with one constant of each type. It has no header: its source is text for fake compilers."""

    KERNEL: ClassVar[str] = "toy"
    SUB_GROUP_SIZE: ClassVar[int] = 16
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = arguments("in x, out y, int32 num_tokens, int64 x_row_stride")

    dtype: DType = DType.BF16
    layout: Layout = Layout.NK
    tile: int = 32
    has_tail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherToySpec(ToySpec):
    KERNEL: ClassVar[str] = "other_toy"


def perturbed(spec: KernelSpec) -> list[KernelSpec]:
    """Returns one spec per field that differs from ``spec`` in that field only."""
    changed = []
    for spec_field in dataclasses.fields(spec):
        value = getattr(spec, spec_field.name)
        if isinstance(value, bool):
            other: Any = not value
        elif isinstance(value, Enum):
            members = list(type(value))
            other = members[(members.index(value) + 1) % len(members)]
        elif isinstance(value, KernelSpec):
            other = perturbed(value)[-1]
        elif value is None:  # no such part: another family has its fields
            continue
        elif spec_field.name == "simd":
            other = 24 - value  # 8 or 16
        else:
            other = value + 1
        changed.append(dataclasses.replace(spec, **{spec_field.name: other}))
    return changed


BASE_REQUEST = (("spec", "toy(tile=32)"), ("source", "void f();"), ("headers", "h" * 64))
BASE_BUILD = (("compiler", "sycl-jit 2026.2.0 abc"), ("argv", "-O3\n-std=c++20"), ("runtime", ""))


def cache_key(*, name: str = "jitmoe_toy", request: Any = BASE_REQUEST, build: Any = BASE_BUILD, **changes: str):
    """A valid key; ``changes`` replace the values of named entries."""

    def with_changes(entries):
        return tuple((entry, changes.get(entry, value)) for entry, value in entries)

    return CacheKey(name, with_changes(request), with_changes(build))


def cache_entry(key: CacheKey | None = None, image: bytes = b"\x03\x02\x23\x07image", **files: bytes) -> Entry:
    content = {"kernel.spv": image, "kernel.cpp": b"void f();\n", "build.log": b"", **files}
    return Entry(key=key if key is not None else cache_key(), files=content, info={"seconds": 0.2, "jitmoe": "0"})


def tensor_info(shape: tuple[int, ...], dtype: DType | None = DType.BF16, **changes: Any) -> TensorInfo:
    """Facts of a dense tensor on the host; ``strides``, ``place`` and so on can be given."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    values: dict[str, Any] = {
        "address": 1 << 20,
        "shape": shape,
        "strides": tuple(reversed(strides)),
        "dtype": dtype,
        "dtype_name": "torch.int8" if dtype is None else f"torch.{dtype.value}",
        "place": "torch cpu",
    }
    return TensorInfo(**{**values, **changes})


def tensor_infos(*, m: int = 5, h: int = 64, i: int = 32, e: int = 4, k: int = 2, **changes: Any) -> dict[str, Any]:
    """Facts of the arguments of a valid ``fused_moe`` call; ``changes`` replace whole arguments."""
    infos: dict[str, Any] = {
        "hidden_states": tensor_info((m, h)),
        "w1": tensor_info((e, 2 * i, h)),
        "w2": tensor_info((e, h, i)),
        "topk_weights": tensor_info((m, k), DType.FP32),
        "topk_ids": tensor_info((m, k), DType.INT64),
        "expert_map": None,
        "out": tensor_info((m, h)),
    }
    return {**infos, **changes}

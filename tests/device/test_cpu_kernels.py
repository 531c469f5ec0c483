# SPDX-License-Identifier: MIT
"""The CPU kernels against float64: every instruction set that this machine has, dtypes, layouts, tails, routings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import cpu_kernels
from helpers.xe_emulation import Case, case, error

from jitmoe.device import CpuIsa
from jitmoe.pipeline import Pipeline
from jitmoe.problem import Activation, DType, Layout

NK, KN = Layout.NK, Layout.KN
BEST = next(isa for isa in reversed(CpuIsa) if cpu_kernels.has(isa) and isa is not CpuIsa.AMX_BF16)


@pytest.fixture(scope="module")
def pipeline(shared_cache_dir: object) -> Iterator[Pipeline]:
    yield Pipeline()  # reads the settings of the first test, which name the shared cache


def check(pipeline: Pipeline, one: Case, isa: CpuIsa = BEST, num_compute_units: int | None = None) -> torch.Tensor:
    result = cpu_kernels.run(pipeline, one, isa, num_compute_units)
    _, wrong = error(result, one)
    assert not wrong, wrong
    return result


def ragged_ids(m: int, k: int, experts: int) -> torch.Tensor:
    """Expert 0 gets most tokens, expert 1 a few, expert 2 none; one token has no expert, one the same twice."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, experts, (m, k), generator=generator)
    ids[:, 0] = 0
    ids[: m // 12 + 1, 0] = 1
    if m > 3:
        ids[1] = -1
        ids[2] = 3
    return ids


COMBINATIONS = [
    (isa, dtype)
    for isa in (CpuIsa.GENERIC, CpuIsa.AVX2, CpuIsa.AVX512, CpuIsa.AVX512_BF16)
    for dtype in (DType.BF16, DType.FP16, DType.FP32)
    if isa is not CpuIsa.AVX512_BF16 or dtype is DType.BF16  # the others are as on AVX512
]


@pytest.mark.parametrize("layouts", [(NK, NK), (KN, KN)], ids=lambda layouts: layouts[0].value)
@pytest.mark.parametrize(("isa", "dtype"), COMBINATIONS, ids=lambda value: value.value)
def test_dtypes_and_instruction_sets(pipeline, isa, dtype, layouts):
    """Odd sizes with tails everywhere, even ones without; few and many tokens per expert."""
    if not cpu_kernels.has(isa):
        pytest.skip(f"this CPU has no {isa.value}")
    activation = list(Activation)[(COMBINATIONS.index((isa, dtype)) + layouts.index(layouts[0])) % 3]
    for m, h, i, e, k in ((1, 64, 32, 4, 2), (7, 333, 101, 6, 3), (150, 517, 233, 6, 2), (140, 1056, 288, 5, 2)):
        one = case(
            m=m, h=h, i=i, e=e, k=k, dtype=dtype, activation=activation, ids=ragged_ids(m, k, e),
            w1_layout=layouts[0], w2_layout=layouts[1],
        )  # fmt: skip
        check(pipeline, one, isa)


@pytest.mark.parametrize("activation", Activation)
def test_activations(pipeline, activation):
    check(pipeline, case(m=33, h=96, i=64, e=3, k=2, activation=activation))


@pytest.mark.parametrize("layouts", [(NK, KN), (KN, NK)], ids=lambda layouts: layouts[0].value + layouts[1].value)
def test_mixed_layouts_with_padded_rows(pipeline, layouts):
    """Rows of x and of the weights are further apart than they are long, with NaN in between."""
    check(pipeline, case(m=60, h=101, i=77, e=4, k=3, w1_layout=layouts[0], w2_layout=layouts[1], padding=3))


@pytest.mark.parametrize("ids_dtype", [DType.INT32, DType.INT64])
@pytest.mark.parametrize("weights_dtype", [DType.BF16, DType.FP16, DType.FP32, DType.FP64])
def test_routing_dtypes(pipeline, ids_dtype, weights_dtype):
    check(pipeline, case(m=20, h=64, i=32, e=4, k=2, ids_dtype=ids_dtype, weights_dtype=weights_dtype))


def test_expert_map(pipeline):
    expert_map = torch.tensor([-1, 2, 0, 7, 1, -3], dtype=torch.int32)
    ids = torch.randint(-2, 9, (50, 3), generator=torch.Generator().manual_seed(2))
    check(pipeline, case(m=50, h=64, i=48, e=3, k=3, ids=ids, expert_map=expert_map))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9, 12, 13, 23, 24, 25, 47, 95, 96, 97, 193, 300])
@pytest.mark.parametrize("layout", [NK, KN])
def test_every_tile_split(pipeline, tokens, layout):
    """All tokens go to one expert, so that the number of tokens decides on form and tiles."""
    ids = torch.full((tokens, 1), 1)
    check(pipeline, case(m=tokens, h=600, i=70, e=2, k=1, ids=ids, w1_layout=layout, w2_layout=layout))


@pytest.mark.parametrize("num_compute_units", [1, 7, 64, 300])
def test_any_number_of_cores(pipeline, num_compute_units):
    check(pipeline, case(m=130, h=777, i=345, e=3, k=2), num_compute_units=num_compute_units)


def test_same_bits_every_time(pipeline):
    one = case(m=100, h=512, i=256, e=4, k=4)
    first = check(pipeline, one)
    for _ in range(5):
        assert torch.equal(cpu_kernels.run(pipeline, one, BEST), first)


def test_no_valid_expert_gives_zeros(pipeline):
    one = case(m=5, h=64, i=32, e=2, k=2, ids=torch.full((5, 2), 9))
    assert torch.equal(cpu_kernels.run(pipeline, one, BEST), torch.zeros(5, 64, dtype=torch.bfloat16))

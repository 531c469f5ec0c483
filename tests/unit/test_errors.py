# SPDX-License-Identifier: MIT
"""Errors carry evidence, say what to do next, and survive pickling."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from jitmoe import errors

SAMPLES = {
    "ArgumentError": (
        errors.ArgumentError(argument="w1", got="shape [3]", expected="[E, 2*I, H]"),
        ["w1", "shape [3]", "[E, 2*I, H]"],
    ),
    "ModelError": (
        errors.ModelError(model="qwen3-30b", reason="no such model", advice="Did you mean qwen3-30b-a3b?"),
        ["qwen3-30b: no such model", "Did you mean qwen3-30b-a3b?"],
    ),
    "UnsupportedProblemError": (
        errors.UnsupportedProblemError(problem="fused_moe(M=1)", reasons=("SLM 70000 > 65536 bytes", "no dpas")),
        ["fused_moe(M=1)", "SLM 70000 > 65536 bytes", "no dpas"],
    ),
    "ToolchainNotFoundError": (
        errors.ToolchainNotFoundError(searched=("icpx: not on PATH", "intel-sycl-rt: not installed")),
        ["icpx: not on PATH", "intel-sycl-rt: not installed", "next step: pip install"],
    ),
    "HeadersNotFoundError": (
        errors.HeadersNotFoundError(kernel="jitmoe_toy", package="sycl-tla", searched="sycl-tla: not installed"),
        ["jitmoe_toy", "sycl-tla: not installed", "next step: pip install 'jitmoe[cutlass]'"],
    ),
    "CompileError": (
        errors.CompileError(
            kernel="jitmoe_toy",
            reason="no result within 3 s",
            command=("icpx", "-fsycl", "a b"),
            log="toy.cpp:1:2: error: no",
            source_path=Path("/c/failed/toy.cpp"),
            spec="toy(tile=3)",
        ),
        ["jitmoe_toy", "no result within 3 s", "icpx -fsycl", "toy.cpp:1:2", "/c/failed/toy.cpp", "toy(tile=3)"],
    ),
    "MissingKernelError": (
        errors.MissingKernelError(
            kernel="jitmoe_toy",
            spec="toy(tile=3)",
            warmup="jitmoe-warmup MODEL --device cpu",
            near_miss="differs in: x",
        ),
        ["jitmoe_toy", "JITMOE_DISABLE_JIT=1", "toy(tile=3)", "jitmoe-warmup MODEL --device cpu", "differs in: x"],
    ),
    "LoadError": (errors.LoadError(kernel="jitmoe_toy", reason="no entry", path=Path("/k.so")), ["no entry", "/k.so"]),
    "SelfCheckError": (
        errors.SelfCheckError(kernels=("a", "b"), device="A GPU", evidence="element 3 is 0 instead of 1"),
        ["a, b", "A GPU", "element 3 is 0 instead of 1", "next step"],
    ),
    "RuntimeUnavailableError": (
        errors.RuntimeUnavailableError(reason="no device", advice="pip install 'jitmoe[cpu]'"),
        ["no device", "next step: pip install"],
    ),
    "LaunchError": (errors.LaunchError(kernel="jitmoe_toy", detail="refused"), ["jitmoe_toy", "refused"]),
    "CacheError": (errors.CacheError(path=Path("/c"), reason="not a bundle"), ["/c", "not a bundle"]),
}


def test_there_is_a_sample_of_every_error():
    def leaves(cls):
        return {cls.__name__} if not cls.__subclasses__() else set().union(*map(leaves, cls.__subclasses__()))

    ours = {name for name in leaves(errors.JitMoEError) if hasattr(errors, name)}
    assert ours == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_text_holds_the_evidence(name):
    error, parts = SAMPLES[name]
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickling_keeps_type_fields_and_text(name, protocol):
    error, _ = SAMPLES[name]
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)


@pytest.mark.parametrize("name", SAMPLES)
def test_notes_do_not_keep_an_error_from_pickling(name):
    error = copy.copy(SAMPLES[name][0])
    if not hasattr(error, "add_note"):
        pytest.skip("Python 3.11 has notes")
    error.add_note("seen in rank 3")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("name", SAMPLES)
def test_repr_is_of_use(name):
    error, _ = SAMPLES[name]
    assert type(error).__name__ in repr(error)
    assert len(repr(error)) > len(type(error).__name__) + 2


def test_everything_is_a_jitmoe_error_and_bad_arguments_are_value_errors():
    assert all(isinstance(error, errors.JitMoEError) for error, _ in SAMPLES.values())
    assert isinstance(SAMPLES["ArgumentError"][0], ValueError)


def test_a_compiler_that_only_a_setting_forbids_is_not_to_be_installed():
    text = str(errors.ToolchainNotFoundError(searched=("icpx: not on PATH",), wanted="icpx"))
    assert "JITMOE_COMPILER=icpx allows no other" in text and "next step: unset JITMOE_COMPILER" in text
    assert "pip install" not in text


def test_long_logs_are_cut_to_their_tail():
    log = "\n".join(f"line {number}" for number in range(100))
    error = errors.CompileError(kernel="k", reason="r", command=("c",), log=log, source_path=None, spec="s")
    assert "line 99" in str(error)
    assert "line 69" not in str(error)
    assert "(70 lines before)" in str(error)

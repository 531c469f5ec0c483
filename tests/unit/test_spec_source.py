# SPDX-License-Identifier: MIT
"""spec -> source: no field can be forgotten, and the text is what a person would write."""

from __future__ import annotations

import dataclasses
import pickle
import re
from typing import ClassVar

import pytest
from helpers.builders import OtherToySpec, ToySpec, cpu_device, perturbed
from helpers.fakes import FakeCompiler
from helpers.spec_samples import all_specs

from jitmoe import source
from jitmoe.pipeline import Pipeline
from jitmoe.plan.topk_specs import TopKConstants
from jitmoe.problems.fused_moe import DType
from jitmoe.source import INCLUDE_DIR, header_digest, render
from jitmoe.spec import Argument, KernelSpec, arguments

SPECS = all_specs()


def one_of_each_family() -> list[KernelSpec]:
    return list({type(spec): spec for spec in (ToySpec(), *SPECS)}.values())


def family(spec: object) -> str:
    return type(spec).__name__


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WholeSpec(KernelSpec):
    KERNEL: ClassVar[str] = "whole"
    ARGUMENTS: ClassVar[tuple[Argument, ...]] = ()

    steps: int = 2
    first_part: ToySpec
    second_part: OtherToySpec
    missing: ToySpec | None


GOLDEN_TOY = """\
// toy(dtype=bf16 layout=nk tile=32 has_tail=False)
#include <jitmoe/entry.hpp>
#include <jitmoe/kernel/toy.hpp>

namespace {
struct Config {
  [[maybe_unused]] static constexpr auto dtype = jitmoe::DType::bf16;
  [[maybe_unused]] static constexpr auto layout = jitmoe::Layout::nk;
  [[maybe_unused]] static constexpr jitmoe::int32 tile = 32;
  [[maybe_unused]] static constexpr bool has_tail = false;
};
}  // namespace

extern "C" JITMOE_ND_RANGE(1) JITMOE_SUB_GROUP_SIZE(16)
void jitmoe_toy(
    const void* x,
    void* y,
    jitmoe::int32 num_tokens,
    jitmoe::int64 x_row_stride) {
  jitmoe::kernel::toy<Config>({.x = x, .y = y, .num_tokens = num_tokens, .x_row_stride = x_row_stride});
}
"""


def test_golden_toy():
    assert render(ToySpec()) == GOLDEN_TOY


def test_golden_route_serial():
    cpu = pytest.importorskip("jitmoe.plan.cpu")
    text = render(cpu.RouteSerialSpec(ids_dtype=DType.INT64, has_expert_map=True))
    assert (
        text
        == """\
// route_serial(ids_dtype=int64 has_expert_map=True)
#include <jitmoe/entry.hpp>
#include <jitmoe/kernel/route_serial.hpp>

namespace {
struct Config {
  [[maybe_unused]] static constexpr auto ids_dtype = jitmoe::DType::int64;
  [[maybe_unused]] static constexpr bool has_expert_map = true;
};
}  // namespace

struct Arguments {
  alignas(8) const void* topk_ids;
  alignas(8) const void* expert_map;
  alignas(8) void* cursors;
  alignas(8) void* sorted_pairs;
  alignas(8) void* groups;
  alignas(8) jitmoe::int32 num_tokens;
  alignas(8) jitmoe::int32 top_k;
  alignas(8) jitmoe::int32 num_experts;
  alignas(8) jitmoe::int32 num_global_experts;
  alignas(8) jitmoe::int64 topk_ids_row_stride;
};

extern "C" JITMOE_ND_RANGE(1) JITMOE_WORK_GROUP_SIZE_1D(1)
void jitmoe_route_serial(
    Arguments arguments) {
  jitmoe::kernel::route_serial<Config>({.topk_ids = arguments.topk_ids, .expert_map = arguments.expert_map, \
.cursors = arguments.cursors, .sorted_pairs = arguments.sorted_pairs, .groups = arguments.groups, \
.num_tokens = arguments.num_tokens, .top_k = arguments.top_k, .num_experts = arguments.num_experts, \
.num_global_experts = arguments.num_global_experts, .topk_ids_row_stride = arguments.topk_ids_row_stride});
}
"""
    )


@pytest.mark.parametrize("spec", one_of_each_family(), ids=family)
def test_every_field_changes_text_and_key(spec):
    pipeline, compiler = Pipeline(compilers=()), FakeCompiler()

    def key(spec):
        return pipeline.key(spec, cpu_device(), compiler).digest

    assert dataclasses.fields(spec)
    for other in perturbed(spec):
        assert render(other) != render(spec), other
        assert key(other) != key(spec), other


@pytest.mark.parametrize("spec", one_of_each_family(), ids=family)
def test_the_constants_are_the_fields(spec):
    there = [field.name for field in dataclasses.fields(spec) if getattr(spec, field.name) is not None]
    assert [name for name, _ in spec.constants()] == there
    for name, value in spec.constants():
        struct = f"struct {name.title().replace('_', '')}Config {{"
        assert re.search(
            rf"static constexpr \S+ {name} = " if not isinstance(value, KernelSpec) else struct, render(spec)
        )


@pytest.mark.parametrize("spec", one_of_each_family(), ids=family)
def test_specs_are_values(spec):
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec and hash(again) == hash(spec)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, dataclasses.fields(spec)[0].name, None)


def test_distinct_specs_have_distinct_texts_and_sources():
    assert len({str(spec) for spec in SPECS}) == len(SPECS)
    assert len({render(spec) for spec in SPECS}) == len(SPECS)


def test_families_of_equal_fields_differ_by_name():
    assert render(OtherToySpec()) != render(ToySpec())


@pytest.mark.parametrize("spec", [spec for spec in one_of_each_family() if family(spec) != "ToySpec"], ids=family)
def test_the_header_of_every_family_exists_and_names_its_arguments(spec):
    header = INCLUDE_DIR / "jitmoe" / "kernel" / f"{spec.KERNEL}.hpp"
    text = header.read_text()
    assert "SPDX-License-Identifier: MIT" in text.splitlines()[0]
    for argument in spec.ARGUMENTS:
        assert re.search(rf"\b{argument.name}\b", text) or "Args" in text, argument


def test_a_spec_of_specs_has_their_constants_as_structs():
    text = render(WholeSpec(first_part=ToySpec(tile=8), second_part=OtherToySpec(), missing=None))
    assert (
        """struct Config {
  [[maybe_unused]] static constexpr jitmoe::int32 steps = 2;
  struct FirstPartConfig {
    [[maybe_unused]] static constexpr auto dtype = jitmoe::DType::bf16;
    [[maybe_unused]] static constexpr auto layout = jitmoe::Layout::nk;
    [[maybe_unused]] static constexpr jitmoe::int32 tile = 8;
    [[maybe_unused]] static constexpr bool has_tail = false;
  };
  struct SecondPartConfig {
"""
        in text
    )
    assert "MissingConfig" not in text


def all_constant_names(spec):
    for name, value in spec.constants():
        yield name
        if isinstance(value, KernelSpec):
            yield from all_constant_names(value)


def test_specs_do_not_depend_on_token_expert_or_slot_counts():
    for spec in SPECS:
        if isinstance(spec, TopKConstants):  # a router's experts and slots never change, and decide its inner loops
            assert "num_tokens" not in set(all_constant_names(spec))
            continue
        names = set(all_constant_names(spec))
        assert not names & {"num_tokens", "num_experts", "top_k", "m", "e", "k"}


def test_rendering_is_a_pure_function():
    for spec in SPECS[:20]:
        assert render(spec) == render(dataclasses.replace(spec))


def test_arguments_parse():
    assert arguments("in x,\n out y, int32 n") == (Argument("x", "in"), Argument("y", "out"), Argument("n", "int32"))
    assert arguments("float32 alpha") == (Argument("alpha", "float32"),)
    with pytest.raises(ValueError, match="float16"):
        arguments("float16 alpha")


def test_header_digest_follows_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "INCLUDE_DIR", tmp_path)

    def digest(files):
        for path in tmp_path.rglob("*.hpp"):
            path.unlink()
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        header_digest.cache_clear()
        return header_digest()

    try:
        variants = [
            {"a.hpp": "x", "b.hpp": "y"},
            {"a.hpp": "y", "b.hpp": "x"},
            {"a.hpp": "xy", "b.hpp": ""},
            {"a.hpp": "x", "sub/b.hpp": "y"},
            {"a.hpp": "x"},
            {"a.hppx": "", "a.hpp": "x", "b.hpp": "y", "c.hpp": ""},
        ]
        assert len({digest(files) for files in variants}) == len(variants)
        assert digest(variants[0]) == digest(dict(reversed(variants[0].items())))
    finally:
        header_digest.cache_clear()
    monkeypatch.undo()


def test_every_packaged_header_is_in_the_digest():
    """The digest covers *.hpp; a header with another suffix could be edited without anyone noticing."""
    others = [p for p in INCLUDE_DIR.rglob("*") if p.is_file() and p.suffix != ".hpp"]
    assert others == []


def test_headers_include_only_headers_that_exist():
    for header in INCLUDE_DIR.rglob("*.hpp"):
        for line in header.read_text().splitlines():
            found = re.match(r"\s*#\s*include\s+[<\"](.+?)[>\"]", line)
            if found and found.group(1).startswith("jitmoe/"):
                assert (INCLUDE_DIR / found.group(1)).is_file(), (header, line)
            assert not re.match(r'\s*#\s*include\s+"', line), f"{header}: spell it <jitmoe/...>: {line}"


def test_no_device_header_includes_the_whole_of_sycl():
    for header in INCLUDE_DIR.rglob("*.hpp"):
        assert not re.search(r"#\s*include\s+<sycl/sycl\.hpp>", header.read_text()), header
    for header in INCLUDE_DIR.rglob("*.hpp"):
        if "host" not in header.parts:
            assert "jitmoe/host/" not in header.read_text(), header

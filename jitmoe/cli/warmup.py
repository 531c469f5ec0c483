# SPDX-License-Identifier: MIT
"""jitmoe-warmup: gets every kernel of a model compiled, checked and cached before the first request needs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from jitmoe import knobs, pipeline
from jitmoe.cli import terminal
from jitmoe.cli.devices import DeviceError, Target, resolve
from jitmoe.cli.layers import look_only_cache
from jitmoe.cli.model_calls import DEFAULT_OPS, MAX_TOKENS, OPS, Bucket, Calls, Dtypes, calls_of, default_token_counts
from jitmoe.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from jitmoe.compilers.base import parallel_jobs
from jitmoe.errors import ArgumentError, JitMoEError, ModelError, RuntimeUnavailableError, UnsupportedProblemError
from jitmoe.model_formats import NAMED, PLAIN
from jitmoe.models import MODELS, MoEModel, find_model
from jitmoe.pipeline import Pipeline
from jitmoe.problems.fused_moe import COMPUTE_DTYPES, INDEX_DTYPES, WEIGHT_DTYPES, DType, Layout
from jitmoe.runtime.stream import stream_of
from jitmoe.spec import KernelSpec

SHOWN_FAILURES = 3  # in full

EXAMPLES = """\
examples:
  jitmoe-warmup qwen3-30b-a3b                   for the device that is here
  jitmoe-warmup Qwen/Qwen3-30B-A3B --dry-run    which binaries it needs, and which are cached
  jitmoe-warmup ./my-model --device bmg-g21     for a GPU that is not here: compile only
  jitmoe-warmup deepseek-v3 --ep 8 --jobs 4     one rank's experts of eight, four compilations at once
  jitmoe-warmup H2048,I768,E128,k8 --dtype fp16 sizes instead of a model
  jitmoe-warmup mixtral-8x7b --tokens 1,64 --explain

exit codes: 0 all kernels are ready, 1 some are not, 2 the command line or the model is not understood
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What one device needs."""

    target: Target
    calls: tuple[Calls, ...]

    @property
    def of_each_op(self) -> tuple[Calls, ...]:
        """The first calls of each op: what is shown, because dtypes change little."""
        return _first_of_each((calls.op, calls) for calls in self.calls)

    @property
    def specs(self) -> tuple[KernelSpec, ...]:
        """All kernels, each once."""
        return tuple(dict.fromkeys(spec for calls in self.calls for spec in calls.specs))

    @property
    def sets(self) -> tuple[tuple[Calls, Bucket], ...]:
        """Kernels that are loaded and checked together, each set once, with calls that need it."""
        return _first_of_each((bucket.plan.specs, (calls, bucket)) for calls in self.calls for bucket in calls.buckets)


_Value = TypeVar("_Value")


def _first_of_each(items: Iterable[tuple[Hashable, _Value]]) -> tuple[_Value, ...]:
    """Returns the first value of each key."""
    found: dict[Hashable, _Value] = {}
    for key, value in items:
        found.setdefault(key, value)
    return tuple(found.values())


@dataclass
class Outcome:
    """What happened on all devices together."""

    compiled: int = 0
    cached: int = 0
    checked: int = 0  # sets of kernels that were loaded, and self-checked unless they had been before
    failures: list[tuple[str, JitMoEError]] = field(default_factory=list)


def _parse_tokens(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.replace(",", " ").split()}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 1,8,64") from None
    if not counts or counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: token counts are at least 1")
    return counts


def _parse_names(text: str) -> list[str]:
    names = text.replace(",", " ").split()
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _dtypes(*allowed: DType) -> Callable[[str], tuple[DType, ...]]:
    names = {dtype.value: dtype for dtype in allowed}

    def parse(text: str) -> tuple[DType, ...]:
        try:
            return tuple(dict.fromkeys(names[part] for part in _parse_names(text)))
        except KeyError as error:
            raise argparse.ArgumentTypeError(f"{error.args[0]!r} is none of {', '.join(names)}") from None

    return parse


def _ops(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_parse_names(text)))
    for name in names:
        if name not in OPS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(OPS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number >= 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jitmoe-warmup",
        description="Compiles, checks and caches the kernels of a model, so that serving finds everything ready.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a model name (--list-models), a Hugging Face config.json or its folder, or sizes (H2048,I768,E128,k8)",
    )
    parser.add_argument("--list-models", action="store_true", help="show the built-in table and end")
    what = parser.add_argument_group("what to prepare")
    what.add_argument(
        "--tokens",
        type=_parse_tokens,
        metavar="LIST",
        help=f"token counts per call, e.g. 1,8,64 (default: every kernel choice between 1 and {MAX_TOKENS})",
    )
    what.add_argument(
        "--ops",
        type=_ops,
        metavar="LIST",
        default=DEFAULT_OPS,
        help=f"of {', '.join(OPS)} (default: {','.join(DEFAULT_OPS)}; fused_moe includes routing=)",
    )
    what.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], help="of tokens and weights (default: the model's)")
    what.add_argument(
        "--format",
        choices=list(NAMED),
        help="of quantized weights (default: what the config.json says; with --dtype: none)",
    )
    what.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        help="of both weights: nk = [E, N, K] as in checkpoints, kn = transposed (default: the model's)",
    )
    what.add_argument(
        "--ids",
        type=_dtypes(*INDEX_DTYPES),
        metavar="LIST",
        default=INDEX_DTYPES,
        help="dtypes of topk_ids (default: int32,int64)",
    )
    what.add_argument(
        "--weights",
        type=_dtypes(*WEIGHT_DTYPES),
        metavar="LIST",
        help="dtypes of topk_weights (default: fp32 and the model's dtype)",
    )
    what.add_argument(
        "--logits",
        type=_dtypes(*COMPUTE_DTYPES),
        metavar="LIST",
        help="dtypes of router_logits (default: fp32 and the model's dtype)",
    )
    what.add_argument("--tp", type=_positive, default=1, metavar="N", help="tensor parallel ranks: each has I/N")
    what.add_argument(
        "--ep",
        type=_positive,
        default=1,
        metavar="N",
        help="expert parallel ranks: each has E/N experts and an expert_map",
    )
    what.add_argument("--expert-map", action="store_true", help="calls pass an expert_map (implied by --ep)")
    where = parser.add_argument_group("for which device, and how")
    where.add_argument(
        "--impl",
        choices=knobs.IMPL_CHOICES,
        help="GPU kernels: xe, cutlass, or auto as in serving (default: JITMOE_IMPL, else auto)",
    )
    where.add_argument(
        "--device",
        action="extend",
        type=_parse_names,
        default=[],
        metavar="LIST",
        help="cpu, gpu, or an architecture such as bmg-g21, pvc, cpu-avx2 that need not be here "
        "(default: the GPUs that are here, else the CPU)",
    )
    where.add_argument(
        "--jobs", type=_positive, metavar="N", help="compilations at once (default: by cores and memory)"
    )
    where.add_argument("--dry-run", action="store_true", help="list the binaries and whether they are cached; no more")
    where.add_argument("--explain", action="store_true", help="show what is chosen per range of token counts, and why")
    where.add_argument("-q", "--quiet", action="store_true", help="only the summary")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns its exit code."""
    return terminal.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list_models:
        _print_models()
        return EXIT_OK
    if options.model is None:
        parser.error("which model? (--list-models shows the table)")
    try:
        settings = knobs.current()
        model = _model(options)
        targets = resolve(options.device)
    except (ModelError, DeviceError, UnsupportedProblemError, ArgumentError) as error:
        terminal.fail(error)
        return EXIT_USAGE
    if options.jobs:
        settings = dataclasses.replace(settings, jobs=options.jobs)
    with knobs.override(impl=options.impl or settings.impl):
        return _prepare(options, settings, model, targets)


def _prepare(options: argparse.Namespace, settings: knobs.Knobs, model: MoEModel, targets: Sequence[Target]) -> int:
    print(", ".join(filter(None, (f"{model.name}: {model}", model.features, _layout_words(model)))))
    prepared = "" if model.router.routing is not None else "; calls with routing= are not prepared"
    print(f"routing: {model.router}{prepared}")
    if model.note:
        print(f"note: {model.note}")
    usual = tuple(dict.fromkeys((DType.FP32, model.dtype)))
    dtypes = Dtypes(ids=options.ids, weights=options.weights or usual, logits=options.logits or usual)
    tokens = options.tokens or default_token_counts()
    work: list[Work] = []
    for target in targets:
        try:
            calls = calls_of(target.device, model, options.ops, dtypes, tokens, exact=options.tokens is not None)
        except UnsupportedProblemError as error:
            terminal.fail(f"{target.words}: {error}")
            return EXIT_FAILED
        if not calls:
            terminal.fail(f"{model.name}: nothing to prepare, because its routing is {model.router}")
            return EXIT_USAGE
        work.append(Work(target, calls))

    if options.explain:
        for one in work:
            for bucket in (bucket for calls in one.of_each_op for bucket in calls.buckets):
                print(f"\nM = {bucket.tokens}")
                print(pipeline.explain(bucket.problem, one.target.device))
    if options.dry_run:
        return _dry_run(Pipeline(settings, cache=look_only_cache(settings)), work, quiet=options.quiet)
    if options.explain:
        print()
    return _warm_up(Pipeline(settings), work, quiet=options.quiet)


def _model(options: argparse.Namespace) -> MoEModel:
    model = find_model(options.model)
    changes: dict[str, object] = {}
    if options.dtype:
        # An explicit dtype says that the weights are converted when they are loaded.
        changes.update(dtype=DType(options.dtype), formats=PLAIN)
    if options.format:
        changes.update(formats=NAMED[options.format])
    if options.layout:
        changes.update(w1_layout=Layout(options.layout), w2_layout=Layout(options.layout))
    if options.expert_map:
        changes.update(num_global_experts=model.num_experts)
    model = dataclasses.replace(model, **changes)  # type: ignore[arg-type]
    if Layout.KN.value == options.layout and model.stored_layouts != (Layout.KN, Layout.KN):
        raise ArgumentError(argument="--layout", got="kn", expected="nk: quantized weights are [E, N, K]")
    model = model.sharded(tensor_parallel=options.tp, expert_parallel=options.ep)
    try:
        model.check()
    except UnsupportedProblemError as error:
        if model.formats.unknown and not dataclasses.replace(model, formats=PLAIN).obstacles:
            reasons = (*error.reasons, "if the weights are converted when they are loaded, say so: --dtype bf16")
            raise UnsupportedProblemError(problem=error.problem, reasons=reasons) from None
        raise
    return model


def _layout_words(model: MoEModel) -> str:
    words = {Layout.NK: "[E, N, K]", Layout.KN: "[E, K, N]"}
    w1_layout, w2_layout = model.stored_layouts
    text = f"weights {words[w1_layout]}"
    if w2_layout is not w1_layout:
        text += f" and {words[w2_layout]}"
    if model.num_global_experts is not None:
        text += f", expert map of {model.num_global_experts}"
    return text


def _print_models() -> None:
    rows = []
    for model in MODELS.values():
        sizes = [str(n) for n in (model.hidden_size, model.intermediate_size, model.num_experts, model.top_k)]
        rows.append([model.name, *sizes, model.activation, str(model.router), model.features])
    table = terminal.text_table(
        rows, header=("MODEL", "H", "I", "E", "k", "ACTIVATION", "ROUTING", ""), right=(1, 2, 3, 4), indent=0
    )
    print(terminal.shorten(table))


def _spec_words(spec: KernelSpec) -> tuple[str, str]:
    kernel, _, constants = str(spec).partition("(")
    return kernel, constants.removesuffix(")")


def _dry_run(pipe: Pipeline, work: list[Work], *, quiet: bool) -> int:
    total = missing = 0
    for one in work:
        specs = one.specs
        rows = []
        for number, spec in enumerate(specs, 1):
            entry = pipe.cached(spec, one.target.device)
            missing += entry is None
            rows.append((str(number), "cached" if entry is not None else "missing", *_spec_words(spec)))
        total += len(specs)
        if quiet:
            continue
        print(f"\n{one.target.words}: {terminal.count(len(specs), 'binary', 'binaries')}")
        print(terminal.shorten(terminal.text_table(rows, right=(0,))))
        names = {spec: number for number, spec in enumerate(specs, 1)}
        for calls in one.of_each_op:
            print(f"\n  {calls.op} by token count, {calls.dtypes}")
            for bucket in calls.buckets:
                kernels = ", ".join(f"{spec.KERNEL} ({names[spec]})" for spec in bucket.plan.specs)
                print(terminal.shorten(f"  M {bucket.tokens:<14}{kernels}"))
    if not quiet:
        print()
    print(f"{terminal.count(total, 'binary', 'binaries')}: {total - missing} cached, {missing} to compile")
    _print_layers(pipe)
    return EXIT_OK


def _print_layers(pipe: Pipeline) -> None:
    store = pipe.cache.writable
    print(f"cache folder {store.root}" if store is not None else "no cache folder can be written")


def _warm_up(pipe: Pipeline, work: list[Work], *, quiet: bool) -> int:
    started = time.perf_counter()
    outcome = Outcome()
    cache = pipe.cache
    if cache.writable is None:
        terminal.fail("no folder can hold the kernels, so warming up would be lost; set JITMOE_CACHE_DIR")
        return EXIT_FAILED
    for one in work:
        target, specs = one.target, one.specs
        sets = one.sets if target.is_present else ()
        where = "" if target.is_present else "; it is not here, so kernels are compiled but not checked"
        print(f"{target.words}{where}")
        with (
            open(os.devnull, "w") as nowhere,
            terminal.progress(len(specs) + len(sets), nowhere if quiet else None) as display,
        ):
            broken = _compile_all(pipe, specs, target, display, outcome)
            _check_all(pipe, sets, target, display, outcome, broken)
    seconds = time.perf_counter() - started
    _print_failures(outcome)
    lost = []
    if cache.num_in_memory:
        lost.append(terminal.count(cache.num_in_memory, "kernel"))
    if cache.num_verdicts_in_memory:
        lost.append(terminal.count(cache.num_verdicts_in_memory, "self-check record"))
    if lost:
        print(f"\n{' and '.join(lost)} could not be stored: lost now", file=sys.stderr)
    parts = [f"{outcome.compiled} compiled", f"{outcome.cached} cached", f"{len(outcome.failures)} failed"]
    print(f"{', '.join(parts)} in {seconds:.1f} s")
    print(f"cache folder {cache.writable.root}")
    return EXIT_FAILED if outcome.failures or lost else EXIT_OK


def _print_failures(outcome: Outcome) -> None:
    """Prints each kind of failure once with its evidence, and at most a few of them in full."""
    by_text: dict[str, list[str]] = {}
    for what, error in outcome.failures:
        by_text.setdefault(str(error), []).append(what)
    for position, (text, failed) in enumerate(by_text.items()):
        if position == SHOWN_FAILURES:
            print(f"\n... and {terminal.count(len(by_text) - position, 'failure')} more", file=sys.stderr)
            break
        print(f"\nFAILED {failed[0]}" + (f" and {len(failed) - 1} more" if failed[1:] else ""), file=sys.stderr)
        print(text, file=sys.stderr)


def _compile_all(
    pipe: Pipeline, specs: tuple[KernelSpec, ...], target: Target, display: terminal.Progress, outcome: Outcome
) -> set[KernelSpec]:
    """Compiles what is missing, in parallel; returns the kernels that could not be had."""
    broken: set[KernelSpec] = set()
    events: dict[KernelSpec, pipeline.BuildEvent] = {}
    pipe.on_build = lambda event: events.__setitem__(event.spec, event)
    memory = pipe.compilers[0].memory_per_job_bytes if pipe.compilers else 1
    jobs = parallel_jobs(len(specs), wanted=pipe.settings.jobs, memory_per_job_bytes=memory)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="jitmoe-warmup")
    try:
        display.start(f"compiling, {terminal.count(jobs, 'job')} at once")
        futures: dict[Future[object], KernelSpec] = {
            pool.submit(pipe.build, (spec,), target.device): spec for spec in specs
        }
        for future in as_completed(futures):
            spec = futures[future]
            kernel, constants = _spec_words(spec)
            error = future.exception()
            if isinstance(error, JitMoEError):
                broken.add(spec)
                outcome.failures.append((f"{kernel} ({constants})", error))
                display.step(f"FAILED       {kernel}  {constants}")
            elif error is not None:
                raise error
            elif events[spec].source == "cache":
                outcome.cached += 1
                display.step(f"cached       {kernel}  {constants}")
            else:
                outcome.compiled += 1
                display.step(f"{events[spec].seconds:6.2f} s     {kernel}  {constants}")
    except KeyboardInterrupt:
        # Python would wait for running compilations; the compiler processes end with this one.
        pool.shutdown(wait=False, cancel_futures=True)
        display.close()
        print("\ninterrupted; what was compiled so far is in the cache", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)
    pool.shutdown()
    return broken


def _check_all(
    pipe: Pipeline,
    sets: tuple[tuple[Calls, Bucket], ...],
    target: Target,
    display: terminal.Progress,
    outcome: Outcome,
    broken: set[KernelSpec],
) -> None:
    """Loads every set of kernels on its device and runs the self-checks that are not on record yet."""
    if not sets:
        return
    stream = stream_of(target.queue.addressof_ref())
    pipe.on_build = lambda event: None
    for calls, bucket in sets:
        kernels = ", ".join(spec.KERNEL for spec in bucket.plan.specs)
        label = f"{kernels}  {calls.dtypes}"
        if broken & set(bucket.plan.specs):
            display.step(f"not checked  {label}")
            continue
        display.start(f"checking {label}")
        started = time.perf_counter()
        try:
            pipe.prepare(bucket.problem, stream, bucket.problem.OPERATION.tensors)
        except ImportError as error:  # self-checks need torch
            problem = RuntimeUnavailableError(reason=f"the self-check cannot run: {error}", advice="pip install torch")
            outcome.failures.append((label, problem))
            display.step(f"FAILED       checking {label}")
        except JitMoEError as error:
            outcome.failures.append((label, error))
            display.step(f"FAILED       checking {label}")
        else:
            outcome.checked += 1
            display.step(f"{time.perf_counter() - started:6.2f} s     checked {label}")


if __name__ == "__main__":
    sys.exit(main())

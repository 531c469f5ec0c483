# SPDX-License-Identifier: MIT
"""What a call does when something is wrong: self-check, fallback with one warning, strict mode, forks."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import moe
from helpers.processes import children_of, still_running
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import jitmoe
from jitmoe import calls, errors, knobs, pipeline, selfcheck
from jitmoe.compilers.base import ArtifactKind
from jitmoe.compilers.find import find_compilers
from jitmoe.pipeline import Pipeline

ROOT = Path(jitmoe.__file__).parent.parent


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def new_process() -> None:
    """Makes jitmoe forget what a new process would not know; settings are read again."""
    calls._prepared.clear()
    calls._warned.clear()
    knobs._current = None
    pipeline._default = None


class Broken:
    """The wheel's compiler, except that bf16 kernels named ``kernel`` do something else."""

    def __init__(self, kernel: str, body: str) -> None:
        (self._real,), _ = find_compilers("sycl-jit")
        self.kernel, self.body = kernel, body
        self.num_compiled = 0

    name = "broken"
    kind = ArtifactKind.SPIRV
    runtime_abi = ""
    memory_per_job_bytes = 1 << 20

    @property
    def identity(self) -> str:
        return f"broken {self._real.identity}"

    def argv(self, request):
        return self._real.argv(request)

    def compile(self, request, *, build_key, timeout_s):
        self.num_compiled += 1
        if self.kernel in request.kernel and re.search(r"\bdtype=bf16", request.spec):
            never = f"{self.body}\n  if (arguments.num_tokens < 0) jitmoe::kernel::"
            request = dataclasses.replace(request, source=request.source.replace("jitmoe::kernel::", never))
        return self._real.compile(request, build_key=build_key, timeout_s=timeout_s)


def use(monkeypatch, compiler) -> None:
    monkeypatch.setattr("jitmoe.builder.find_compilers", lambda choice, soname: ((compiler,), ()))


BODIES = {
    "computes nothing": "",
    "writes zeros": "for (int i = 0; i < arguments.num_tokens * arguments.hidden_size; ++i) "
    "static_cast<unsigned short*>(arguments.out)[i] = 0;",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_kernel_that_computes_nothing_is_caught_and_replaced(private_cache, monkeypatch, caplog, body):
    broken = Broken("cpu_down", body)
    use(monkeypatch, broken)
    call = moe.make(40)
    moe.check(call.run(), call)
    (message,) = warnings(caplog)
    assert "self-check failed" in message and "jitmoe_cpu_down" in message and "slow reference" in message
    for m in (41, 42, 43):
        other = moe.make(m)
        moe.check(other.run(), other)
    assert len(warnings(caplog)) == 1
    compiled = broken.num_compiled
    new_process()
    moe.check(call.run(), call)
    assert broken.num_compiled == compiled, "the verdict is kept with the image"
    assert "(recorded)" in warnings(caplog)[1]
    monkeypatch.setenv("JITMOE_STRICT", "1")
    new_process()
    other = moe.make(40, dtype=torch.float32)  # shares the routing kernel with what failed
    moe.check(other.run(), other)


def test_in_strict_mode_the_self_check_raises(private_cache, monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    use(monkeypatch, Broken("cpu_gate_up", ""))
    for _ in range(2):
        with pytest.raises(errors.SelfCheckError, match="jitmoe_cpu_gate_up"):
            moe.make(40).run()


def test_a_good_kernel_is_not_blamed_for_a_bad_one(private_cache, monkeypatch):
    """Kernels that have passed with others stay trusted."""
    monkeypatch.setenv("JITMOE_STRICT", "1")
    moe.make(40).run()
    before = set(pipeline.default()._trust._checked)
    assert before
    real = selfcheck.check
    monkeypatch.setattr(selfcheck, "check", lambda *args: (1.0, "a test says so"))
    with pytest.raises(errors.SelfCheckError):
        moe.make(40, weights_dtype=torch.float64).run()  # another down kernel, the same gate_up
    monkeypatch.setattr(selfcheck, "check", real)
    assert set(pipeline.default()._trust._checked) == before
    call = moe.make(41)
    moe.check(call.run(), call)


def test_every_new_kernel_is_checked_once_and_never_again(private_cache, monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    calls = []
    real = selfcheck.check
    monkeypatch.setattr(selfcheck, "check", lambda *args: (calls.append(args[0]), real(*args))[1])
    moe.make(40).run()
    assert len(calls) == 1
    moe.make(41).run()
    moe.make(200, 130, 70, e=9).run()
    assert len(calls) == 1
    moe.make(40, activation="gelu").run()
    assert len(calls) == 2
    new_process()
    moe.make(40).run()
    moe.make(40, activation="gelu").run()
    assert len(calls) == 2


def test_another_device_checks_again(private_cache, monkeypatch):
    """A verdict belongs to one device and driver."""
    monkeypatch.setenv("JITMOE_STRICT", "1")
    moe.make(40).run()
    verdicts = [path.name for path, _ in pipeline.default().cache.writable.verdicts()]
    assert verdicts
    from jitmoe.device import Device

    new_process()
    calls = []
    real = selfcheck.check
    monkeypatch.setattr(selfcheck, "check", lambda *args: (calls.append(1), real(*args))[1])
    monkeypatch.setattr(Device, "fingerprint", property(lambda self: "another-driver00"))
    moe.make(40).run()
    assert calls == [1]


# settings


def test_disable_jit_with_an_empty_cache_names_kernel_and_command(private_cache, monkeypatch):
    monkeypatch.setenv("JITMOE_DISABLE_JIT", "1")
    with pytest.raises(errors.MissingKernelError) as missing:
        moe.make(40).run()
    assert "jitmoe-warmup" in str(missing.value) and "route_serial(" in str(missing.value)


def test_disable_jit_with_a_warm_cache_runs(private_cache, monkeypatch):
    call = moe.make(40)
    call.run()
    new_process()
    monkeypatch.setenv("JITMOE_DISABLE_JIT", "1")
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    moe.check(call.run(), call)


def test_no_compiler_falls_back_with_one_warning(private_cache, monkeypatch, caplog):
    monkeypatch.setattr("jitmoe.builder.find_compilers", lambda choice, soname: ((), ("icpx: not on PATH",)))
    for m in (3, 3, 4):
        call = moe.make(m)
        moe.check(call.run(), call)
    (message,) = warnings(caplog)
    assert "icpx: not on PATH" in message and "slow reference" in message


def test_no_compiler_in_strict_mode_is_an_error(private_cache, monkeypatch):
    monkeypatch.setenv("JITMOE_STRICT", "1")
    monkeypatch.setattr("jitmoe.builder.find_compilers", lambda choice, soname: ((), ("icpx: not on PATH",)))
    with pytest.raises(errors.ToolchainNotFoundError):
        moe.make(3).run()


def test_a_bad_setting_is_an_error_that_names_it(private_cache, monkeypatch):
    monkeypatch.setenv("JITMOE_LOCK_TIMEOUT", "soon")
    with pytest.raises(errors.ArgumentError, match="JITMOE_LOCK_TIMEOUT"):
        moe.make(3).run()


# bad arguments, with real tensors


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("hidden_states", {"hidden_states": torch.zeros(5, 64, dtype=torch.int8)}),
        ("hidden_states", {"hidden_states": torch.zeros(64)}),
        ("hidden_states", {"hidden_states": None}),
        ("hidden_states", {"hidden_states": [[1.0]]}),
        ("hidden_states", {"hidden_states": torch.zeros(5, 64, dtype=torch.bfloat16).to_sparse()}),
        ("hidden_states", {"hidden_states": torch.zeros(5, 64, dtype=torch.bfloat16, device="meta")}),
        ("w1", {"w1": torch.zeros(4, 97, 64, dtype=torch.bfloat16)}),
        ("w1", {"w1": None}),
        ("w2", {"w2": torch.zeros(4, 48, 64, dtype=torch.bfloat16)}),
        ("w2", {"w2": torch.zeros(4, 64, 96, dtype=torch.bfloat16)[:, :, ::2].transpose(0, 1)}),
        ("topk_ids", {"topk_ids": torch.zeros(5, 2, dtype=torch.int8)}),
        ("topk_ids", {"topk_ids": torch.zeros(5, 0, dtype=torch.int64)}),
        ("topk_ids", {"topk_ids": torch.zeros(5, 2)}),
        ("topk_weights", {"topk_weights": torch.zeros(5, 2, dtype=torch.int32)}),
        ("topk_weights", {"topk_weights": None}),
        ("activation", {"activation": "relu"}),
        ("activation", {"activation": ["silu"]}),
        ("activation", {"activation": None}),
        ("expert_map", {"expert_map": torch.zeros(8, dtype=torch.int64)}),
        ("expert_map", {"expert_map": 3}),
        ("out", {"out": torch.zeros(5, 64)}),
        ("out", {"out": torch.zeros(4, 64, dtype=torch.bfloat16)}),
        ("out", {"out": torch.zeros(64, dtype=torch.bfloat16).expand(5, 64)}),
        ("out", {"out": torch.zeros(5, 64, dtype=torch.bfloat16), "inplace": True}),
        ("out", {"out": "here"}),
        ("inplace", {"inplace": "yes"}),
        ("queue", {"queue": "gpu"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_arguments_are_named_before_anything_runs(argument, changes, monkeypatch):
    monkeypatch.setattr(Pipeline, "prepare", lambda *args: pytest.fail("went on to the kernels"))
    with pytest.raises(errors.ArgumentError) as refused:
        moe.make(5).changed(**changes).run()
    assert refused.value.argument == argument
    assert refused.value.expected


# tensors that look like others and have no memory, or not what is in it


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def _distributed(tensor: torch.Tensor) -> torch.Tensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


NOT_THERE = {
    "emptied": _emptied,
    "emptied, not from its start": lambda tensor: _emptied(torch.cat((tensor, tensor))[len(tensor) :]),
    "fake": _fake,
    "meta": lambda tensor: tensor.to("meta"),
    "distributed": _distributed,
    "zeros of autograd": lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
    "negated later": torch._neg_view,
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("is_prepared", [False, True], ids=["new", "prepared"])
@pytest.mark.parametrize("argument", ["hidden_states", "w1", "topk_weights"])
@pytest.mark.parametrize("kind", NOT_THERE)
def test_tensors_whose_elements_are_not_in_memory_are_refused(kind, argument, is_prepared, process_group):
    call = moe.make(5)
    if is_prepared:
        call.run()
    else:
        calls._prepared.clear()
    given = NOT_THERE[kind](getattr(call, argument).clone())
    with pytest.raises(errors.ArgumentError, match="negation" if kind == "negated later" else "memory") as refused:
        call.changed(**{argument: given}).run()
    assert refused.value.argument == argument


def test_tensors_without_elements_need_no_memory():
    call = moe.make(5).changed(expert_map=torch.empty(0, dtype=torch.int32))
    for _ in range(2):
        assert not call.run().any()


# forks


def _call_in_child(m: int, pipe) -> None:
    torch.set_num_threads(1)
    handler = logging.Handler()
    seen: list[str] = []
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("jitmoe").addHandler(handler)
    call = moe.make(m)
    result = call.run()
    pipe.send((moe.error(result, call.expected()), seen))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("m", [9, 13], ids=["the same shape", "another shape"])
def test_a_forked_child_falls_back_and_says_why(m):
    """The runtime's threads do not exist in the child: a launch would be waited for without end."""
    moe.make(40).run()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_call_in_child, args=(m, there))
    child.start()
    try:
        assert here.poll(240), "the child hangs"
        error, seen = here.recv()
    finally:
        child.kill()
        child.join()
    assert error < 1e-2
    (message,) = seen
    assert "forked" in message and "spawn" in message
    call = moe.make(40)
    moe.check(call.run(), call)  # the parent goes on


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_before_the_runtime_started_uses_kernels(shared_cache_dir):
    code = """
import os, sys
import torch, jitmoe
from helpers import moe
child = os.fork()
call = moe.make(40)
moe.check(call.run(), call)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    environment = {
        **os.environ, "JITMOE_STRICT": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JITMOE_CACHE_DIR": str(shared_cache_dir),
    }  # fmt: skip
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, timeout=300)


def test_an_interrupted_first_call_leaves_nothing_running(tmp_path):
    """Control-C during a compilation: the compiler's processes end with it."""
    code = "from helpers import moe; print('go', flush=True); moe.make(40).run(); print('done', flush=True)"
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "JITMOE_CACHE_DIR": str(tmp_path / "c"),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "go\n"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (workers := children_of(process.pid)):
        time.sleep(0.005)
    assert workers, "no compiler was started"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert not still_running(workers)

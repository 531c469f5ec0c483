# SPDX-License-Identifier: MIT
"""Tuned configurations: a CSV of measured tile choices that override the planner's own.

Columns: cu_num, token, model_dim, inter_dim, expert, topk, act_type, dtype, impl, splitK, pad_m, pad_n; run_1stage may
be missing; others are ignored. One row says: on a device with cu_num compute units, for up to ``token`` tokens of such
a layer, use the tile with pad_m token rows and pad_n columns per work-group and splitK slices of K (0 and 1 both mean
unsplit), and with run_1stage = 1 one launch for everything.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jitmoe import knobs
from jitmoe.device import Device
from jitmoe.errors import ArgumentError
from jitmoe.problems.fused_moe import Activation, DType, MoEProblem

COLUMNS = (
    "cu_num",
    "token",
    "model_dim",
    "inter_dim",
    "expert",
    "topk",
    "act_type",
    "dtype",
    "impl",
    "splitK",
    "pad_m",
    "pad_n",
)
SINGLE_LAUNCH_COLUMN = "run_1stage"  # optional
_ACTIVATIONS = {
    "silu": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "gelutanh": Activation.GELU_TANH,
}
_DTYPES = {
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "torch.bfloat16": DType.BF16,
    "fp16": DType.FP16,
    "float16": DType.FP16,
    "torch.float16": DType.FP16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedConfig:
    """One row."""

    num_compute_units: int
    num_tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: Activation
    dtype: DType
    impl: str
    k_slices: int
    block_rows: int
    block_columns: int
    single_launch: bool
    origin: str  # file and line, for messages

    def fits(self, problem: MoEProblem, device: Device) -> bool:
        """Whether the row is about such a layer on such a device, whatever the number of tokens."""
        return (
            self.num_compute_units == device.num_compute_units
            and self.hidden_size == problem.hidden_size
            and self.intermediate_size == problem.intermediate_size
            and self.num_experts == problem.num_experts
            and self.top_k == problem.top_k
            and self.activation is problem.activation
            and self.dtype is problem.dtype
        )


def parse(text: str, name: str = "tuned config") -> tuple[TunedConfig, ...]:
    """Returns the rows of a CSV text that this package can use (dtypes and activations it knows).

    Raises:
        ArgumentError: a column is missing or a number cannot be read.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ArgumentError(argument=name, got=f"no column {', '.join(missing)}", expected=", ".join(COLUMNS))
    configs = []
    for row in reader:
        origin = f"{name}:{reader.line_num}"
        activation = _ACTIVATIONS.get((row["act_type"] or "").strip().lower())
        dtype = _DTYPES.get((row["dtype"] or "").strip().lower())
        if activation is None or dtype is None:
            continue
        try:
            number = {c: int(row[c]) for c in COLUMNS if c not in ("act_type", "dtype", "impl")}
            single_launch = int(row.get(SINGLE_LAUNCH_COLUMN) or 0)
        except (TypeError, ValueError):
            raise ArgumentError(argument=origin, got=str(row), expected="whole numbers") from None
        configs.append(
            TunedConfig(
                num_compute_units=number["cu_num"],
                num_tokens=number["token"],
                hidden_size=number["model_dim"],
                intermediate_size=number["inter_dim"],
                num_experts=number["expert"],
                top_k=number["topk"],
                activation=activation,
                dtype=dtype,
                impl=(row["impl"] or "").strip(),
                k_slices=max(number["splitK"], 1),
                block_rows=number["pad_m"],
                block_columns=number["pad_n"],
                single_launch=bool(single_launch),
                origin=origin,
            )
        )
    return tuple(configs)


def find(configs: Sequence[TunedConfig], problem: MoEProblem, device: Device, *impls: str) -> TunedConfig | None:
    """Returns the row for ``problem`` and one of the implementations ``impls``.

    It is the one with the fewest tokens that are not fewer than M, else the one with the most.
    """
    fitting = [config for config in configs if config.impl in impls and config.fits(problem, device)]
    if not fitting:
        return None
    enough = [config for config in fitting if config.num_tokens >= problem.num_tokens]
    if enough:
        return min(enough, key=lambda config: config.num_tokens)
    return max(fitting, key=lambda config: config.num_tokens)


@functools.lru_cache(maxsize=4)
def read(path: Path) -> tuple[TunedConfig, ...]:
    """Returns the rows of a file, read once; raises ``ArgumentError``."""
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ArgumentError(
            argument="environment variable JITMOE_TUNED_CONFIG", got=f"{path}: {why}", expected="a CSV file"
        ) from error


def configured() -> tuple[TunedConfig, ...]:
    """Returns the rows of the file that JITMOE_TUNED_CONFIG names; none without it."""
    path = knobs.current().tuned_config
    return read(path) if path is not None else ()

"""The memory and the time of each robust aggregate over many updates: a process of its own for each, on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
import torch

from benchmarks.measurement import Measurement
from benchmarks.meters import peak_rss_bytes
from coordinator.numerics.aggregates import aggregate_of
from farm_server.tensors.tensor_reader import FileReader
from protocol.aggregates import COUNTING_LIARS, AggregateName
from protocol.recipe import Recipe
from protocol.tensors import UPDATE_METADATA, Layout, TensorSpec

TENSORS: Final = 10
_ROBUST: Final = tuple(name for name in AggregateName if name is not AggregateName.MEAN)


@dataclass(frozen=True)
class RobustMemory(Measurement):
    """One aggregate of ``rows`` float32 updates, read from files as the server does; ``peak_rss_bytes``: all in all."""

    aggregate: str
    rows: int
    params: int
    seconds: float
    peak_rss_bytes: int


def measure(
    names: Sequence[AggregateName], rows: int, params: int, folder: Path | None = None
) -> Iterator[RobustMemory]:
    """Write the updates once, and aggregate them in each way; all, where none is named. ``folder`` chooses the disk."""
    with tempfile.TemporaryDirectory(prefix="aifarm-robust-", dir=folder) as name:
        for number in range(rows):
            _write(Path(name) / f"{number}.update", number, params)
        for aggregate in names or _ROBUST:
            yield _of(aggregate, rows, params, name)


def _of(aggregate: AggregateName, rows: int, params: int, folder: str) -> RobustMemory:
    command = [sys.executable, "-m", "benchmarks.robust", aggregate, str(rows), str(params), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return RobustMemory("robust", aggregate, rows, _count(params), **json.loads(done.stdout))


def _count(params: int) -> int:
    return params // TENSORS * TENSORS


def _write(path: Path, seed: int, params: int) -> None:
    rng = np.random.default_rng(seed)
    size = params // TENSORS
    tensors = {f"layer{number}": rng.standard_normal(size, np.float32) for number in range(TENSORS)}
    safetensors.numpy.save_file(tensors, path, dict(UPDATE_METADATA))


def aggregated(aggregate: AggregateName, rows: int, params: int, folder: Path) -> dict[str, Any]:
    """Aggregate the updates of a folder in this process; return the seconds and the peak of its memory."""
    torch.set_num_threads(1)
    layout = Layout(tuple(TensorSpec(f"layer{number}", "F32", (params // TENSORS,)) for number in range(TENSORS)))
    liars = {"byzantine": (rows - 3) // 4} if aggregate in COUNTING_LIARS else {}
    share = {"trim_share": 0.125} if aggregate is AggregateName.TRIMMED_MEAN else {}
    chosen = aggregate_of(Recipe.model_validate({"rounds": 1, "aggregate": aggregate, **liars, **share}), layout)
    started = time.perf_counter()
    with ExitStack() as opened:
        for number in range(rows):
            chosen.fold(opened.enter_context(FileReader(folder / f"{number}.update", forget=True)), 1)
        chosen.result()
    return {"seconds": time.perf_counter() - started, "peak_rss_bytes": peak_rss_bytes(os.getpid())}


if __name__ == "__main__":
    name, rows_text, params_text, folder_text = sys.argv[1:]
    found = aggregated(AggregateName(name), int(rows_text), int(params_text), Path(folder_text))
    print(json.dumps(found))

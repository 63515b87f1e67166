"""Rehearse a task in this process: a process of its own takes seconds to import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from farm_client.data.readers import open_data
from farm_client.data.sharding import write_sample
from farm_client.executor.rehearsal import rehearse
from farm_client.executor.rehearsal_records import RehearsalReport, RehearsalRequest
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import toy_arrays, write_code


def rehearsed(folder: Path, source: str, **changes: Any) -> RehearsalReport:
    """Return the report of a task over the toy data, in batches of 8 unless ``changes`` say otherwise."""
    entry = write_code(folder / "code", source)
    np.savez(folder / "data.npz", **toy_arrays())
    sample = folder / "sample.safetensors"
    rows = write_sample(open_data([folder / "data.npz"]), 8, sample)
    request = RehearsalRequest(
        code_dir=str(folder / "code"),
        entry=entry,
        config={},
        mode=Mode.WEIGHTS,
        seed=3,
        batch_samples=8,
        folder=str(folder),
        sample_path=str(sample),
        sample_rows=rows,
        file_rows=96,
        epochs=5,
        round_samples=8,
    )
    return rehearse(request.model_copy(update=changes))


def complaint(report: RehearsalReport) -> str:
    """Return what the report refuses the task for; empty if it does not."""
    return "" if report.failed is None else report.failed.message

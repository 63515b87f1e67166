"""Tasks for the executor's tests: code and shards on disk, orders, and a driver for one runner in this process."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from farm_client.data.readers import open_data
from farm_client.data.sharding import plan_shards, write_shards
from farm_client.executor.messages import Advance, Done, LoadTask, Piece, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.runner import TaskRunner
from protocol.assignments import Kind
from protocol.compression import CodecSpec
from protocol.digests import digest_bytes
from protocol.fragments import FragmentPattern
from protocol.named_schedule import NamedSchedule
from protocol.recipe import InnerState, Mode, Precision
from protocol.task_length import TaskLength
from protocol.tasks import Shard, Split

_numbers = count()

LINEAR = """
    import torch
    from torch import nn

    def build_model(config):
        return nn.Linear(3, 2)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


def write_code(folder: Path, source: str, name: str | None = None) -> str:
    """Write a task's file under a name that no other test imports; return the name."""
    entry = name or f"task_{next(_numbers)}.py"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / entry).write_text(textwrap.dedent(source))
    return entry


def toy_arrays(rows: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": (x.sum(axis=1) > 0).astype(np.int64)}


def write_data(folder: Path, holdout: float = 0.25, **arrays: np.ndarray) -> tuple[list[Shard], dict[str, Path]]:
    """Cut arrays into shards under ``folder``."""
    (folder / "shards").mkdir(parents=True)
    np.savez(folder / "data.npz", **(arrays or toy_arrays()))
    source = open_data([folder / "data.npz"])
    plan = plan_shards(source.rows, source.size_bytes, holdout)
    return write_shards(source, plan, folder / "shards", seed=1)


@dataclass
class Bench:
    """One runner with its data; ``train`` and ``evaluate`` give it assignments."""

    folder: Path
    source: str
    mode: Mode = Mode.WEIGHTS
    config: dict[str, Any] = field(default_factory=dict)
    batch_samples: int = 8
    report_bytes: int = 1 << 20
    inner_state: InnerState = InnerState.FRESH
    update_codec: CodecSpec = field(default_factory=CodecSpec)
    ignore: tuple[str, ...] = ()
    tuple_columns: tuple[str, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    proximal_mu: float = 0.0
    fragments: int = 1
    fragment_pattern: FragmentPattern = FragmentPattern.STRIDED
    fragment_mix: float = 0.0
    fragment_overlap_steps: int = 0
    scaffold_clients: int = 0
    schedule: NamedSchedule | None = None
    schedule_steps: int = 0
    length: TaskLength | None = None
    precision: Precision = Precision.FP32
    compile: bool = False
    snapshot_seconds: float = 0.0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    advances: list[Advance] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entry = write_code(self.folder / "code", self.source)
        if not self.shards:
            self.shards, self.files = write_data(self.folder, **self.arrays)
        self.runner = TaskRunner(self.load_order(), torch.device("cpu"))
        self.weights = self.runner.weights_file()
        self.frozen = self.runner.frozen_file()
        if self.frozen is not None:
            self.frozen_path.write_bytes(self.frozen)
            self.runner.take_frozen(self.frozen_path)

    @property
    def frozen_path(self) -> Path:
        return self.folder / "frozen.weights"

    def whole(self) -> dict[str, torch.Tensor]:
        """Return what the model begins with, frozen tensors included."""
        frozen = {} if self.frozen is None else safetensors.torch.load(self.frozen)
        return safetensors.torch.load(self.weights) | frozen

    def load_order(self) -> LoadTask:
        return LoadTask(
            task_id="t",
            code_dir=str(self.folder / "code"),
            entry=self.entry,
            config=self.config,
            mode=self.mode,
            seed=3,
            batch_samples=self.batch_samples,
            dataset_kind="files",
            scratch_dir=str(self.folder),
            report_bytes=self.report_bytes,
            inner_state=self.inner_state,
            update_codec=self.update_codec,
            ignore=self.ignore,
            tuple_columns=self.tuple_columns,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            proximal_mu=self.proximal_mu,
            fragments=self.fragments,
            fragment_pattern=self.fragment_pattern,
            fragment_mix=self.fragment_mix,
            fragment_overlap_steps=self.fragment_overlap_steps,
            scaffold_clients=self.scaffold_clients,
            schedule=self.schedule,
            schedule_steps=self.schedule_steps,
            length=self.length,
            precision=self.precision,
            compile=self.compile,
            snapshot_seconds=self.snapshot_seconds,
        )

    def pieces(self, split: Split, shards: slice = slice(None)) -> tuple[Piece, ...]:
        return tuple(
            Piece(
                shard=s.index,
                split=split,
                shard_samples=s.samples,
                first_row=s.start,
                stride=s.stride,
                path=str(self.files[s.blob.digest]) if s.blob else None,
                start=0,
                stop=s.samples,
            )
            for s in [s for s in self.shards if s.split is split][shards]
        )

    def run_order(self, kind: Kind = Kind.TRAIN, shards: slice = slice(None), **changes: Any) -> Run:
        split = Split.TRAIN if kind is Kind.TRAIN else Split.HOLDOUT
        order = Run(
            assignment_id="a",
            kind=kind,
            round=0,
            epoch=0,
            weights_digest=digest_bytes(self.weights),
            weights=self.weights,
            pieces=self.pieces(split, shards),
        )
        return order.model_copy(update=changes)

    def train(self, shards: slice = slice(None), **changes: Any) -> Done:
        return self.runner.run(self.run_order(Kind.TRAIN, shards, **changes), self._progress())

    def train_ahead(self, **changes: Any) -> Callable[[], Done]:
        outcome = self.runner.run_ahead(self.run_order(Kind.TRAIN, **changes), self._progress())
        assert not isinstance(outcome, Done)
        return outcome

    def evaluate(self, **changes: Any) -> Done:
        return self.runner.run(self.run_order(Kind.EVALUATE, **changes), self._progress())

    def _progress(self) -> ProgressReporter:
        return ProgressReporter(self.advances.append)


def update_of(done: Done) -> dict[str, torch.Tensor]:
    assert done.update is not None
    assert digest_bytes(done.update) == done.update_digest
    return safetensors.torch.load(done.update)

"""Bytes on the wire until a fixed held-out loss, for several ways of training one character-level transformer.

A real farm trains the model of examples/charlm on a text that no client has to fetch. The loss to reach is that of
synchronous data-parallel training at its end, within ``TOLERANCE``; counted is what the server counts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.bytes_methods import METHODS, REFERENCE, Method
from benchmarks.evaluations import evaluations
from benchmarks.farm import RunningFarm, running_farm
from benchmarks.measurement import Measurement
from benchmarks.meters import ServerCount, server_count
from benchmarks.report import say
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.upload import upload
from protocol.recipe import Recipe
from protocol.tensors import parse_layout

MODEL: Final = Path(__file__).parents[1] / "examples" / "charlm" / "train.py"
MULOCO: Final = MODEL.with_name("muloco.py")
CORPUS: Final = Path(__file__).parent / "bytes_task" / "corpus.py"
CORPUS_MULOCO: Final = CORPUS.with_name("corpus_muloco.py")
TOLERANCE: Final = 0.02
HOLDOUT: Final = 0.04


@dataclass(frozen=True)
class Scale:
    """How large the training is; ``most_rounds`` cuts each method short."""

    clients: int = 2
    width: int = 128
    layers: int = 4
    context: int = 64
    lr: float = 2e-3
    batch_samples: int = 16
    most_rounds: int | None = None


QUICK: Final = Scale(width=16, layers=1, context=32, batch_samples=4, most_rounds=3)
"""For tests: it shows that all of it works, and nothing else."""


@dataclass(frozen=True)
class Point:
    """Payload bytes of messages and blobs by the time a version was evaluated, and what its held-out loss was."""

    round: int
    up_bytes: int
    down_bytes: int
    loss: float

    @property
    def total_bytes(self) -> int:
        """Both directions."""
        return self.up_bytes + self.down_bytes


@dataclass(frozen=True)
class Bytes(Measurement):
    """One method, until it first reached ``target_loss``, or to its end if it never did.

    ``factor`` is how many times fewer bytes it took than the reference until *its* first version at that loss; None
    if it never got there. The first version, which each client fetches once however long the training is, is not in the
    bytes: it is ``start_bytes``, and in ``factor_with_start``. ``samples`` are all that were trained on by then.
    ``up_dense_factor`` and ``down_dense_factor`` are how many times fewer bytes a round takes in that direction than it
    would in float32 as they are, as in DiLoCo without a codec: the weights, for each client.
    """

    method: str
    params: int
    target_loss: float
    reached: bool
    loss: float
    rounds: int
    samples: int
    seconds: float
    up_bytes: int
    down_bytes: int
    start_bytes: int
    bytes_per_round_up: float
    bytes_per_round_down: float
    up_dense_factor: float
    down_dense_factor: float
    factor: float | None
    factor_with_start: float | None
    curve: list[Point]


def measure(methods: Sequence[str], scale: Scale) -> Iterator[Bytes]:
    """Train by the reference, which sets the loss to reach, and then by each of ``methods``.

    Each on a farm of its own: all begin with the same weights, which a client would find in its cache.
    Raises: BenchmarkError if a task fails or stalls; DaemonFailed.
    """
    reference = _train(REFERENCE, scale, target_loss=0.0)
    target = reference.curve[-1].loss * (1 + TOLERANCE)
    first = reference.result(target, None)
    yield first
    for method in methods:
        if method != REFERENCE:
            yield _train(method, scale, target).result(target, first)


def _train(method: str, scale: Scale, target_loss: float) -> Training:
    say(f"{method} …")
    with tempfile.TemporaryDirectory(prefix="aifarm-bytes-") as name:
        folder = Path(name)
        with running_farm(scale.clients, folder / "farm") as farm:
            return Trainer(farm, folder, scale).train(method, METHODS[method], target_loss)


@dataclass
class Training:
    """One method's training as it goes."""

    method: str
    params: int
    round_samples: int
    start_bytes: int
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)

    def result(self, target_loss: float, reference: Bytes | None) -> Bytes:
        """Return what it came to, beside the reference (None: it is the reference)."""
        found = next((point for point in self.curve if point.loss <= target_loss), None)
        last = found or self.curve[-1]
        reached = found is not None
        total = last.total_bytes
        up_per_round, down_per_round = last.up_bytes / last.round, last.down_bytes / last.round
        other = total if reference is None else reference.up_bytes + reference.down_bytes
        return Bytes(
            benchmark="bytes",
            method=self.method,
            params=self.params,
            target_loss=target_loss,
            reached=reached,
            loss=last.loss,
            rounds=last.round,
            samples=last.round * self.round_samples,
            seconds=self.seconds,
            up_bytes=last.up_bytes,
            down_bytes=last.down_bytes,
            start_bytes=self.start_bytes,
            bytes_per_round_up=up_per_round,
            bytes_per_round_down=down_per_round,
            up_dense_factor=self.start_bytes / up_per_round,
            down_dense_factor=self.start_bytes / down_per_round,
            factor=other / total if reached else None,
            factor_with_start=(other + self.start_bytes) / (total + self.start_bytes) if reached else None,
            curve=self.curve,
        )


class Trainer:
    """Trains by one method on a farm."""

    def __init__(self, farm: RunningFarm, folder: Path, scale: Scale) -> None:
        self._farm = farm
        self._folder = folder
        self._scale = scale
        self._code = folder / "code"
        self._code.mkdir()
        for file in (MODEL, MULOCO, CORPUS, CORPUS_MULOCO):
            shutil.copy(file, self._code)

    def train(self, name: str, method: Method, target_loss: float) -> Training:
        """Train until a version's held-out loss is at most ``target_loss``, or to the last round."""
        recipe = method.recipe(self._scale.clients, self._scale.batch_samples, self._scale.most_rounds)
        prepared = self._prepare(name, recipe, method.entry)
        upload(self._farm.api, prepared.blobs)
        before = server_count(self._farm.api.address)
        task_id = self._farm.api.submit(prepared.spec).task.task_id
        weights_bytes = prepared.spec.footprint.weights_bytes
        start_bytes = self._scale.clients * weights_bytes
        params = parse_layout(Path(prepared.report.weights_path).read_bytes()).parameters
        training = Training(name, sum(each.elements for each in params), recipe.round_samples, start_bytes)
        began = time.monotonic()
        for point in self._points(task_id, before, start_bytes):
            training.curve.append(point)
            if point.loss <= target_loss:
                break
        training.seconds = time.monotonic() - began
        if not is_over(self._farm.api.task(task_id).task):
            self._farm.api.act(task_id, "cancel")
        return training

    def _prepare(self, name: str, recipe: Recipe, entry: str) -> Prepared:
        scale = self._scale
        config = {
            "width": scale.width,
            "layers": scale.layers,
            "heads": 4,
            "context": scale.context,
            "lr": scale.lr,
        }
        submission = Submission(
            code=self._code, entry=entry, recipe=recipe, config=config, name=name, holdout=HOLDOUT, check=False
        )
        folder = self._folder / "task"
        folder.mkdir()
        return prepare(submission, folder)

    def _points(self, task_id: str, before: ServerCount, start_bytes: int) -> Iterator[Point]:
        """Yield each evaluated version with the bytes that were counted when it was first seen committed.

        Raises: BenchmarkError if the task fails or stalls.
        """
        for one in evaluations(self._farm.api, task_id, before):
            if one.name == "loss":
                yield Point(one.round, one.count.up_bytes, one.count.down_bytes - start_bytes, one.value)

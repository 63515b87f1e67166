"""nanoGPT's, torchvision's and Lightning's own modules (examples/) on the executor, beside the examples' plain loops.

Both sides take the same samples from the same weights: in weights mode with one client a round and a carried state, and
in gradients mode with the loop's batch as the round, through the server's own arithmetic.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from coordinator.numerics.clipping import Clipping
from coordinator.numerics.inner_state import InnerStateMean
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.messages import Done, LoadTask, Piece, Run
from farm_client.executor.optimizer_spec import outer_optimizer_of
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.runner import TaskRunner
from farm_client.executor.schedule_fit import schedules_of
from farm_server.tensors.task_tensors import state_file
from protocol.assignments import Kind
from protocol.codecs import BytesReader
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, Mode, OuterOptimizer
from protocol.task_length import TaskLength
from protocol.tasks import Split
from protocol.tensors import parse_layout

EXAMPLES = Path(__file__).parents[3] / "examples"
BATCH, EPOCHS = 8, 2
CASES = {
    "nanogpt": {"block_size": 16, "n_layer": 1, "n_embd": 16, "rows": 128, "steps": 32},
    "resnet18": {"rows": 32},
    "lightning_transformer": {"rows": 128, "length": 8, "words": 20, "width": 16},
}
CLIP_NORMS = {"nanogpt": 1.0, "resnet18": None, "lightning_transformer": 1.0}
AS_NEAR = 0.02


@pytest.fixture(params=CASES)
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have an example's modules importable, and none of them left when the test is over."""
    monkeypatch.syspath_prepend(EXAMPLES / request.param)
    before = set(sys.modules)
    yield request.param
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Bench:
    """One executor's task, of an example, and orders for it."""

    def __init__(self, name: str, folder: Path, mode: Mode) -> None:
        self.config = CASES[name]
        self.rows = int(self.config["rows"])
        steps = self.rows // BATCH
        self.length = TaskLength(steps=steps * EPOCHS, steps_per_epoch=steps, epochs=EPOCHS)
        self.order = LoadTask(
            task_id="t",
            code_dir=str(EXAMPLES / name),
            entry="train.py",
            config=self.config,
            mode=mode,
            seed=3,
            batch_samples=BATCH,
            dataset_kind="code",
            scratch_dir=str(folder),
            report_bytes=1 << 30,
            inner_state=InnerState.CARRIED if mode is Mode.WEIGHTS else InnerState.FRESH,
            clip_norm=CLIP_NORMS[name] if mode is Mode.WEIGHTS else None,
            length=self.length,
        )
        self.runner = TaskRunner(self.order, torch.device("cpu"))
        self.weights = safetensors.torch.load(self.runner.weights_file())
        self.plain = importlib.import_module("plain")

    def run(self, round_number: int, epoch: int, start: int, stop: int, **state: Any) -> Done:
        data = safetensors.torch.save(self.weights)
        piece = Piece(
            shard=0, split=Split.TRAIN, shard_samples=self.rows, first_row=0, path=None, start=start, stop=stop
        )
        order = Run(
            assignment_id="a",
            kind=Kind.TRAIN,
            round=round_number,
            epoch=epoch,
            weights_digest=digest_bytes(data),
            weights=data,
            pieces=(piece,),
            **state,
        )
        done = self.runner.run(order, ProgressReporter(lambda _advance: None))
        assert done.update is not None
        return done

    def epochs(self) -> list[list[Any]]:
        """Return the batches that the farm makes, of each epoch, one by one."""
        pieces = [
            Piece(shard=0, split=Split.TRAIN, shard_samples=self.rows, first_row=0, path=None, start=i, stop=i + BATCH)
            for i in range(0, self.rows, BATCH)
        ]
        batches = self.runner._source.batches
        return [[batch for piece in pieces for batch in batches((piece,), epoch)] for epoch in range(EPOCHS)]

    def loss(self) -> float:
        """Return the held-out loss of the weights. A file of the farm's has a tied tensor once."""
        model = self.runner.contract.module.build_model(self.config)
        first_names = self.runner.tensors.tied
        model.load_state_dict(self.weights | {name: self.weights[first] for name, first in first_names.items()})
        return float(self.plain.held_out_loss(model, self.config))

    def plain_loss(self) -> float:
        """Return the held-out loss after the example's own loop over the farm's batches."""
        untrained = self.loss()
        trained = float(self.plain.held_out_loss(self.plain.trained(self.config, self.epochs()), self.config))
        assert abs(trained - untrained) > 5 * AS_NEAR * trained, "or being near would say nothing"
        return trained


def test_in_gradients_mode_it_is_the_plain_loop(example: str, tmp_path: Path) -> None:
    """BatchNorm too, as long as one client takes a round: what several would normalise by is not defined."""
    bench = Bench(example, tmp_path, Mode.GRADIENTS)
    expected = bench.plain_loss()
    steps = bench.rows // BATCH
    timeline = bench.runner.timeline()
    assert timeline is not None
    optimizer = bench.runner.build_optimizers().only
    schedules = schedules_of(timeline, bench.length)
    layout = parse_layout(bench.runner.weights_file())
    spec = outer_optimizer_of(optimizer, bench.runner.tensors, schedules)
    outer = OuterStep(spec, bench.weights, layout, clipping=Clipping(norm=CLIP_NORMS[example]))
    for number in range(steps * EPOCHS):
        epoch, step = divmod(number, steps)
        done = bench.run(number, epoch, step * BATCH, (step + 1) * BATCH)
        mean = WeightedMean(layout)
        mean.fold(BytesReader(done.update), done.samples)
        outer.step(mean.result(), version=number)
    assert bench.loss() == pytest.approx(expected, rel=AS_NEAR)


def test_in_weights_mode_it_is_the_plain_loop(example: str, tmp_path: Path) -> None:
    """Rounds of half an epoch, each from the state that the one before ended with."""
    bench = Bench(example, tmp_path, Mode.WEIGHTS)
    expected = bench.plain_loss()
    layout = parse_layout(bench.runner.weights_file())
    outer, mean, states = OuterStep(OuterOptimizer(), bench.weights, layout), WeightedMean(layout), InnerStateMean()
    state: bytes | None = None
    half = bench.rows // 2
    for number in range(2 * EPOCHS):
        epoch, start = number // 2, number % 2 * half
        before = {"samples_before": number * half, "round_samples": half, "inner_state": state}
        done = bench.run(number, epoch, start, start + half, **before)
        mean.reset()
        states.reset()
        mean.fold(BytesReader(done.update), done.samples)
        states.fold(BytesReader(done.update), done.samples)
        outer.step(mean.result())
        state = b"".join(state_file(*states.result()))
    assert bench.loss() == pytest.approx(expected, rel=AS_NEAR)

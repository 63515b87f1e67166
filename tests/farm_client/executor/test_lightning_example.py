"""examples/lightning on the farm's executor, round after round, against Lightning's own Trainer at equal samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from protocol.digests import digest_bytes
from protocol.recipe import InnerState
from protocol.task_length import TaskLength
from tests.farm_client.executor.bench_task import Bench, update_of
from tests.farm_client.executor.test_lightning_loop import batches_of, fit

EXAMPLES = Path(__file__).parents[3] / "examples"
EPOCHS, BATCHES = 4, 24


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    arrays = np.load(EXAMPLES / "digits/digits.npz")
    return Bench(
        tmp_path,
        (EXAMPLES / "lightning/train.py").read_text(),
        length=TaskLength(steps=EPOCHS * BATCHES, steps_per_epoch=BATCHES, epochs=EPOCHS),
        arrays={name: arrays[name][:256] for name in ("x", "y")},
        inner_state=InnerState.KEPT,
    )


def rounds_of(bench: Bench, weights: bytes) -> Iterator[tuple[dict[str, float], bytes]]:
    """Train one round an epoch by one client; yield metrics and weights."""
    samples = sum(piece.stop for piece in bench.run_order().pieces)
    for epoch in range(EPOCHS):
        done = bench.train(
            round=epoch,
            epoch=epoch,
            samples_before=samples * epoch,
            round_samples=samples,
            weights=weights,
            weights_digest=digest_bytes(weights),
        )
        update, before = update_of(done), safetensors.torch.load(weights)
        buffers = dict(bench.runner.tensors.model.named_buffers())
        weights = safetensors.torch.save(
            {name: update[name] if name in buffers else value - update[name] for name, value in before.items()}
        )
        yield done.metrics, weights


def test_the_example_is_as_good_as_by_lightnings_trainer_at_equal_samples(bench: Bench) -> None:
    reference: Any = type(bench.runner.tensors.model)({})
    reference.load_state_dict(bench.whole())
    epochs = [batches_of(bench, epoch) for epoch in range(EPOCHS)]
    assert sum(map(len, epochs)) == EPOCHS * BATCHES, "the schedule ends with the training"
    fit(reference, epochs)
    *_, (metrics, weights) = rounds_of(bench, bench.weights)
    found = bench.evaluate(weights=weights, weights_digest=digest_bytes(weights)).metrics
    plain = safetensors.torch.save({name: value.clone() for name, value in reference.state_dict().items()})
    expected = bench.evaluate(weights=plain, weights_digest=digest_bytes(plain)).metrics
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert min(found["accuracy"], expected["accuracy"]) > 0.7
    assert metrics["gradient_norm"] > 0


def test_a_round_of_the_example_is_lightnings_epoch_to_the_bit(bench: Bench) -> None:
    reference: Any = type(bench.runner.tensors.model)({})
    reference.load_state_dict(bench.whole())
    fit(reference, [batches_of(bench)])
    bench.runner.take_length(TaskLength(steps=BATCHES, steps_per_epoch=BATCHES, epochs=1))
    _, weights = next(rounds_of(bench, bench.weights))
    after, before = safetensors.torch.load(weights), bench.whole()
    buffers = dict(reference.named_buffers())
    for name, value in reference.state_dict().items():
        handed_in = value if name in buffers else before[name] - (before[name] - value)
        assert torch.equal(after[name], handed_in), name

"""Rows in order and a state from batch to batch: one client is the plain loop, two come near it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from coordinator.epoch import in_stretches, take
from coordinator.records import SampleRange
from farm_client.executor.messages import Piece
from protocol.recipe import InnerState
from protocol.tasks import Split
from tests.e2e.conftest import RealFarm
from tests.e2e.rounds_in_process import Round, train_on_the_farm
from tests.farm_client.executor.bench_task import Bench
from tests.farm_client.executor.ordered_task import (
    LSTM,
    STREAMS,
    batches_of,
    detached,
    functions_of,
    ordered_bench,
    sequence,
)


def rounds_of(clients: list[Bench], epochs: int, batches: int) -> Iterator[Round]:
    """Yield rounds of so many batches a client, each in a stretch of its own."""
    shards = [shard for shard in clients[0].shards if shard.split is Split.TRAIN]
    total, count = sum(shard.samples for shard in shards), batches * STREAMS * len(clients)
    for epoch in range(epochs):
        for cursor in range(0, total, count):
            stretches = in_stretches(take(shards, cursor, count, len(clients)), len(clients))
            yield epoch, [cut(client, ranges) for client, ranges in zip(clients, stretches, strict=True)]


def cut(client: Bench, ranges: Iterable[SampleRange]) -> tuple[Piece, ...]:
    pieces = {piece.shard: piece for piece in client.pieces(Split.TRAIN)}
    return tuple(pieces[r.shard].model_copy(update={"start": r.start, "stop": r.stop}) for r in ranges)


def train_plainly(source: str, rows: int, streams: int, epochs: int) -> Any:
    """PyTorch's word_language_model in small: batchify, a new state each epoch, detached from batch to batch."""
    code = functions_of(source)
    model = code["build_model"]({})
    optimizer = code["build_optimizer"](model, {})
    for _ in range(epochs):
        state = code["initial_state"](model, streams, {})
        for batch in batches_of(rows, streams):
            optimizer.zero_grad()
            values, state = code["loss"](model, batch, state)
            values["loss"].backward()
            optimizer.step()
            state = detached(state)
    return model


@pytest.mark.parametrize("batches", [1, 3, 100])
def test_one_client_a_round_is_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """However many shards and rounds there are: the optimizer's state and that of the batches go on."""
    monkeypatch.setattr("farm_client.data.stretches.SHARD_BYTES", 200)
    bench = ordered_bench(tmp_path, rows=26, holdout=0.0, inner_state=InnerState.CARRIED)
    assert len(bench.shards) > 2
    weights = train_on_the_farm([bench], rounds_of([bench], epochs=2, batches=batches))
    for name, tensor in train_plainly(LSTM, 26, STREAMS, epochs=2).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-12)


def test_one_client_that_does_it_in_one_round_gives_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    source = LSTM.replace(".double()", "").replace(", dtype=torch.float64", "")
    bench = ordered_bench(tmp_path, source, rows=26, holdout=0.0, inner_state=InnerState.CARRIED)
    bench.train()
    trained = bench.runner.tensors
    plain = train_plainly(source, 26, STREAMS, epochs=1).state_dict()
    base = bench.whole()
    for name, parameter in trained.parameters.items():  # training leaves base minus local in the model's own memory
        assert torch.equal(parameter, base[name] - plain[name])


def loss_after(weights: dict[str, torch.Tensor], rows: int) -> float:
    """The mean loss over a stretch that is read in order."""
    code = functions_of(LSTM)
    model = code["build_model"]({})
    model.load_state_dict(weights)
    state, losses = code["initial_state"](model, 1, {}), []
    with torch.no_grad():
        for batch in batches_of(rows, 1):
            values, state = code["loss"](model, batch, state)
            losses.append(float(values["loss"]))
    return sum(losses) / len(losses)


MOMENTUM = LSTM.replace("AdamW(model.parameters(), lr=0.02)", "SGD(model.parameters(), lr=0.1, momentum=0.9)")


def two_clients(folder: Path, rows: int, epochs: int, batches: int) -> dict[str, torch.Tensor]:
    carried: dict[str, Any] = {"stretches": 2, "inner_state": InnerState.CARRIED}
    clients = [ordered_bench(folder / str(n), MOMENTUM, rows=rows, holdout=0.0, **carried) for n in range(2)]
    return train_on_the_farm(clients, rounds_of(clients, epochs, batches))


def test_two_clients_with_a_batch_a_round_are_the_plain_loop_over_the_streams_of_both(tmp_path: Path) -> None:
    """For momentum is linear in the gradient. Each client's state stays with its stretch, and is not averaged."""
    weights = two_clients(tmp_path, rows=38, epochs=2, batches=1)
    for name, tensor in train_plainly(MOMENTUM, 38, 2 * STREAMS, epochs=2).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-12)


def test_two_clients_that_take_several_steps_apart_come_near_it(tmp_path: Path) -> None:
    plain = loss_after(train_plainly(MOMENTUM, 72, 2 * STREAMS, epochs=3).state_dict(), 72)
    loss = loss_after(two_clients(tmp_path, rows=72, epochs=3, batches=4), 72)
    assert abs(loss / plain - 1) < 0.05


@pytest.mark.slow
def test_a_real_farm_gives_the_plain_loop_where_no_mode_is_named(tmp_path: Path, farm: RealFarm) -> None:
    """Two volunteers are there; whoever goes on is given optimizer and state. The last two rows are left out."""
    (tmp_path / "train.py").write_text(textwrap.dedent(LSTM))
    np.savez(tmp_path / "data.npz", **sequence(26))
    ordered = ("--order", "sequential", "--batch-samples", str(STREAMS))
    task = farm.submit(str(tmp_path / "train.py"), "--data", str(tmp_path / "data.npz"), "--epochs", "2", *ordered)
    said = farm.api.spec(task).notes[1]
    assert said.endswith(
        "over rounds and clients, and begins anew with each epoch; 2 rows at the end left out, for "
        "streams of equal length"
    )
    assert farm.run("wait", task, "--timeout", "80").exit_code == 0
    assert farm.run("pull", task, "-o", str(tmp_path / "model.safetensors")).exit_code == 0
    trained = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, tensor in train_plainly(LSTM, 26, STREAMS, epochs=2).state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-9, atol=1e-12)

"""Gradients mode is synchronous SGD: N clients give the weights that one process gives on the union batch.

Through the code that runs on a farm: the executor's training, the wire's files, the coordinator's fold and optimizer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from coordinator.numerics.clipping import Clipping
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.data.order import shard_order
from farm_client.data.readers import open_data
from farm_client.data.sharding import PlannedShard, write_shards
from farm_client.data.shards import read_shard
from farm_client.executor.layout import ModelTensors
from farm_client.executor.optimizer_spec import outer_optimizer_of
from farm_client.executor.schedule_fit import schedules_of
from protocol.codecs import BytesReader
from protocol.digests import digest_bytes
from protocol.recipe import Mode
from protocol.task_length import TaskLength
from protocol.tasks import Shard, Split
from protocol.tensors import Layout, check_update, parse_layout, read_header
from tests.farm_client.executor.bench_task import Bench

STEPS, SHARDS, SHARD_ROWS, STEP_ROWS = 50, 8, 20, 4
"""Each step takes so many rows of every shard; an epoch is five steps."""
CLIP_NORM = 0.3
"""Some of the gradients are longer, and some are not."""

TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
        return model.to(getattr(torch, config["dtype"]))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        if config["optimizer"] == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        if config["optimizer"] == "rmsprop":
            return torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, centered=True)
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99))

    def build_scheduler(optimizer, config):
        schedulers = torch.optim.lr_scheduler
        if config["optimizer"] == "rmsprop":
            return schedulers.OneCycleLR(optimizer, max_lr=3e-3, total_steps=config["steps"])
        warm_up = schedulers.LinearLR(optimizer, 0.01, total_iters=7)
        return schedulers.SequentialLR(optimizer, [warm_up, schedulers.CosineAnnealingLR(optimizer, 40)], [7])
"""


def make_shards(folder: Path, dtype: str) -> tuple[list[Shard], dict[str, Path]]:
    rng = np.random.default_rng(2)
    rows = SHARDS * SHARD_ROWS
    x = rng.normal(size=(rows, 6)).astype(dtype)
    np.savez(folder / "data.npz", x=x, y=(np.abs(x).sum(axis=1) % 3).astype(np.int64))
    (folder / "shards").mkdir()
    plan = [PlannedShard(Split.TRAIN, SHARD_ROWS)] * SHARDS
    return write_shards(open_data([folder / "data.npz"]), plan, folder / "shards", seed=1)


def rows_of(step: int) -> tuple[int, int, int]:
    """Return the step's epoch, and its first and last row of each shard."""
    epoch, place = divmod(step * STEP_ROWS, SHARD_ROWS)
    return epoch, place, place + STEP_ROWS


class Farm:
    """N clients and the coordinator's arithmetic, without the sockets between them."""

    def __init__(self, clients: list[Bench]) -> None:
        first = clients[0]
        self.clients = clients
        self.layout: Layout = parse_layout(first.weights)
        self.weights = safetensors.torch.load(first.weights)
        timeline = first.runner.timeline()
        assert timeline is not None
        schedules = schedules_of(timeline, TaskLength(steps=STEPS, steps_per_epoch=SHARD_ROWS // STEP_ROWS, epochs=10))
        spec = outer_optimizer_of(first.runner.build_optimizers().only, first.runner.tensors, schedules)
        self.outer = OuterStep(spec, self.weights, self.layout, clipping=Clipping(norm=CLIP_NORM))

    def step(self, step: int) -> None:
        accumulator = WeightedMean(self.layout)
        weights = safetensors.torch.save(self.weights)
        share = SHARDS // len(self.clients)
        for number, client in enumerate(self.clients):
            epoch, start, stop = rows_of(step)
            shards = client.pieces(Split.TRAIN, slice(number * share, (number + 1) * share))
            done = client.train(
                round=step,
                epoch=epoch,
                weights=weights,
                weights_digest=digest_bytes(weights),
                pieces=tuple(piece.model_copy(update={"start": start, "stop": stop}) for piece in shards),
            )
            assert done.update is not None
            check_update(self.layout, read_header(done.update))
            accumulator.fold(BytesReader(done.update), done.samples)
        self.outer.step(accumulator.result(), version=step)


def train_in_one_process(bench: Bench) -> Mapping[str, torch.Tensor]:
    """Plain torch: the researcher's model, loss, optimizer and scheduler on each union batch, with clipping."""
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(TASK), namespace)
    model: nn.Module = namespace["build_model"](bench.config)
    optimizer = namespace["build_optimizer"](model, bench.config)
    scheduler = namespace["build_scheduler"](optimizer, bench.config)
    shards = [read_shard(bench.files[s.blob.digest]) for s in bench.shards if s.blob]
    for step in range(STEPS):
        epoch, start, stop = rows_of(step)
        parts = [
            rows.take(shard_order(3, epoch, index, SHARD_ROWS, Split.TRAIN)[start:stop])
            for index, rows in enumerate(shards)
        ]
        optimizer.zero_grad()
        namespace["loss"](model, shards[0].join(parts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        if step < STEPS - 1:  # the last of one cycle
            scheduler.step()
    return {name: p.detach() for name, p in ModelTensors.of(model).parameters.items()}


@pytest.mark.parametrize("clients", [1, 2, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_any_number_of_clients_gives_the_union_batchs_weights(
    tmp_path: Path, clients: int, optimizer: str, dtype: str, tolerance: float
) -> None:
    shards, files = make_shards(tmp_path, dtype)
    config = {"dtype": dtype, "optimizer": optimizer, "steps": STEPS}
    farm = Farm(
        [
            Bench(tmp_path, TASK, mode=Mode.GRADIENTS, config=config, batch_samples=7, shards=shards, files=files)
            for _ in range(clients)
        ]
    )
    for step in range(STEPS):
        farm.step(step)
    expected = train_in_one_process(farm.clients[0])
    for name, tensor in expected.items():
        error = (farm.weights[name] - tensor).norm() / tensor.norm()
        assert error < tolerance, f"{name} differs by {error:.2e}"

"""The farm's DiLoCo is DiLoCo: k clients give the weights that a plain simulation of k workers gives in one process.

Through the code that runs on a farm, with the outer optimizer of examples/charlm/diloco.toml.
Source: Douillard et al., arXiv:2311.08105, algorithm 1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.cli.submit_options import SubmitOptions, describe_task
from farm_client.data.order import shard_order
from farm_client.data.shards import Batch, Rows, read_shard
from farm_client.executor.samples import even_sizes
from protocol.codecs import BytesReader
from protocol.digests import digest_bytes
from protocol.encoded import check_encoded
from protocol.recipe import InnerState, Recipe
from protocol.tasks import Split
from protocol.tensors import parse_layout
from tests.e2e.test_gradient_equivalence import SHARDS, make_shards, rows_of
from tests.farm_client.executor.bench_task import Bench

EXAMPLE = Path(__file__).parents[2] / "examples" / "charlm"
ROUNDS, BATCH, SEED = 20, 7, 3
TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3)).double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
"""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return describe_task(SubmitOptions(file=EXAMPLE, config=EXAMPLE / "diloco.toml")).recipe


def test_the_example_is_the_papers_recipe(recipe: Recipe) -> None:
    assert recipe.inner_state is InnerState.KEPT
    assert recipe.outer.name == "sgd"
    assert recipe.outer.options == {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def share_of(worker: int, workers: int) -> slice:
    return slice(worker * SHARDS // workers, (worker + 1) * SHARDS // workers)


def train_on_the_farm(clients: list[Bench], recipe: Recipe) -> dict[str, torch.Tensor]:
    """Clients, their update files, the fold and the outer optimizer, without the sockets between them."""
    layout = parse_layout(clients[0].weights)
    weights = safetensors.torch.load(clients[0].weights)
    outer = OuterStep(recipe.outer, weights, layout)
    accumulator = WeightedMean(layout, clients[0].update_codec)
    for number in range(ROUNDS):
        accumulator.reset()
        file = safetensors.torch.save(weights)
        epoch, start, stop = rows_of(number)
        for worker, client in enumerate(clients):
            pieces = client.pieces(Split.TRAIN, share_of(worker, len(clients)))
            done = client.train(
                round=number,
                epoch=epoch,
                weights=file,
                weights_digest=digest_bytes(file),
                pieces=tuple(piece.model_copy(update={"start": start, "stop": stop}) for piece in pieces),
            )
            client.runner.confirm()
            assert done.update is not None
            reader = BytesReader(done.update)
            check_encoded(layout, client.update_codec, reader.header)
            accumulator.fold(reader, done.samples)
        outer.step(accumulator.result())
    return weights


def train_in_one_process(workers: int, shards: list[Rows]) -> dict[str, torch.Tensor]:
    """Algorithm 1 as it is printed: T outer steps of k workers, each with H inner steps of its own AdamW."""
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(TASK), namespace)
    shared: nn.Module = namespace["build_model"]({})
    models = [namespace["build_model"]({}) for _ in range(workers)]
    inner = [namespace["build_optimizer"](model, {}) for model in models]
    momentum = [torch.zeros_like(parameter) for parameter in shared.parameters()]
    for number in range(ROUNDS):
        for worker, model in enumerate(models):
            model.load_state_dict(shared.state_dict())
            for batch in batches_of(worker, workers, number, shards):
                inner[worker].zero_grad()
                namespace["loss"](model, batch).backward()
                inner[worker].step()
        with torch.no_grad():
            for parameter, velocity, *local in zip(
                shared.parameters(), momentum, *(model.parameters() for model in models), strict=True
            ):
                outer_gradient = torch.stack([parameter - each for each in local]).mean(dim=0)
                velocity.mul_(0.9).add_(outer_gradient)
                parameter.sub_(0.7 * (outer_gradient + 0.9 * velocity))
    return {name: parameter.detach() for name, parameter in shared.named_parameters()}


def batches_of(worker: int, workers: int, number: int, shards: list[Rows]) -> Iterator[Batch]:
    epoch, start, stop = rows_of(number)
    own = range(SHARDS)[share_of(worker, workers)]
    rows = [shards[i].take(shard_order(SEED, epoch, i, shards[i].samples, Split.TRAIN)[start:stop]) for i in own]
    x, y = (torch.cat([part[column] for part in rows]) for column in ("x", "y"))
    sizes = even_sizes(len(y), BATCH)
    yield from ({"x": a, "y": b} for a, b in zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_farm_gives_the_papers_weights(tmp_path: Path, workers: int, recipe: Recipe) -> None:
    shards, files = make_shards(tmp_path, "float64")
    clients = [
        Bench(tmp_path, TASK, batch_samples=BATCH, inner_state=InnerState.KEPT, shards=shards, files=files)
        for _ in range(workers)
    ]
    farm = train_on_the_farm(clients, recipe)
    expected = train_in_one_process(workers, [read_shard(files[s.blob.digest]) for s in shards if s.blob])
    assert farm.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (farm[name] - tensor).norm() / tensor.norm()
        assert error < 1e-9, f"{name} differs by {error:.2e}"

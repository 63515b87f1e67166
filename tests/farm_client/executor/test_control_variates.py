"""SCAFFOLD: clients and the server's fold against algorithm 1 with option II, in float64. Source: arXiv:1910.06378."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordinator.numerics.inner_state import InnerStateMean
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.control_variates import ControlVariates
from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.messages import Piece
from farm_server.tensors.task_tensors import state_file
from protocol.codecs import BytesReader
from protocol.contradictions import contradiction
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe
from protocol.tasks import Split
from protocol.tensors import parse_layout
from tests.farm_client.executor.bench_task import LINEAR, Bench

TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"].double()), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=config["lr"])
"""
Round = dict[int, tuple[Piece, ...]]
"""The pieces of each client that takes part, by its number."""


@dataclass
class Farm:
    """Clients whose control variates lie in files, and the server's arithmetic, without the sockets between."""

    clients: Sequence[Bench]
    outer: OuterOptimizer = field(default_factory=OuterOptimizer)

    def __post_init__(self) -> None:
        first = self.clients[0]
        self.layout = parse_layout(first.weights)
        self.weights = safetensors.torch.load(first.weights)
        self.server = OuterStep(self.outer, self.weights, self.layout)
        self.state: bytes | None = None

    def train(self, number: int, pieces: Round) -> None:
        updates, states = WeightedMean(self.layout), InnerStateMean()
        file = safetensors.torch.save(self.weights)
        everything = sum(piece.stop - piece.start for mine in pieces.values() for piece in mine)
        for index, mine in pieces.items():
            client = self.clients[index]
            done = client.train(
                round=number,
                weights=file,
                weights_digest=digest_bytes(file),
                inner_state=self.state,
                round_samples=everything,
                control_path=str(control_of(client, index)),
                pieces=mine,
            )
            assert done.update is not None
            assert done.control_path is not None
            Path(done.control_path).replace(control_of(client, index))
            updates.fold(BytesReader(done.update), done.samples)
            states.fold(BytesReader(done.update), done.samples)
        self.server.step(updates.result())
        self.state = b"".join(state_file(*states.result()))

    def control(self) -> dict[str, torch.Tensor]:
        """Return the server's control variate."""
        assert self.state is not None
        prefix = "inner_state/control/c/"
        found = safetensors.torch.load(self.state)
        return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def control_of(client: Bench, index: int) -> Path:
    return client.folder / f"client-{index}.control"


@dataclass
class Paper:
    """Algorithm 1 as it is printed, with option II: N clients, x and c on the server, c_i on each."""

    bench: Bench
    clients: int
    rate: float
    outer_rate: float = 1.0

    def __post_init__(self) -> None:
        self.model: nn.Module = self.bench.runner.contract.build_model()
        self.x = [p.detach().clone() for p in self.model.parameters()]
        self.c = [torch.zeros_like(p) for p in self.x]
        self.own = [[torch.zeros_like(p) for p in self.x] for _ in range(self.clients)]

    def train(self, pieces: Round) -> None:
        moved, changed = [], []
        total = sum(piece.stop - piece.start for mine in pieces.values() for piece in mine)
        for index, mine in pieces.items():
            y, steps = [p.clone() for p in self.x], 0
            for batch in self.bench.runner._source.batches(mine, 0):
                with torch.no_grad():
                    [p.copy_(value) for p, value in zip(self.model.parameters(), y, strict=True)]
                loss = nn.functional.cross_entropy(self.model(batch["x"].double()), batch["y"])
                gradients = torch.autograd.grad(loss, list(self.model.parameters()))
                y = [
                    v - self.rate * (g - ci + c)
                    for v, g, ci, c in zip(y, gradients, self.own[index], self.c, strict=True)
                ]
                steps += 1
            new = [
                ci - c + (x - v) / (steps * self.rate)
                for ci, c, x, v in zip(self.own[index], self.c, self.x, y, strict=True)
            ]
            share = sum(piece.stop - piece.start for piece in mine) / total
            moved.append([share * (v - x) for v, x in zip(y, self.x, strict=True)])
            changed.append([after - before for after, before in zip(new, self.own[index], strict=True)])
            self.own[index] = new
        self.x = [x + self.outer_rate * sum(column) for x, *column in zip(self.x, *moved, strict=True)]
        # c + |S| / N times the mean over S
        self.c = [
            c + len(pieces) / self.clients * (sum(column) / len(pieces))
            for c, *column in zip(self.c, *changed, strict=True)
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scaffold")


def bench_of(folder: Path, rate: float, clients: int, like: Bench | None = None) -> Bench:
    given: dict[str, Any] = {} if like is None else {"shards": like.shards, "files": like.files}
    return Bench(
        folder,
        TASK,
        config={"lr": rate},
        inner_state=InnerState.CARRIED,
        scaffold_clients=clients,
        **given,
    )


@pytest.fixture(scope="module")
def data(folder: Path) -> Bench:
    return bench_of(folder / "data", 0.1, 1)


def cut(bench: Bench, borders: Sequence[int]) -> list[tuple[Piece, ...]]:
    """Cut the first shard's rows at these borders."""
    [whole] = bench.pieces(Split.TRAIN, slice(0, 1))
    places = [0, *borders, whole.stop]
    return [(whole.model_copy(update={"start": a, "stop": b}),) for a, b in pairwise(places)]


@settings(max_examples=12, deadline=None)
@given(drawn=st.data())
def test_rounds_of_several_clients_are_the_papers(
    tmp_path_factory: pytest.TempPathFactory, data: Bench, drawn: st.DataObject
) -> None:
    """Whoever takes part in a round, and however its rows are shared."""
    clients = drawn.draw(st.integers(1, 4), "N")
    rate = drawn.draw(st.floats(0.05, 0.5), "rate")
    outer_rate = drawn.draw(st.sampled_from([1.0, 0.5]), "outer rate")
    folder = tmp_path_factory.mktemp("run")
    benches = [bench_of(folder / str(number), rate, clients, like=data) for number in range(clients)]
    farm = Farm(benches, OuterOptimizer(options={"lr": outer_rate}))
    paper = Paper(data, clients, rate, outer_rate)
    [whole] = data.pieces(Split.TRAIN, slice(0, 1))
    for number in range(drawn.draw(st.integers(2, 4), "rounds")):
        present = drawn.draw(
            st.lists(st.integers(0, clients - 1), min_size=1, unique=True).map(sorted), f"round {number}"
        )
        count = len(present) - 1
        borders = drawn.draw(
            st.lists(st.integers(1, whole.stop - 1), min_size=count, max_size=count, unique=True).map(sorted)
        )
        pieces = dict(zip(present, cut(data, borders), strict=True))
        farm.train(number, pieces)
        paper.train(pieces)
    names = [name for name, _ in paper.model.named_parameters()]
    for name, x, c in zip(names, paper.x, paper.c, strict=True):
        torch.testing.assert_close(farm.weights[name], x, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(farm.control()[name], c, rtol=1e-7, atol=1e-9)
    for index, own in enumerate(paper.own):
        if control_of(benches[index], index).exists():
            kept = safetensors.torch.load_file(control_of(benches[index], index))
            for name, ci in zip(names, own, strict=True):
                torch.testing.assert_close(kept[name], ci, rtol=1e-7, atol=1e-9)


def test_with_one_client_it_is_plain_local_sgd_to_the_bit(tmp_path: Path, data: Bench) -> None:
    scaffold = Farm([bench_of(tmp_path / "scaffold", 0.2, 1, like=data)])
    plain = Bench(tmp_path / "plain", TASK, config={"lr": 0.2}, shards=data.shards, files=data.files)
    weights = safetensors.torch.load(plain.weights)
    server, layout = OuterStep(OuterOptimizer(), weights, parse_layout(plain.weights)), parse_layout(plain.weights)
    pieces = data.pieces(Split.TRAIN)
    for number in range(3):
        file = safetensors.torch.save(weights)
        mean = WeightedMean(layout)
        done = plain.train(round=number, weights=file, weights_digest=digest_bytes(file), pieces=pieces)
        assert done.update is not None
        mean.fold(BytesReader(done.update), done.samples)
        server.step(mean.result())
        scaffold.train(number, {0: pieces})
    for name, tensor in weights.items():
        assert torch.equal(scaffold.weights[name], tensor), name


def test_a_client_that_lost_its_own_begins_from_zero(tmp_path: Path, data: Bench) -> None:
    pieces = data.pieces(Split.TRAIN)
    losing, fresh = (Farm([bench_of(tmp_path / name, 0.2, 2, like=data)]) for name in ("losing", "fresh"))
    losing.train(0, {0: pieces})
    fresh.train(0, {0: pieces})
    control_of(losing.clients[0], 0).unlink()
    safetensors.torch.save_file({}, control_of(fresh.clients[0], 0))
    losing.train(1, {0: pieces})
    fresh.train(1, {0: pieces})
    for name, tensor in fresh.weights.items():
        assert torch.equal(losing.weights[name], tensor)


@pytest.mark.parametrize("damage", [b"no tensors", safetensors.torch.save({"0.weight": torch.zeros(7)})])
def test_one_that_is_damaged_or_of_another_model_is_zero(
    tmp_path: Path, data: Bench, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    farm = Farm([bench_of(tmp_path, 0.2, 2, like=data)])
    control_of(farm.clients[0], 0).write_bytes(damage)
    farm.train(0, {0: data.pieces(Split.TRAIN)})
    assert "begins from zero" in "".join(capsys.readouterr())


def test_steps_that_go_on_from_a_snapshot_give_the_same(tmp_path: Path, data: Bench) -> None:
    """What the gradients of the steps before it come to is a part of the snapshot."""
    whole = bench_of(tmp_path / "whole", 0.2, 2, like=data).train()
    control = tmp_path / "none.control"
    bench = bench_of(tmp_path / "resumed", 0.2, 2, like=data)
    bench.snapshot_seconds = 1e-9
    bench.runner._order = bench.load_order()
    path = tmp_path / "work.state"
    bench.runner._gradient.add = interrupted(bench)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.train(snapshot_path=str(path), control_path=str(control))
    assert path.exists()
    again = bench_of(tmp_path / "again", 0.2, 2, like=data)
    again.snapshot_seconds = 1e9
    again.runner._order = again.load_order()
    done = again.train(snapshot_path=str(path), control_path=str(control))
    assert done.update == whole.update
    assert Path(done.control_path or "").read_bytes() == Path(whole.control_path or "").read_bytes()


def interrupted(bench: Bench) -> Any:
    """Return what adds a gradient, three times; it raises then, once the last snapshot is on the disk."""
    add, stop_after = bench.runner._gradient.add, iter(range(3))

    def once_more(*arguments: Any) -> Any:
        if next(stop_after, None) is None:
            bench.runner._snapshots.wait()
            raise KeyboardInterrupt
        return add(*arguments)

    return once_more


@pytest.mark.parametrize("optimizer", ["AdamW(model.parameters())", "SGD(model.parameters(), lr=0.1, momentum=0.9)"])
def test_an_optimizer_that_is_not_plain_sgd_is_refused_by_name(tmp_path: Path, optimizer: str) -> None:
    own = f"""
    def build_optimizer(model, config):
        return torch.optim.{optimizer}
"""
    with pytest.raises(CodeError, match=r"plain SGD.*scaffold_clients"):
        Bench(tmp_path, LINEAR + own, inner_state=InnerState.CARRIED, scaffold_clients=2).train()


def test_a_gradient_that_is_not_finite_spoils_no_control_variate(data: Bench) -> None:
    control = ControlVariates(data.runner.tensors, None, share=1.0, clients=1)
    for parameter in data.runner.tensors.parameters.values():
        parameter.grad = torch.full_like(parameter, torch.inf)
    control.add_gradient(data.runner.tensors.parameters, ())
    data.runner.tensors.clear_gradients()
    with pytest.raises(LossNotFinite, match="NaN or infinity"):
        control.end()


def test_what_the_loss_never_depends_on_has_none(data: Bench) -> None:
    parameters = data.runner.tensors.parameters
    control = ControlVariates(data.runner.tensors, None, share=1.0, clients=1)
    control.load_state_dict({"c": {name: torch.ones_like(p) for name, p in parameters.items()}})
    control.add_gradient(parameters, set(parameters))
    assert all(parameter.grad is None for parameter in parameters.values())
    assert not any(tensor.any() for tensor in control.end().values())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": Mode.GRADIENTS, "inner_state": "fresh"}, "weights mode"),
        ({"inner_state": "kept"}, "inner_state"),
        ({"proximal_mu": 0.1}, "proximal_mu"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"clip_value": 1.0}, "clip_value"),
        ({"precision": "fp16"}, "bf16"),
        ({"quorum": 0.5}, "quorum"),
        ({"over_provision": 0.5}, "over_provision"),
        ({"parts": "fixed"}, "whoever comes"),
        ({"min_clients": 5}, "a round needs 5"),
        ({"init_min_clients": 6}, "a round needs 6"),
    ],
)
def test_what_its_equations_do_not_hold_for_is_refused(fields: dict[str, Any], why: str) -> None:
    assert contradiction(Recipe(rounds=1, scaffold_clients=4)) is None
    assert why in (contradiction(Recipe(rounds=1, scaffold_clients=4, **fields)) or "")


def test_a_recipe_with_control_variates_carries_its_state() -> None:
    assert Recipe(rounds=1, scaffold_clients=4).inner_state is InnerState.CARRIED
    assert Recipe(rounds=1).inner_state is InnerState.FRESH

"""SCAFFOLD over a split: each virtual client has its control variate, whichever machine computes its part.

Quadratics of different curvature, f_i(w) = a_i / 2 * |w - b_i|^2: several local steps draw FedAvg away from the minimum
of their mean, sum(a_i b_i) / sum(a_i), and SCAFFOLD ends there (Karimireddy et al., arXiv:1910.06378, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from coordinator.numerics.inner_state import InnerStateMean
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.messages import Piece
from farm_server.tensors.task_tensors import state_file
from protocol.codecs import BytesReader
from protocol.contradictions import contradiction
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, Recipe
from protocol.tasks import Split
from protocol.tensors import parse_layout
from tests.farm_client.executor.bench_task import Bench, write_data

TASK = """
    import torch
    from torch import nn

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def build_model(config):
        return Point()

    def loss(model, batch):
        return (batch["a"] / 2 * (model.w - batch["b"]) ** 2).sum(1).mean()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)
"""
CURVATURES = np.array([[0.5, 4.0], [2.0, 1.0], [6.0, 0.3]])
CENTRES = np.array([[1.0, -2.0], [-3.0, 0.5], [4.0, 2.0]])
ROWS, BATCH, RATE = 32, 4, 0.1
BEST = (CURVATURES * CENTRES).sum(0) / CURVATURES.sum(0)


@dataclass
class Farm:
    """Machines that take the parts of virtual clients in turn, and the server's arithmetic."""

    folder: Path
    scaffold_clients: int
    state: bytes | None = None
    machines: list[Bench] = field(default_factory=list)
    parts: list[tuple[Piece, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        changes: dict[str, Any] = {"scaffold_clients": self.scaffold_clients, "batch_samples": BATCH}
        if self.scaffold_clients:
            changes["inner_state"] = InnerState.CARRIED
        for number, (a, b) in enumerate(zip(CURVATURES, CENTRES, strict=True)):
            data = write_data(self.folder / f"data{number}", 0.0, a=np.tile(a, (ROWS, 1)), b=np.tile(b, (ROWS, 1)))
            bench = Bench(self.folder / f"machine{number}", TASK, shards=data[0], files=data[1], **changes)
            self.machines.append(bench)
            self.parts.append(
                tuple(p.model_copy(update={"shard": 100 * number + p.shard}) for p in bench.pieces(Split.TRAIN))
            )
        self.layout = parse_layout(self.machines[0].weights)
        self.weights = safetensors.torch.load(self.machines[0].weights)

    def train(self, number: int, present: Sequence[int]) -> None:
        updates, states = WeightedMean(self.layout), InnerStateMean()
        file = safetensors.torch.save(self.weights)
        for part in present:
            done = self.machines[(part + number) % len(self.machines)].train(
                round=number,
                weights=file,
                weights_digest=digest_bytes(file),
                inner_state=self.state,
                round_samples=ROWS * len(present),
                pieces=self.parts[part],
                data_part=part if self.scaffold_clients else None,
            )
            assert done.update is not None
            assert done.control_path is None, "nothing stays with the machine"
            updates.fold(BytesReader(done.update), done.samples)
            if self.scaffold_clients:
                states.fold(BytesReader(done.update), done.samples)
        self.weights = {name: tensor - updates.result()[name] for name, tensor in self.weights.items()}
        if self.scaffold_clients:
            self.state = b"".join(state_file(*states.result()))


class Paper:
    """Algorithm 1, option II, for the quadratics: N clients, of which those ``present`` take part."""

    def __init__(self) -> None:
        self.x, self.c, self.own = np.zeros(2), np.zeros(2), np.zeros((3, 2))

    def train(self, present: Sequence[int]) -> None:
        moved, changed = [], []
        steps = ROWS // BATCH
        for i in present:
            y = self.x.copy()
            for _ in range(steps):
                y -= RATE * (CURVATURES[i] * (y - CENTRES[i]) - self.own[i] + self.c)
            new = self.own[i] - self.c + (self.x - y) / (steps * RATE)
            moved.append(y - self.x)
            changed.append(new - self.own[i])
            self.own[i] = new
        self.x = self.x + np.mean(moved, axis=0)
        self.c = self.c + np.sum(changed, axis=0) / 3


def test_rounds_are_the_papers_whichever_machine_has_a_part(tmp_path: Path) -> None:
    """Also where a virtual client has no rows in a round: its control variate waits for it."""
    farm, paper = Farm(tmp_path, 3), Paper()
    for number, present in enumerate([(0, 1, 2), (0, 2), (1,), (0, 1, 2), (1, 2), (0, 1, 2)]):
        farm.train(number, present)
        paper.train(present)
        np.testing.assert_allclose(farm.weights["w"].numpy(), paper.x, rtol=1e-10, atol=1e-12)


def test_where_fedavg_is_biased_scaffold_is_not(tmp_path: Path) -> None:
    ends = {}
    for clients in (0, 3):
        farm = Farm(tmp_path / str(clients), clients)
        for number in range(60):
            farm.train(number, (0, 1, 2))
        ends[clients] = np.abs(farm.weights["w"].numpy() - BEST).max()
    assert ends[0] > 0.3
    assert ends[3] < 1e-3


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"scaffold_clients": 4}, "scaffold_clients = 3"),
        ({"proximal_mu": 0.1}, "proximal_mu"),
        ({"quorum": 0.5}, "quorum"),
    ],
)
def test_what_does_not_go_with_both_is_refused(fields: dict[str, Any], why: str) -> None:
    both: dict[str, Any] = {"rounds": 1, "split": "iid", "split_parts": 3, "scaffold_clients": 3}
    assert contradiction(Recipe(**both)) is None
    try:
        refused = contradiction(Recipe(**{**both, **fields}))
    except ValueError as error:
        refused = str(error)
    assert why in (refused or "")

"""The inner optimizer's state travels with the version: one client a round is the plain loop, several come near it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from farm_client.data.shards import Rows, read_shard
from protocol.recipe import InnerState
from protocol.tasks import Split
from tests.e2e.conftest import RealFarm
from tests.e2e.rounds_in_process import Round, train_on_the_farm
from tests.e2e.test_diloco_equivalence import batches_of, share_of
from tests.e2e.test_gradient_equivalence import make_shards, rows_of
from tests.farm_client.executor.bench_task import Bench

BATCH = 8
OPTIMIZERS = {
    "adamw": "torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)",
    "momentum": "torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.95, nesterov=True)",
    "adagrad": "torch.optim.Adagrad(model.parameters(), lr=0.05)",
    "rprop": "torch.optim.Rprop(model.parameters(), lr=1e-3)",
    "lbfgs": "torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=3, history_size=5)",
}
TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return {optimizer}
"""


def rounds_of(clients: list[Bench], rounds: int) -> Iterator[Round]:
    """Yield so many rounds, in each of which each client has its share of the shards."""
    for number in range(rounds):
        epoch, start, stop = rows_of(number)
        shares = [client.pieces(Split.TRAIN, share_of(worker, len(clients))) for worker, client in enumerate(clients)]
        of_round = {"start": start, "stop": stop}
        yield epoch, [tuple(piece.model_copy(update=of_round) for piece in share) for share in shares]


def train_plainly(source: str, shards: list[Rows], rounds: int, joined: int = 1) -> nn.Module:
    """One loop in one process over the same batches, or over so many of them at a time."""
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(source), namespace)
    model: nn.Module = namespace["build_model"]({})
    optimizer = namespace["build_optimizer"](model, {})
    for number in range(rounds):
        batches = list(batches_of(0, 1, number, shards))
        for start in range(0, len(batches), joined):
            parts = batches[start : start + joined]
            batch = {key: torch.cat([part[key] for part in parts]) for key in ("x", "y")}
            if "train_step" in namespace:
                namespace["train_step"](model, batch, optimizer, number)
            else:
                optimizer.step(partial(_gradient_of, namespace["loss"], model, optimizer, batch))
    return model


def _gradient_of(loss: Any, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:
    optimizer.zero_grad()
    value: torch.Tensor = loss(model, batch)
    value.backward()
    return value


def benches(folder: Path, source: str, count: int, state: InnerState) -> tuple[list[Bench], list[Rows]]:
    shards, files = make_shards(folder, "float64")
    clients = [
        Bench(folder, source, batch_samples=7, inner_state=state, shards=shards, files=files) for _ in range(count)
    ]
    return clients, [read_shard(files[s.blob.digest]) for s in shards if s.blob]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_client_a_round_is_the_plain_loop(tmp_path: Path, optimizer: str) -> None:
    source = TASK.replace("{optimizer}", optimizer)
    clients, shards = benches(tmp_path, source, 1, InnerState.CARRIED)
    weights = train_on_the_farm(clients, rounds_of(clients, 8))
    expected = train_plainly(source, shards, 8).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-12)


SEVERAL = """
    def build_optimizer(model, config):
        first = torch.optim.AdamW(model[0].parameters(), lr=3e-3)
        return [first, torch.optim.SGD(model[2].parameters(), lr=0.02, momentum=0.9)]

    def train_step(model, batch, optimizers, step):
        value = loss(model, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return value
"""


def test_several_optimizers_are_carried_beside_each_other(tmp_path: Path) -> None:
    source = TASK.partition("    def build_optimizer")[0] + SEVERAL.removeprefix("\n")
    clients, shards = benches(tmp_path, source, 1, InnerState.CARRIED)
    weights = train_on_the_farm(clients, rounds_of(clients, 8))
    for name, tensor in train_plainly(source, shards, 8).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-12)


def loss_of(weights: dict[str, torch.Tensor], source: str, shards: list[Rows]) -> float:
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(source), namespace)
    model = namespace["build_model"]({})
    model.load_state_dict(weights)
    rows = [shard.take(torch.arange(shard.samples)) for shard in shards]
    with torch.no_grad():
        return float(namespace["loss"](model, {key: torch.cat([part[key] for part in rows]) for key in ("x", "y")}))


def test_two_clients_come_near_the_plain_loop_where_new_optimizers_do_not(tmp_path: Path) -> None:
    """At equal samples and steps: a step of the loop takes as many samples as one of both clients together."""
    source = TASK.replace("{optimizer}", OPTIMIZERS["momentum"]).replace('batch["y"]', '(batch["x"].sum(1) > 0).long()')
    losses = {}
    for state in (InnerState.FRESH, InnerState.CARRIED):
        folder = tmp_path / state
        folder.mkdir()
        clients, shards = benches(folder, source, 2, state)
        losses[state] = loss_of(train_on_the_farm(clients, rounds_of(clients, 20)), source, shards)
    plain = loss_of(train_plainly(source, shards, 20, joined=2).state_dict(), source, shards)
    ratios = {state: loss / plain for state, loss in losses.items()}
    assert abs(ratios[InnerState.CARRIED] - 1) < 0.05, ratios
    assert ratios[InnerState.FRESH] > 1.1, ratios


STEPS, ROUND = 24, 4
REAL_TASK = """
    import os
    from pathlib import Path

    import torch
    from torch import nn

    calls = 0

    def build_model(config):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(model, batch):
        global calls
        calls += model.training
        marker = Path({marker!r})
        if calls == 10 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return {optimizer}
"""


@pytest.mark.slow
def test_a_real_farm_gives_the_plain_loop_though_an_executor_is_killed(
    tmp_path: Path, start_farm: Callable[[int], RealFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are equal, so that every order of them makes the same batches; the executor dies in its tenth step.

    Only once, by a file that the next executor sees: in a sandbox it would not.
    """
    monkeypatch.setenv("FARM_CLIENT_SANDBOX", "none")
    farm = start_farm(2)
    marker = tmp_path / "killed"
    source = textwrap.dedent(REAL_TASK).format(marker=str(marker), optimizer=OPTIMIZERS["adamw"])
    (tmp_path / "train.py").write_text(source)
    (tmp_path / "task.toml").write_text(
        f"""
        [task]
        entry = "train.py"
        data = "data.npz"
        [recipe]
        epochs = 1
        round_samples = {ROUND * BATCH}
        batch_samples = {BATCH}
        max_clients = 1
        inner_state = "carried"
        """
    )
    row = np.array([0.3, -1.0, 2.0, 0.7], "f4")
    np.savez(tmp_path / "data.npz", x=np.tile(row, (STEPS * BATCH, 1)), y=np.ones(STEPS * BATCH, "i8"))
    task = farm.submit(str(tmp_path))
    assert farm.run("wait", task, "--timeout", "80").exit_code == 0
    assert farm.run("pull", task, "-o", str(tmp_path / "model.safetensors")).exit_code == 0
    assert marker.exists(), "the executor was killed"
    model = safetensors.torch.load_file(tmp_path / "model.safetensors")

    namespace: dict[str, Any] = {}
    exec(source, namespace)
    plain = namespace["build_model"]({})
    optimizer = namespace["build_optimizer"](plain, {})
    batch = {"x": torch.from_numpy(np.tile(row, (BATCH, 1))), "y": torch.ones(BATCH, dtype=torch.int64)}
    for _ in range(STEPS):
        optimizer.zero_grad()
        namespace["loss"](plain, batch).backward()
        optimizer.step()
    assert model.keys() == plain.state_dict().keys()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(model[key], tensor, rtol=1e-6, atol=1e-6)

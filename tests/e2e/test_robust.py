"""A liar among real volunteers: what the recipe's aggregate makes of its updates."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save
from websockets.exceptions import WebSocketException

from protocol.assignments import Assign
from protocol.tensors import UPDATE_METADATA
from tests.e2e.conftest import RealFarm
from tests.farm_server.volunteer import Volunteer

CODE = """
    import torch
    from torch import nn

    def build_model(config):
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.Adam(model.parameters(), lr=0.02)
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    rounds = 6
    round_samples = 600
    batch_samples = 20
    parts = "fixed"
    min_clients = 3
    evaluate_every = 0
"""
LIE = 1000.0


class Liar:
    """A light client that answers every assignment at once, with the same large number everywhere."""

    def __init__(self, farm: RealFarm) -> None:
        token, _, place = farm.processes.join_url.removeprefix("ws://").partition("@")
        self._volunteer = lambda: Volunteer(f"ws://{place}/v1/farm", token, "liar")
        self._lie = b""
        self.told = 0

    async def work_for_ever(self) -> None:
        while True:
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                async with self._volunteer() as volunteer:
                    await volunteer.train_for_ever(self._make_update)

    def _make_update(self, assign: Assign) -> bytes:
        if assign.weights.inline is not None:
            tensors = load(assign.weights.inline)
            self._lie = save({name: torch.full_like(t, LIE) for name, t in tensors.items()}, dict(UPDATE_METADATA))
        self.told += 1
        return self._lie


@contextmanager
def lying(liar: Liar) -> Iterator[None]:
    """Let it work in a thread for the length of the block."""
    loop = asyncio.new_event_loop()
    work = loop.create_task(liar.work_for_ever())

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(work)
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(work.cancel)
        thread.join()


def accuracy(weights: dict[str, torch.Tensor], x: np.ndarray, y: np.ndarray) -> float:
    hidden = torch.tanh(torch.from_numpy(x) @ weights["0.weight"].T + weights["0.bias"])
    said = (hidden @ weights["2.weight"].T + weights["2.bias"]).argmax(dim=1)
    return float((said == torch.from_numpy(y)).float().mean())


@pytest.mark.slow
def test_a_liar_among_three_spoils_the_mean_and_not_the_median(tmp_path: Path, farm: RealFarm) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4)).astype("f4")
    y = (x[:, 0] > x[:, 1]).astype("i8")
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text(textwrap.dedent(TASK))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    models = {}
    for aggregate in ("mean", "median"):
        liar = Liar(farm)
        task = farm.submit(str(tmp_path), "--aggregate", aggregate)
        with lying(liar):
            assert farm.run("wait", task, "--timeout", "80").exit_code == 0
        assert liar.told >= 6
        path = tmp_path / f"{aggregate}.safetensors"
        assert farm.run("pull", task, "-o", str(path)).exit_code == 0
        models[aggregate] = load_file(path)
    assert min(float(tensor.abs().min()) for tensor in models["mean"].values()) > LIE
    assert max(float(tensor.abs().max()) for tensor in models["median"].values()) < 3
    assert accuracy(models["median"], x, y) > 0.9

"""A model that several processes hold in parts: what they return together is what one process returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farm_client.executor.followers import PROCESSES_VARIABLE
from farm_client.executor.messages import Done, Loaded, LoadTask, Report, Run, Warm
from farm_client.executor.placing import SHARD_VARIABLE
from farm_client.executor.shards import blocks_of
from protocol.assignments import Kind
from protocol.recipe import Mode
from tests.farm_client.executor.agent_side import started
from tests.farm_client.executor.bench_task import Bench, update_of

TRANSFORMER = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 16)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 33, dropout=0.0, batch_first=True) for _ in range(2)
            )
            self.head = nn.Linear(16, 11, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("seen", torch.zeros(()))

        def logits(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    def build_model(config):
        return Net()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)  # Adam would step by the signs of noise

    def loss(model, batch):
        if model.training:
            model.seen += 1
        return nn.functional.cross_entropy(model.logits(batch["x"]).flatten(0, 1), batch["x"].roll(1, 1).flatten())
"""


def tokens(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).integers(0, 11, (rows, 6)).astype("i8")}


@pytest.mark.parametrize(("mode", "size"), [(Mode.WEIGHTS, 2), (Mode.GRADIENTS, 3)])
def test_a_model_in_parts_trains_as_a_whole_one(tmp_path: Path, mode: Mode, size: int) -> None:
    """Batches of 4 and 1 rows: a process without any has its part all the same. Clipping sees the norm of all parts."""
    clip = {"clip_norm": 0.3} if mode is Mode.WEIGHTS else {}
    bench = Bench(tmp_path, TRANSFORMER, mode=mode, arrays=tokens(28), batch_samples=4, **clip)
    expected = bench.train()
    evaluated = bench.evaluate()
    with started(**{PROCESSES_VARIABLE: str(size), SHARD_VARIABLE: "always"}) as agent:
        agent.connection.settimeout(120)

        def answer(order: LoadTask | Run) -> Report:
            agent.send(order)
            return agent.hear_end()[1]

        assert isinstance(agent.hear(), Warm)
        assert isinstance(answer(bench.load_order()), Loaded)
        for _ in range(2):  # each begins with the version, whatever the one before has left
            close(answer(bench.run_order(kind=Kind.EVALUATE)), evaluated)
            close(answer(bench.run_order()), expected)


def close(done: Any, expected: Done) -> None:
    assert isinstance(done, Done), done
    assert done.samples == expected.samples
    assert done.metrics == pytest.approx(expected.metrics, rel=1e-5)
    if expected.update is None:
        return
    found = update_of(done)
    assert found.keys() == update_of(expected).keys()
    for name, tensor in update_of(expected).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_layers_of_lists_are_parted_one_by_one_unless_they_share_with_the_rest() -> None:
    tied = nn.Linear(3, 3)
    layers = nn.ModuleList(
        [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 3)]
    )
    layers[2].weight = tied.weight
    model = nn.ModuleDict({"head": tied, "layers": layers})
    assert blocks_of(model) == [layers[0], layers[1]]

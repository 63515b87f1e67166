"""A small recurrent task whose rows are read in order: what comes next shows only in what was before the row."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm_client.data.readers import open_data
from farm_client.data.sharding import write_shards
from farm_client.data.stretches import Stretches
from tests.farm_client.executor.bench_task import Bench

STREAMS = 3
LSTM = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(2, 3)
            self.lstm = nn.LSTM(3, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x, state):
            out, state = self.lstm(self.embed(x), state)
            return self.head(out), state

    def build_model(config):
        torch.manual_seed(4)
        return Net().double()

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=0.02)

    def initial_state(model, batch_size, config):
        zeros = torch.zeros(1, batch_size, 6, dtype=torch.float64)
        return zeros, zeros

    def loss(model, batch, state):
        scores, state = model(batch["x"], state)
        value = nn.functional.cross_entropy(scores.flatten(0, 1), batch["y"].flatten())
        return {"loss": value, "before": state[0].abs().mean()}, state
"""


def sequence(rows: int) -> dict[str, np.ndarray]:
    """Two tokens a row, of a sequence in which each token follows from the three before it."""
    tokens = [0, 1, 1]
    while len(tokens) < 2 * rows + 1:
        tokens.append(tokens[-1] ^ tokens[-3])
    stream = np.array(tokens)
    return {"x": stream[: 2 * rows].reshape(rows, 2), "y": stream[1 : 2 * rows + 1].reshape(rows, 2)}


def ordered_bench(
    folder: Path, source: str = LSTM, *, rows: int = 26, holdout: float = 0.25, stretches: int = 1, **options: Any
) -> Bench:
    """Return a runner of a task whose data is laid out for so many clients."""
    (folder / "shards").mkdir(parents=True)
    np.savez(folder / "data.npz", **sequence(rows))
    data = open_data([folder / "data.npz"])
    laid_out = Stretches.of(data.rows, data.size_bytes, holdout, streams=STREAMS, stretches=stretches)
    shards, files = write_shards(data, laid_out.shards(), folder / "shards", 1, shard_of=laid_out.shard_of)
    return Bench(folder, source, batch_samples=STREAMS, shards=shards, files=files, **options)


def batches_of(rows: int, streams: int) -> list[dict[str, torch.Tensor]]:
    """The first rows as the plain loop reads them: contiguous streams side by side, whole batches only."""
    length = rows // streams
    return [
        {
            name: torch.from_numpy(values[: length * streams].reshape(streams, length, 2)[:, step])
            for name, values in sequence(rows).items()
        }
        for step in range(length)
    ]


def functions_of(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(source), namespace)
    return namespace


def detached(state: Any) -> Any:
    return tuple(part.detach() for part in state)

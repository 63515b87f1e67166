"""The farm's order of samples against random orders: the same training in one process, and no farm.

What is compared is the order alone: both sides take the same steps, of batches of the same size, from the same weights,
with the same optimizer. The random side is ``torch.utils.data.RandomSampler``'s; the farm's is computed by the very
functions that deal rows to shards, plan rounds (``coordinator.epoch``) and read a shard (``farm_client.data.order``).
"""

from __future__ import annotations

import math
import pydoc_data.topics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks.measurement import Measurement
from coordinator.epoch import epoch_order, take
from coordinator.settings import CoordinatorSettings
from farm_client.data.order import StrideOrder, shard_order
from farm_client.data.readers import open_data
from farm_client.data.sharding import plan_shards, write_shards
from farm_client.data.shards import read_shard
from farm_client.executor.samples import even_sizes
from protocol.tasks import Shard, Split

Columns = tuple[torch.Tensor, ...]
Batches = list[torch.Tensor]
"""The rows of each step of one epoch, as indices."""
BATCH_SAMPLES: Final = 32
HOLDOUT: Final = 1 / 5
DIGITS: Final = Path(__file__).parent.parent / "examples" / "digits" / "digits.npz"
STUDENT_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom; about 1.96 beyond."""


@dataclass(frozen=True)
class Order(Measurement):
    """The mean ratio of held-out losses, the farm's order over random ones, with its 95 % interval over the seeds."""

    model: str
    data: str
    rounds: str
    epochs: int
    seeds: int
    orders: int
    ratio: float
    low: float
    high: float
    worse_seeds: int
    plain_loss: float


@dataclass(frozen=True)
class Subject:
    """What is trained: rows to train on and held-out rows as tensors, a model, its loss and its optimizer."""

    train: Columns
    held_out: Columns
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Sequence[torch.Tensor]], torch.Tensor]
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

    @property
    def rows(self) -> int:
        """Count the rows to train on."""
        return len(self.train[0])


class Layout:
    """How the farm sees a data set: its training shards, and which row of the data set each of their rows is."""

    def __init__(self, rows: Sequence[torch.Tensor]) -> None:
        self.rows = rows
        self.shards = [
            Shard(index=i, split=Split.TRAIN, samples=len(r), start=sum(map(len, rows[:i]))) for i, r in enumerate(rows)
        ]

    def epoch(self, seed: int, epoch: int, round_samples: int) -> Batches:
        """Return an epoch's steps where one client does whole rounds of so many samples, a batch at a time."""
        order = epoch_order(self.shards, seed, epoch)
        stripe = CoordinatorSettings().stripe_shards
        total = sum(shard.samples for shard in self.shards)
        batches: Batches = []
        for cursor in range(0, total, round_samples):
            ranges = take(order, cursor, round_samples, stripe)
            rows = torch.cat([self._read(seed, epoch, r.shard)[r.start : r.stop] for r in ranges])
            batches += torch.split(rows, even_sizes(len(rows), BATCH_SAMPLES))
        return batches

    def _read(self, seed: int, epoch: int, shard: int) -> torch.Tensor:
        rows = self.rows[shard]
        return rows[shard_order(seed, epoch, shard, len(rows), Split.TRAIN)]


def dealt(rows: int, row_bytes: int, seed: int) -> Layout:
    """Return the layout of a data file with so many rows: `farm submit` deals them to shards at random."""
    with tempfile.TemporaryDirectory(prefix="order-") as folder:
        np.savez(Path(folder) / "rows.npz", row=np.arange(rows))
        plan = plan_shards(rows, rows * row_bytes, holdout=0)
        shards, files = write_shards(open_data([Path(folder) / "rows.npz"]), plan, Path(folder), seed)
        digests = [shard.blob.digest for shard in shards if shard.blob]
        return Layout([_numbers(files[digest]) for digest in digests])


def strided(rows: int, row_bytes: int, seed: int) -> Layout:
    """Return the layout of a data set that the task's code makes: shards are runs of a fixed stride through it."""
    stride, taken, dealt_rows = StrideOrder(rows, seed), 0, []
    for planned in plan_shards(rows, rows * row_bytes, holdout=0):
        dealt_rows.append(torch.tensor([stride.item(taken + i) for i in range(planned.samples)]))
        taken += planned.samples
    return Layout(dealt_rows)


LAYOUTS: Final[Mapping[str, Callable[[int, int, int], Layout]]] = MappingProxyType(
    {"file": dealt, "made by code": strided}
)


def _numbers(shard: Path) -> torch.Tensor:
    rows = read_shard(shard)
    numbers: torch.Tensor = rows.join([rows.take(torch.arange(rows.samples))])["row"]
    return numbers


def random_epoch(rows: int, seed: int, epoch: int) -> Batches:
    """Return an epoch's steps in a new random order, as a DataLoader with ``shuffle`` takes them."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)
    sampler = RandomSampler(range(rows), generator=generator)
    return [torch.tensor(batch) for batch in BatchSampler(sampler, BATCH_SAMPLES, drop_last=False)]


def digits(seed: int) -> Subject:
    """Return a multi-layer perceptron on scikit-learn's digits, a fifth of them held out."""
    arrays = np.load(DIGITS)
    pixels, labels = torch.tensor(arrays["x"]).float().flatten(1) / 16, torch.tensor(arrays["y"]).long()
    train, held_out = _parted((pixels, labels), seed)
    return Subject(
        train,
        held_out,
        build=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        loss=lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )


class CharacterLSTM(nn.Module):
    """The scores of each next byte of a text: [batch, length] -> [batch, length, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(128, 16), nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 128)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Read the text from its beginning."""
        scores: torch.Tensor = self.head(self.lstm(self.embed(text))[0])
        return scores


def text(seed: int) -> Subject:
    """Return an LSTM on consecutive rows of 33 bytes of CPython's help topics, a fifth of them held out."""
    whole = "\n\n".join(entry for _, entry in sorted(pydoc_data.topics.topics.items()))
    characters = torch.frombuffer(bytearray(whole.encode("ascii", "replace")), dtype=torch.uint8)
    rows = characters[: 2000 * 33].view(-1, 33).long()

    def loss(model: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    train, held_out = _parted((rows,), seed)
    return Subject(train, held_out, CharacterLSTM, loss, lambda parameters: torch.optim.Adam(parameters, lr=0.01))


SUBJECTS: Final[Mapping[str, Callable[[int], Subject]]] = MappingProxyType({"digits": digits, "lstm": text})


def _parted(columns: Columns, seed: int) -> tuple[Columns, Columns]:
    """Return (rows to train on, the fifth that is held out), both in the data set's own order."""
    chosen = torch.rand(len(columns[0]), generator=torch.Generator().manual_seed(seed)) < HOLDOUT
    return tuple(column[~chosen] for column in columns), tuple(column[chosen] for column in columns)


def trained_loss(subject: Subject, seed: int, epochs: Sequence[Batches]) -> float:
    """Train from the seed's weights with these steps, and return the held-out loss."""
    torch.manual_seed(seed)
    model = subject.build()
    optimizer = subject.optimizer(model.parameters())
    for rows in (rows for batches in epochs for rows in batches):
        optimizer.zero_grad()
        torch.autograd.backward(subject.loss(model, [column[rows] for column in subject.train]))
        optimizer.step()
    with torch.no_grad():
        return float(subject.loss(model, subject.held_out))


def compare(name: str, data: str, whole_rounds: bool, epochs: int, seeds: int, orders: int) -> Order:
    """Train with the farm's orders and with random ones: for each seed ``orders`` times each from the same weights.

    ``whole_rounds``: a round is an epoch (weights mode's default), else a batch (the plain loop in gradients mode).
    """
    logs, losses = [], []
    for seed in range(seeds):
        subject = SUBJECTS[name](seed)
        size = subject.rows if whole_rounds else BATCH_SAMPLES
        row_bytes = sum(column[0].nbytes for column in subject.train)
        farm, plain = [], []
        for n in range(seed * orders, (seed + 1) * orders):
            layout = LAYOUTS[data](subject.rows, row_bytes, n)
            farm.append(trained_loss(subject, seed, [layout.epoch(n, epoch, size) for epoch in range(epochs)]))
            plain.append(trained_loss(subject, seed, [random_epoch(subject.rows, n, epoch) for epoch in range(epochs)]))
        logs.append(fmean(map(math.log, farm)) - fmean(map(math.log, plain)))
        losses.append(fmean(plain))
    middle, half = interval(logs)
    return Order(
        "order",
        model=name,
        data=data,
        rounds="epoch" if whole_rounds else "batch",
        epochs=epochs,
        seeds=seeds,
        orders=orders,
        ratio=math.exp(middle),
        low=math.exp(middle - half),
        high=math.exp(middle + half),
        worse_seeds=sum(log > 0 for log in logs),
        plain_loss=fmean(losses),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval, by Student's t; two values at least."""
    freedom = len(values) - 1
    factor = STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else 1.96
    return fmean(values), factor * stdev(values) / math.sqrt(len(values))

"""An aggregator by itself, whose outcomes are taken one by one."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Mapping
from pathlib import Path

from coordinator.commands import CommitRound, Fold, OpenRound
from coordinator.events import CheckpointDamaged, CheckpointDurable, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from farm_server.tensors.aggregator import Aggregator
from farm_server.tensors.checkpoint_writer import CheckpointWriter
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide
from protocol.errors import Unavailable
from protocol.recipe import OuterOptimizer, Recipe
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef, TaskSpec
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore
from tests.farm_server import model
from tests.farm_server.control.test_runtime import StillClock


class Bench:
    """An aggregator whose outcomes are taken one by one."""

    def __init__(self, root: Path, **outer: object) -> None:
        self.blobs = FolderBlobStore(root / "blobs")
        self.spooled = SpooledUpdates(self.blobs)
        self.checkpoints = CheckpointStore(self.blobs)
        self.outcomes: queue.Queue[Event] = queue.Queue()
        self.durables: queue.Queue[CheckpointDurable] = queue.Queue()
        self.versions: list[BlobRef] = []
        self.written: list[CheckpointRecord] = []
        self.small: list[dict[str, bytes]] = []
        self._clients = itertools.count()
        self.full: str | None = None
        self.writer = CheckpointWriter(self.checkpoints, StillClock(), self.claim, retry=RetryPolicy(0.01, 0.01))
        self.aggregator = Aggregator(
            checkpoints=self.checkpoints,
            writer=self.writer,
            spooled=self.spooled,
            torch_side=TorchSide(1),
            outcomes=self,
            threads=2,
        )
        self.start_from(model.weights(), Recipe(rounds=3, outer=OuterOptimizer(**{"options": {"lr": 1.0}} | outer)))

    def start_from(self, weights: bytes, recipe: Recipe) -> None:
        self.spec = model.spec(weights, recipe=recipe)
        self.checkpoint = CheckpointRecord("t", 0, 0, 0, self.blobs.put_bytes(weights), None, None, 0.0)

    @property
    def weights(self) -> list[bytes]:
        return [self.blobs.read(version.digest) for version in self.versions]

    def event(self, event: Event) -> None:
        (self.durables if isinstance(event, CheckpointDurable) else self.outcomes).put(event)

    def damaged(self, command: OpenRound, message: str) -> None:
        self.outcomes.put(CheckpointDamaged(command.task_id, command.round, command.attempt, message, None))

    def claim(self, size_bytes: int) -> None:
        if self.full is not None:
            raise Unavailable(self.full)

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: Mapping[str, float]
    ) -> None:
        self.small.append(dict(small))
        self.versions.append(checkpoint.weights)

    def durable(self, spec: TaskSpec, checkpoint: CheckpointRecord) -> None:
        self.written.append(checkpoint)

    def outcome(self) -> Event:
        return self.outcomes.get(timeout=60)

    def written_outcome(self) -> CheckpointDurable:
        return self.durables.get(timeout=60)

    def open(self, number: int = 0, attempt: int = 1) -> None:
        self.aggregator.open_round(OpenRound("t", number, attempt, self.spec, self.checkpoint))

    def fold(
        self,
        data: bytes,
        samples: int = 1,
        *,
        number: int = 0,
        attempt: int = 1,
        spool: bool = False,
        scale: float = 1.0,
        client: str | None = None,
    ) -> BlobRef:
        bare = self.blobs.put_bytes(data) if spool else model.ref(data)
        update = bare if spool else BlobRef(digest=bare.digest, size_bytes=bare.size_bytes, inline=data)
        self.fold_stored(update, samples, number=number, attempt=attempt, scale=scale, client=client)
        return update

    def fold_stored(
        self,
        update: BlobRef,
        samples: int = 1,
        *,
        number: int = 0,
        attempt: int = 1,
        scale: float = 1.0,
        client: str | None = None,
    ) -> None:
        """Fold what is stored; unless it is named, the client is one that sent nothing else."""
        sender = client or f"c{next(self._clients)}"
        self.spooled.hold(update)
        self.aggregator.fold(Fold("t", number, attempt, "a", sender, update, samples, scale))

    def commit(self, number: int = 0, attempt: int = 1) -> Event:
        """Commit, and wait until the version is durable."""
        self.aggregator.commit_round(CommitRound("t", number, attempt, 0, 64))
        event = self.outcome()
        if isinstance(event, RoundAggregated):
            self.checkpoint = self.written_outcome().checkpoint
        return event

    def round(self, number: int, *updates: tuple[float, int]) -> RoundAggregated:
        self.open(number)
        for value, samples in updates:
            self.fold(model.update(value), samples, number=number)
        event = self.commit(number)
        assert isinstance(event, RoundAggregated), event
        return event

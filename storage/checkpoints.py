"""Checkpoints: the blobs that together resume a task, and the manifest that describes them.

Weights, the outer optimizer's state and the manifest are durable, all of them, before (by the ledger) the record names
them. A crash between leaves only blobs that nothing refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict

from coordinator.records import CheckpointRecord
from protocol.errors import DigestMismatch, NotFound, Unavailable
from protocol.frozen import Frozen
from protocol.tasks import BlobRef
from storage.blob_batch import BlobBatch, Chunk, size_of
from storage.ports.blob_store import BlobStore

MANIFEST_FORMAT: Final = "aifarm-checkpoint-1"

_PARTS: Final = ("weights", "optimizer", "inner_state")
"""What a manifest refers to."""


class Manifest(Frozen):
    """What a checkpoint consists of, as JSON in a blob of its own: a backup can be read without the ledger."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: Literal["aifarm-checkpoint-1"] = MANIFEST_FORMAT
    task_id: str
    round: int
    epoch: int
    cursor: int
    weights: BlobRef
    optimizer: BlobRef | None
    inner_state: BlobRef | None = None
    created_at: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is to be written.

    ``round``, ``epoch`` and ``cursor`` say where the next round begins; ``created_at`` is in seconds. ``weights``,
    ``optimizer`` and ``inner_state`` are safetensors files in chunks: views of live tensors will do. ``delta`` is a
    blob that belongs to it without being part of it: how its weights follow from those before.
    """

    task_id: str
    round: int
    epoch: int
    cursor: int
    created_at: float
    weights: Sequence[Chunk]
    optimizer: Sequence[Chunk] | None = None
    delta: Sequence[Chunk] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    inner_state: Sequence[Chunk] | None = None

    @property
    def size_bytes(self) -> int:
        """Count the bytes of all of it but the manifest."""
        parts = (self.weights, self.optimizer, self.inner_state, self.delta)
        return sum(size_of(part) for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """What was written: the record for the ledger, and the delta's name if there was one."""

    record: CheckpointRecord
    delta: BlobRef | None


@dataclass(frozen=True, slots=True)
class BegunCheckpoint:
    """A checkpoint that can be read, and is not durable before ``finish`` has returned; to be called once."""

    written: WrittenCheckpoint
    finish: Callable[[], None]


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint's files, found intact."""

    weights: Path
    optimizer: Path | None


class CheckpointStore:
    """Writes and reads checkpoints. Its methods block: call them in worker threads."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def write(self, new: NewCheckpoint) -> WrittenCheckpoint:
        """Store a checkpoint; it is durable on return, and kept once the record is saved in the ledger.

        Memory: no copy of what is written. Raises: Unavailable if the disk is full or failing; nothing is stored then.
        """
        with self._blobs.batch() as batch:
            return _add_all(batch, new)

    def begin(self, new: NewCheckpoint) -> BegunCheckpoint:
        """Write a checkpoint so that its blobs can be read; ``finish`` makes it durable, on any thread.

        Raises: Unavailable, from both; nothing is stored then.
        """
        with ExitStack() as stack:
            batch = stack.enter_context(self._blobs.early_batch())
            return BegunCheckpoint(_add_all(batch, new), stack.pop_all().close)

    def open(self, record: CheckpointRecord) -> CheckpointFiles:
        """Return the checkpoint's files, each checked against its digest. Memory: a block of a file.

        Raises: NotFound if a blob is gone; DigestMismatch if one is damaged.
        """
        if record.inner_state is not None:  # clients fetch it
            self._blobs.verified(record.inner_state.digest)
        weights = self._blobs.verified(record.weights.digest)
        optimizer = None if record.optimizer is None else self._blobs.verified(record.optimizer.digest)
        return CheckpointFiles(weights, optimizer)

    def damage(self, record: CheckpointRecord) -> str | None:
        """Return what of the checkpoint can't be read, its manifest included, or return None: it is intact."""
        try:
            self.open(record)
            if record.manifest is not None:
                self._blobs.read(record.manifest.digest)
        except (NotFound, DigestMismatch, Unavailable) as error:
            return error.message
        return None

    def manifest(self, record: CheckpointRecord) -> Manifest:
        """Return the checkpoint's manifest. Raises: NotFound if it has none (the initial weights); DigestMismatch."""
        if record.manifest is None:
            raise NotFound(f"checkpoint {record.round} of task {record.task_id} has no manifest: it was submitted")
        return Manifest.model_validate_json(self._blobs.read(record.manifest.digest))


def _add_all(batch: BlobBatch, new: NewCheckpoint) -> WrittenCheckpoint:
    manifest = Manifest(
        task_id=new.task_id,
        round=new.round,
        epoch=new.epoch,
        cursor=new.cursor,
        weights=batch.add(new.weights),
        optimizer=None if new.optimizer is None else batch.add(new.optimizer),
        inner_state=None if new.inner_state is None else batch.add(new.inner_state),
        created_at=new.created_at,
        metrics=dict(new.metrics),
    )
    delta = None if new.delta is None else batch.add(new.delta)
    text = manifest.model_dump_json(exclude=dict.fromkeys(_PARTS, BlobRef.CARRIED))
    described = batch.add([text.encode()])
    return WrittenCheckpoint(_record(manifest, described), delta)


def _record(manifest: Manifest, described: BlobRef) -> CheckpointRecord:
    return CheckpointRecord(
        task_id=manifest.task_id,
        round=manifest.round,
        epoch=manifest.epoch,
        cursor=manifest.cursor,
        weights=manifest.weights,
        optimizer=manifest.optimizer,
        inner_state=manifest.inner_state,
        manifest=described,
        created_at=manifest.created_at,
        metrics=manifest.metrics,
    )

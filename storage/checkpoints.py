"""Checkpoints: the blobs that together resume a task, and the manifest that describes them.

Weights, the outer optimizer's state and the manifest are durable, all of them, before (by the ledger) the record names
them. A crash between leaves only blobs that nothing refers to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import ConfigDict

from coordinator.records import CheckpointRecord
from protocol.errors import DigestMismatch, NotFound, Unavailable
from protocol.frozen import Frozen
from protocol.tasks import BlobRef
from storage.blobs import FolderBlobStore, ref_of

MANIFEST_FORMAT: Final = "aifarm-checkpoint-1"


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
    created_at: float
    metrics: dict[str, float]


class CheckpointStore:
    """Writes and reads checkpoints. Its methods block: call them in worker threads."""

    def __init__(self, blobs: FolderBlobStore) -> None:
        self._blobs = blobs

    def write(  # noqa: PLR0917  # the record's fields, in their order
        self,
        task_id: str,
        round: int,  # noqa: A002  # the record's field
        epoch: int,
        cursor: int,
        weights: bytes,
        optimizer: bytes | None,
        created_at: float,
        metrics: Mapping[str, float],
    ) -> CheckpointRecord:
        """Store a checkpoint; it is durable on return, and kept once the record is saved in the ledger.

        ``weights`` and ``optimizer`` are safetensors files; ``round``, ``epoch`` and ``cursor`` say where the next
        round begins; ``created_at`` is in seconds.
        Raises: Unavailable if the disk is full or failing.
        """
        manifest = Manifest(
            task_id=task_id,
            round=round,
            epoch=epoch,
            cursor=cursor,
            weights=ref_of(weights),
            optimizer=None if optimizer is None else ref_of(optimizer),
            created_at=created_at,
            metrics=dict(metrics),
        )
        text = manifest.model_dump_json(exclude={"weights": {"inline"}, "optimizer": {"inline"}})
        *_, described = self._blobs.put_all([part for part in (weights, optimizer, text.encode()) if part is not None])
        return CheckpointRecord(
            task_id=task_id,
            round=round,
            epoch=epoch,
            cursor=cursor,
            weights=manifest.weights,
            optimizer=manifest.optimizer,
            manifest=described,
            created_at=created_at,
            metrics=manifest.metrics,
        )

    def load(self, record: CheckpointRecord) -> tuple[bytes, bytes | None]:
        """Return the checkpoint's weights and outer optimizer state, each checked against its digest.

        Raises: NotFound if a blob is gone; DigestMismatch if one is damaged.
        """
        weights = self._blobs.read(record.weights.digest)
        return weights, None if record.optimizer is None else self._blobs.read(record.optimizer.digest)

    def damage(self, record: CheckpointRecord) -> str | None:
        """Say what of the checkpoint can't be read, its manifest included, or return None: it is intact."""
        try:
            self.load(record)
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

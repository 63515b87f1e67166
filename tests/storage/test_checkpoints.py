"""Checkpoints come back as they were written, or say which part is not intact."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.records import CheckpointRecord
from protocol.errors import DigestMismatch, NotFound, Unavailable
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore, NewCheckpoint


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


@pytest.fixture
def store(blobs: FolderBlobStore) -> CheckpointStore:
    return CheckpointStore(blobs)


def _new(optimizer: bytes | None = b"momentum", **changes: Any) -> NewCheckpoint:
    values = {"round": 3, "epoch": 1, "cursor": 40, "created_at": 12.5, "metrics": {"loss": 0.5}} | changes
    return NewCheckpoint(
        "t1", weights=[b"wei", memoryview(b"ghts")], optimizer=None if optimizer is None else [optimizer], **values
    )


def _write(store: CheckpointStore, optimizer: bytes | None = b"momentum", **changes: Any) -> CheckpointRecord:
    return store.write(_new(optimizer, **changes)).record


def _load(store: CheckpointStore, record: CheckpointRecord) -> tuple[bytes, bytes | None]:
    files = store.open(record)
    return files.weights.read_bytes(), files.optimizer and files.optimizer.read_bytes()


@pytest.mark.parametrize("optimizer", [b"momentum", b"", None])
def test_a_checkpoint_comes_back(store: CheckpointStore, optimizer: bytes | None) -> None:
    record = _write(store, optimizer)
    assert (record.task_id, record.round, record.epoch, record.cursor) == ("t1", 3, 1, 40)
    assert _load(store, record) == (b"weights", optimizer)


def test_an_inner_state_is_a_part_of_the_checkpoint(store: CheckpointStore, blobs: FolderBlobStore) -> None:
    record = _write(store, inner_state=[b"mo", memoryview(b"ments")])
    assert record.inner_state is not None
    assert blobs.read(record.inner_state.digest) == b"moments"
    assert store.manifest(record).inner_state == record.inner_state
    assert record.inner_state in record.blobs
    blobs.path(record.inner_state.digest).unlink()
    assert "moments" not in (store.damage(record) or "moments")


def test_the_manifest_describes_the_checkpoint(store: CheckpointStore, blobs: FolderBlobStore) -> None:
    record = _write(store)
    assert record.manifest is not None
    assert record.optimizer is not None
    assert json.loads(blobs.read(record.manifest.digest)) == {
        "format": "aifarm-checkpoint-1",
        "task_id": "t1",
        "round": 3,
        "epoch": 1,
        "cursor": 40,
        "weights": {"digest": record.weights.digest, "size_bytes": 7},
        "optimizer": {"digest": record.optimizer.digest, "size_bytes": 8},
        "inner_state": None,
        "created_at": 12.5,
        "metrics": {"loss": 0.5},
    }
    manifest = store.manifest(record)
    assert (manifest.weights, manifest.optimizer) == (record.weights, record.optimizer)


def test_metrics_that_are_no_numbers_survive(store: CheckpointStore) -> None:
    record = _write(store, metrics={"loss": math.nan, "best": -math.inf})
    assert math.isnan(store.manifest(record).metrics["loss"])
    assert store.manifest(record).metrics["best"] == -math.inf


@pytest.mark.parametrize("part", ["weights", "optimizer", "manifest"])
def test_a_damaged_part_is_noticed(store: CheckpointStore, blobs: FolderBlobStore, part: str) -> None:
    record = _write(store)
    path = blobs.path(getattr(record, part).digest)
    path.write_bytes(b"W" + path.read_bytes()[1:])
    with pytest.raises(DigestMismatch, match=path.name):
        store.manifest(record) if part == "manifest" else store.open(record)


def test_a_missing_part_is_named(store: CheckpointStore, blobs: FolderBlobStore) -> None:
    record = _write(store)
    blobs.delete(record.weights.digest)
    with pytest.raises(NotFound, match=record.weights.digest):
        store.open(record)


def test_submitted_weights_have_no_manifest(store: CheckpointStore) -> None:
    with pytest.raises(NotFound, match="no manifest"):
        store.manifest(replace(_write(store), round=0, manifest=None))


@pytest.mark.parametrize("refused", range(3))
def test_a_disk_that_refuses_any_part_leaves_no_record_and_no_half_written_file(
    store: CheckpointStore, blobs: FolderBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    calls = iter(range(100))
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="no space"):
            _write(store)
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
    assert _load(store, _write(store)) == (b"weights", b"momentum")


def test_a_delta_is_stored_beside_the_checkpoint_and_is_no_part_of_it(
    store: CheckpointStore, blobs: FolderBlobStore
) -> None:
    written = store.write(_new(delta=[b"del", b"ta"]))
    assert written.delta is not None
    assert blobs.read(written.delta.digest) == b"delta"
    assert written.record == _write(store)
    blobs.delete(written.delta.digest)
    assert store.damage(written.record) is None

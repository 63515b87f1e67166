"""Outputs of a part of a map are kept whole and durable, one for each item, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_server.transfers.map_outputs import MapOutputs
from protocol.assignments import Result
from protocol.errors import DigestMismatch, NotFound
from protocol.maps import MAX_PART_BYTES
from protocol.outputs import MalformedOutputs, join_outputs
from protocol.tasks import BlobRef
from storage.blobs import FolderBlobStore

DATA = join_outputs([b"a", b"bc"])


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path)


def result(update: BlobRef | None) -> Result:
    return Result(assignment_id="a", fence=1, samples=2, update=update)


def test_outputs_in_a_message_become_a_blob(blobs: FolderBlobStore) -> None:
    kept = MapOutputs(blobs).keep(result(BlobRef.carrying(DATA)), 2)
    assert kept.carried is None
    assert blobs.read(kept.digest) == DATA


def test_outputs_that_were_uploaded_are_one(blobs: FolderBlobStore) -> None:
    ref = blobs.put_bytes(DATA)
    lied = ref.model_copy(update={"size_bytes": 7})
    assert MapOutputs(blobs).keep(result(lied), 2) == ref, "with the size that they have here"


@pytest.mark.parametrize("items", [1, 3])
def test_outputs_of_other_items_are_refused(blobs: FolderBlobStore, items: int) -> None:
    for ref in (BlobRef.carrying(DATA), blobs.put_bytes(DATA)):
        with pytest.raises(MalformedOutputs):
            MapOutputs(blobs).keep(result(ref), items)


def test_what_is_missing_too_large_or_other_bytes_is_refused(blobs: FolderBlobStore) -> None:
    outputs = MapOutputs(blobs)
    with pytest.raises(MalformedOutputs, match="no outputs"):
        outputs.keep(result(None), 2)
    with pytest.raises(NotFound):
        outputs.keep(result(BlobRef(digest="f" * 64, size_bytes=3)), 2)
    with pytest.raises(MalformedOutputs, match="over"):
        outputs.keep(result(BlobRef(digest="f" * 64, size_bytes=2 * MAX_PART_BYTES)), 2)
    with pytest.raises(DigestMismatch):
        outputs.keep(result(BlobRef(digest="f" * 64, size_bytes=len(DATA), inline=DATA)), 2)

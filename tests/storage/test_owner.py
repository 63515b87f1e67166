"""Blobs know their ledger: one that is lost, emptied, another one's or an older copy costs no blob."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from storage.blobs import FolderBlobStore
from storage.errors import LostLedger
from storage.ledger import SqlLedger
from storage.ledger_identity import identity_of, is_blank
from storage.owner import OWNER, SPARED_SECONDS, check_owner, read_owner, settle_owner
from storage.ports.ledger import LedgerIdentity

GRACE = 10.0


async def started(root: Path, *, is_new: bool = False) -> str | None:
    """Do what a server's start does to ledger and blobs."""
    ledger = await SqlLedger.open(root / "farm.db")
    await ledger.close()
    return settle_owner(root / "blobs", ledger.identity, is_new=is_new, now=time.time())


@pytest.fixture
async def farm(tmp_path: Path) -> Path:
    """A folder on which a server has run, with an old blob that no record refers to."""
    store = FolderBlobStore(tmp_path / "blobs")
    assert await started(tmp_path) is None
    os.utime(store.path(store.put_bytes(b"weights").digest), (0, 0))
    return tmp_path


def collected(root: Path, after_seconds: float = 0.0) -> int:
    return FolderBlobStore(root / "blobs").collect(frozenset(), GRACE, time.time() + after_seconds).count


async def test_a_ledger_keeps_its_name_and_counts_its_starts(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    await started(tmp_path)
    first = identity_of(tmp_path / "farm.db")
    await started(tmp_path)
    second = identity_of(tmp_path / "farm.db")
    assert first is not None
    assert second == LedgerIdentity(first.ledger_id, 2)


async def test_its_own_ledger_collects_as_ever(farm: Path) -> None:
    check_owner(farm / "blobs", farm / "farm.db")
    assert await started(farm) is None
    assert collected(farm) == 1


@pytest.mark.parametrize("how", ["emptied", "lost", "dangling"])
async def test_blobs_without_their_ledger_are_refused(farm: Path, how: str) -> None:
    ledger = farm / "farm.db"
    ledger.unlink()
    if how == "emptied":
        ledger.write_bytes(b"")
    elif how == "dangling":
        ledger.symlink_to(farm / "a disk that is not mounted" / "farm.db")
    with pytest.raises(LostLedger, match=r"restore.*--new-ledger"):
        check_owner(farm / "blobs", ledger)


async def test_blobs_of_a_version_that_wrote_no_owner_are_refused_without_a_ledger(farm: Path) -> None:
    (farm / "blobs" / OWNER).unlink()
    (farm / "farm.db").unlink()
    with pytest.raises(LostLedger, match="is missing"):
        check_owner(farm / "blobs", farm / "farm.db")


async def test_another_farm_s_ledger_is_refused(farm: Path) -> None:
    other = farm / "other"
    (other / "blobs").mkdir(parents=True)
    await started(other)
    with pytest.raises(LostLedger, match="another ledger"):
        check_owner(farm / "blobs", other / "farm.db")


@pytest.mark.parametrize("owner", [None, "", "{}", '{"format": "aifarm-owner-9"}', "\x00" * 80])
async def test_a_restored_or_damaged_note_of_the_owner_is_written_anew(farm: Path, owner: str | None) -> None:
    path = farm / "blobs" / OWNER
    path.unlink()
    if owner is not None:
        path.write_text(owner)
    check_owner(farm / "blobs", farm / "farm.db")
    assert await started(farm) is None
    written, identity = read_owner(farm / "blobs"), identity_of(farm / "farm.db")
    assert written is not None
    assert identity is not None
    assert (written.ledger_id, written.starts) == (identity.ledger_id, identity.starts)


def test_a_folder_without_blobs_has_nothing_to_lose(tmp_path: Path) -> None:
    FolderBlobStore(tmp_path / "blobs")
    check_owner(tmp_path / "blobs", tmp_path / "farm.db")


async def test_whoever_goes_on_without_the_ledger_keeps_its_blobs_for_a_week(farm: Path) -> None:
    (farm / "farm.db").unlink()
    assert "another one" in (await started(farm, is_new=True) or "")
    assert collected(farm) == 0
    assert await started(farm) is None  # and the next start does not forget it
    assert collected(farm, SPARED_SECONDS - 60) == 0
    assert collected(farm, SPARED_SECONDS + 60) == 1


async def test_an_older_copy_of_the_ledger_spares_what_the_newer_one_stored(farm: Path) -> None:
    shutil.copy(farm / "farm.db", farm / "copy.db")
    await started(farm)
    shutil.copy(farm / "copy.db", farm / "farm.db")
    check_owner(farm / "blobs", farm / "farm.db")  # it may have been put back on purpose
    assert "older copy" in (await started(farm) or "")
    assert collected(farm) == 0


def test_a_file_that_is_no_ledger_is_not_a_blank_one(tmp_path: Path) -> None:
    (tmp_path / "farm.db").write_bytes(b"no database" * 1000)
    assert not is_blank(tmp_path / "farm.db")
    assert identity_of(tmp_path / "farm.db") is None
    assert is_blank(tmp_path / "none.db")

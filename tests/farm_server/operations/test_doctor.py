"""The doctor says what `up` would trip over, in words, whatever the folder holds."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_server.environment.data_folder import DataFolder
from farm_server.environment.settings import ServerSettings
from farm_server.operations.doctor import Finding, examine
from farm_server.server import FarmServer
from protocol.errors import FarmError
from storage.blobs import FolderBlobStore
from storage.errors import LostLedger
from tests.farm_server import model
from tests.farm_server.conftest import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a server with one task has left."""
    root = tmp_path_factory.mktemp("sound")

    async def make() -> None:
        async with running(root) as server:
            await model.submit(server.http)

    asyncio.run(make())
    return root


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def settings_of(root: Path) -> ServerSettings:
    return ServerSettings(data_dir=root, port=0, min_free_bytes=0)


def ledger_finding(root: Path) -> Finding:
    return next(finding for finding in examine(settings_of(root)) if finding.name == "ledger")


def refusal(root: Path) -> str | None:
    """Say why a server would not start on the folder; None if it would. Only FarmErrors come out of a start."""

    async def start() -> None:
        farm = await FarmServer.open(settings_of(root), DataFolder(root))
        await farm.close()

    try:
        asyncio.run(start())
    except FarmError as error:
        return error.message
    return None


def test_a_sound_folder_is_ok(copy: Path) -> None:
    assert all(finding.ok for finding in examine(settings_of(copy)))
    assert "1 unfinished task," in ledger_finding(copy).detail


@pytest.mark.parametrize("how", ["emptied", "lost"])
def test_a_lost_ledger_is_found_and_refused(copy: Path, how: str) -> None:
    for path in copy.glob("farm.db*"):
        path.unlink()
    if how == "emptied":
        (copy / "farm.db").write_bytes(b"")
    before = sorted(path for path in (copy / "blobs").rglob("*") if path.is_file())
    found = ledger_finding(copy)
    assert not found.ok
    assert "--new-ledger" in found.detail
    assert "SELECT" not in found.detail
    with pytest.raises(LostLedger):
        asyncio.run(FarmServer.open(settings_of(copy), DataFolder(copy)))
    assert sorted(path for path in (copy / "blobs").rglob("*") if path.is_file()) == before


async def test_a_new_ledger_on_demand_collects_nothing_of_the_old_one(copy: Path) -> None:
    (copy / "farm.db").unlink()
    blobs = [path for path in (copy / "blobs").glob("??/*") if path.is_file()]
    assert blobs
    for path in blobs:
        os.utime(path, (0, 0))
    farm = await FarmServer.open(settings_of(copy), DataFolder(copy), new_ledger=True)
    await farm.close()
    FolderBlobStore(copy / "blobs").collect(frozenset(), 1.0, 1e9)
    assert all(path.exists() for path in blobs)
    await (await FarmServer.open(settings_of(copy), DataFolder(copy))).close()  # the flag is for once


ENDS = ("epochs_ended", "epoch_end_error", "artefact_files", "artefact_bytes", "items_failed")


def as_the_first_version_left_it(root: Path) -> None:
    (root / "blobs" / "owner.json").unlink()
    with closing(sqlite3.connect(root / "farm.db")) as ledger, ledger:
        ledger.execute("DROP TABLE identity")
        for column in ("priority_set", "best_value", "stale_evaluations", "stopped", *ENDS):
            ledger.execute(f"ALTER TABLE tasks DROP COLUMN {column}")
        for column in ("inner_state_digest", "inner_state_bytes"):
            ledger.execute(f"ALTER TABLE checkpoints DROP COLUMN {column}")
        for column in ("sandbox", "team"):
            ledger.execute(f"ALTER TABLE clients DROP COLUMN {column}")
        for column in ("team", "flops_per_sample"):
            ledger.execute(f"ALTER TABLE assignments DROP COLUMN {column}")
        ledger.execute("DROP TABLE credits")
        ledger.execute("DROP TABLE failed_items")
        for index in ("ix_tasks_state", "ix_tasks_created", "ix_assignments_fence"):
            ledger.execute(f"DROP INDEX {index}")
        ledger.execute("UPDATE alembic_version SET version_num = '0001'")


def test_a_folder_of_the_version_without_names_starts(copy: Path) -> None:
    as_the_first_version_left_it(copy)
    before = (copy / "farm.db").read_bytes()
    assert ledger_finding(copy).ok
    assert (copy / "farm.db").read_bytes() == before  # looking upgrades nothing
    assert refusal(copy) is None
    assert "1 unfinished task," in ledger_finding(copy).detail


DAMAGES = {
    "a task without its specification": "DELETE FROM submissions",
    "a specification of something else": """UPDATE submissions SET spec = '{"name": 7}'""",
    "no JSON": "UPDATE submissions SET spec = '{'",
    "an unknown state": "UPDATE tasks SET state = 'asleep'",
    "ranges that are none": "UPDATE checkpoints SET leftover = '[[1]]'",
    "no tasks": "DROP TABLE tasks",
    "no schema number": "DELETE FROM alembic_version",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_doctor_agrees_with_the_start(copy: Path, damage: str) -> None:
    with closing(sqlite3.connect(copy / "farm.db")) as ledger, ledger:
        ledger.execute(DAMAGES[damage])
    found = ledger_finding(copy)
    said = refusal(copy)
    assert found.ok is (said is None), (found, said)
    assert not any(word in found.detail for word in ("SELECT", "[SQL", "Traceback"))
    json.dumps(found.detail)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_end_neither_the_doctor_nor_a_start_in_a_traceback(
    folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    root = tmp_path / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder, root)
    ledger = bytearray((root / "farm.db").read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del ledger[data.draw(st.integers(0, len(ledger)), label="at") :]
    for _ in range(data.draw(st.integers(0, 3), label="holes")):
        at = data.draw(st.integers(0, len(ledger)))
        ledger[at : at + 64] = data.draw(st.binary(min_size=64, max_size=64))
    (root / "farm.db").write_bytes(ledger)
    found = ledger_finding(root)
    assert "[SQL" not in found.detail
    assert found.detail.count("\n") == 0
    if found.ok:
        assert refusal(root) is None
    else:
        refusal(root)  # it may start all the same, but nothing except a FarmError comes out

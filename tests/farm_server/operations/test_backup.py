"""A copy made under load is one moment of the farm: restored, its tasks end as if nothing had happened."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from farm_server.cli import app
from farm_server.environment.settings import ServerSettings
from farm_server.operations.backup import BackupManifest, back_up, restore
from protocol.errors import Conflict, DigestMismatch, FarmError, NotFound, Unavailable
from protocol.recipe import OuterOptimizer, Recipe
from storage.blobs import FolderBlobStore
from tests.farm_server import model
from tests.farm_server.conftest import running
from tests.farm_server.test_training import ended, final_weights, working

ROUNDS = 60
RECIPE = Recipe(rounds=ROUNDS, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0, "momentum": 0.5}))


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """Give a backup of a farm with one task that has begun."""
    async with running(tmp_path / "old") as server:
        await model.submit(server.http, model.spec(recipe=RECIPE))
        await asyncio.to_thread(back_up, server.farm.settings, tmp_path / "backup")
    return tmp_path / "backup"


@pytest.mark.timeout(120)
async def test_backups_under_load_are_consistent_and_their_tasks_finish(tmp_path: Path) -> None:
    async with running(tmp_path / "old", retention_seconds=0.05, superseded_grace_seconds=0.0) as server:
        task_id = await model.submit(server.http, model.spec(recipe=RECIPE))
        async with server.volunteer() as volunteer, working(volunteer):
            manifests = [
                await asyncio.to_thread(back_up, server.farm.settings, tmp_path / f"backup{n}") for n in range(3)
            ]
            await ended(server.http, task_id)
        expected = await final_weights(server.http, task_id)
    assert [m.missing for m in manifests] == [()] * 3
    for n in range(3):
        assert restore(tmp_path / f"backup{n}", tmp_path / f"new{n}") == manifests[n]
    async with running(tmp_path / "new1") as server:
        async with server.volunteer() as volunteer, working(volunteer):
            view = await ended(server.http, task_id)
        assert (view["state"], view["round"]) == ("completed", ROUNDS)
        np.testing.assert_array_equal(await final_weights(server.http, task_id), expected)
        for name in ("join.token", "certificate.key"):
            assert (tmp_path / "new1" / name).read_text() == (tmp_path / "old" / name).read_text()


async def test_a_damaged_backup_is_refused_before_anything_is_written(backup: Path, tmp_path: Path) -> None:
    blob = next((backup / "blobs").glob("*/*"))
    data = blob.read_bytes()
    blob.unlink()  # it is linked to the store's file
    with pytest.raises(DigestMismatch, match=blob.name):
        restore(backup, tmp_path / "new")
    blob.write_bytes(b"?" + data[1:])
    with pytest.raises(DigestMismatch, match=blob.name):
        restore(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_folders_that_hold_something_are_refused(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(Conflict, match="not empty"):
        restore(backup, tmp_path / "full")
    with pytest.raises(Conflict, match="not empty"):
        back_up(ServerSettings(data_dir=tmp_path / "old"), tmp_path / "full")


async def test_a_backup_that_was_not_finished_is_none(backup: Path, tmp_path: Path) -> None:
    (backup / "backup.json").unlink()
    with pytest.raises(NotFound, match="no finished backup"):
        restore(backup, tmp_path / "new")
    (backup / "backup.json").write_text('{"files": [{"name": "../../escape", "size_bytes": 1, "digest": "x"}]}')
    with pytest.raises(NotFound, match="manifest"):
        restore(backup, tmp_path / "new")


def test_a_folder_without_a_ledger_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(FarmError, match="no ledger"):
        back_up(ServerSettings(data_dir=tmp_path), tmp_path / "backup")


async def test_a_blob_that_is_damaged_already_is_named_and_left_out(tmp_path: Path) -> None:
    async with running(tmp_path / "old") as server:
        await model.submit(server.http)
        shard = server.farm.blobs.path(model.ref(model.SHARD).digest)
        shard.write_bytes(b"damaged")
        manifest = await asyncio.to_thread(back_up, server.farm.settings, tmp_path / "backup")
    assert manifest.missing == (shard.name,)
    assert restore(tmp_path / "backup", tmp_path / "new").missing == (shard.name,)


async def test_the_commands_speak_json(backup: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["restore", str(backup), "--data-dir", str(tmp_path / "new"), "--json"])
    manifest = BackupManifest.model_validate_json((backup / "backup.json").read_bytes())
    assert json.loads(said.stdout)["files"] == len(manifest.files)
    said = CliRunner().invoke(app, ["backup", str(tmp_path / "b2"), "--data-dir", str(tmp_path / "new"), "--json"])
    assert json.loads(said.stdout)["missing"] == []


def findings(data_dir: Path, *options: str) -> dict[str, dict]:
    command = ["doctor", "--data-dir", str(data_dir), "--port", "0", "--json", *options]
    return {f["name"]: f for f in json.loads(CliRunner().invoke(app, command).stdout)["findings"]}


async def test_doctor_finds_damage_and_removes_what_is_left_over(backup: Path, tmp_path: Path) -> None:
    data = tmp_path / "old"
    orphan = FolderBlobStore(data / "blobs").put_bytes(b"nobody needs it")
    (data / "blobs" / "tmp" / "half").write_bytes(b"half a blob")
    path = data / "blobs" / orphan.digest[:2] / orphan.digest
    os.utime(path, (0, 0))
    found = await asyncio.to_thread(findings, data)
    assert all(f["ok"] for f in found.values()), found
    assert "1 half-written files and 1 blobs" in found["leftovers"]["detail"]
    assert path.exists()
    found = await asyncio.to_thread(findings, data, "--repair")
    assert "removed 1 half-written files and 1 blobs" in found["leftovers"]["detail"]
    assert not path.exists()
    shard = data / "blobs" / model.ref(model.SHARD).digest[:2] / model.ref(model.SHARD).digest
    shard.unlink()
    (data / "farm.token").chmod(0o644)
    found = await asyncio.to_thread(findings, data)
    assert [name for name, f in found.items() if not f["ok"]] == ["permissions", "checkpoints"]
    assert shard.name in found["checkpoints"]["detail"]


async def test_doctor_leaves_a_running_server_s_blobs_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await model.submit(server.http)
        found = await asyncio.to_thread(findings, tmp_path, "--repair")
    assert "a server runs" in found["leftovers"]["detail"]
    assert all(f["ok"] for f in found.values()), found


async def test_a_backup_that_finds_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(tmp_path / "a # folder") as server:
        await model.submit(server.http)
        with monkeypatch.context() as patch:
            patch.setattr("farm_server.operations.backup._copy_file", full)
            with pytest.raises(Unavailable, match="no space is left"):
                await asyncio.to_thread(back_up, server.farm.settings, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()
        assert not (await asyncio.to_thread(back_up, server.farm.settings, tmp_path / "backup")).missing

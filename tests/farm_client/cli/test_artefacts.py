"""`farm artefacts`: the files that a task's ``on_epoch_end`` left, listed and fetched."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from farm_client.sdk.api import FarmApi
from farm_client.sdk.async_farm import AsyncTask
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.farm import Task
from protocol.artefacts import ArtefactList, ArtefactView
from protocol.digests import digest_bytes
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm

FILES = {(0, "a.png"): b"picture", (1, "a.png"): b"another", (1, "in/b.txt"): b""}


def keep(fake: FakeFarm, error: str | None = None, files: dict[tuple[int, str], bytes] | None = None) -> None:
    views = []
    for (epoch, name), data in (FILES if files is None else files).items():
        fake.blobs[digest_bytes(data)] = data
        views.append(ArtefactView(epoch=epoch, name=name, digest=digest_bytes(data), size_bytes=len(data)))
    fake.artefacts = ArtefactList(task_id="abcd2345", artefacts=tuple(views), error=error)


def task_of(fake: FakeFarm) -> Task:
    return Task(FarmApi(parse_address(ADDRESS, "the test"), fake.transport()), fake.tasks[0])


def written(folder: Path) -> dict[tuple[int, str], bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder).as_posix().split("/", 1) for path in files}
    return {(int(epoch), name): path.read_bytes() for path, (epoch, name) in names.items()}


def test_they_are_listed(farm, fake):
    keep(fake)
    assert farm("artefacts", "digits").stdout.splitlines() == ["0/a.png  7 B", "1/a.png  7 B", "1/in/b.txt  0 B"]
    assert farm("artefacts", "digits", "--epoch", "0").stdout.splitlines() == ["0/a.png  7 B"]


def test_as_json(farm, fake):
    keep(fake)
    envelope = json.loads(farm("artefacts", "digits", "--json", "--epoch", "0").stdout)
    assert envelope["kind"] == "artefacts"
    only = {"epoch": 0, "name": "a.png", "digest": digest_bytes(b"picture"), "size_bytes": 7}
    assert envelope["data"] == {"task_id": "abcd2345", "artefacts": [only], "error": None, "folder": None}


def test_they_are_fetched_and_a_second_time_only_what_is_new(farm, fake, tmp_path):
    keep(fake, files={(0, "a.png"): b"picture"})
    folder = tmp_path / "out"
    assert farm("artefacts", "digits", "--pull", str(folder)).exit_code == 0
    keep(fake)
    fetched = len(fake.requests)
    outcome = farm("artefacts", "digits", "--pull", str(folder))
    assert outcome.stdout.splitlines()[-1] == f"3 files in {folder}"
    assert written(folder) == FILES
    again = [request.url.path for request in fake.requests[fetched:] if "/blobs/" in request.url.path]
    assert not any(digest_bytes(b"picture") in path for path in again)


def test_a_file_of_ones_own_is_not_overwritten(farm, fake, tmp_path):
    keep(fake)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_text("mine own")
    outcome = farm("artefacts", "digits", "--pull", str(tmp_path))
    assert outcome.exit_code == 1
    assert "is there and is another file" in outcome.stderr
    assert (tmp_path / "0" / "a.png").read_text() == "mine own"


def test_a_link_leads_nowhere(fake: FakeFarm, tmp_path: Path) -> None:
    keep(fake)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadOutput, match="a link to elsewhere"):
        task_of(fake).pull_artefacts(tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_why_there_are_none(farm, fake, tmp_path):
    keep(fake, "t.py:3, in on_epoch_end: KeyError: 1", files={})
    assert "failed: t.py:3, in on_epoch_end: KeyError: 1" in farm("artefacts", "digits").stdout
    outcome = farm("artefacts", "digits", "--pull", str(tmp_path / "out"))
    assert outcome.exit_code == 1
    assert "has no artefacts: t.py:3, in on_epoch_end: KeyError: 1" in outcome.stderr
    keep(fake, files={})
    assert "no on_epoch_end of it has left a file yet" in farm("artefacts", "digits").stdout
    assert "no artefacts of epoch 9; without --epoch" in farm("artefacts", "digits", "--epoch", "9").stdout


def test_python_does_the_same(fake: FakeFarm, tmp_path: Path) -> None:
    keep(fake)
    task = task_of(fake)
    assert [(one.epoch, one.name) for one in task.artefacts()] == list(FILES)
    assert task.pull_artefacts(tmp_path / "sync", 0) == [tmp_path / "sync" / "0" / "a.png"]
    both = AsyncTask(task)
    assert len(asyncio.run(both.artefacts(1))) == 2
    asyncio.run(both.pull_artefacts(tmp_path / "async"))
    assert written(tmp_path / "async") == FILES

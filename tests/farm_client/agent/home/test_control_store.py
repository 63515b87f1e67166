"""A client's own control variates: kept by task, through restarts, for the tasks that it worked on last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm_client.agent.home.control_store import MOST_TASKS, ControlStore


@pytest.fixture
def notes() -> list[str]:
    return []


def store(root: Path, notes: list[str], farm: str = "farm", client: str = "c1") -> ControlStore:
    return ControlStore(root / "controls", farm, client, notes.append)


def left(tmp_path: Path, content: bytes = b"control") -> Path:
    path = tmp_path / "taken"
    path.write_bytes(content)
    return path


def test_it_is_there_for_the_next_agent_and_of_its_task_alone(tmp_path: Path, notes: list[str]) -> None:
    store(tmp_path, notes).keep("t1", left(tmp_path), 100)
    later = store(tmp_path, notes)
    assert later.path("t1").read_bytes() == b"control"
    assert not later.path("t2").exists()
    assert not left(tmp_path).samefile(later.path("t1"))
    assert notes == []


def test_another_farms_and_another_clients_are_removed(tmp_path: Path, notes: list[str]) -> None:
    for farm, client in (("farm", "c1"), ("other", "c1"), ("farm", "c2")):
        first = store(tmp_path, notes, farm, client)
        assert not first.path("t1").exists()
        first.keep("t1", left(tmp_path), 100)
    assert len(list((tmp_path / "controls").iterdir())) == 1


def test_those_of_the_tasks_it_worked_on_last_stay(tmp_path: Path, notes: list[str]) -> None:
    kept = store(tmp_path, notes)
    for number in range(MOST_TASKS):
        kept.keep(f"t{number}", left(tmp_path), 100)
        os.utime(kept.path(f"t{number}"), (number, number))
    os.utime(kept.path("t0"), (MOST_TASKS, MOST_TASKS))
    kept.keep("new", left(tmp_path), 100)
    assert [n for n in range(MOST_TASKS) if not kept.path(f"t{n}").exists()] == [1]
    assert kept.path("new").exists()


def test_one_larger_than_the_model_could_have_is_dropped(tmp_path: Path, notes: list[str]) -> None:
    file = left(tmp_path)
    with file.open("r+b") as opened:
        opened.truncate(17 * 1024**2)
    kept = store(tmp_path, notes)
    kept.keep("t1", file, 100)
    assert not kept.path("t1").exists()
    assert not file.exists()
    assert "larger" in notes[0]


def test_a_disk_that_takes_nothing_is_put_up_with(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "controls").write_text("in the way")
    kept = store(tmp_path, notes)
    kept.keep("t1", left(tmp_path), 100)
    assert "begins from zero" in notes[0]

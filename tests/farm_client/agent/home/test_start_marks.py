"""A task in whose midst the agent ended twice is handed back by its next life."""

import json
import time
from contextlib import suppress

import psutil
import pytest

from farm_client.agent.errors import EndsAgent
from farm_client.agent.home import start_marks
from farm_client.agent.home.start_marks import StartMarks
from protocol.assignments import Progress, Result
from protocol.messages import Error, Scope
from tests.farm_client.agent.scripted_farm import joined


class Killed(BaseException):
    """The process ends here: nothing of what follows is done."""


def die_at_work(folder, task_id="t1"):
    marks = StartMarks(folder)
    with suppress(Killed), marks.at_work(task_id):
        marks.keep()  # a killed process clears nothing
        raise Killed


def test_after_two_ends_in_a_row_a_task_is_left_alone(tmp_path):
    folder = tmp_path / "started"
    die_at_work(folder)
    StartMarks(folder).check("t1")
    die_at_work(folder)
    marks = StartMarks(folder)
    with pytest.raises(EndsAgent, match="twice"):
        marks.check("t1")
    marks.check("another task")
    with pytest.raises(EndsAgent):
        StartMarks(folder).check("t1")


def test_a_job_that_ends_in_between_clears_its_task(tmp_path):
    folder = tmp_path / "started"
    die_at_work(folder)
    with StartMarks(folder).at_work("t1"):
        pass
    assert not any(folder.iterdir())
    die_at_work(folder)
    StartMarks(folder).check("t1")


def test_lives_that_each_keep_a_snapshot_get_on(tmp_path):
    """A machine that is switched off every night still does an assignment of a week."""
    folder = tmp_path / "started"
    for _ in range(5):
        marks = StartMarks(folder)
        marks.check("t1")
        with suppress(Killed), marks.at_work("t1"):
            marks.got_on("t1")
            marks.keep()
            raise Killed
    die_at_work(folder)
    with pytest.raises(EndsAgent):
        StartMarks(folder).check("t1")


def test_a_snapshot_of_a_task_that_is_not_at_work_leaves_no_mark(tmp_path):
    marks = StartMarks(tmp_path / "started")
    marks.got_on("t1")
    assert not any((tmp_path / "started").iterdir())


def test_of_two_jobs_side_by_side_the_last_one_clears_the_mark(tmp_path):
    marks = StartMarks(tmp_path / "started")
    with marks.at_work("t1"):
        with marks.at_work("t1"):
            pass
        assert any((tmp_path / "started").iterdir())
    assert not any((tmp_path / "started").iterdir())


def test_a_task_is_left_alone_for_twice_as_long_each_time(tmp_path, monkeypatch):
    folder, now = tmp_path / "started", [time.time()]
    monkeypatch.setattr(start_marks.time, "time", lambda: now[0])
    die_at_work(folder)
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        die_at_work(folder)
        for _ in range(2):  # a life that ends without having begun it changes nothing
            with pytest.raises(EndsAgent):
                StartMarks(folder).check("t1")
            now[0] += 29 * minutes
        now[0] += 2 * minutes
        StartMarks(folder).check("t1")


def test_marks_are_forgotten_after_two_hours_and_damaged_ones_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "started"
    die_at_work(folder)
    die_at_work(folder)
    (folder / "damaged.json").write_text("{")
    now = time.time()
    monkeypatch.setattr(start_marks.time, "time", lambda: now + 7201)
    StartMarks(folder).check("t1")
    assert not any(folder.iterdir())


def test_where_no_mark_can_be_written_work_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with StartMarks(tmp_path / "file" / "started").at_work("t1"):
        pass


async def test_an_agent_hands_back_what_ended_its_last_two_lives(farm, start_agent, home):
    for _ in range(2):
        die_at_work(home / "started", "bad")
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task("bad")))
        error = await peer.expect(Error)
        assert (error.code, error.scope) == ("ends_agent", Scope.ELSEWHERE)
        assert "twice" in error.message
        assert not any(isinstance(m, Progress) for m in peer.log)
        await peer.send(farm.assign(farm.task("good")))
        await peer.expect(Result)


async def test_a_mark_is_there_while_a_job_runs_and_gone_after_it(farm, start_agent, home, tmp_path):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="hang", pid_file=str(tmp_path / "pid"))))
        await peer.expect(Progress)
        (mark,) = (home / "started").iterdir()
        assert json.loads(mark.read_text())["task_id"] == "task1"
        psutil.Process(int((tmp_path / "pid").read_text())).kill()
        await peer.expect(Progress)
    assert not any((home / "started").iterdir())

from __future__ import annotations

import asyncio

import pytest
import structlog

from coordinator.commands import Command, ReleaseTask, ReportDefect, Save
from coordinator.events import Action, Event, TaskAction, Tick
from coordinator.records import Entry
from farm_server.control.journal import Journal
from farm_server.control.runtime import Runtime
from protocol.errors import FarmError, NotFound, Unavailable
from tests.farm_server.control.test_journal import record


class StillClock:
    def now(self) -> float:
        return 5.0


class SlowLedger:
    """Keeps each save waiting until it is let go."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.entries: list[Entry] = []
        self.failure: str | None = None

    def submit(self, records, entries=(), *, insist=False) -> asyncio.Future[None]:
        self.entries += entries
        save = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(save)
        return save


class Script:
    """A coordinator that gives prepared answers."""

    def __init__(self, *answers: list[Command] | Exception) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.events: list[Event] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        self.times.append(now)
        self.events.append(event)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def release(name: str) -> ReleaseTask:
    return ReleaseTask(name)


class Stage:
    def __init__(self, *answers: list[Command] | Exception) -> None:
        self.done: list[str] = []
        self.ledger = SlowLedger()
        self.journal = Journal(self.ledger, lambda entries: None)
        self.mind = Script(*answers)
        self.runtime = Runtime(self.mind, StillClock(), self.journal, self._carry_out)

    def _carry_out(self, command: Command) -> None:
        self.done.append(command.task_id)
        if command.task_id == "breaks":
            raise RuntimeError("a defect")


async def test_no_command_overtakes_an_earlier_save():
    stage = Stage([release("before"), Save((record("a"),)), release("after")], [release("later")])
    stage.runtime.post(Tick())
    stage.runtime.post(Tick())
    save = await stage.ledger.asked.get()
    assert stage.done == ["before"]
    save.set_result(None)
    await stage.runtime.settle()
    assert stage.done == ["before", "after", "later"]
    assert stage.mind.times == [5.0, 5.0]


async def test_a_command_that_fails_does_not_stop_the_others():
    stage = Stage([release("breaks"), release("works")])
    stage.runtime.post(Tick())
    assert stage.done == ["breaks", "works"]


async def test_an_event_that_is_refused_does_not_stop_the_loop():
    stage = Stage(NotFound("no such task"), [release("next")])
    stage.runtime.post(Tick())
    stage.runtime.post(Tick())
    assert stage.done == ["next"]


def defect(task_id: str | None = "t") -> ReportDefect:
    return ReportDefect(task_id, "the server has a defect: RuntimeError: a defect", RuntimeError("a defect"))


async def test_a_defect_is_logged_with_its_traceback_and_is_one_event_however_often():
    stage = Stage([defect(), release("first")], [defect(), release("second")])
    with structlog.testing.capture_logs() as lines:
        stage.runtime.post(Tick())
        stage.runtime.post(Tick())
    assert stage.done == ["first", "second"]
    assert [type(line["exc_info"]) for line in lines] == [RuntimeError, RuntimeError]
    save = await stage.ledger.asked.get()
    assert [(e.kind, e.task_id) for e in stage.ledger.entries] == [("server_defect", "t")]
    save.set_result(None)


async def test_an_event_that_is_not_handled_is_a_defect_and_the_next_one_is_handled():
    stage = Stage(RuntimeError("a defect"), [release("next")])
    stage.runtime.post(Tick())
    stage.runtime.post(Tick())
    assert stage.done == ["next"]
    save = await stage.ledger.asked.get()
    assert "RuntimeError: a defect (at Tick)" in stage.ledger.entries[0].message
    save.set_result(None)


async def test_a_person_whose_request_met_a_defect_is_not_told_that_it_is_done():
    stage = Stage([defect("t"), release("given up")], [defect("another"), release("done")])
    with pytest.raises(FarmError, match="a defect"):
        await stage.runtime.ask(TaskAction("t", Action.PAUSE))
    await stage.runtime.ask(TaskAction("t", Action.PAUSE))
    assert stage.done == ["given up", "done"]
    (await stage.ledger.asked.get()).set_result(None)


async def test_a_person_hears_of_success_only_when_it_is_durable():
    stage = Stage([Save((record("a"),))])
    asking = asyncio.create_task(stage.runtime.ask(TaskAction("t", Action.PAUSE)))
    save = await stage.ledger.asked.get()
    assert not asking.done()
    save.set_result(None)
    await asking


async def test_a_person_hears_the_refusal():
    stage = Stage(NotFound("no such task"))
    with pytest.raises(NotFound):
        await stage.runtime.ask(TaskAction("t", Action.PAUSE))


async def test_nothing_is_asked_of_a_farm_that_cannot_save():
    stage = Stage()
    stage.ledger.failure = "disk full"
    with pytest.raises(Unavailable, match="disk full"):
        await stage.runtime.ask(TaskAction("t", Action.PAUSE))


async def test_what_a_reader_is_told_is_durable_by_then():
    stage = Stage([Save((record("a"),))])
    stage.runtime.post(Tick())
    reading = asyncio.create_task(stage.runtime.settle())
    save = await stage.ledger.asked.get()
    await asyncio.sleep(0)
    assert not reading.done()
    save.set_result(None)
    await reading
    await stage.runtime.settle()  # and waits for nothing where there is nothing


async def test_a_reader_does_not_wait_for_ever_for_a_disk_that_refuses(monkeypatch):
    monkeypatch.setattr("farm_server.control.runtime._SETTLED_WITHIN_SECONDS", 0.01)
    stage = Stage([Save((record("a"),))])
    stage.runtime.post(Tick())
    await stage.runtime.settle()

"""What a client says of an assignment is taken from its own client only, and while it is in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.events import AssignmentFailed, Event, ResultArrived
from farm_server.clients.given_work import GivenWork
from farm_server.clients.reception import Reception
from farm_server.clients.results import IncomingResults
from protocol.artefacts import Artefact
from protocol.assignments import AssignmentProgress, Kind, LogLine, Phase, Progress, Result
from protocol.errors import FarmError, NotFound
from protocol.messages import Error, Scope
from protocol.tasks import BlobRef
from tests.farm_server.clients.offers import assign

MINE = SimpleNamespace(client_id="c1", task_id="t1", round=3, kind=Kind.TRAIN)
PART = SimpleNamespace(client_id="c1", task_id="t1", round=0, kind=Kind.MAP, samples=4)
END = SimpleNamespace(client_id="c1", task_id="t1", round=3, kind=Kind.EPOCH_END)


class Ear:
    """Hears what a reception passes on; ``checked`` are the tasks of the results that it looked at."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.logged: list[int] = []
        self.checked: list[str] = []
        self.kept: list[int] = []
        self.refusal: FarmError | None = None
        self.file: Path | None = None
        self.stages: dict[str, float] = {}
        anything = SimpleNamespace(labels=lambda _: SimpleNamespace(inc=lambda: None), inc=lambda _: None)
        timed = SimpleNamespace(labels=lambda stage: SimpleNamespace(inc=lambda s: self.stages.update({stage: s})))
        results = IncomingResults(
            post=self.events.append,
            intake=cast("Any", SimpleNamespace(is_quick=lambda _: True, check=self.check)),
            spooled=cast("Any", SimpleNamespace(hold=lambda _: None, source=self.stored)),
            outputs=cast("Any", SimpleNamespace(keep=self.keep)),
            telemetry=cast("Any", SimpleNamespace(updates=anything, compute_seconds=anything, stage_seconds=timed)),
            used=lambda _: None,
        )
        self.reception = Reception(
            post=self.events.append,
            in_flight=lambda name: cast("Any", {"a1": MINE, "end": END, "map": PART}.get(name)),
            results=results,
            entries=cast("Any", SimpleNamespace(add=lambda _peer, where, *_: self.logged.append(where.round))),
            clock=cast("Any", SimpleNamespace(now=lambda: 0.0)),
        )

    def stored(self, ref: BlobRef) -> Path:
        if self.file is None:
            raise NotFound("no blob")
        return self.file

    def keep(self, result: Result, items: int) -> BlobRef:
        self.kept.append(items)
        if self.refusal is not None:
            raise self.refusal
        assert result.update is not None
        return result.update.bare()

    def check(self, task_id: str, _kind: Kind, result: Result) -> Result:
        self.checked.append(task_id)
        if self.refusal is not None:
            raise self.refusal
        return result

    async def hear(self, client_id: str, assignment_id: str) -> Event:
        """Let a client say something of an assignment, and deliver it; return what the coordinator hears of that."""
        peer = cast("Any", SimpleNamespace(client_id=client_id, incarnation=1, name=client_id, given=GivenWork()))
        held = AssignmentProgress(assignment_id=assignment_id, fence=1, phase=Phase.COMPUTING)
        update = BlobRef(digest="f" * 64, size_bytes=3, inline=b"abc")
        await self.reception.take(peer, Progress(progress=held, logs=(LogLine(text="hello"),)))
        result = Result(assignment_id=assignment_id, fence=1, samples=1, update=update, compute_seconds=1.0)
        await self.reception.take(peer, result)
        return self.events[-1]


async def test_only_stages_that_the_farm_knows_are_counted() -> None:
    ear = Ear()
    peer = cast("Any", SimpleNamespace(client_id="c1", incarnation=1, name="c1"))
    named = {"train": 2.0, "upload": 0.5, "of a client from tomorrow": 1.0}
    await ear.reception.take(peer, Result(assignment_id="a1", fence=1, samples=1, stage_seconds=named))
    assert ear.stages == {"train": 2.0, "upload": 0.5}


async def test_the_owners_result_is_checked_and_its_lines_are_kept() -> None:
    ear = Ear()
    arrived = await ear.hear("c1", "a1")
    assert isinstance(arrived, ResultArrived)
    assert arrived.update is not None
    assert (ear.checked, ear.logged) == (["t1"], [3])


@pytest.mark.parametrize(("client_id", "assignment_id"), [("c2", "a1"), ("c1", "a2")])
async def test_what_is_not_the_clients_own_is_passed_on_without_its_update(client_id: str, assignment_id: str) -> None:
    ear = Ear()
    arrived = await ear.hear(client_id, assignment_id)
    assert isinstance(arrived, ResultArrived)
    assert arrived.update is None, "so that the coordinator settles it, and deletes nothing that another one brought"
    assert (ear.checked, ear.logged) == ([], [])


async def test_what_was_printed_before_a_cancel_comes_after_it_and_is_kept() -> None:
    ear, given = Ear(), GivenWork()
    given.add(assign(7))
    peer = cast("Any", SimpleNamespace(client_id="c1", incarnation=1, name="c1", given=given))
    for name in ("a7", "a8"):
        held = AssignmentProgress(assignment_id=name, fence=1, phase=Phase.COMPUTING)
        await ear.reception.take(peer, Progress(progress=held, logs=(LogLine(text="hello"),)))
    assert ear.logged == [0], "of the one that this connection was given, and of no other"


def test_as_many_assignments_are_remembered_as_a_client_may_hold() -> None:
    given = GivenWork()
    for number in range(66):
        given.add(assign(number))
    known = [number for number in range(66) if given.find(f"a{number}") is not None]
    assert known == list(range(2, 66))
    assert given.find("a65") == ("t1", 0)


async def test_a_result_that_is_refused_is_a_failure_of_its_assignment() -> None:
    ear = Ear()
    ear.refusal = FarmError("it has another layout")
    failed = await ear.hear("c1", "a1")
    assert isinstance(failed, AssignmentFailed)
    assert (failed.client_id, failed.assignment_id) == ("c1", "a1")


async def end_of_epoch(ear: Ear) -> Event:
    """Let a client deliver an epoch's end with one file; return what the coordinator hears."""
    peer = cast("Any", SimpleNamespace(client_id="c1", incarnation=1, name="c1"))
    left = Artefact(name="a.png", digest="a" * 64, size_bytes=1)
    await ear.reception.take(peer, Result(assignment_id="end", fence=1, samples=1, artefacts=(left,)))
    return ear.events[-1]


async def test_artefacts_have_the_size_that_they_have_here(tmp_path: Path) -> None:
    ear = Ear()
    ear.file = tmp_path / "blob"
    ear.file.write_bytes(b"x" * 7)
    arrived = await end_of_epoch(ear)
    assert isinstance(arrived, ResultArrived)
    assert arrived.artefacts == (Artefact(name="a.png", digest="a" * 64, size_bytes=7),)


async def test_an_epochs_end_whose_files_are_not_here_is_another_clients() -> None:
    failed = await end_of_epoch(Ear())
    assert isinstance(failed, AssignmentFailed)
    assert (failed.scope, failed.code) == (Scope.ELSEWHERE, "not_found")


async def test_the_artefacts_of_what_is_no_epochs_end_are_left_out() -> None:
    ear = Ear()
    peer = cast("Any", SimpleNamespace(client_id="c1", incarnation=1, name="c1"))
    left = Artefact(name="a.png", digest="a" * 64, size_bytes=1)
    await ear.reception.take(peer, Result(assignment_id="a1", fence=1, samples=1, artefacts=(left,)))
    arrived = ear.events[-1]
    assert isinstance(arrived, ResultArrived)
    assert arrived.artefacts == ()


async def failed_step_of(ear: Ear, step: BlobRef | None) -> BlobRef | None:
    """Return what the coordinator hears was stored of a failed step."""
    peer = cast("Any", SimpleNamespace(client_id="c1", incarnation=1, name="c1"))
    error = Error(code="task_code", message="boom", assignment_id="a1", fence=1, failed_step=step)
    await ear.reception.take(peer, error)
    failed = ear.events[-1]
    assert isinstance(failed, AssignmentFailed)
    return failed.failed_step


async def test_a_failed_step_has_the_size_that_it_has_here_whatever_a_client_says(tmp_path: Path) -> None:
    ear = Ear()
    ear.file = tmp_path / "blob"
    ear.file.write_bytes(b"x" * 7)
    kept = await failed_step_of(ear, BlobRef(digest="a" * 64, size_bytes=1))
    assert kept == BlobRef(digest="a" * 64, size_bytes=7)


async def test_a_failed_step_that_is_not_here_is_none() -> None:
    assert await failed_step_of(Ear(), BlobRef(digest="a" * 64, size_bytes=1)) is None
    assert await failed_step_of(Ear(), None) is None


async def test_a_failed_step_comes_in_no_message(tmp_path: Path) -> None:
    ear = Ear()
    ear.file = tmp_path
    assert await failed_step_of(ear, BlobRef(digest="a" * 64, size_bytes=3, inline=b"abc")) is None


async def settled(ear: Ear) -> Event:
    """Let what is checked apart come to its end."""
    await asyncio.gather(*ear.reception._results._checks)
    return ear.events[-1]


async def test_outputs_of_a_map_are_passed_on_once_they_are_kept() -> None:
    ear = Ear()
    await ear.hear("c1", "map")
    event = await settled(ear)
    assert isinstance(event, ResultArrived)
    assert (event.update, event.output) == (None, BlobRef(digest="f" * 64, size_bytes=3))
    assert (ear.kept, ear.checked) == ([4], []), "nobody looks at them as at an update"


async def test_outputs_that_can_not_be_kept_are_refused() -> None:
    ear = Ear()
    ear.refusal = NotFound("they were never uploaded")
    await ear.hear("c1", "map")
    event = await settled(ear)
    assert isinstance(event, AssignmentFailed)
    assert (event.scope, event.message) == (Scope.ELSEWHERE, "they were never uploaded")

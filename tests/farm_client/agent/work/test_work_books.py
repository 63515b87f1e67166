"""Which assignments a client is busy with, how many results may be on their way, and what is said when nobody hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.connection.link import Link
from farm_client.agent.connection.outgoing import Outgoing
from farm_client.agent.work.active_assignments import ActiveAssignments
from farm_client.agent.work.deliveries import UploadPlaces
from farm_client.agent.work.held_assignment import Held
from farm_client.agent.work.job import Job
from protocol.assignments import Assign, AssignmentProgress, LogLine, Phase, Progress, Reject, RejectCode
from protocol.messages import Error, Message, Ready
from tests.protocol.samples import BY_TYPE

ASSIGN = cast("Assign", BY_TYPE["assign"])


def held(name: str) -> Held:
    return Held(ASSIGN.model_copy(update={"assignment_id": name}))


@dataclass
class StandInJob:
    """All that the active assignments need of a job."""

    held: Held


def job(name: str) -> Job:
    return cast("Job", StandInJob(held(name)))


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class TestActiveAssignments:
    """Jobs in slots, and finished ones beside them."""

    @pytest.fixture
    async def start(self) -> AsyncIterator[Callable[[], asyncio.Task[None]]]:
        tasks: list[asyncio.Task[None]] = []

        def start() -> asyncio.Task[None]:
            tasks.append(asyncio.create_task(asyncio.Event().wait()))  # type: ignore[arg-type]  # what it returns is not asked
            return tasks[-1]

        yield start
        for task in tasks:
            task.cancel()

    async def test_a_job_takes_a_slot_until_it_is_let_go_and_is_known_until_it_is_removed(
        self, start: Callable[[], asyncio.Task[None]]
    ) -> None:
        active, first, second, task = ActiveAssignments(), job("a"), job("b"), start()
        assert active.idle.is_set()
        active.add(first, task)
        active.add(second, start())
        assert (active.taken_slots, active.idle.is_set()) == (2, False)
        active.free_slot(first)
        assert active.taken_slots == 1
        assert list(active) == [second, first]
        assert len(active.tasks()) == 2
        assert active.remove("a") is task
        assert active.remove("a") is None
        assert not active.idle.is_set()
        active.remove("b")
        assert active.idle.is_set()

    async def test_one_that_is_let_go_may_be_the_last(self, start: Callable[[], asyncio.Task[None]]) -> None:
        active, only = ActiveAssignments(), job("a")
        active.add(only, start())
        active.free_slot(only)
        assert not active.idle.is_set()  # whoever waits to leave waits for its delivery too
        active.remove("a")
        assert active.idle.is_set()

    def test_removing_what_is_not_there_is_no_error(self) -> None:
        active = ActiveAssignments()
        assert active.remove("nobody's") is None
        assert active.idle.is_set()


@dataclass
class Shown:
    """The reasons that a person was shown, in order."""

    reasons: list[str | None] = field(default_factory=list)

    def __call__(self, reason: str | None) -> None:
        self.reasons.append(reason)


@asynccontextmanager
async def taking(places: UploadPlaces, who: Held | None = None) -> AsyncIterator[asyncio.Event]:
    """Have a task take a place; the event that comes lets it go."""
    leave = asyncio.Event()

    async def hold() -> None:
        async with places.place(who):
            await leave.wait()

    task = asyncio.create_task(hold())
    await settled()
    yield leave
    leave.set()
    await task


class TestUploadPlaces:
    """A client that computes faster than it sends must not pile up results."""

    async def test_no_more_than_so_many_have_a_place(self) -> None:
        places, inside, most = UploadPlaces(3, Shown()), 0, 0

        async def send() -> None:
            nonlocal inside, most
            async with places.place():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*[send() for _ in range(20)])
        assert most == 3

    async def test_who_finds_a_place_does_not_wait_and_says_nothing(self) -> None:
        shown, who = Shown(), held("a")
        places = UploadPlaces(1, shown)
        async with places.place(who):
            places.beat()
        assert (shown.reasons, who.waits) == ([], 0)

    async def test_who_waits_is_shown_once_and_beats_as_told_to_wait(self) -> None:
        shown, who = Shown(), held("a")
        places = UploadPlaces(1, shown)
        async with taking(places) as first, taking(places, who) as second:
            assert len(shown.reasons) == 1
            assert "1 result on the way already" in str(shown.reasons[0])
            places.beat()
            places.beat()
            assert who.waits == 2
            first.set()
            await settled()
            assert shown.reasons[1:] == [None]
            places.beat()
            assert who.waits == 2  # it has its place
            second.set()

    async def test_the_reason_goes_when_the_last_of_them_has_a_place(self) -> None:
        shown = Shown()
        places = UploadPlaces(1, shown)
        async with taking(places) as first, taking(places, held("a")) as second, taking(places, held("b")):
            assert None not in shown.reasons
            first.set()
            await settled()
            assert None not in shown.reasons
            second.set()
            await settled()
            assert shown.reasons[-1] is None

    async def test_one_that_waits_and_is_cancelled_is_no_longer_shown_and_takes_no_place(self) -> None:
        shown, who = Shown(), held("a")
        places = UploadPlaces(1, shown)
        async with taking(places):
            waiting = asyncio.create_task(places.place(who).__aenter__())
            await settled()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert shown.reasons[-1] is None
            places.beat()
            assert who.waits == 0
        async with asyncio.timeout(5), places.place():
            pass

    async def test_an_error_inside_gives_the_place_back(self) -> None:
        places = UploadPlaces(1, Shown())
        for _ in range(3):
            with pytest.raises(OSError, match="broken"):
                async with places.place():
                    raise OSError("broken")


@dataclass
class StandInLink:
    """A connection that keeps what it was told, of which the farm has heard the first ``heard``."""

    congested: bool = False
    round_trip_seconds: float = 0.0
    told: list[Message] = field(default_factory=list)
    posted: list[Message] = field(default_factory=list)
    heard: int = 0

    def tell(self, message: Message) -> None:
        self.told.append(message)

    def post(self, message: Message) -> None:
        self.posted.append(message)

    def unacknowledged(self) -> list[Message]:
        return self.told[self.heard :]


def ending(name: str) -> Error:
    return Error(code="x", message="it broke", assignment_id=name, fence=7)


def line(text: str) -> Progress:
    doing = AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)
    return Progress(progress=doing, logs=(LogLine(text=text),))


class TestOutgoing:
    """What must not be lost is said again over the next connection; the rest is only for the one there is."""

    def test_without_a_connection_it_is_kept_and_said_first(self) -> None:
        outgoing, link = Outgoing(), StandInLink()
        said = [line("1"), ending("a"), line("2")]
        for message in said:
            outgoing.tell(message)
        outgoing.attach(cast("Link", link))
        outgoing.tell(ending("b"))
        assert link.told == [*said, ending("b")]
        assert outgoing.ended() == []

    @given(heard=st.integers(0, 4), later=st.integers(0, 4))
    def test_whatever_connections_break_each_ending_is_heard_and_in_order(self, heard: int, later: int) -> None:
        outgoing, said = Outgoing(), [ending(str(number)) for number in range(4)]
        first, second, third = StandInLink(heard=heard), StandInLink(heard=later), StandInLink()
        outgoing.attach(cast("Link", first))
        for message in said:
            outgoing.tell(message)
        for link in (second, third):
            outgoing.detach()
            outgoing.attach(cast("Link", link))
        arrived = first.told[:heard] + second.told[:later] + third.told
        assert arrived == said

    def test_a_hello_names_what_ended_unheard(self) -> None:
        outgoing, link = Outgoing(), StandInLink(heard=1)
        outgoing.attach(cast("Link", link))
        for message in (ending("heard"), ending("not heard"), line("output")):
            outgoing.tell(message)
        outgoing.detach()
        outgoing.tell(Reject(assignment_id="later", fence=9, code=RejectCode.BUSY, message="no slot"))
        assert [(one.assignment_id, one.fence) for one in outgoing.ended()] == [("not heard", 7), ("later", 9)]

    def test_what_matters_to_one_connection_only_is_not_kept_for_the_next(self) -> None:
        outgoing, link, other = Outgoing(), StandInLink(), StandInLink()
        outgoing.post(Ready(slots=1))
        outgoing.attach(cast("Link", link))
        outgoing.post(Ready(slots=2))
        outgoing.detach()
        outgoing.post(Ready(slots=3))
        outgoing.attach(cast("Link", other))
        assert (link.posted, other.posted) == ([Ready(slots=2)], [])

    def test_it_is_congested_as_its_connection_is(self) -> None:
        outgoing = Outgoing()
        assert not outgoing.congested
        outgoing.attach(cast("Link", StandInLink(congested=True)))
        assert outgoing.congested
        outgoing.detach()
        assert not outgoing.congested

    def test_its_round_trip_is_the_median_of_its_connections_pings(self) -> None:
        outgoing, link = Outgoing(), StandInLink()
        assert outgoing.measure_round_trip() == 0.0
        outgoing.attach(cast("Link", link))
        told = []
        for link.round_trip_seconds in (0.0, 0.03, 0.9, 0.9, 0.9, 0.02, 0.0):
            told.append(outgoing.measure_round_trip())
        assert told == [0.0, 0.03, *3 * [(0.03 + 0.9) / 2], 0.03, 0.03], "a ping counts once, and one of 0 not at all"
        outgoing.detach()
        assert outgoing.measure_round_trip() == 0.03

    def test_ending_twice_is_harmless(self) -> None:
        outgoing = Outgoing()
        outgoing.tell(ending("a"))
        outgoing.detach()
        outgoing.detach()
        assert len(outgoing.ended()) == 1

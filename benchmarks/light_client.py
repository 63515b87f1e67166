"""Clients that speak the protocol and train nothing, so that thousands fit into one process: updates are made up.

In all else they do as the agent does, with its own code where that stands alone: how it dials, greets, packs frames
and pings (``link`` of the agent's connection), and how often it beats, at work and idle (``heartbeat_interval``).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.heartbeat_interval import HeartbeatIntervals
from farm_client.agent.connection.link import Link, open_link
from protocol.assignments import Accept, Assign, AssignmentProgress, Cancel, Phase, Result
from protocol.link_capacity import LinkCapacity
from protocol.messages import Bye, Heartbeat, HeldAssignment, Hello, Message, Pace, Ready
from protocol.resources import Resources
from protocol.tasks import BlobRef
from protocol.versions import FROZEN_APART, SUPPORTED

MakeUpdate = Callable[[Assign], Awaitable[BlobRef]]
"""Returns the update that answers an assignment: inline, or uploaded already."""
COMPUTE_SECONDS: Final = 0.1
"""What a light client claims to have computed."""


class Computing:
    """An assignment that is held: with each report one sample more is done, or the farm would take it for stuck."""

    def __init__(self, assign: Assign) -> None:
        self._assign = assign
        self._samples_done = 0

    def held(self) -> HeldAssignment:
        """Name it for a hello."""
        return HeldAssignment(assignment_id=self._assign.assignment_id, fence=self._assign.fence)

    def progress(self) -> AssignmentProgress:
        """Say how far it is now."""
        self._samples_done = min(self._samples_done + 1, self._assign.samples)
        return AssignmentProgress(
            assignment_id=self._assign.assignment_id,
            fence=self._assign.fence,
            phase=Phase.COMPUTING,
            samples_done=self._samples_done,
        )


class LightClient:
    """One identity, which may join again and again.

    Without ``make_update`` it delivers nothing: it goes on with what it holds, over one connection after another.
    """

    def __init__(
        self,
        join_url: str,
        name: str,
        make_update: MakeUpdate | None = None,
        tags: Sequence[str] = (),
        beat_seconds: float | None = None,
    ) -> None:
        self._address = parse_address(join_url)
        self.beat_seconds = beat_seconds
        """How often it beats; None: as the farm asks."""
        self._capacity = LinkCapacity()
        self.make_update = make_update
        self.results = 0
        """How many it has delivered."""
        self.held: dict[str, Computing] = {}
        self._hello = Hello(
            versions=SUPPORTED,
            client_id=secrets.token_hex(16),
            client_secret=secrets.token_hex(32),
            run_id=secrets.token_hex(8),
            name=name,
            resources=Resources(cpu_cores=1, ram_bytes=2**36, disk_free_bytes=2**40),
            tags=tuple(tags),
            features=(FROZEN_APART,),
        )

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[LightConnection]:
        """Connect and be welcomed for the length of the block, which ends it politely (``leave``) or not.

        Raises: OutOfReach, or another FarmError, if there is no welcome.
        """
        held = tuple(computing.held() for computing in self.held.values())
        link = await open_link(self._address, self._hello.model_copy(update={"held": held}), self._capacity)
        try:
            yield LightConnection(self, link)
        finally:
            await link.close()


class LightConnection:
    """One connection of a light client, from its welcome on."""

    def __init__(self, client: LightClient, link: Link) -> None:
        self._client = client
        self._link = link
        self._intervals = HeartbeatIntervals.told(link.welcome)
        self._beats_as_idle = False
        """Whether the farm has heard that this client holds nothing, and has offered nothing since."""
        self._interval_changed = asyncio.Event()

    async def work(self) -> None:
        """Beat and answer assignments, until cancelled. Raises: OutOfReach once the connection has ended."""
        async with asyncio.TaskGroup() as group:
            chores = [group.create_task(self._beat())]
            async for message in self._link.messages():
                self._take(message)
                if isinstance(message, Assign) and self._client.make_update is not None:
                    chores.append(group.create_task(self._answer(message, self._client.make_update)))
            for chore in chores:
                chore.cancel()
        raise self._link.reason

    async def leave(self) -> None:
        """Say goodbye."""
        await self._link.close(Bye(reason="the light client leaves"))

    def cut(self) -> None:
        """End the connection as a crash does."""
        self._link.cut()

    def _take(self, message: Message) -> None:
        match message:
            case Assign():
                self._client.held[message.assignment_id] = Computing(message)
                self._link.post(Accept(assignment_id=message.assignment_id, fence=message.fence))
                self._beats_as_idle = False
                self._interval_changed.set()
            case Cancel():
                self._client.held.pop(message.assignment_id, None)
                self._tell_ready()
            case Pace():
                self._intervals = HeartbeatIntervals.told(message)
                self._interval_changed.set()

    def _tell_ready(self) -> None:
        self._link.post(Ready(slots=0 if self._client.held else 1))

    async def _beat(self) -> None:
        """Beat at once, and then as often as the farm asks for: less often where it knows that nothing is held."""
        self._tell_ready()
        while True:
            held = list(self._client.held.values())
            self._link.post(Heartbeat(assignments=tuple(computing.progress() for computing in held)))
            self._beats_as_idle = not held
            if not held:
                self._tell_ready()  # with each beat, as the agent does
            await self._next_beat_is_due(time.monotonic())

    async def _next_beat_is_due(self, beat_at: float) -> None:
        while (seconds := beat_at + self._interval_seconds - time.monotonic()) > 0:
            self._interval_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._interval_changed.wait()

    @property
    def _interval_seconds(self) -> float:
        if self._client.beat_seconds is not None:
            return self._client.beat_seconds
        return self._intervals.idle_heartbeat_seconds if self._beats_as_idle else self._intervals.heartbeat_seconds

    async def _answer(self, assign: Assign, make_update: MakeUpdate) -> None:
        """Make an update and deliver it, unless the assignment was cancelled meanwhile, or the connection ended."""
        try:
            update = await make_update(assign)
        finally:
            is_held = self._client.held.pop(assign.assignment_id, None) is not None
        if not is_held:
            return
        self._link.post(
            Result(
                assignment_id=assign.assignment_id,
                fence=assign.fence,
                samples=assign.samples,
                metrics={"loss": 1.0},
                update=update,
                compute_seconds=COMPUTE_SECONDS,
            )
        )
        self._client.results += 1
        self._tell_ready()

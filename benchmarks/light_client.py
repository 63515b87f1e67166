"""Clients that speak the protocol and train nothing, so that dozens fit into one process: their updates are made up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.farm import BenchmarkError
from farm_client.agent.address import parse_address
from protocol.messages import (
    Accept,
    Assign,
    AssignmentProgress,
    Bye,
    Cancel,
    Heartbeat,
    Hello,
    Message,
    Phase,
    Ready,
    Result,
    Welcome,
)
from protocol.resources import Resources
from protocol.session import Session, Side
from protocol.tasks import BlobRef
from protocol.versions import SUPPORTED

MakeUpdate = Callable[[Assign], Awaitable[BlobRef]]
"""Returns the update that answers an assignment: inline, or uploaded already."""
COMPUTE_SECONDS: Final = 0.1
"""What a light client claims to have computed."""


class LightClient:
    """One identity, which may join again and again."""

    def __init__(self, join_url: str, name: str, make_update: MakeUpdate) -> None:
        self._address = parse_address(join_url)
        self.make_update = make_update
        self.results = 0
        """How many it has delivered."""
        self.hello = Hello(
            versions=SUPPORTED,
            client_id=secrets.token_hex(16),
            client_secret=secrets.token_hex(32),
            name=name,
            resources=Resources(cpu_cores=1, ram_bytes=2**36, disk_free_bytes=2**40),
        )

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[LightConnection]:
        """Connect for the length of the block, which ends it politely (``leave``) or not."""
        url, headers = self._address.websocket_url, self._address.headers
        # A proxy set for the web must not catch what is meant for this machine.
        async with connect(url, additional_headers=headers, compression=None, proxy=None) as connection:
            yield LightConnection(self, connection)


class LightConnection:
    """One connection of a light client."""

    def __init__(self, client: LightClient, connection: ClientConnection) -> None:
        self._client = client
        self._connection = connection
        self._session = Session(Side.CLIENT)
        self._held: dict[str, AssignmentProgress] = {}

    async def work(self) -> None:
        """Say hello and answer assignments, until cancelled. Raises: BenchmarkError if the server closes."""
        await self._tell(self._client.hello)
        async with asyncio.TaskGroup() as group:
            try:
                async for frame in self._connection:
                    for message in self._session.receive(frame):
                        await self._take(message, group)
            except ConnectionClosed:
                reason = f"{self._connection.close_code} {self._connection.close_reason}"
                raise BenchmarkError(f"the server closed: {reason}") from None

    async def leave(self) -> None:
        """Say goodbye, if the conversation is so far."""
        if self._session.may_send("bye"):
            await self._tell(Bye(reason="the light client leaves"))

    def cut(self) -> None:
        """End the connection as a crash does."""
        self._connection.transport.abort()

    async def _tell(self, message: Message) -> None:
        await self._connection.send(self._session.send(message))

    async def _take(self, message: Message, group: asyncio.TaskGroup) -> None:
        match message:
            case Welcome():
                await self._tell(Ready(slots=1))
                group.create_task(self._beat(message.heartbeat_seconds))
            case Assign():
                await self._tell(Accept(assignment_id=message.assignment_id, fence=message.fence))
                group.create_task(self._answer(message))
            case Cancel():
                self._held.pop(message.assignment_id, None)

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._tell(Heartbeat(assignments=tuple(self._held.values())))

    async def _answer(self, assign: Assign) -> None:
        """Make an update and deliver it, unless the assignment was cancelled meanwhile."""
        self._held[assign.assignment_id] = AssignmentProgress(
            assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING
        )
        update = await self._client.make_update(assign)
        if self._held.pop(assign.assignment_id, None) is None:
            return
        await self._tell(
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
        await self._tell(Ready(slots=1))

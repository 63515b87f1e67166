"""A client of the gateway over a real WebSocket, driven message by message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Self, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from protocol.assignments import Accept, Ack, Assign, Cancel, Kind, Result
from protocol.messages import Hello, Message, Ready, Welcome
from protocol.resources import Resources
from protocol.session import Session, Side
from protocol.tasks import BlobRef
from protocol.versions import SUPPORTED
from tests.farm_server import model

M = TypeVar("M")
SECRET = "a secret of sixteen characters and more"


class Volunteer:
    """Says hello on entering; ``next`` waits for a message of a type and drops the others."""

    def __init__(self, url: str, token: str, client_id: str = "c1", **hello: Any) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self.session = Session(Side.CLIENT)
        self.hello = Hello(
            **{
                "versions": SUPPORTED,
                "client_id": client_id,
                "client_secret": SECRET,
                "name": client_id,
                "resources": Resources(cpu_cores=2, ram_bytes=2**33, disk_free_bytes=2**40),
            }
            | hello
        )
        self._unread: deque[Message] = deque()
        self.welcome: Welcome
        self.connection: ClientConnection

    async def __aenter__(self) -> Self:
        self.connection = await connect(
            self.url, additional_headers=self.headers, compression=None, ping_interval=None, proxy=None
        )
        await self.send(self.hello)
        self.welcome = await self.next(Welcome)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def send(self, message: Message) -> None:
        await self.connection.send(self.session.send(message))

    async def next(self, kind: type[M] | tuple[type[M], ...], within_seconds: float = 30.0) -> M:
        """Return the next message of this kind; an assignment that comes before an acknowledgement is kept."""
        kept: list[Message] = []
        async with asyncio.timeout(within_seconds):
            while True:
                while self._unread:  # a frame may have brought several
                    if isinstance(message := self._unread.popleft(), kind):
                        self._unread.extendleft(reversed(kept))
                        return message
                    if kind is Ack and isinstance(message, Assign):
                        kept.append(message)
                self._unread.extend(self.session.receive(await self.connection.recv()))

    async def ready(self, slots: int = 1) -> None:
        await self.send(Ready(slots=slots))

    async def accept(self) -> Assign:
        assign = await self.next(Assign)
        await self.send(Accept(assignment_id=assign.assignment_id, fence=assign.fence))
        return assign

    async def deliver(self, assign: Assign, data: bytes, **changes: Any) -> None:
        update = BlobRef(**model.ref(data).model_dump(exclude={"inline"}), inline=data)
        fields: dict[str, Any] = {
            "assignment_id": assign.assignment_id,
            "fence": assign.fence,
            "samples": assign.samples,
            "metrics": {"loss": 0.5},
            "update": update if assign.kind is Kind.TRAIN else None,
            "compute_seconds": 0.01,
        }
        await self.send(Result(**fields | changes))

    async def train_for_ever(self, make_update: Callable[[Assign], bytes] = lambda _: model.update()) -> None:
        """Do every assignment until cancelled."""
        await self.ready()
        while True:
            order = await self.next((Assign, Cancel))
            if isinstance(order, Assign):
                await self.send(Accept(assignment_id=order.assignment_id, fence=order.fence))
                await self.deliver(order, make_update(order))
            await self.ready()  # what was cancelled before it was sent has used up the slot too

"""A farm that a test plays: a real WebSocket and real blob routes on one port, and a script that says what is sent."""

import asyncio
import io
import itertools
import zipfile
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from protocol.assignments import Ack, Assign, Kind, Slice
from protocol.messages import Hello, Ready, Welcome
from protocol.recipe import Mode
from protocol.session import Session, Side
from protocol.tasks import BlobRef, Shard, TaskBrief
from protocol.versions import SUPPORTED
from tests.farm_client.scripted_blobs import ScriptedBlobs, serving

TOKEN = "join-token"
SUBMITTER = "tester@tests"


class Peer:
    """One connection of an agent, as the farm sees it."""

    def __init__(self, websocket):
        self.session = Session(Side.SERVER)
        self.heard = asyncio.Queue()
        self.unread = []
        self.log = []
        self.frames = []
        self.closed = asyncio.Event()
        self._websocket = websocket

    async def listen(self):
        try:
            while True:
                self.frames.append(self.session.receive(await self._websocket.receive_bytes()))
                for message in self.frames[-1]:
                    self.log.append(message)
                    self.heard.put_nowait(message)
                for frame in self.session.outgoing():
                    await self._websocket.send_bytes(frame)
        except (WebSocketDisconnect, KeyError, RuntimeError):
            self.closed.set()

    async def send(self, message):
        await self._websocket.send_bytes(self.session.send(message))

    async def expect(self, kind, timeout_seconds=30):
        """Return the next message of this kind; others stay for later."""
        async with asyncio.timeout(timeout_seconds):
            for message in self.unread:
                if isinstance(message, kind):
                    self.unread.remove(message)
                    return message
            while not isinstance(message := await self.heard.get(), kind):
                self.unread.append(message)
            return message

    async def welcome(self, **changes):
        hello = await self.expect(Hello)
        fields = {"version": max(SUPPORTED), "incarnation": 1, "heartbeat_seconds": 0.2, "inline_bytes": 1024} | changes
        await self.send(Welcome(**fields))
        return hello

    async def acknowledge(self, result):
        await self.send(Ack(assignment_id=result.assignment_id, fence=result.fence, counted=True))

    async def close(self, code=1000):
        await self._websocket.close(code)


class ScriptedFarm(ScriptedBlobs):
    def __init__(self):
        super().__init__()
        self.refuse_status = None
        self.refuse_headers = {}
        self.refused = 0
        self.lease_seconds = 60.0
        self.host = "127.0.0.1"
        self.port = 0
        self._peers = asyncio.Queue()
        self._ids = itertools.count(1)
        self.app = Starlette(routes=[WebSocketRoute("/v1/farm", self._converse), *self.routes()])

    @property
    def url(self):
        return f"ws://{TOKEN}@{self.host}:{self.port}"

    async def next_client(self, timeout_seconds=30):
        async with asyncio.timeout(timeout_seconds):
            return await self._peers.get()

    def task(self, task_id="task1", needed_ram_bytes=0, **config):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("train.py", "code")
        return TaskBrief(
            task_id=task_id,
            name=f"name-{task_id}",
            mode=Mode.WEIGHTS,
            code=self.store(archive.getvalue()),
            entry="train.py",
            config=config,
            seed=0,
            batch_samples=4,
            dataset_kind="files",
            needed_ram_bytes=needed_ram_bytes,
            submitter=SUBMITTER,
        )

    def assign(self, task, weights=b"weights", shard=b"-shard", kind=Kind.TRAIN, inline=True, round_number=0):
        number = next(self._ids)
        ref = self.store(weights)
        if inline:
            ref = BlobRef(digest=ref.digest, size_bytes=ref.size_bytes, inline=weights)
        return Assign(
            assignment_id=f"a{number}",
            fence=number,
            kind=kind,
            task=task,
            round=round_number,
            epoch=0,
            weights=ref,
            slices=(Slice(shard=Shard(index=0, samples=10, blob=self.store(shard)), start=2, stop=8),),
            lease_seconds=self.lease_seconds,
        )

    async def _converse(self, websocket):
        if websocket.headers.get("authorization") != f"Bearer {TOKEN}":
            await websocket.send_denial_response(Response(status_code=401))
            return
        if self.refuse_status is not None:
            self.refused += 1
            await websocket.send_denial_response(Response(status_code=self.refuse_status, headers=self.refuse_headers))
            return
        await websocket.accept()
        peer = Peer(websocket)
        self._peers.put_nowait(peer)
        await peer.listen()


@asynccontextmanager
async def running_farm():
    farm = ScriptedFarm()
    async with serving(farm.app) as farm.port:
        yield farm


async def joined(farm, **changes):
    """Return the next client's connection, welcomed and ready, with its first executor warm."""
    peer = await farm.next_client()
    hello = await peer.welcome(**changes)
    is_busy = not all(held.finished for held in hello.held)
    while (await peer.expect(Ready)).slots == 0 and not is_busy:
        continue
    return peer

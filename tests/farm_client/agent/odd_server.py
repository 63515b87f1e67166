"""What may stand where a farm was: it takes connections and answers bytes, or cuts them, as a test says."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

RESET = object()
SILENCE = object()
RELAY = object()
"""No answer of its own: it forwards to the farm."""
BEFORE_THE_REQUEST = object()
"""Put before an answer that is sent at once, and not when the request has been read."""


@dataclass
class OddServer:
    """Gives every connection its ``answer``, which may be drawn: bytes, RESET, SILENCE, RELAY, or a tuple as above."""

    answer: object = b""
    port: int = 0
    farm_port: int = 0
    dials: int = 0
    held: list = field(default_factory=list)
    listener: object = None

    async def listen(self):
        """Take connections, on the same port as before; until then they are refused."""
        self.listener = await asyncio.start_server(self.meet, "127.0.0.1", self.port)
        self.port = self.listener.sockets[0].getsockname()[1]

    async def meet(self, reader, writer):
        self.dials += 1
        self.held.append(writer)
        answer = self.answer() if callable(self.answer) else self.answer
        with suppress(OSError, asyncio.IncompleteReadError):
            if answer is RELAY:
                await self.relay(reader, writer)
                return
            if isinstance(answer, tuple):
                answer = answer[1]
            else:
                await reader.readuntil(b"\r\n\r\n")
            if answer is SILENCE:
                return
            if answer is RESET:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            writer.write(answer)
            await writer.drain()
            writer.close()

    async def relay(self, reader, writer):
        from_farm, to_farm = await asyncio.open_connection("127.0.0.1", self.farm_port)
        self.held.append(to_farm)
        async with asyncio.TaskGroup() as group:
            group.create_task(carry(reader, to_farm))
            group.create_task(carry(from_farm, writer))

    def cut(self):
        """End all connections."""
        for writer in self.held:
            writer.transport.abort()
        self.held.clear()


async def carry(reader, writer):
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def odd_server(answer=b"", farm_port=0):
    server = OddServer(answer, farm_port=farm_port)
    await server.listen()
    try:
        yield server
    finally:
        server.listener.close()
        server.cut()


def status(number, *headers, body=b""):
    """An answer with a status, as a proxy gives it."""
    lines = [f"HTTP/1.1 {number} Some Words", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body

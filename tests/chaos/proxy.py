"""A TCP proxy that spoils connections on purpose: reset, stall, half-open, delay, jitter, bandwidth.

It runs in a thread of its own and needs no privileges. Everything random comes from its seed. All connections of a
proxy share its line, as those of one home do. What it does not imitate: TCP's own slow start and losses.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 64 * 1024
CHUNKS_ON_THE_WAY: Final = 256
"""The most that one direction of a connection holds back; beyond it the sender feels the delay."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing sends a reset instead of a goodbye."""


@dataclass(frozen=True, slots=True)
class Line:
    """How bytes travel, each way. No ``bytes_per_second`` means as fast as they come."""

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """Up to so much is added to the delay of each chunk; order is kept."""
    bytes_per_second: float | None = None
    """Of all connections together."""
    buffer_seconds: float = 0.1
    """How much a sender may be ahead of the line: the buffer of the router, in seconds of the line's speed."""


class Lane:
    """One direction of a line: a token bucket that all connections share, in the order in which they come to it.

    Pure: ``now`` is any clock's.
    """

    def __init__(self) -> None:
        self._free_at = 0.0

    def wait_seconds(self, line: Line, now: float) -> float:
        """Return how long the buffer has no room; 0 if it has."""
        return max(0.0, self._free_at - now - line.buffer_seconds) if line.bytes_per_second else 0.0

    def carry(self, line: Line, size_bytes: int, jitter_seconds: float, now: float) -> float:
        """Put bytes on the lane, and return when the last of them arrives."""
        taken = size_bytes / line.bytes_per_second if line.bytes_per_second else 0.0
        self._free_at = max(self._free_at, now) + taken
        return self._free_at + line.delay_seconds + jitter_seconds


class FaultProxy:
    """Listens on a free port of loopback and forwards to ``target``. Use it as a context manager.

    Its methods may be called from any thread; what they say of connections holds for those that are open now.
    """

    def __init__(self, target: tuple[str, int], seed: int = 0, line: Line | None = None) -> None:
        self._target = target
        self._seed = seed
        self._line = line or Line()
        self._up, self._down = Lane(), Lane()
        self._pairs: set[_Pair] = set()
        self._reset_after_bytes: int | None = None
        self._mean_life_bytes: float | None = None
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self.port = 0
        self.resets = 0
        """How many connections were reset."""
        self._accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._over.set)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._pairs)

    def change(self, line: Line) -> None:
        """Let bytes travel differently from now on, on old connections too."""
        self._line = line

    def reset(self) -> None:
        """Cut every connection with a reset at both ends: a router that lost its table."""
        self._call(lambda: self._each(_Pair.reset))

    def reset_after(self, received_bytes: int) -> None:
        """Reset the first connection that has brought its client so many bytes from now on, and only that one."""
        self._call(lambda: self._plan_reset(received_bytes))

    def reset_each(self, mean_life_bytes: float | None) -> None:
        """Reset each connection, those to come too, when it has carried a random number of bytes; None ends it."""
        self._mean_life_bytes = mean_life_bytes

    def stall(self) -> None:
        """Hold all bytes back, on connections to come too, until ``flow``: a link that is up and dead."""
        self._call(self._flowing.clear)

    def flow(self) -> None:
        """End a stall; what was held back arrives."""
        self._call(self._flowing.set)

    def half_open(self) -> None:
        """Close towards the target, and keep the clients' ends open and silent: a client that was not told."""
        self._call(lambda: self._each(_Pair.forget_target))

    def _call(self, action: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(action)

    def _each(self, act: Callable[[_Pair], None]) -> None:
        for pair in tuple(self._pairs):
            act(pair)

    def _plan_reset(self, received_bytes: int) -> None:
        self._reset_after_bytes = received_bytes
        for pair in self._pairs:
            pair.received_bytes = 0

    async def _serve(self) -> None:
        self._over, self._flowing = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._over.wait()
        server.close()
        tasks = [pair.task for pair in self._pairs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_target = await asyncio.open_connection(*self._target, limit=CHUNK_BYTES)
        except OSError:
            _abort(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        pair = _Pair(task, writer, to_target[1], f"{self._seed}/{self._accepted}")
        self._accepted += 1
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(pair, reader, to_target[1], is_download=False))
                group.create_task(self._pump(pair, to_target[0], writer, is_download=True))
        except* OSError:
            pair.close()
        except* asyncio.CancelledError:
            pair.close()  # the proxy ends; asyncio's own callback of this coroutine takes no cancelled task
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_download: bool
    ) -> None:
        """Carry one direction: read at once, write when the line has brought it."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_ON_THE_WAY)
        async with asyncio.TaskGroup() as group:
            lane, chance = (self._down, pair.chance_down) if is_download else (self._up, pair.chance_up)
            group.create_task(self._take_in(reader, on_the_way, lane, chance))
            while True:
                due, chunk = await on_the_way.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._flowing.wait()
                if not chunk:
                    break
                if pair.half_open:  # nobody is there any more: swallowed
                    continue
                writer.write(chunk[: self._life_left(pair)])
                await writer.drain()
                self._count(pair, len(chunk), is_download=is_download)
        if is_download and pair.half_open:
            await self._over.wait()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        on_the_way: asyncio.Queue[tuple[float, bytes]],
        lane: Lane,
        chance: random.Random,
    ) -> None:
        due = 0.0
        while True:
            chunk = await reader.read(CHUNK_BYTES)
            await asyncio.sleep(lane.wait_seconds(self._line, self._loop.time()))
            line, now = self._line, self._loop.time()
            due = max(due, lane.carry(line, len(chunk), chance.uniform(0, line.jitter_seconds), now))
            await on_the_way.put((due, chunk))
            if not chunk:
                return

    def _life_left(self, pair: _Pair) -> int | None:
        """Return how many bytes a connection carries until it is reset; None for any number."""
        if self._mean_life_bytes is None:
            return None
        return max(0, int(pair.lifetime * self._mean_life_bytes) - pair.carried_bytes)

    def _count(self, pair: _Pair, carried_bytes: int, *, is_download: bool) -> None:
        life_left = self._life_left(pair)
        pair.carried_bytes += carried_bytes
        pair.received_bytes += carried_bytes if is_download else 0
        due = self._reset_after_bytes is not None and pair.received_bytes >= self._reset_after_bytes
        if due or (life_left is not None and carried_bytes >= life_left):
            self._reset_after_bytes = None if due else self._reset_after_bytes
            self.resets += 1
            pair.reset()


class _Pair:
    """The two ends of one forwarded connection, each direction with its own chance: threads must not change it."""

    def __init__(
        self, task: asyncio.Task[object], client: asyncio.StreamWriter, target: asyncio.StreamWriter, seed: str
    ) -> None:
        self.task = task
        self.chance_up, self.chance_down = random.Random(f"{seed}/up"), random.Random(f"{seed}/down")
        self.lifetime = random.Random(f"{seed}/life").uniform(0.0, 2.0)
        """In means of ``reset_each``."""
        self.half_open = False
        self.carried_bytes = 0
        self.received_bytes = 0
        """What its client got from the target."""
        self._client, self._target = client, target

    def reset(self) -> None:
        """Cut both ends; the pumps end by themselves, at the errors that this makes."""
        _abort(self._client)
        _abort(self._target)

    def forget_target(self) -> None:
        self.half_open = True
        _abort(self._target)

    def close(self) -> None:
        self._client.close()
        self._target.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()

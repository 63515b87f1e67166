"""Thousands of light clients in one process, each of which stays at the farm and comes back as the agent does.

    python -m benchmarks.crowd JOIN_URL COUNT [--tag NAME]… [--clients-per-tag N] [--beat-seconds S]

Prints a line of JSON whenever its counts have changed, and ends on SIGTERM. ``running_crowd`` starts it beside a
measurement, and reads what it prints.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop

from benchmarks.farm import BenchmarkError, wait_until
from benchmarks.light_client import LightClient
from farm_client.agent.connection.reconnect_policy import Reconnecting
from farm_client.agent.errors import OutOfReach
from farm_client.sdk.child_process import child_command
from farm_server.operations.daemon import COLLECT_AFTER

FIRST_JOINS_PER_SECOND: Final = 200.0
"""Volunteers do not come all at once. More would keep this one process busy with tries that it has no time to end."""
TOLD_EVERY_SECONDS: Final = 0.1
END_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Counts:
    """What a crowd came to until ``at`` (on the wall clock); tries without a welcome are told by what went wrong."""

    at: float = 0.0
    online: int = 0
    joins: int = 0
    """Welcomes, of first and of later connections."""
    sent_away: int = 0
    """Answers of 503 with a time to come again."""
    timed_out: int = 0
    failed: int = 0
    """In another way: nobody listens, for example."""

    def plus(self, **more: int) -> Counts:
        """Return it with some counts raised by so much."""
        return replace(self, **{name: getattr(self, name) + by for name, by in more.items()})


class Member:
    """A client of the crowd. What it is offered it takes, and never delivers."""

    def __init__(
        self, join_url: str, number: int, tags: Sequence[str], beat_seconds: float | None, count: Callable[..., None]
    ) -> None:
        self.client = LightClient(join_url, f"crowd-{number}", tags=tags, beat_seconds=beat_seconds)
        self._reconnecting = Reconnecting()
        self._count = count

    async def stay(self, first_wait_seconds: float) -> None:
        """Join, and join again whenever the connection ends, until cancelled. Raises: what no other try mends."""
        await asyncio.sleep(first_wait_seconds)
        while True:
            await self._visit()
            await asyncio.sleep(self._reconnecting.delay_seconds())

    async def _visit(self) -> None:
        welcomed_at: float | None = None
        try:
            async with self.client.joined() as connection:
                welcomed_at = time.monotonic()
                self._count(online=1, joins=1)
                try:
                    await connection.work()
                finally:
                    self._count(online=-1)
        except OutOfReach as error:
            if welcomed_at is not None:
                self._reconnecting.ended(time.monotonic() - welcomed_at)
                return
            self._count(**{_what_failed(error): 1})
            self._reconnecting.failed(was_slow=error.was_slow, retry_after_seconds=error.retry_after_seconds)


def _what_failed(error: OutOfReach) -> str:
    if error.retry_after_seconds:
        return "sent_away"
    return "timed_out" if error.was_slow else "failed"


class CrowdLife:
    """The members of this process, and what they came to."""

    def __init__(
        self, join_url: str, count: int, tags: Sequence[str], clients_per_tag: int, beat_seconds: float | None = None
    ) -> None:
        self._counts = Counts()
        self._members = [
            Member(join_url, number, tags_of(number, tags, clients_per_tag), beat_seconds, self._add)
            for number in range(count)
        ]

    async def run(self) -> None:
        """Be there until SIGTERM. Raises: an ExceptionGroup with what ended a member."""
        life = asyncio.current_task()
        assert life is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, life.cancel)
        with suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell())
                for number, member in enumerate(self._members):
                    group.create_task(member.stay(number / FIRST_JOINS_PER_SECOND))

    def _add(self, **more: int) -> None:
        self._counts = self._counts.plus(**more)

    async def _tell(self) -> None:
        told = self._counts
        while True:
            if self._counts != told:
                told = self._counts
                print(json.dumps(asdict(replace(told, at=time.time()))), flush=True)
            await asyncio.sleep(TOLD_EVERY_SECONDS)


def tags_of(number: int, tags: Sequence[str], clients_per_tag: int) -> list[str]:
    """Return a member's tags: the first so many clients have the first tag, as many after them the second one."""
    place = number // clients_per_tag if clients_per_tag else len(tags)
    return [tags[place]] if place < len(tags) else []


class Crowd:
    """A crowd in a process of its own, seen from the process that started it."""

    def __init__(self, process: subprocess.Popen[str], clients: int, log: Path) -> None:
        self.clients = clients
        self.counts = Counts()
        """The newest that it told."""
        self._process = process
        self._log = log
        threading.Thread(target=self._listen, name="crowd", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait_online(self, seconds: float, since: Counts | None = None) -> Counts:
        """Wait until all are online, and each of them anew if ``since`` is given; return the counts of that moment.

        Raises: BenchmarkError if that takes longer, or if the crowd has ended.
        """
        joins = self.clients + (since.joins if since is not None else 0)
        found: list[Counts] = []

        def all_are() -> bool:
            counts = self.counts
            self.check()
            if counts.online == self.clients and counts.joins >= joins:
                found.append(counts)
            return bool(found)

        wait_until(all_are, seconds, lambda: f"not all of {self.clients} clients in {seconds:g} s: {self.counts}")
        return found[0]

    def check(self) -> None:
        """Raise BenchmarkError if the crowd has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise BenchmarkError(f"the crowd ended: {lines[-1] if lines else 'it said nothing'}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.counts = Counts(**json.loads(line))


@contextmanager
def running_crowd(
    join_url: str,
    clients: int,
    folder: Path,
    tags: Sequence[str] = (),
    clients_per_tag: int = 0,
    beat_seconds: float | None = None,
) -> Iterator[Crowd]:
    """Have so many clients at the farm for the length of the block; ``folder`` takes what the process complains of.

    ``clients_per_tag`` of them have the first of ``tags``, as many others the second one, and so on. They beat every
    ``beat_seconds``, or as the farm asks.
    """
    options = [option for tag in tags for option in ("--tag", tag)]
    options += ["--beat-seconds", str(beat_seconds)] if beat_seconds is not None else []
    arguments = [join_url, str(clients), *options, "--clients-per-tag", str(clients_per_tag)]
    log = folder / "crowd.log"
    with log.open("ab") as errors:
        command = child_command("benchmarks.crowd", *arguments)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    crowd = Crowd(process, clients, log)
    try:
        yield crowd
        crowd.check()
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(
    join_url: str,
    count: Annotated[int, typer.Argument(min=1, help="Number of clients.")],
    tag: Annotated[list[str] | None, typer.Option(help="A tag that some of them have.")] = None,
    clients_per_tag: Annotated[int, typer.Option(min=0, help="How many have each tag.")] = 0,
    beat_seconds: Annotated[float | None, typer.Option(help="Beat so often, whatever the farm asks for.")] = None,
) -> None:
    """Join a farm with so many light clients, and stay until SIGTERM."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.set_threshold(*COLLECT_AFTER)
    uvloop.run(CrowdLife(join_url, count, tag or (), clients_per_tag, beat_seconds).run())


if __name__ == "__main__":
    typer.run(main)

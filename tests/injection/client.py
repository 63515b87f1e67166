"""An agent that breaks as ``AIFARM_FAULTS`` says: ``python -m tests.injection.client join``, with the usual options.

Five parts are wrapped: what starts executors, what hears them, what sends results, its uploads, and the connection.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import uvloop
from websockets.exceptions import ConnectionClosed

from benchmarks.cut_uploads import CutCarrier
from farm_client.agent.connection.farm_choice import choose_farm
from farm_client.agent.connection.link import Link
from farm_client.agent.daemon import Agent
from farm_client.agent.executors.executor import Executor
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.outbox import Parcel
from farm_client.agent.settings import load_settings
from farm_client.agent.work.result_sender import ResultSender
from farm_client.executor.messages import Done, Run
from farm_client.executor.process import Launch
from farm_client.sandbox.confinement import Confinement, InNamespaces
from farm_client.sandbox.room import Room
from farm_client.transfer.carrier import Carrier
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Ack, Kind
from protocol.errors import FarmError
from protocol.messages import Message
from tests.injection.places import Places
from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE, Fault
from tests.injection.standing import Standing

BREAKABLE_EXECUTOR = "tests.injection.executor"


class BreakableParts:
    """Wraps an agent's parts; a ``protocol.composition.Wrap``."""

    def __init__(self, places: Places) -> None:
        self.reach_async = places.reach_async
        self.rounds: dict[str, int] = {}
        """Of updates that are sent, by their digests and by their assignments."""

    def __call__(self, part: Any) -> Any:
        """Return what stands in the part's place."""
        match part:
            case Launch():
                launch = BreakableLaunch(**_fields(part))
                return replace(launch, confinement=_sharing(part.confinement, launch.spent))
            case Carrier():
                return CutCarrier(**_fields(part), midway=self._midway)
            case ResultSender():
                return _Sender(part, self)
            case Link():
                return _Link(part, self)
            case _:
                return self._executor() if part is Executor else part

    async def _midway(self, url: str) -> bool:
        number = self.rounds.get(url.rpartition("/")[2])
        return number is not None and await self.reach_async(Fault.CLIENT_WHILE_SENDING, number)

    def _executor(self) -> type[Executor]:
        reach_async = self.reach_async

        class BreakableExecutor(Executor):
            async def run(self, order: Run, *rest: Any) -> Done:
                done = await super().run(order, *rest)
                if order.kind is Kind.TRAIN:
                    await reach_async(Fault.CLIENT_BEFORE_SEND, order.round)
                return done

        return BreakableExecutor


@dataclass(frozen=True, slots=True)
class BreakableLaunch(Launch):
    """Starts executors with the agent's plan, none of which does what another one did."""

    @property
    def spent(self) -> Path:
        """The folder that says which faults have struck."""
        return Path(os.environ.get(SPENT_VARIABLE) or self.scratch_root / "faults")

    def environment(self, scratch_dir: Path, descriptor: int) -> dict[str, str]:
        """Return the whole environment of one executor."""
        plan = os.environ.get(FAULTS_VARIABLE, "")
        own = Launch.environment(self, scratch_dir, descriptor)
        return own | ({FAULTS_VARIABLE: plan, SPENT_VARIABLE: str(self.spent)} if plan else {})


@dataclass(frozen=True, slots=True)
class Sharing(InNamespaces):
    """The strict rung with one folder that all executors may write to: none must do what another one did."""

    folder: Path = Path()

    def command(self, room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command, with the folder bound before the root becomes read-only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = InNamespaces.command(self, room, module, arguments, keep)
        at = command.index("--remount-ro")
        return [*command[:at], "--bind", str(self.folder), str(self.folder), *command[at:]]


def _sharing(confinement: Confinement, folder: Path) -> Confinement:
    """Return a confinement in which executors see what has struck. Only the strict rung is tested so."""
    return Sharing(**_fields(confinement), folder=folder) if isinstance(confinement, InNamespaces) else confinement


class _Sender(Standing):
    def __init__(self, sender: ResultSender, parts: BreakableParts) -> None:
        super().__init__(sender)
        self._parts = parts
        self._link: Link | None = None

    def attach(self, link: Link, *rest: Any) -> None:
        self._link = link
        self._part.attach(link, *rest)

    def detach(self) -> None:
        self._link = None
        self._part.detach()

    async def send(self, parcel: Parcel, listener: UploadListener) -> None:
        """Come to the places of a result with an update; evaluations have none, and pass."""
        update, number = parcel.result.update, parcel.round
        if update is None:
            await self._part.send(parcel, listener)
            return
        self._parts.rounds[update.digest] = self._parts.rounds[parcel.result.assignment_id] = number
        await self._parts.reach_async(Fault.CLIENT_SLOW, number)
        rides = self._part.rides(parcel.result)
        if rides and await self._parts.reach_async(Fault.CLIENT_WHILE_SENDING, number):
            return
        await self._part.send(parcel, listener)
        if (link := self._link) is not None:
            await _flushed(link)
            if await self._parts.reach_async(Fault.CLIENT_AFTER_SEND, number):
                link.cut()


class _Link(Standing):
    def __init__(self, link: Link, parts: BreakableParts) -> None:
        super().__init__(link)
        self._parts = parts

    async def messages(self) -> AsyncIterator[Message]:
        async for message in self._part.messages():
            number = self._parts.rounds.get(message.assignment_id) if isinstance(message, Ack) else None
            if number is None or not await self._parts.reach_async(Fault.CLIENT_REPLY_LOST, number):
                yield message


async def _flushed(link: Link) -> None:
    with suppress(ConnectionClosed):
        await link._flush()


def _fields(part: Any) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in fields(part)}


def main() -> None:
    """Run an agent whose parts are wrapped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["join"])
    for name, kind in (("--home", Path), ("--name", str), ("--cpu-cores", int)):
        parser.add_argument(name, type=kind)
    given = vars(parser.parse_args())
    settings = load_settings(**{name: given[name] for name in ("home", "name", "cpu_cores")})
    address = choose_farm(None, settings.token_file, HomeFolder(settings.home).farm_file)
    try:
        agent = Agent(address, settings, BREAKABLE_EXECUTOR, wrap=BreakableParts(Places.planned()))
        uvloop.run(agent.run())
    except FarmError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()

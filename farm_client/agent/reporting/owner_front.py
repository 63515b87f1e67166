"""Where the running agent meets its owner: the control socket, the policy in force, and what is shown of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from farm_client.agent.errors import NoControlSocket
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.transfer_book import TransferBook
from farm_client.agent.owner.control import ControlSocket, Verb
from farm_client.agent.owner.desk import OwnerDesk
from farm_client.agent.owner.keeper import Look, PolicyKeeper
from farm_client.agent.owner.observing import MachineWatch
from farm_client.agent.owner.reasons import Rest
from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.status import StatusBoard
from farm_client.agent.settings import AgentSettings


class OwnerFront:
    """``keeper`` has the policy.

    ``on_rest`` gets the line why nothing is to be done, and when that ends if it is known; None when it is over.
    """

    def __init__(self, home: HomeFolder, board: StatusBoard, console: Console, look: Look | None = None) -> None:
        """Raises: DamagedPolicy."""
        self.keeper = PolicyKeeper(home.policy_file, look or MachineWatch().look)
        self.keeper.on_change = self._changed
        self.keeper.on_fault = console.trace
        self.moved = TransferBook(home.transfers_file)
        self.keeper.moved_today = self.moved.moved_today
        self.on_rest: Callable[[str | None, float | None], None] = lambda _reason, _until: None
        self.verbs: dict[str, Verb] = {}
        """What the control socket serves while it is open; whoever has more to offer adds it."""
        self._home = home
        self._board = board
        self._console = console

    def joined_with(self, settings: AgentSettings) -> None:
        """Take what the join said of the policy, as if it had been set. Raises: BadSettings, OSError."""
        self.keeper.must_name_submitters = settings.allow_unsandboxed
        if settings.work_for and settings.work_for != self.keeper.policy.work_for:
            self.keeper.change({"work_for": settings.work_for})
        if settings.allow_installs is not None and settings.allow_installs is not self.keeper.policy.allow_installs:
            self.keeper.change({"allow_installs": settings.allow_installs})

    @property
    def reason(self) -> str | None:
        """Why nothing is to be done now, in a line."""
        return _line(self.keeper.rests)

    @property
    def until(self) -> float | None:
        """When nothing forbids to work any more (Unix seconds); None if that is not known of each reason."""
        ends = [rest.until for rest in self.keeper.rests]
        return max((end for end in ends if end is not None), default=None) if None not in ends else None

    @asynccontextmanager
    async def open(self, finish: Callable[[], None]) -> AsyncIterator[None]:
        """Take the owner's orders for the length of a block; without a socket where the system has none."""
        desk = OwnerDesk(self.keeper, self._status, self._console.events_after, finish)
        self.verbs.update(desk.verbs())
        control = ControlSocket(self._home.control_socket, self.verbs, self._console.trace)
        try:
            await control.open()
        except NoControlSocket as error:
            self._console.tell(f"`farm-client pause` and its kin cannot reach this agent: {error.message}")
        self.keeper.evaluate()  # before anything is started
        watching = asyncio.get_running_loop().create_task(self.keeper.watch())
        try:
            yield
        finally:
            watching.cancel()
            self.moved.save()
            await control.close()

    def show_limits(self, limits: Callable[[], dict[str, str]]) -> None:
        """Show what is limited, and which work is done, by name, in words."""
        self._board.limits = lambda: {**limits(), **self.keeper.policy.wanted.in_words()}

    def _status(self) -> Mapping[str, Any]:
        self._board.show()
        return self._board.status.model_dump(mode="json")

    def _changed(self, rests: tuple[Rest, ...]) -> None:
        reason = _line(rests)
        self._board.show(rests=rests)
        self._console.tell(f"not working: {reason}" if reason else "nothing forbids to work any more: going on")
        self.on_rest(reason, self.until)


def _line(rests: tuple[Rest, ...]) -> str | None:
    return f"{rests[0].reason}: {rests[0].in_words()}" if rests else None

"""The vocabulary of injected faults: where something may go wrong, and what goes wrong there.

``AIFARM_FAULTS="client_after_send@3:kill,executor_during@2:segfault,client_slow@*:2.5"`` is a plan for one process:
``place@round:action``, separated by commas. ``@round`` names one round and ``@*`` every time in every round; without it
the first time counts, whatever the round. All but ``@*`` happen once. A number is an action too: seconds to sleep.

This module only reads plans; ``places`` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from protocol.errors import FarmError

FAULTS_VARIABLE: Final = "AIFARM_FAULTS"
"""The environment variable that holds a process's plan."""
SPENT_VARIABLE: Final = "AIFARM_FAULTS_SPENT"
"""The environment variable that may name a folder where each fault that happened leaves an empty file, named by
``Injection.name``: then *once* means once through restarts too."""


class Fault(StrEnum):
    """The places at which a fault can happen, in the order in which a training assignment comes by."""

    EXECUTOR_BEFORE = "executor_before"
    """It has the order, and has not begun."""
    EXECUTOR_DURING = "executor_during"
    """A batch is done: the first one, unless the fault happens every time."""
    EXECUTOR_SLOW = "executor_slow"
    """After each batch."""
    EXECUTOR_AFTER = "executor_after"
    """The update is made, and the agent has not heard of it."""
    CLIENT_BEFORE_SEND = "client_before_send"
    """The agent has the update, and has not put it into its outbox."""
    CLIENT_SLOW = "client_slow"
    """The update is in the outbox, and nothing was sent."""
    CLIENT_WHILE_SENDING = "client_while_sending"
    """A part of the update's bytes has left; of an update that rides in the result, the result is next."""
    CLIENT_AFTER_SEND = "client_after_send"
    """The result has left, and no acknowledgement came."""
    CLIENT_REPLY_LOST = "client_reply_lost"
    """The acknowledgement is here, and was not read."""
    SERVER_SLOW = "server_slow"
    """A result is here, and nobody has looked at it."""
    SERVER_BEFORE_FOLD = "server_before_fold"
    """The update is checked, and not folded."""
    SERVER_WHILE_FOLDING = "server_while_folding"
    """A part of the update's tensors is folded."""
    SERVER_BEFORE_COMMIT = "server_before_commit"
    """The round's last update is folded; nothing of the new version is on disk."""
    SERVER_WHILE_COMMITTING = "server_while_committing"
    """The new version's blobs are durable, and no record names them."""
    SERVER_AFTER_COMMIT = "server_after_commit"
    """The round is committed, and no client has heard of it."""
    SERVER_REPLY_LOST = "server_reply_lost"
    """An acknowledgement is about to be sent."""


class FaultAction(StrEnum):
    """What happens at a place."""

    KILL = "kill"
    """SIGKILL to itself: no last word, no cleaning up."""
    SEGFAULT = "segfault"
    """SIGSEGV to itself."""
    STOP = "stop"
    """SIGSTOP to itself: frozen until somebody else lets it go on."""
    EXIT = "exit"
    """Leave with exit code 1, without cleaning up."""
    RAISE = "raise"
    """Raise ``InjectedFault``."""
    OUT_OF_MEMORY = "oom"
    """Raise ``MemoryError``."""
    HANG = "hang"
    """Never go on from here; the rest of the process does."""
    SLEEP = "sleep"
    """Go on later. Written as a number of seconds."""
    LOSE = "lose"
    """What passes here is lost: the message is dropped, or the connection cut, as the place has it."""


class InjectedFault(FarmError):
    """A fault planned by AIFARM_FAULTS."""

    code = "injected_fault"


class BadFaultPlan(FarmError):
    """AIFARM_FAULTS cannot be read; write it like client_after_send@3:kill,client_slow@*:2.5 (comma-separated)."""

    code = "bad_fault_plan"


@dataclass(frozen=True, slots=True)
class Injection:
    """One planned fault. ``round`` None: any. ``every_time``: it is never spent. ``seconds`` are those of a sleep."""

    place: Fault
    action: FaultAction
    round: int | None = None
    every_time: bool = False
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Its name, unique in the plan and fit for a file's name."""
        what = f"{self.seconds:g}" if self.action is FaultAction.SLEEP else self.action
        return f"{self.place}-{'first' if self.round is None else self.round}-{what}"

    def strikes(self, place: Fault, round_number: int) -> bool:
        """Return whether it is meant for this place in this round."""
        return self.place is place and self.round in (None, round_number)


@dataclass(slots=True)
class FaultPlan:
    """The faults of one process that are still to come."""

    pending: list[Injection] = field(default_factory=list)

    def take(self, place: Fault, round_number: int) -> Injection | None:
        """Return what happens here now, and strike it off the plan unless it happens every time."""
        found = next((x for x in self.pending if x.strikes(place, round_number)), None)
        if found is not None and not found.every_time:
            self.pending.remove(found)
        return found


def parse_faults(text: str) -> FaultPlan:
    """Read a plan; an empty text is an empty plan.

    Raises: BadFaultPlan naming the part that is wrong, and what could stand there.
    """
    return FaultPlan([_injection(part.strip()) for part in text.split(",") if part.strip()])


def _injection(text: str) -> Injection:
    where, colon, what = text.partition(":")
    place_name, at, when = where.partition("@")
    place = _PLACES.get(place_name)
    if place is None:
        raise BadFaultPlan(f"{FAULTS_VARIABLE}: there is no place {place_name!r}; choose from {', '.join(_PLACES)}")
    if not colon:
        raise BadFaultPlan(f"{FAULTS_VARIABLE}: {text!r} does not say what happens; write it like {place_name}:kill")
    every_time = when == "*"
    if at and not every_time and not (when.isascii() and when.isdecimal()):
        raise BadFaultPlan(f"{FAULTS_VARIABLE}: {when!r} in {text!r} is no round; write its number, or *")
    action, seconds = _action(what)
    return Injection(place, action, int(when) if at and not every_time else None, every_time, seconds)


def _action(text: str) -> tuple[FaultAction, float]:
    action = _ACTIONS.get(text)
    if action is not None:
        return action, 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        choices = ", ".join(_ACTIONS)
        raise BadFaultPlan(f"{FAULTS_VARIABLE}: nothing is called {text!r}; choose from {choices}, or give seconds")
    return FaultAction.SLEEP, seconds


_PLACES: Final[Mapping[str, Fault]] = MappingProxyType({str(place): place for place in Fault})
_ACTIONS: Final[Mapping[str, FaultAction]] = MappingProxyType(
    {str(a): a for a in FaultAction if a is not FaultAction.SLEEP}
)

"""Faults on purpose, in the server: ``reach`` is called at each place and carries out what is planned.

Nothing is planned unless ``AIFARM_FAULTS`` is set (``protocol.faults`` has its form); ``reach`` is then a single check.
For tests and rehearsals only; nothing that comes over the wire can plan a fault.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.faults import SPENT_VARIABLE, Fault, FaultAction, FaultPlan, InjectedFault, Injection, planned_faults
from protocol.messages import Ack, Assign, Kind

_HANG_SECONDS: Final = 3600.0
_SIGNALS: Final = {
    FaultAction.KILL: signal.SIGKILL,
    FaultAction.SEGFAULT: signal.SIGSEGV,
    FaultAction.STOP: signal.SIGSTOP,
}


class _Armed:
    """A plan, and the folder that remembers through restarts which of its faults happened."""

    def __init__(self, plan: FaultPlan, spent: str | None) -> None:
        self._plan = plan
        self._spent = Path(spent) if spent else None

    def take(self, place: Fault, round_number: int) -> Injection | None:
        """Return what happens here now, if anything does."""
        while (found := self._plan.take(place, round_number)) is not None:
            if found.every_time or self._spent is None:
                return found
            self._spent.mkdir(parents=True, exist_ok=True)
            mark = self._spent / found.name
            if not mark.exists():
                mark.touch()  # before the fault is: a crash cannot undo it
                return found
        return None


_armed: _Armed | None = None


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Take this process's plan from its environment; called once, before any place is reached. Raises: BadFaultPlan."""
    global _armed  # noqa: PLW0603  one plan for the process: so that a place without faults costs one check
    plan = planned_faults(environment)
    _armed = None if plan is None else _Armed(plan, environment.get(SPENT_VARIABLE))


def armed() -> bool:
    """Return whether anything is planned in this process."""
    return _armed is not None


def reach(place: Fault, round_number: int) -> bool:
    """Come to a place; return whether what passes there is lost. Who sleeps or hangs here blocks its thread.

    Raises: InjectedFault or MemoryError, if planned.
    """
    if _armed is None or (found := _armed.take(place, round_number)) is None:
        return False
    match found.action:
        case FaultAction.KILL | FaultAction.SEGFAULT | FaultAction.STOP:
            os.kill(os.getpid(), _SIGNALS[found.action])
        case FaultAction.EXIT:
            os._exit(1)
        case FaultAction.RAISE:
            raise InjectedFault(f"{found.name}: {InjectedFault().message}")
        case FaultAction.OUT_OF_MEMORY:
            raise MemoryError(found.name)
        case FaultAction.SLEEP | FaultAction.HANG:
            time.sleep(found.seconds if found.action is FaultAction.SLEEP else _HANG_SECONDS)
    return found.action is FaultAction.LOSE


class LostAcks:
    """The places of faults around acknowledgements, which do not carry their round: it is noted as assignments go out.

    Nothing is noted unless something is planned.
    """

    def __init__(self) -> None:
        self._rounds: dict[str, int] = {}

    def note(self, assign: Assign) -> None:
        """Note the round of a training assignment."""
        if armed() and assign.kind is Kind.TRAIN:
            self._rounds[assign.assignment_id] = assign.round

    def take(self, ack: Ack) -> bool:
        """Come to the places around an acknowledgement; true if it is lost there."""
        number = self._rounds.get(ack.assignment_id)
        if number is None:
            return False
        after_commit = ack.counted and reach(Fault.SERVER_AFTER_COMMIT, number)
        return after_commit or reach(Fault.SERVER_REPLY_LOST, number)

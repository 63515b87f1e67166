"""One process's plan, carried out: ``reach`` and ``reach_async`` are called at each place by what wraps the parts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.injection.plan import (
    FAULTS_VARIABLE,
    SPENT_VARIABLE,
    Fault,
    FaultAction,
    FaultPlan,
    InjectedFault,
    Injection,
    parse_faults,
)

_EXIT_CODE: Final = 1
_HANG_SECONDS: Final = 3600.0
_SIGNALS: Final = {
    FaultAction.KILL: signal.SIGKILL,
    FaultAction.SEGFAULT: signal.SIGSEGV,
    FaultAction.STOP: signal.SIGSTOP,
}


class Places:
    """A plan, and the folder that may remember through processes which of its faults happened. Safe on any thread."""

    def __init__(self, plan: FaultPlan, spent: Path | None = None) -> None:
        self._plan = plan
        self._spent = spent

    @classmethod
    def planned(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Take a process's plan from its environment; an empty one plans nothing. Raises: BadFaultPlan."""
        spent = environment.get(SPENT_VARIABLE)
        return cls(parse_faults(environment.get(FAULTS_VARIABLE, "")), Path(spent) if spent else None)

    def reach(self, place: Fault, round_number: int) -> bool:
        """Come to a place in a thread that may block; return whether what passes there is lost.

        Raises: InjectedFault or MemoryError, if planned.
        """
        found = self._take(place, round_number)
        if found is None:
            return False
        time.sleep(_duration_seconds(found))
        return _carry_out(found)

    async def reach_async(self, place: Fault, round_number: int) -> bool:
        """Come to a place on the event loop: like ``reach``, but others go on while this waits."""
        found = self._take(place, round_number)
        if found is None:
            return False
        await asyncio.sleep(_duration_seconds(found))
        return _carry_out(found)

    def _take(self, place: Fault, round_number: int) -> Injection | None:
        while (found := self._plan.take(place, round_number)) is not None:
            if found.every_time or self._spent is None or _claim(self._spent, found):
                return found
        return None


def _duration_seconds(injection: Injection) -> float:
    return {FaultAction.SLEEP: injection.seconds, FaultAction.HANG: _HANG_SECONDS}.get(injection.action, 0.0)


def _carry_out(injection: Injection) -> bool:
    """Do what takes no time. ``os._exit`` and the signals leave no chance to clean up, as a crash does."""
    match injection.action:
        case FaultAction.KILL | FaultAction.SEGFAULT | FaultAction.STOP:
            os.kill(os.getpid(), _SIGNALS[injection.action])
        case FaultAction.EXIT:
            os._exit(_EXIT_CODE)
        case FaultAction.RAISE:
            raise InjectedFault(f"{injection.name}: {InjectedFault().message}")
        case FaultAction.OUT_OF_MEMORY:
            raise MemoryError(injection.name)
    return injection.action is FaultAction.LOSE


def _claim(spent: Path, injection: Injection) -> bool:
    """Be the one process in which this fault happens. The file is there before the fault is: a crash cannot undo it."""
    spent.mkdir(parents=True, exist_ok=True)
    try:
        (spent / injection.name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

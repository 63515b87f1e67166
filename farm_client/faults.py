"""Faults on purpose, in the agent and its executors: ``reach`` is called at each place and carries out what is planned.

A process plans nothing unless ``AIFARM_FAULTS`` is set (``protocol.faults`` has its form); ``reach`` is then a single
check. For tests and rehearsals only; nothing that comes over the wire can plan a fault.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.faults import (
    FAULTS_VARIABLE,
    SPENT_VARIABLE,
    Fault,
    FaultAction,
    FaultPlan,
    InjectedFault,
    Injection,
    planned_faults,
)

_EXIT_CODE: Final = 1
_HANG_SECONDS: Final = 3600.0
_SIGNALS: Final = {
    FaultAction.KILL: signal.SIGKILL,
    FaultAction.SEGFAULT: signal.SIGSEGV,
    FaultAction.STOP: signal.SIGSTOP,
}


@dataclass(frozen=True, slots=True)
class _Armed:
    """A plan, and the folder that remembers across processes which of its faults happened."""

    plan: FaultPlan
    spent_dir: Path | None

    def take(self, place: Fault, round_number: int) -> Injection | None:
        while (found := self.plan.take(place, round_number)) is not None:
            if found.every_time or self.spent_dir is None or _claim(self.spent_dir, found):
                return found
        return None


_armed: _Armed | None = None


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Take this process's plan from its environment; called once, before any place is reached.

    Raises: BadFaultPlan.
    """
    global _armed  # noqa: PLW0603  one plan for the process: so that a place without faults costs one check
    plan, spent = planned_faults(environment), environment.get(SPENT_VARIABLE)
    _armed = _Armed(plan, Path(spent) if spent else None) if plan is not None else None


def for_executors(scratch_root: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that take the agent's plan to its executors, none of which does what another one did."""
    if FAULTS_VARIABLE not in environment:
        return {}
    spent = environment.get(SPENT_VARIABLE) or str(scratch_root / "faults")
    return {FAULTS_VARIABLE: environment[FAULTS_VARIABLE], SPENT_VARIABLE: spent}


def armed() -> bool:
    """Return whether anything is planned in this process."""
    return _armed is not None


def reach(place: Fault, round_number: int) -> bool:
    """Come to a place in a thread that may block; return whether what passes there is lost.

    Raises: InjectedFault or MemoryError, if planned.
    """
    if _armed is None:
        return False
    found = _armed.take(place, round_number)
    if found is None:
        return False
    if found.action in (FaultAction.HANG, FaultAction.SLEEP):
        time.sleep(_duration_seconds(found))
    return _carry_out(found)


async def reach_async(place: Fault, round_number: int) -> bool:
    """Come to a place on the event loop: like ``reach``, but others go on while this waits."""
    if _armed is None:
        return False
    found = _armed.take(place, round_number)
    if found is None:
        return False
    if found.action in (FaultAction.HANG, FaultAction.SLEEP):
        await asyncio.sleep(_duration_seconds(found))
    return _carry_out(found)


def _duration_seconds(injection: Injection) -> float:
    return injection.seconds if injection.action is FaultAction.SLEEP else _HANG_SECONDS


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


def _claim(spent_dir: Path, injection: Injection) -> bool:
    """Be the one process in which this fault happens. The file is there before the fault is: a crash cannot undo it."""
    spent_dir.mkdir(parents=True, exist_ok=True)
    try:
        (spent_dir / injection.name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

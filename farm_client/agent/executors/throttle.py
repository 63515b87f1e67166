"""Keeps executors to a share of the time and to some of the cores, from outside: whatever their tasks' code does."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from farm_client.agent.machine.duty import turn_at

_CORES_EVERY_SECONDS: Final = 1.0
"""How often new threads, and those that chose their cores themselves, are brought back."""


class Throttled(Protocol):
    """What is kept back: an executor."""

    def halt(self) -> None:
        """Stop its processes for a moment."""

    def go_on(self) -> None:
        """Let them go on."""

    def keep_to_cores(self, cores: frozenset[int]) -> None:
        """Let them run on these cores alone."""


class Throttle:
    """Halts all executors for the rest of each turn, and keeps them to their cores; ``limit`` may change at any time.

    While nothing is limited, or no executor lives, it costs nothing.
    """

    def __init__(self, executors: Callable[[], Iterable[Throttled]], now: Callable[[], float] = time.monotonic) -> None:
        self._executors = executors
        self._now = now
        self._duty = 1.0
        self._cores: int | None = None
        self._is_keeping_cores = self._is_halting = False
        self._cores_due = 0.0
        self._changed = asyncio.Event()

    @property
    def duty(self) -> float:
        """Return which part of the time executors may work, from 0 to 1."""
        return self._duty

    def limit(self, duty: float, cores: int | None) -> None:
        """Go on with another duty, and on so many of this process's cores, at once; None is all of them."""
        if (duty, cores) != (self._duty, self._cores):
            self._duty, self._cores, self._cores_due = duty, cores, 0.0
            self._changed.set()

    async def run(self) -> None:
        """Keep to it until cancelled; then everything goes on."""
        try:
            while True:
                seconds = self._turn()
                self._changed.clear()
                try:
                    async with asyncio.timeout(seconds):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            self._all_go_on()

    def _turn(self) -> float | None:
        """Do what is due; return in how many seconds the next is, None if nothing is before a change."""
        if self._now() >= self._cores_due:
            self._keep_to_cores()
        turn = turn_at(self._duty, self._now())
        if turn.works:
            self._all_go_on()
        else:
            self._is_halting = True
            for executor in self._executors():
                executor.halt()
        if self._duty < 1.0:
            return turn.seconds
        return _CORES_EVERY_SECONDS if self._is_keeping_cores else None

    def _keep_to_cores(self) -> None:
        """Where nothing is limited any more this is done once, to let the threads out again."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        limited = self._cores is not None and self._cores < len(usable)
        if limited or self._is_keeping_cores:
            cores = frozenset(usable[-self._cores :] if limited and self._cores else usable)
            for executor in self._executors():
                executor.keep_to_cores(cores)
        self._is_keeping_cores = limited
        self._cores_due = self._now() + _CORES_EVERY_SECONDS

    def _all_go_on(self) -> None:
        if self._is_halting:
            self._is_halting = False
            for executor in self._executors():
                executor.go_on()

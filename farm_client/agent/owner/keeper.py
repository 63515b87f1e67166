"""Keeps the owner's policy, and says when a reason for not working begins or ends: at each change, and each second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from farm_client.agent.errors import BadSettings
from farm_client.agent.owner.policy import OwnerPolicy, load_policy, save_policy
from farm_client.agent.owner.reasons import MOST_FAILURES, RETRY_SECONDS, Observations, Rest, reasons_to_rest

_LOOK_SECONDS: Final = 1.0

Look = Callable[[OwnerPolicy], Observations]
"""Looks at what the policy asks about, and at nothing else."""


class PolicyKeeper:
    """The one owner of the policy while an agent runs. ``on_change`` gets the reasons when they change."""

    def __init__(self, path: Path, look: Look, clock: Callable[[], float] = time.time) -> None:
        """Raises: DamagedPolicy."""
        self._path = path
        self._look = look
        self._clock = clock
        self.policy = load_policy(path)
        self.rests: tuple[Rest, ...] = ()
        """Why nothing is done now, the reason to show first; empty while work is welcome."""
        self.on_change: Callable[[tuple[Rest, ...]], None] = lambda _rests: None
        self.on_policy: Callable[[OwnerPolicy], None] = lambda _policy: None
        """Gets the policy when it has changed, to put its limits in force."""
        self.moved_today: Callable[[], int] = lambda: 0
        """Counts the bytes that moved today, for the quota."""
        self.must_name_submitters = False
        """Whether tasks run without a sandbox: then it is said whose."""
        self.local_failures = 0
        """Assignments in a row that failed for reasons of this machine."""
        self.last_failure = ""
        self.retry_at = 0.0
        """When to try again after too many of them (Unix seconds)."""
        self.on_choice: Callable[[], None] = lambda: None
        """Called when it has changed which work the owner wants done, or for whom."""
        self.on_fault: Callable[[str, BaseException], None] = lambda _text, _error: None
        """Gets a mistake of this program, which keeps the watch from nothing but one look; each kind once."""
        self._fault = ""

    def change(self, changes: Mapping[str, Any]) -> OwnerPolicy:
        """Set some fields; it is on the disk, and in force, when this returns the new policy.

        Raises: BadSettings; OSError, and the policy is what it was.
        """
        policy = self.policy.changed(changes)
        if self.must_name_submitters and not policy.work_for:
            raise BadSettings("this agent runs tasks without a sandbox, so it must know whose: name them with --for")
        save_policy(self._path, policy)
        before, self.policy = self.policy, policy
        self.on_policy(policy)
        self.evaluate()
        if (policy.work_for, policy.wanted) != (before.work_for, before.wanted):
            self.on_choice()
        return policy

    def pause(self, seconds: float | None = None) -> OwnerPolicy:
        """Do nothing for so long, or (None) until ``resume``; in force and kept as by ``change``."""
        return self.change({"paused": True, "paused_until": None if seconds is None else self._clock() + seconds})

    def resume(self) -> OwnerPolicy:
        """End the owner's pause and the client's own after failures; other reasons stay. Raises: OSError."""
        self.worked()
        return self.change({"paused": False, "paused_until": None})

    def failed(self, why: str) -> None:
        """Count an assignment that failed for a reason of this machine."""
        self.local_failures += 1
        self.last_failure = why
        if self.local_failures >= MOST_FAILURES:
            self.retry_at = self._clock() + RETRY_SECONDS
        self.evaluate()

    def worked(self) -> None:
        """An assignment was done: those that fail begin to count anew."""
        self.local_failures, self.last_failure = 0, ""

    def evaluate(self) -> None:
        """Look again, and tell of a change."""
        resting = tuple(rest.reason for rest in self.rests)
        seen = self._look(self.policy)
        rests = reasons_to_rest(self.policy, self._with_counts(seen), self._clock(), resting=resting)
        if rests != self.rests:
            self.rests = rests
            self.on_change(rests)

    async def watch(self) -> None:
        """Look each second, until cancelled."""
        while True:
            try:
                self.evaluate()
            except Exception as error:  # an owner's word must not lose its force because one look failed
                self._tell_once(error)
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell_once(self, error: Exception) -> None:
        if repr(error) != self._fault:
            self._fault = repr(error)
            self.on_fault("a mistake in farm-client: how this machine is used could not be looked at", error)

    def _with_counts(self, seen: Observations) -> Observations:
        return replace(
            seen,
            failures=self.local_failures,
            last_failure=self.last_failure,
            retry_at=self.retry_at,
            moved_bytes=self.moved_today(),
        )

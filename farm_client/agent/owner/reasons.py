"""Why nothing is done now: a rule without clock or I/O, and the documented names of its answers (docs/owner.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from farm_client.agent.owner.hours import LocalTime, next_midnight
from farm_client.agent.owner.policy import OwnerPolicy
from protocol.frozen import Frozen
from protocol.wording import sized

MOST_FAILURES: Final = 5
"""So many assignments in a row that failed for local reasons pause the client."""
RETRY_SECONDS: Final = 3600.0
"""For so long; one more failure pauses it again, so that a machine that nobody looks at comes back by itself."""
_BUSY_UNTIL_SHARE: Final = 0.75
"""Who rests because of the load goes on when it is below this share of the limit: not at every ripple."""


class Reason(StrEnum):
    """The name of a reason for not working; the one that is listed first is shown."""

    PAUSED = "paused"
    FAILURES = "failures"
    HOURS = "hours"
    QUOTA = "quota"
    PROGRAM = "program"
    BATTERY = "battery"
    IN_USE = "in_use"
    BUSY = "busy"


class Rest(Frozen):
    """One reason for not working now; ``until`` in Unix seconds where it has a clock."""

    reason: Reason
    detail: str
    until: float | None = None

    def in_words(self, local: LocalTime = datetime.fromtimestamp) -> str:
        """Say it in a line, with the time on the owner's wall."""
        if self.until is None:
            return self.detail
        return f"{self.detail} until {local(self.until):%H:%M on %a}"


@dataclass(frozen=True, slots=True)
class Observations:
    """What the machine shows of its use. None: this system does not tell."""

    input_idle_seconds: float | None = None
    """Since somebody last used keyboard or mouse."""
    others_load: float | None = None
    """The share of the processor, 0 to 1, that other programs use, averaged over some seconds."""
    on_battery: bool | None = None
    programs: tuple[str, ...] = ()
    """Those of the policy's programs that run."""
    failures: int = 0
    """Assignments in a row that failed for reasons of this machine."""
    last_failure: str = ""
    retry_at: float = 0.0
    """When to try again after these (Unix seconds)."""
    moved_bytes: int = 0
    """What was sent and received today."""


def reasons_to_rest(
    policy: OwnerPolicy,
    seen: Observations,
    now: float,
    local: LocalTime = datetime.fromtimestamp,
    resting: Collection[Reason] = (),
) -> tuple[Rest, ...]:
    """Return why not to work at ``now`` (Unix seconds), the reason to show first; nothing if nothing forbids it.

    ``resting``: the reasons of the last answer.
    """
    found = (
        _pause(policy, now),
        _failures(seen, now),
        _hours(policy, now, local),
        _quota(policy, seen, now, local),
        _program(seen),
        _battery(policy, seen),
        _input(policy, seen),
        _load(policy, seen, Reason.BUSY in resting),
    )
    return tuple(rest for rest in found if rest is not None)


def _pause(policy: OwnerPolicy, now: float) -> Rest | None:
    if not policy.paused or (policy.paused_until is not None and policy.paused_until <= now):
        return None
    ends = "" if policy.paused_until is not None else "; `farm-client resume` ends it"
    return Rest(reason=Reason.PAUSED, detail=f"paused by this machine's owner{ends}", until=policy.paused_until)


def _failures(seen: Observations, now: float) -> Rest | None:
    if seen.failures < MOST_FAILURES or seen.retry_at <= now:
        return None
    last = f", the last one: {seen.last_failure}" if seen.last_failure else ""
    detail = (
        f"{seen.failures} assignments in a row failed on this machine{last}; `farm-client resume` tries again, else"
    )
    return Rest(reason=Reason.FAILURES, detail=f"{detail} paused", until=seen.retry_at)


def _hours(policy: OwnerPolicy, now: float, local: LocalTime) -> Rest | None:
    hours = policy.working_hours
    if hours.hold_at(local(now)):
        return None
    detail = f"outside of this machine's hours ({policy.hours})"
    return Rest(reason=Reason.HOURS, detail=detail, until=hours.next_change(now, local))


def _quota(policy: OwnerPolicy, seen: Observations, now: float, local: LocalTime) -> Rest | None:
    quota_bytes = policy.daily_quota_bytes
    if quota_bytes is None or seen.moved_bytes < quota_bytes:
        return None
    detail = f"{sized(seen.moved_bytes)} moved today, of {sized(quota_bytes)} that may:"
    return Rest(reason=Reason.QUOTA, detail=detail, until=next_midnight(now, local))


def _program(seen: Observations) -> Rest | None:
    if not seen.programs:
        return None
    return Rest(reason=Reason.PROGRAM, detail=f"while {seen.programs[0]} runs")


def _battery(policy: OwnerPolicy, seen: Observations) -> Rest | None:
    if policy.on_battery or not seen.on_battery:
        return None
    return Rest(reason=Reason.BATTERY, detail="while this machine runs on its battery")


def _input(policy: OwnerPolicy, seen: Observations) -> Rest | None:
    idle = seen.input_idle_seconds
    if not policy.only_idle or idle is None or idle >= policy.idle_seconds:
        return None
    return Rest(reason=Reason.IN_USE, detail=f"in use: waiting for {policy.idle_seconds:.0f} s without input")


def _load(policy: OwnerPolicy, seen: Observations, is_resting: bool) -> Rest | None:
    limit = policy.idle_load * (_BUSY_UNTIL_SHARE if is_resting else 1.0)
    if not policy.only_idle or seen.others_load is None or seen.others_load <= limit:
        return None
    detail = f"busy: other programs use more than {policy.idle_load:.0%} of the processor"
    return Rest(reason=Reason.BUSY, detail=detail)

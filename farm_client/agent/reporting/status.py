"""What an agent does at one moment, and the file of it for `farm-client status` in another terminal.

All views are drawn from this one record: the panel and the lines of `farm-client join`, its JSON lines, and what
another process asks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.environments.stats import EnvironmentStats
from farm_client.agent.owner.reasons import Rest
from farm_client.agent.reporting.console import Event
from farm_client.agent.reporting.meters import MachineView, RateMeter
from farm_client.transfer.tally import Tally
from protocol.assignments import Kind, Phase
from protocol.credit import Credit
from protocol.frozen import Frozen

Connection = Literal["starting", "connecting", "connected", "away", "stopped"]
_SPEED_SECONDS = 10.0
"""Over how long training is measured: rounds may be shorter than the pauses between them."""
_TRAFFIC_SECONDS = 3.0
_IDLE_AFTER_SECONDS = 3.0
"""Between two rounds there is no work for a moment; that is no news."""


class WorkView(Frozen):
    """One assignment that this machine does. Counted in samples."""

    task_id: str
    name: str
    submitter: str = ""
    kind: Kind = Kind.TRAIN
    round: int = 0
    phase: Phase = Phase.FETCHING
    samples: int = 0
    samples_done: int = 0


class Speeds(Frozen):
    """What this machine did in a second, lately."""

    samples: float = 0.0
    """Trained on or evaluated, of all tasks together."""
    sent_bytes: float = 0.0
    received_bytes: float = 0.0


class Status(Frozen):
    """``doing`` is one line, always with its reason. Times are Unix seconds."""

    doing: str = "starting"
    connection: Connection = "starting"
    connected_at: float = 0.0
    """Since when this connection stands; 0 without one."""
    farm: str = ""
    client_id: str = ""
    name: str = ""
    sandbox: str = ""
    """The rung that tasks run in, and whether it was tried; empty until one is chosen."""
    task: str = ""
    round: int | None = None
    work: tuple[WorkView, ...] = ()
    rests: tuple[Rest, ...] = ()
    """Why nothing is done now, the reason to show first."""
    limits: dict[str, str] = Field(default_factory=dict)
    """What the owner has limited, by name, in words."""
    delivered: int = 0
    credit: Credit | None = None
    """What the farm credits this machine with; None while it does not say."""
    cache: CacheStats = CacheStats()
    environments: EnvironmentStats = EnvironmentStats()
    moved: Tally = Tally()
    """Over the network, since the agent started."""
    speeds: Speeds = Speeds()
    machine: MachineView = MachineView()
    events: tuple[Event, ...] = ()
    """The last ones, the newest last."""
    updated_at: float = 0.0


def _nothing_moved() -> tuple[CacheStats, Tally]:
    return CacheStats(), Tally()


@dataclass(slots=True)
class StatusBoard:
    """Counts what was delivered, knows whom to ask for the rest, and writes the status file: never for a round."""

    path: Path
    status: Status = field(default_factory=Status)
    delivered: int = 0
    credit: Credit | None = None
    look: Callable[[], tuple[CacheStats, Tally]] = _nothing_moved
    """How the cache and the transfers fare."""
    environments: Callable[[], EnvironmentStats] = EnvironmentStats
    """What is installed for tasks."""
    work: Callable[[], tuple[WorkView, ...]] = tuple
    events: Callable[[], tuple[Event, ...]] = tuple
    measure: Callable[[], MachineView] = MachineView
    """How busy the machine is."""
    limits: Callable[[], dict[str, str]] = dict
    _computed_samples: int = 0
    """Of assignments whose executors are done with them."""
    _last_work: tuple[WorkView, ...] = ()
    _worked_at: float = -_IDLE_AFTER_SECONDS
    _samples: RateMeter = field(default_factory=lambda: RateMeter(_SPEED_SECONDS))
    _sent: RateMeter = field(default_factory=lambda: RateMeter(_TRAFFIC_SECONDS))
    _received: RateMeter = field(default_factory=lambda: RateMeter(_TRAFFIC_SECONDS))

    def computed(self, work: WorkView) -> None:
        """Count what an executor is done with. It is shown for a moment: rounds may be shorter than two looks."""
        self._computed_samples += work.samples
        self._last_work, self._worked_at = (work,), time.monotonic()

    def snapshot(self) -> Status:
        """Return all that is known now."""
        cache, moved = self.look()
        now = time.monotonic()
        if work := self.work():
            self._last_work, self._worked_at = work, now
        done = sum(one.samples_done for one in work if one.phase is not Phase.UPLOADING)
        speeds = Speeds(
            samples=self._samples.rate(now, self._computed_samples + done),
            sent_bytes=self._sent.rate(now, moved.sent_bytes),
            received_bytes=self._received.rate(now, moved.received_bytes),
        )
        return self.status.model_copy(
            update={
                "delivered": self.delivered,
                "credit": self.credit,
                "cache": cache,
                "moved": moved,
                "environments": self.environments(),
                "work": self._last_work if now < self._worked_at + _IDLE_AFTER_SECONDS else (),
                "speeds": speeds,
                "machine": self.measure(),
                "limits": self.limits(),
                "events": self.events(),
                "updated_at": time.time(),
            }
        )

    def show(self, **changes: str | float | tuple[Rest, ...] | None) -> None:
        """Change some fields of the status and write it; it is for show only, so a full disk may keep an old one."""
        self.status = self.status.model_copy(update=changes)
        self.status = self.snapshot()
        unfinished = self.path.with_suffix(".new")
        with suppress(OSError):
            unfinished.write_text(self.status.model_dump_json())
            unfinished.replace(self.path)


def read_status(path: Path) -> Status:
    """Read what an agent last wrote; the default if it never wrote."""
    try:
        return Status.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Status(doing="nothing is known of it yet")

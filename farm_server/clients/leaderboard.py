"""Whose work counts most: the ledger's sums of credit, with the names that the farm knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from coordinator.credit import DAY_SECONDS
from farm_server.environment.clock import Clock
from protocol.rest_credit import LeaderboardView, LeaderView
from storage.ports.ledger import CreditBy, CreditQuery, CreditSum, LedgerReader

MOST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class LeaderboardPage:
    """Which part of which leaderboard: of the last ``since_days`` days and today; None for all time."""

    by: CreditBy = CreditBy.CLIENT
    since_days: int | None = None
    task_id: str | None = None
    offset: int = 0
    limit: int = 100


class ClientNamer(Protocol):
    """Who knows what clients are called."""

    def client_name(self, client_id: str) -> str:
        """Return the name of a client; empty for one that was removed."""


class Leaderboard:
    """Reads, and changes nothing. ``task_names`` gives the names of tasks by id, without those that were removed."""

    def __init__(
        self,
        ledger: LedgerReader,
        clients: ClientNamer,
        task_names: Callable[[Sequence[str]], Awaitable[dict[str, str]]],
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._clients = clients
        self._task_names = task_names
        self._clock = clock

    async def page(self, wanted: LeaderboardPage) -> LeaderboardView:
        """Return a page of a leaderboard: the most FLOPs first, then the most samples."""
        today = int(self._clock.now() // DAY_SECONDS)
        since = 0 if wanted.since_days is None else max(today - wanted.since_days, 0)
        found = await self._ledger.credit(CreditQuery(wanted.by, since, wanted.task_id))
        flops, samples = sum(one.flops for one in found), sum(one.samples for one in found)
        shown = found[wanted.offset : wanted.offset + wanted.limit]
        names = await self._names(wanted.by, shown)
        return LeaderboardView(
            by=wanted.by,
            since_days=wanted.since_days,
            task_id=wanted.task_id,
            count=len(found),
            assignments=sum(one.assignments for one in found),
            samples=samples,
            flops=flops,
            leaders=tuple(
                LeaderView(
                    rank=rank,
                    key=one.key,
                    name=names.get(one.key, ""),
                    assignments=one.assignments,
                    samples=one.samples,
                    measured_samples=one.measured_samples,
                    flops=one.flops,
                    share=one.flops / flops if flops else one.samples / max(samples, 1),
                    first_day=day_text(one.first_day),
                    last_day=day_text(one.last_day),
                )
                for rank, one in enumerate(shown, start=wanted.offset + 1)
            ),
        )

    async def _names(self, by: CreditBy, found: Sequence[CreditSum]) -> dict[str, str]:
        keys = [one.key for one in found]
        match by:
            case CreditBy.CLIENT:
                return {key: self._clients.client_name(key) for key in keys}
            case CreditBy.TASK:
                return await self._task_names(keys)
        return dict(zip(keys, keys, strict=True))


def day_text(day: int) -> str:
    """Return a day, counted from 1970 (UTC), such as ``2026-11-27``."""
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).date().isoformat()

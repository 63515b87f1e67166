"""A task's newest rounds, for the API and the status page."""

from __future__ import annotations

from coordinator.records import RoundRecord
from farm_server.farm import Farm
from protocol.rest import RoundView


async def newest_rounds(farm: Farm, task_id: str, limit: int) -> list[RoundView]:
    """Return up to ``limit`` rounds, newest first; the open round, if any, comes before all others.

    Raises: NotFound.
    """
    opened = farm.coordinator.open_round_view(task_id, farm.clock.now())
    rounds = [_round_view(r) for r in await farm.ledger.rounds(task_id, limit)]
    if opened is not None:
        rounds = [opened, *(r for r in rounds if r.number != opened.number)]
    return rounds[:limit]


def _round_view(record: RoundRecord) -> RoundView:
    return RoundView(
        number=record.number,
        state=record.state,
        epoch=record.epoch,
        samples=record.samples,
        clients=record.clients,
        seconds=None if record.committed_at is None else record.committed_at - record.opened_at,
        loss=record.loss,
        metrics=dict(record.metrics),
        committed_at=record.committed_at,
    )

"""The ledger's queries of credit: exact sums over its entries, by client, by team or by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import RowMapping, Select, func, select

from coordinator.records import ClientCredit, CreditEntry
from storage.mapping import CREDITS
from storage.ports.ledger import CreditBy, CreditQuery, CreditSum

COLUMN_OF: Final[Mapping[CreditBy, str]] = {
    CreditBy.CLIENT: "client_id",
    CreditBy.TEAM: "team",
    CreditBy.TASK: "task_id",
}
_SUMS: Final = ("assignments", "samples", "measured_samples", "gigaflops", "flops")


def sums(query: CreditQuery) -> Select[Any]:
    """Select what a query asks for, in no order."""
    table = CREDITS.table
    key = table.c[COLUMN_OF[query.by]].label("key")
    days = (func.min(table.c.day).label("first_day"), func.max(table.c.day).label("last_day"))
    found = select(key, *(func.sum(table.c[name]).label(name) for name in _SUMS), *days).group_by(key)
    if query.since_day > 0:
        found = found.where(table.c.day >= query.since_day)
    for name in ("task_id", "client_id", "team"):
        if (wanted := getattr(query, name)) is not None:
            found = found.where(table.c[name] == wanted)
    return found


def sum_of(row: RowMapping) -> CreditSum:
    """Return the sum of a row of ``sums``."""
    values = {name: int(row[name]) for name in ("assignments", "samples", "measured_samples")}
    flops = int(row["gigaflops"]) * 10**9 + int(row["flops"])
    return CreditSum(row["key"], flops=flops, first_day=row["first_day"], last_day=row["last_day"], **values)


def all_of(row: RowMapping) -> ClientCredit:
    """Return all credit of the client of a row."""
    found = sum_of(row)
    return ClientCredit(found.key, found.samples, found.flops)


def sum_up(entries: Iterable[CreditEntry], query: CreditQuery) -> list[CreditSum]:
    """Return what a query asks for, of entries in memory; in no order."""
    groups: dict[str, list[CreditEntry]] = {}
    for entry in entries:
        wanted = all(getattr(query, name) in (None, getattr(entry, name)) for name in ("task_id", "client_id", "team"))
        if wanted and entry.day >= query.since_day:
            groups.setdefault(getattr(entry, COLUMN_OF[query.by]), []).append(entry)
    return [
        CreditSum(
            key,
            assignments=sum(entry.assignments for entry in mine),
            samples=sum(entry.samples for entry in mine),
            measured_samples=sum(entry.measured_samples for entry in mine),
            flops=sum(entry.all_flops for entry in mine),
            first_day=min(entry.day for entry in mine),
            last_day=max(entry.day for entry in mine),
        )
        for key, mine in groups.items()
    ]


def ranked(found: Iterable[CreditSum]) -> list[CreditSum]:
    """Return sums as a leaderboard has them, without those that were taken back whole."""
    return sorted((one for one in found if one.assignments), key=lambda one: (-one.flops, -one.samples, one.key))

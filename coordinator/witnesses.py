"""Whose reports count as evidence that a task fails everywhere: new identities are free, and prove nothing.

Such a failure ends a task once *proven* clients, which have delivered what passed every check, say so as well. Where
none of those could take the task, all that could must say so; and where the researcher ran the code before submitting
it, which speaks against them, they must have said so for a while.
"""

from __future__ import annotations

from collections.abc import Collection

from coordinator.eligibility import qualifies
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn


def is_proven(client: ClientState) -> bool:
    """Whether the client has delivered something that passed every check."""
    return client.record.delivered > 0


def askable(turn: Turn, run: TaskRun) -> list[ClientState]:
    """Return the connected clients that could try a task, now or in a moment."""
    return [c for c in turn.farm.online() if _could_try(turn, run, c)]


def judges(turn: Turn, run: TaskRun) -> set[str]:
    """Return the clients whose word on an item counts, of all that could try it now or later: proven ones, if any."""
    able = [c for c in turn.farm.online() if _could_try(turn, run, c, rested=True)]
    return {c.client_id for c in ([c for c in able if is_proven(c)] or able)}


def _could_try(turn: Turn, run: TaskRun, client: ClientState, *, rested: bool = False) -> bool:
    """Whether a client could try a task; with ``rested`` also one that is kept off it for a while."""
    if client.draining or client.paused is not None:
        return False
    if run.task_id in client.lacks or run.task_id in client.refuses:
        return False
    cooldown = client.cooldowns.get(run.task_id)
    rests = cooldown is not None and cooldown.until > turn.now and client.client_id not in run.evidence.speakers
    return (rested or not rests) and qualifies(client.record, run.record.spec).value


def counts(turn: Turn, run: TaskRun, client: ClientState) -> bool:
    """Whether a client's failures count against the task: while proven clients are there, only theirs do."""
    return is_proven(client) or not any(is_proven(c) for c in askable(turn, run))


def convinces(turn: Turn, run: TaskRun, speakers: Collection[str], needed: int) -> bool:
    """Whether what these clients say of a task ends it; ``needed``: how many must, where so many could try."""
    others = askable(turn, run)
    ids = {c.client_id for c in others} | set(speakers)
    if len(speakers) < min(needed, len(ids)):
        return False
    proven = {i for i in ids if (c := turn.farm.clients.get(i)) is not None and is_proven(c)}
    if proven:
        return len(proven & set(speakers)) >= min(2, len(proven))
    if not run.record.spec.rehearsed:
        return True
    settings = turn.settings
    everybody = len(speakers) >= min(settings.stranger_witnesses, len(ids))
    return everybody and turn.now - run.evidence.since >= settings.stranger_seconds

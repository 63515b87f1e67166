"""Which differences a client gets instead of a whole version of the weights."""

from __future__ import annotations

from coordinator.commands import DropUpdate
from coordinator.records import AssignmentRecord
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.tasks import WeightsDelta


def keep_delta(turn: Turn, run: TaskRun, delta: WeightsDelta | None) -> None:
    """Take in the step to the newest version; the oldest one goes when the chain is as long as the recipe allows."""
    if delta is None or (run.deltas and run.deltas[-1].digest != delta.base):
        forget_deltas(turn, run)
    if delta is not None:
        run.deltas.append(delta)
    while len(run.deltas) > run.record.spec.recipe.refresh_every:
        turn.do(DropUpdate(run.deltas.pop(0).blob))


def forget_deltas(turn: Turn, run: TaskRun) -> None:
    """Delete them all: clients get whole versions until there are new ones."""
    for delta in run.deltas:
        turn.do(DropUpdate(delta.blob))
    run.deltas.clear()


def holds_present(run: TaskRun, client: ClientState) -> bool:
    """Whether the client has worked on the present version, for another part or an evaluation, and keeps it."""
    return client.versions.get(run.task_id) == run.checkpoint.weights.digest


def cheapest_chain(run: TaskRun, client: ClientState) -> tuple[WeightsDelta, ...]:
    """Return the steps from the version that the client holds to the present one.

    Empty if it holds that one, is not known to hold a version that leads there, or if the whole version is no larger.
    """
    if not run.deltas or holds_present(run, client):
        return ()
    whole_bytes, chain_bytes = run.checkpoint.weights.size_bytes, 0
    for place in range(len(run.deltas) - 1, -1, -1):
        delta = run.deltas[place]
        chain_bytes += delta.blob.size_bytes
        if chain_bytes >= whole_bytes:
            break
        if delta.base == client.versions.get(run.task_id) or delta.base in client.cached:
            return tuple(run.deltas[place:])
    return ()


def version_digest(run: TaskRun, record: AssignmentRecord) -> str:
    """Return the digest of the weights that an assignment began with; empty if that is too long ago to know."""
    behind = run.record.version - record.round
    if not behind:
        return run.checkpoint.weights.digest
    return run.deltas[-behind].base if behind <= len(run.deltas) else ""

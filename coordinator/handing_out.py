"""Handing out: a round that clients join as they come free, and nobody waits for (policies with ``hands_out``).

It opens without parts. Each client that is free gets one, from what earlier rounds owe and then from the cursor on,
with the newest weights; the round grows by it. So there is always work, until the epoch has no samples left: a version
must not contain samples of two epochs, and the last results of an epoch are waited for.

How large a part is follows from its client's speed: all take about as long, and so are about equally stale (the dynamic
local updates of Liu et al., "Asynchronous Local-SGD Training for Language Modeling", arXiv:2401.09135). The mean part
is what ``buffer`` of them, or one of each client, need to be ``round_samples`` together. Near the epoch's end parts
become smaller, so that all are done at about the same time (guided self-scheduling: Polychronopoulos and Kuck, IEEE
Transactions on Computers C-36, 1987).
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.follows import Follows
from coordinator.in_flight import Part
from coordinator.offers import offer
from coordinator.planning import count_samples, cut, share_quantum, without_stray
from coordinator.records import SampleRange
from coordinator.scoring import expected_speeds
from coordinator.state import ClientState, Step, StepPhase, TaskRun
from coordinator.turn import Turn
from protocol.recipe import Recipe
from protocol.task_length import samples_of_epochs, smallest_part
from protocol.tasks import Split


def wants_more(run: TaskRun) -> bool:
    """Whether the open round has a part for whoever is free."""
    step = run.step
    if step is None or step.phase is not StepPhase.COLLECT or not step.policy.hands_out:
        return False
    return bool(step.carried) or _fresh_samples(run, step) > 0


def follows_now(turn: Turn, run: TaskRun, step: Step) -> Follows | None:
    """Return what follows of what has arrived; None: wait for more. At the epoch's end all that is left is enough."""
    follows = step.policy.when_arrived(step.parts)
    if follows is not None or not step.policy.hands_out or not step.parts.delivered:
        return follows
    if (enough_at := step.policy.enough_at(step.parts)) is not None:
        has_delivered = {record.client_id for record in step.parts.delivered_records}
        if turn.now >= enough_at or works_on(run) <= has_delivered:
            return Follows.COMMIT
    waits = run.late.held or not step.parts.are_all_here or wants_more(run)
    return None if waits else Follows.COMMIT


def works_on(run: TaskRun) -> set[str]:
    """Return the ids of the clients that hold a part of a round that hands out, whether it is open or not."""
    held = () if run.step is None else run.step.parts.held.values()
    return {lease.record.client_id for lease in (*held, *run.late.held.values())}


def hand_out(turn: Turn, run: TaskRun, step: Step, idle: Sequence[ClientState]) -> None:
    """Give each of these clients a part of the open round, as far as there are samples, and room for clients."""
    speeds = _speeds(turn, run, idle)
    busy, most = works_on(run), run.record.spec.recipe.max_clients
    for client in idle:
        if most is not None and len(busy) >= most and client.client_id not in busy:
            continue
        if not (ranges := _take(turn, run, step, _share(run, step, client, speeds))):
            return
        samples = count_samples(ranges)
        busy.add(client.client_id)
        offer(turn, run, client, Part(turn.farm.leases.extend(step.parts, samples), ranges, samples))


def _speeds(turn: Turn, run: TaskRun, idle: Sequence[ClientState]) -> dict[str, float]:
    """Return the expected speeds of the clients that are at work on the task, or are about to be."""
    clients = {client_id: turn.farm.clients[client_id] for client_id in sorted(works_on(run))}
    return expected_speeds(run, list((clients | {client.client_id: client for client in idle}).values()))


def _share(run: TaskRun, step: Step, client: ClientState, speeds: dict[str, float]) -> int:
    """Return how many samples a client should get."""
    recipe, total = run.record.spec.recipe, sum(speeds.values())
    left = count_samples(step.carried) + _fresh_samples(run, step)
    return part_of_speed(recipe, speeds[client.client_id] / total, len(speeds), left)


def part_of_speed(recipe: Recipe, share: float, clients: int, left: int) -> int:
    """Return the samples of a part, in whole batches, at least one and at most a round's.

    ``share``: the client's share of the speed of all ``clients`` together; ``left``: samples that nobody has yet.
    """
    mean = recipe.round_samples / (recipe.buffer or clients)
    wanted = min(mean * share * clients, left * share, recipe.round_samples)
    quantum = share_quantum(recipe)
    return min(max(round(wanted / quantum), 1) * quantum, recipe.round_samples)


def _fresh_samples(run: TaskRun, step: Step) -> int:
    """Count the samples from the cursor to the end of the epoch, or of the task's last, unfinished one."""
    end, epochs = run.record.spec.dataset.samples(Split.TRAIN), run.record.spec.recipe.epochs
    if epochs is not None:
        end = min(end, max(samples_of_epochs(epochs, end), 1) - step.epoch * end)
    return max(end - step.next_cursor, 0)


def _take(turn: Turn, run: TaskRun, step: Step, wanted: int) -> tuple[SampleRange, ...]:
    """Take so many samples off the round's books: first what is owed. None where there is nothing left."""
    owed, fresh = count_samples(step.carried), _fresh_samples(run, step)
    samples = without_stray(min(wanted, owed + fresh), owed + fresh, smallest_part(run.record.spec.recipe))
    first, step.carried = cut(step.carried, [min(samples, owed), max(owed - samples, 0)])
    rest = run.take(step.next_cursor, samples - count_samples(first), turn.settings.stripe_shards)
    step.next_cursor += count_samples(rest)
    return (*first, *rest)

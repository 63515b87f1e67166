"""Clients come, go, pause and leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from coordinator.breaker import Breaker
from coordinator.commands import DropClient
from coordinator.containment import contained
from coordinator.credit import team_name
from coordinator.eligibility import is_shut_in
from coordinator.events import (
    ClientConnected,
    ClientDraining,
    ClientLost,
    ClientPaused,
    ClientReady,
    ClientRemoved,
    ClientThrottled,
    IdentityShared,
)
from coordinator.in_flight import Lease, Stage
from coordinator.leases import Claim
from coordinator.offers import accept, adopt, forget, suspend
from coordinator.records import ClientRecord, RemovedClient
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.assignments import Cancel
from protocol.environments import NO_ENVIRONMENTS
from protocol.errors import Conflict, NotFound
from protocol.messages import HeldAssignment, Hello
from protocol.wanted_work import ANY_WORK

T = TypeVar("T")


def connected(turn: Turn, event: ClientConnected) -> None:
    """A client joined, or came back under a new incarnation; what its former self held is lost."""
    hello = event.hello
    known = turn.farm.clients.get(hello.client_id)
    first_seen = known.record.first_seen if known else turn.now
    record = ClientRecord(
        client_id=hello.client_id,
        name=hello.name or hello.resources.hostname or hello.client_id[:8],
        secret_hash=event.secret_hash,
        first_seen=first_seen,
        last_seen=turn.now,
        incarnation=event.incarnation,
        resources=hello.resources,
        tags=hello.tags,
        delivered=known.record.delivered if known else 0,
        failed=known.record.failed if known else 0,
        sandbox=hello.sandbox,
        team=team_name(hello.team),
    )
    client = ClientState(
        record=record,
        online=True,
        load=hello.load,
        connected_at=turn.now,
        last_beat=turn.now,
        freed_at=turn.now,
        speeds=_of_unfinished(turn, known.speeds) if known else {},
        cached=set(hello.cached),
        codecs=frozenset(hello.codecs),
        features=frozenset(hello.features),
        environments=hello.environments or NO_ENVIRONMENTS,
        failures=_of_unfinished(turn, known.failures) if known else {},
        cooldowns=_of_unfinished(turn, known.cooldowns) if known else {},
        breaker=known.breaker if known else Breaker(),
        serves=known.serves if known else set(),
        dormant=known.dormant if known else {},
    )
    if known is not None:
        _suspend_all(turn, known, "its connection was replaced")
    turn.farm.admit(client)
    turn.save(record)
    turn.note("client_joined", f"{record.name} joined", client=client)
    _take_up(turn, client, hello)


def _of_unfinished(turn: Turn, learned: Mapping[str, T]) -> dict[str, T]:
    """Return what a client had learned, by task id, without what is of tasks that left the memory meanwhile."""
    return {task_id: what for task_id, what in learned.items() if task_id in turn.farm.tasks}


def lost(turn: Turn, event: ClientLost) -> None:
    """A connection ended; its assignments go to others."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return
    _leave(turn, client, event.reason)
    client.record = replace(client.record, last_seen=turn.now)
    turn.save(client.record)
    turn.note("client_lost", f"{client.record.name}: {event.reason}", client=client)


def _leave(turn: Turn, client: ClientState, reason: str) -> None:
    """The client is not there any more: what it holds goes to others."""
    client.online = False
    turn.farm.leases.leave(client.client_id)
    client.offline_reason = reason
    _suspend_all(turn, client, f"the client is gone: {reason}")
    for task_id in client.serves:
        if (run := turn.farm.tasks.get(task_id)) is not None:
            run.participants.discard(client.client_id)
    client.serves.clear()


def check_removal(turn: Turn, event: ClientRemoved) -> None:
    """Refuse to forget who is connected, before anything changes. Raises: NotFound, Conflict."""
    client = turn.farm.clients.get(event.client_id)
    if client is None:
        raise NotFound(f"there is no client {event.client_id}; `farm clients` lists the clients")
    if client.online and not event.force:
        raise Conflict(
            f"client {client.record.name} ({client.client_id}) is connected: stop its agent first, "
            "or give --force to close its connection"
        )


def remove(turn: Turn, event: ClientRemoved) -> None:
    """Drop a client. What it delivered counts as before; nobody waits for what it held."""
    client = turn.farm.clients[event.client_id]
    if client.online:
        _leave(turn, client, "it was removed")
    _forget_unlisted(turn, client, ())
    turn.farm.dismiss(client)
    turn.save(RemovedClient(client.client_id))
    turn.note("client_removed", f"{client.record.name} ({client.client_id}) was removed", client=client)
    turn.do(DropClient(client.client_id, client.incarnation, "it was removed from the farm; it may join anew"))


def identity_shared(turn: Turn, event: IdentityShared) -> None:
    """Two machines use this client's identity: that is for people to see and to mend."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        turn.note("identity_shared", f"{client.record.name}: {event.reason}", client=client)


def _by_task(turn: Turn, leases: Mapping[str, Lease]) -> list[tuple[TaskRun, list[Lease]]]:
    """Sort a client's leases by the tasks that they are of."""
    found: dict[str, list[Lease]] = {}
    for _, lease in sorted(leases.items()):
        found.setdefault(lease.record.task_id, []).append(lease)
    return [(turn.farm.tasks[task_id], of_task) for task_id, of_task in found.items()]


def _suspend_all(turn: Turn, client: ClientState, why: str) -> None:
    for run, leases in _by_task(turn, client.held):
        contained(turn, run, _suspend, run, leases, why)


def _suspend(turn: Turn, run: TaskRun, leases: Sequence[Lease], why: str) -> None:
    for lease in leases:
        suspend(turn, run, lease, why)


def _take_up(turn: Turn, client: ClientState, hello: Hello) -> None:
    """Let the client go on with what it still holds, and forget what it does not."""
    _forget_unlisted(turn, client, {held.assignment_id for held in hello.held})
    for held in hello.held:
        if not held.finished:  # a finished one is counted, or not, when its result comes
            run = turn.farm.run_of(held.assignment_id)
            if run is None or not contained(turn, run, _go_on_or_stop, run, client, held):
                _stop(turn, client, held)


def _forget_unlisted(turn: Turn, client: ClientState, listed: Collection[str]) -> None:
    """End the wait for what the client held when it went away, and does not list any more."""
    unlisted = {name: lease for name, lease in client.dormant.items() if name not in listed}
    for run, leases in _by_task(turn, unlisted):
        contained(turn, run, _forget, leases)


def _forget(turn: Turn, leases: Sequence[Lease]) -> None:
    for lease in leases:
        forget(turn, lease)


def _go_on_or_stop(turn: Turn, run: TaskRun, client: ClientState, held: HeldAssignment) -> None:
    said = Claim(client.client_id, held.assignment_id, held.fence)
    lease = turn.farm.leases.find(said, Stage.DORMANT)
    is_wanted = lease is not None and run.leases.of(lease.home).is_waiting(lease.record.position)
    if lease is None or not is_wanted or not is_shut_in(client.record, run.record.spec):
        _stop(turn, client, held)
    else:
        accept(turn, run, adopt(turn, run, lease, client))


def _stop(turn: Turn, client: ClientState, held: HeldAssignment) -> None:
    why = "somebody else has it, or its round is over"
    turn.send(client, Cancel(assignment_id=held.assignment_id, fence=held.fence, reason=why))


def ready(turn: Turn, event: ClientReady) -> None:
    """The client reports how many more assignments it can take."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        if event.environments is not None and event.environments != client.environments:
            client.environments = event.environments
            _end_waits(turn, client)
        if event.wanted is not None:
            client.wanted = ANY_WORK if event.wanted == ANY_WORK else event.wanted
        turn.farm.leases.set_slots(client.client_id, event.slots)
        client.warms_up = event.slots == 0 and not client.held


def _end_waits(turn: Turn, client: ClientState) -> None:
    """Offer a client again what it had no environment for, now that it has it."""
    for task_id in list(client.cooldowns):
        run = turn.farm.tasks.get(task_id)
        lock = None if run is None else run.record.spec.environment
        if lock is not None and lock.digest in client.environments.built:
            del client.cooldowns[task_id]
            client.failures.pop(task_id, None)


def paused(turn: Turn, event: ClientPaused) -> None:
    """The owner paused the machine, or gave it back to the farm: whom it works for may have changed meanwhile."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.paused = event.reason if event.paused else None
        if not event.paused:
            client.refuses.clear()


def throttled(turn: Turn, event: ClientThrottled) -> None:
    """The client floods the server, and gets no work meanwhile; or it stopped."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.throttled = event.throttled


def draining(turn: Turn, event: ClientDraining) -> None:
    """The client finishes what it holds and takes nothing more."""
    if client := turn.farm.current(event.client_id, event.incarnation):
        client.draining = True
        turn.note("client_draining", f"{client.record.name}: {event.reason or 'leaving'}", client=client)

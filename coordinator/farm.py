"""The farm in memory: all tasks and clients, with look-ups that cost the same however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from coordinator.leases import LeaseBook
from coordinator.lifecycle import LIVE
from coordinator.pools import Pool, Pools
from coordinator.records import AssignmentRecord, ClientCredit, CreditEntry, RoundRecord
from coordinator.state import ClientState, TaskRun
from coordinator.throughput import DecayingSum
from protocol.errors import NotFound


@dataclass(slots=True)
class FarmState:
    """All of it, with look-ups.

    ``live`` are the tasks that clients may work on now: what is done for each event looks at no other ones.
    """

    tasks: dict[str, TaskRun] = field(default_factory=dict)
    """Those that have not ended, and those whose end is not durable yet."""
    live: dict[str, TaskRun] = field(default_factory=dict)
    pools: Pools = field(default_factory=Pools)
    reserved: dict[str, TaskRun] = field(default_factory=dict)
    """Clients that are kept free for a task that needs several, by client id."""
    clients: dict[str, ClientState] = field(default_factory=dict)
    usage: dict[str, DecayingSum] = field(default_factory=dict)
    credits: dict[str, ClientCredit] = field(default_factory=dict)
    """As far as it is durable, by client id."""
    last_fence: int = 0
    server_lacks: str | None = None
    """What the server is short of, so that tasks wait for it."""
    interrupted_rounds: list[RoundRecord] = field(default_factory=list)
    """Open when the server stopped."""
    interrupted_assignments: list[AssignmentRecord] = field(default_factory=list)
    """Held when the server stopped."""
    leases: LeaseBook = field(init=False)
    """The assignments in flight."""
    last_attempt: int = 0
    """The highest attempt of the tasks that were evicted: what comes back goes on above it."""
    _next_place: int = 0
    """The place of the next client that is new; it is not used again when a client is removed."""

    def __post_init__(self) -> None:
        """The book writes what clients hold."""
        self.leases = LeaseBook(self.clients)

    def task(self, task_id: str) -> TaskRun:
        """Return a task. Raises: NotFound."""
        try:
            return self.tasks[task_id]
        except KeyError:
            raise unknown_task(task_id) from None

    def add(self, run: TaskRun) -> None:
        """Take a task in."""
        self.tasks[run.task_id] = run
        self.leases.add_task(run.task_id, run.leases)
        self.sort_in(run)

    def evict(self, run: TaskRun) -> None:
        """Keep a task in the ledger alone that has ended, and of which nothing is in flight."""
        self.leases.close_task(run.task_id)
        self.last_attempt = max(self.last_attempt, run.attempt)
        for client_id in run.participants:
            if (client := self.clients.get(client_id)) is not None:
                client.forget(run.task_id)
        del self.tasks[run.task_id]

    def drop(self, task_id: str) -> None:
        """Drop a task, as if it had never been."""
        self.tasks.pop(task_id, None)
        self.leases.drop_task(task_id)
        self.live.pop(task_id, None)
        self.pools.leave(task_id)

    def sort_in(self, run: TaskRun) -> None:
        """Put a task among those that clients may work on, or take it out, by its state."""
        if run.record.state in LIVE:
            self.live[run.task_id] = run
            return
        self.live.pop(run.task_id, None)
        self.pools.leave(run.task_id)
        self.reserve(run, ())

    def pool(self, run: TaskRun, now: float) -> Pool:
        """Return who could work on a live task, as of now."""
        self.pools.refresh(now)
        return self.pools.of(run)

    def reserve(self, run: TaskRun, client_ids: tuple[str, ...]) -> None:
        """Keep clients free for a task, and those of before no longer."""
        for client_id in run.reserves:
            if self.reserved.get(client_id) is run:
                del self.reserved[client_id]
        run.reserves = client_ids
        self.reserved.update(dict.fromkeys(client_ids, run))

    def admit(self, client: ClientState) -> None:
        """Take in a client, or its newest connection."""
        known = self.clients.get(client.client_id)
        if known is None:
            client.place = self._next_place
            self._next_place += 1
        else:
            client.place, known.watch = known.place, None
        self.clients[client.client_id] = client
        client.watch = self.pools.note
        self.pools.note(client)

    def add_credit(self, entries: Iterable[CreditEntry]) -> None:
        """Take in entries that the ledger gets in this turn."""
        for entry in entries:
            before = self.credits.get(entry.client_id, ClientCredit(entry.client_id))
            self.credits[entry.client_id] = before.with_entry(entry)

    def dismiss(self, client: ClientState) -> None:
        """Drop a client that is not connected (any more) and holds nothing; records of its work keep its id."""
        self.pools.note(client)
        client.watch = None
        self.reserved.pop(client.client_id, None)
        del self.clients[client.client_id]

    def online(self) -> Iterator[ClientState]:
        """Iterate over the connected clients."""
        self.pools.refresh(0.0)
        return iter(list(self.pools.connected.values()))

    def current(self, client_id: str, incarnation: int) -> ClientState | None:
        """Return the client if that connection is its present one."""
        client = self.clients.get(client_id)
        return client if client and client.online and client.incarnation == incarnation else None

    def run_of(self, assignment_id: str) -> TaskRun | None:
        """Return the task of an assignment that is in flight."""
        lease = self.leases.get(assignment_id)
        return None if lease is None else self.tasks.get(lease.record.task_id)

    def next_fence(self, now: float) -> int:
        """Return a fencing token higher than any before it, also across restarts (the clock does not go back)."""
        self.last_fence = max(self.last_fence + 1, int(now * 1000))
        return self.last_fence


def unknown_task(task_id: str) -> NotFound:
    """Return the error that says so."""
    return NotFound(f"there is no task {task_id}; `farm ls` lists the tasks")

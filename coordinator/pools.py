"""Who could work on what, kept up to date by the events that change it: no event costs a look at all clients.

Tasks that need the same of a machine share a *pool*: the connected clients that qualify. What changes about a client
is noted as it happens (``ClientState`` says so itself) and is brought into the pools before tasks are served.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from coordinator.eligibility import has_or_installs, is_enough, needed_codecs, needed_features, needed_ram_bytes
from coordinator.state import ClientState, TaskRun
from protocol.environments import Environments
from protocol.tasks import TaskSpec


@dataclass(slots=True)
class Pool:
    """The connected clients whose machines meet one set of needs, and the live tasks that have it.

    ``present``: those that neither leave nor rest. ``idle``: those of them that have a free slot.
    """

    spec: TaskSpec
    """Of any task that has these needs."""
    features: frozenset[str]
    """What its clients must know of newer ones' abilities, and ``codecs`` of compression."""
    codecs: frozenset[str]
    runs: dict[str, TaskRun] = field(default_factory=dict)
    qualified: dict[str, bool] = field(default_factory=dict)
    """Whether each of the machines that meet the needs also knows the task's codecs, and can get its packages."""
    present: dict[str, ClientState] = field(default_factory=dict)
    idle: dict[str, ClientState] = field(default_factory=dict)

    def admit(self, client: ClientState) -> None:
        """Take a client in, if it qualifies; it may have been here under a former connection."""
        self.remove(client.client_id)
        if client.online and is_enough(client.record, self.spec):
            understands = self.features <= client.features and self.codecs <= client.codecs
            self.qualified[client.client_id] = understands and has_or_installs(client, self.spec)
            self.place(client)

    def remove(self, client_id: str) -> None:
        """Take a client out."""
        self.qualified.pop(client_id, None)
        self.present.pop(client_id, None)
        self.idle.pop(client_id, None)

    def place(self, client: ClientState) -> None:
        """Note whether a client that qualifies takes part now, and whether it is free."""
        client_id = client.client_id
        takes_part = client.online and self.qualified[client_id] and not client.rests
        _keep(self.present, client, takes_part)
        _keep(self.idle, client, takes_part and client.slots > 0)


def _keep(book: dict[str, ClientState], client: ClientState, wanted: bool) -> None:
    if wanted:
        book[client.client_id] = client
    else:
        book.pop(client.client_id, None)


class Pools:
    """All pools, by need; and the clients that are not ready yet, by the time since when."""

    def __init__(self) -> None:
        self._pools: dict[Hashable, Pool] = {}
        self._of: dict[str, tuple[Hashable, Pool]] = {}
        self._noted: dict[str, ClientState] = {}
        self._admitted: dict[str, tuple[int, Environments]] = {}
        """The connection and the environments under which a client is in the pools, by client id."""
        self._unready: dict[str, tuple[ClientState, float]] = {}
        self.connected: dict[str, ClientState] = {}

    def note(self, client: ClientState) -> None:
        """Remember that something about a client changed which decides who may be served."""
        self._noted[client.client_id] = client

    def of(self, run: TaskRun) -> Pool:
        """Return the pool of a task that is live."""
        found = self._of.get(run.task_id)
        if found is None:
            found = self._of[run.task_id] = self._enter(run)
        return found[1]

    def leave(self, task_id: str) -> None:
        """A task is not live any more; a pool without tasks goes."""
        if (found := self._of.pop(task_id, None)) is None:
            return
        key, pool = found
        del pool.runs[task_id]
        if not pool.runs:
            del self._pools[key]

    def _enter(self, run: TaskRun) -> tuple[Hashable, Pool]:
        key = _need(run.record.spec)
        pool = self._pools.get(key)
        if pool is None:
            spec = run.record.spec
            pool = self._pools[key] = Pool(spec, needed_features(spec), needed_codecs(spec))
            for client in self.connected.values():
                pool.admit(client)
        pool.runs[run.task_id] = run
        return key, pool

    def refresh(self, now: float) -> list[Pool]:
        """Bring what was noted into the pools; return those that it concerns."""
        concerned: dict[int, Pool] = {}
        while self._noted:
            _, client = self._noted.popitem()
            self._refresh_one(client, now, concerned)
        return list(concerned.values())

    def _refresh_one(self, client: ClientState, now: float, concerned: dict[int, Pool]) -> None:
        client_id, online = client.client_id, client.online
        _keep(self.connected, client, online)
        self._unready.pop(client_id, None)
        if online and not client.held and client.slots <= 0:
            self._unready[client_id] = (client, now)  # the newest are last
        known_as = (client.incarnation, client.environments)
        is_new = self._admitted.get(client_id) != known_as
        for pool in self._pools.values():
            was_here = client_id in pool.qualified
            if not online:
                pool.remove(client_id)
            elif is_new:
                pool.admit(client)
            elif was_here:
                pool.place(client)
            if was_here or client_id in pool.qualified:
                concerned[id(pool)] = pool
        if not online:
            self._admitted.pop(client_id, None)
        elif is_new:
            self._admitted[client_id] = known_as

    def unready(self, not_before: float) -> Iterator[ClientState]:
        """Iterate over the clients that hold nothing and have no free slot since then, the newest first."""
        for client, since in reversed(self._unready.values()):
            if since < not_before:
                return
            yield client


def _need(spec: TaskSpec) -> Hashable:
    """Return what decides who qualifies for a task and understands it."""
    need, recipe = spec.requirements, spec.recipe
    machine = (need.cpu_cores, need.gpu, need.gpu_memory_bytes, need.tags, need.clients, needed_ram_bytes(spec))
    codecs = frozenset({recipe.update_codec.name, recipe.weights_codec.name})
    return (*machine, need.sandbox, spec.environment and spec.environment.digest, codecs, needed_features(spec))

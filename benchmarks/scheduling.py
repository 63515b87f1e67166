"""What an event costs the coordinator, in CPU time: alone in its process, without sockets, disk or clients."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from benchmarks.measurement import Measurement
from coordinator.commands import Command, CommitRound, ConfirmEnd, Send
from coordinator.engine import Coordinator
from coordinator.events import (
    Action,
    CheckpointDurable,
    ClientBeat,
    ClientConnected,
    ClientReady,
    EndConfirmed,
    Event,
    ResultArrived,
    RoundAggregated,
    TaskAction,
    TaskSubmitted,
)
from coordinator.records import CheckpointRecord, Snapshot
from coordinator.settings import CoordinatorSettings
from farm_server.operations.daemon import COLLECT_AFTER
from protocol.assignments import Assign, AssignmentProgress, Phase
from protocol.digests import digest_bytes
from protocol.messages import Hello
from protocol.recipe import Recipe, Requirements
from protocol.resources import Load, Resources
from protocol.tasks import BlobRef, Dataset, Shard, TaskSpec

GIGABYTE: Final = 10**9
WORKERS: Final = 3
"""Clients that train one task, beside the idle ones."""
EVENTS: Final = 300
_TRAINS: Final = Requirements(tags=("trains",))
_NOBODY: Final = Requirements(tags=("nobody has this",))


@dataclass(frozen=True)
class Scheduling(Measurement):
    """``event_us``: the mean of each kind of event; ``open_round_ms``: the first round of a task, with all clients."""

    clients: int
    ended_tasks: int
    waiting_tasks: int
    event_us: dict[str, float]
    open_round_ms: float


def _named_blob(name: str) -> BlobRef:
    return BlobRef(digest=digest_bytes(name.encode()), size_bytes=100)


def task_spec(shards: int, needs: Requirements, rounds: int = 10**6) -> TaskSpec:
    """Return a task of so many shards of ten samples, all of them in each round, for who meets its needs."""
    parts = tuple(Shard(index=i, samples=10, blob=_named_blob(f"shard {i}")) for i in range(shards))
    return TaskSpec(
        name="task",
        code=_named_blob("code"),
        initial_weights=_named_blob("weights"),
        dataset=Dataset(kind="files", shards=parts),
        recipe=Recipe(rounds=rounds, round_samples=10 * shards, batch_samples=1, gather_seconds=0.0),
        requirements=needs,
    )


class BareFarm:
    """A coordinator whose commits take no time, what it has assigned, and a clock that stands until it is moved."""

    def __init__(self, settings: CoordinatorSettings | None = None) -> None:
        numbers = count()
        self.now = 1_000_000.0
        self.coordinator = Coordinator(Snapshot(), settings or CoordinatorSettings(), lambda: f"a{next(numbers)}")
        self.assigned: dict[str, tuple[str, Assign]] = {}

    def handle(self, event: Event) -> float:
        """Handle an event; return the CPU seconds that it took, without what follows from it."""
        began = time.process_time()
        commands = self.coordinator.handle(event, self.now)
        seconds = time.process_time() - began
        for command in commands:
            self._carry_out(command)
        return seconds

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Send) and isinstance(command.message, Assign):
            self.assigned[command.message.assignment_id] = (command.client_id, command.message)
        elif isinstance(command, ConfirmEnd):
            self.handle(EndConfirmed(command.record))
        elif isinstance(command, CommitRound):
            name = f"{command.task_id}/{command.round + 1}"
            checkpoint = CheckpointRecord(
                command.task_id,
                command.round + 1,
                command.epoch,
                command.cursor,
                _named_blob(name),
                None,
                None,
                self.now,
            )
            self.handle(RoundAggregated(command.task_id, command.round, command.attempt, checkpoint))
            self.handle(CheckpointDurable(command.task_id, command.attempt, checkpoint))

    def join(self, name: str, tags: tuple[str, ...] = ()) -> float:
        """Let a client come that is ready for one assignment."""
        resources = Resources(cpu_cores=4, ram_bytes=16 * GIGABYTE, bench_gflops=50.0)
        hello = Hello(versions=(1,), client_id=name, client_secret="s" * 16, name=name, tags=tags, resources=resources)
        return self.handle(ClientConnected(hello, "hash", 1)) + self.handle(ClientReady(name, 1, 1))

    def result(self, assignment_id: str, compute_seconds: float = 1.0) -> float:
        """Let an assignment be done."""
        client_id, assign = self.assigned.pop(assignment_id)
        here = (client_id, 1, assignment_id, assign.fence)
        return self.handle(
            ResultArrived(*here, assign.samples, {"loss": 1.0}, _named_blob(assignment_id), compute_seconds)
        )

    def beat(self, assignment_id: str, samples: int) -> float:
        """Let a client say how many samples of its assignment are done."""
        client_id, assign = self.assigned[assignment_id]
        progress = AssignmentProgress(
            assignment_id=assignment_id, fence=assign.fence, phase=Phase.COMPUTING, samples_done=samples
        )
        return self.handle(ClientBeat(client_id, 1, Load(), (progress,)))


def measure(clients: int, ended_tasks: int, waiting_tasks: int) -> Scheduling:
    """Measure a farm of so many idle clients and tasks, beside one task that three clients train."""
    farm = BareFarm()
    for number in range(ended_tasks):
        farm.handle(TaskSubmitted(f"ended {number}", task_spec(1, _NOBODY)))
        farm.handle(TaskAction(f"ended {number}", Action.CANCEL))
    for number in range(waiting_tasks):
        farm.handle(TaskSubmitted(f"waits {number}", task_spec(1, _NOBODY)))
    for number in range(clients):
        farm.join(f"idle {number}")
    for number in range(WORKERS):
        farm.join(f"worker {number}", ("trains",))
    farm.handle(TaskSubmitted("trains", task_spec(WORKERS, _TRAINS)))
    gc.collect()
    events = {
        "heartbeat": _mean(lambda n: farm.beat(next(iter(farm.assigned)), n % 10)),
        "ready": _mean(lambda n: farm.handle(ClientReady(f"idle {n % clients}", 1, 1))),
        "join": _mean(lambda n: farm.join(f"new {n}")),
        "result": _mean(lambda _: farm.result(next(iter(farm.assigned)))),
    }
    return Scheduling("scheduling", clients, ended_tasks, waiting_tasks, events, open_round_ms(clients))


def _mean(once: Callable[[int], float]) -> float:
    """Return the mean microseconds of one kind of event."""
    return sum(once(number) for number in range(EVENTS)) / EVENTS * 1e6


def open_round_ms(clients: int) -> float:
    """Return the CPU milliseconds in which a round opens that waited for the last of so many clients.

    Each gets a part of its own. The garbage collector is set as the server sets it, and what lived before the clients
    is, as there, no matter of its.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    farm = BareFarm()
    task = task_spec(clients, Requirements(), rounds=1)
    gathers = task.recipe.model_copy(update={"min_clients": clients})
    farm.handle(TaskSubmitted("task", task.model_copy(update={"recipe": gathers})))
    opening = 0.0
    for number in range(clients):
        if number + 1 == clients:
            gc.collect()
            gc.freeze()
        opening = farm.join(f"client {number}")
    gc.unfreeze()
    gc.set_threshold(*before)
    assert len(farm.assigned) == clients, "the round is open"
    return opening * 1000

"""What the world does to the farm: delays of every kind, and the faults that a seed has drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coordinator.events import Action, TaskAction
from coordinator.lifecycle import TaskState
from protocol.assignments import RejectCode
from protocol.messages import Scope
from tests.simulation.aggregator import Job

if TYPE_CHECKING:
    from tests.simulation.client import Client
    from tests.simulation.world import World

_ACTIONS = {"pause_task": Action.PAUSE, "resume_task": Action.RESUME, "cancel_task": Action.CANCEL}
_REJECTIONS = (RejectCode.DOES_NOT_FIT, RejectCode.BUSY, RejectCode.BLOB_UNAVAILABLE)


class Weather:
    """Stormy at first; ``calm`` ends all faults, and what is left must come to its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._stormy = True
        self._disk_slow_until = 0.0
        self._disk_full_until = 0.0
        self._failing_jobs = 0
        self._bad_updates = 0
        self._damages = 0
        self._checkpoint_size = self._rng.choice((1, 1, 30, 100))
        self._kinds = list(world.scenario.weights)
        self._shares = list(world.scenario.weights.values())
        self._faults: dict[str, Callable[[], None]] = {kind: getattr(self, f"_{kind}") for kind in self._kinds}

    def begin(self) -> None:
        """Plan the first fault, and the end of all."""
        self._world.agenda.after(self._world.scenario.stormy_seconds, self.calm)
        if self._kinds:
            self._next_fault()

    def calm(self) -> None:
        """End every fault: all machines come back and work, and people let their tasks run."""
        self._stormy = False
        self._disk_full_until = self._disk_slow_until = 0.0
        self._failing_jobs = self._bad_updates = self._damages = 0
        self._world.tell("the faults end")
        for client in self._world.clients:
            client.slowness, client.partitioned_until, client.next = 1.0, 0.0, type(client.next)()
            client.comes_back = True
            client.start()
            client.pause(False)
        if self._world.server is None:
            self._world.start_server()
        for task_id in self._world.task_ids:
            self._world.ask(TaskAction(task_id, Action.RETRY if self._has_failed(task_id) else Action.RESUME))

    # delays

    def latency_seconds(self) -> float:
        return self._rng.expovariate(1 / 0.02) if self._rng.random() > 0.02 or not self._stormy else self._rng.random()

    def disk_seconds(self) -> float:
        slow = self._world.agenda.now < self._disk_slow_until
        return self._rng.uniform(0.5, 3.0) if slow else self._rng.uniform(0.001, 0.03)

    def rest_seconds(self) -> float:
        return self._rng.choice((0.0, 0.1, 0.5))

    def disk_refuses(self) -> bool:
        return self._world.agenda.now < self._disk_full_until

    def job_seconds(self, job: Job) -> float:
        return self._rng.uniform(0.0, 0.02)

    def write_seconds(self) -> float:
        """How long it takes to write a checkpoint: in half of the worlds longer than many a round."""
        return min(self.disk_seconds() * self._checkpoint_size, 8.0)

    def check_seconds(self) -> float:
        return self._rng.uniform(0.0, 0.5) if self._stormy and self._rng.random() < 0.1 else 0.0

    def notice_seconds(self) -> float:
        return self._rng.choice((0.05, 0.05, self._rng.uniform(0, 12)))

    def redial_seconds(self, dials: int) -> float:
        return self._rng.uniform(0, min(0.25 * 2.0 ** min(dials, 5), 4.0))

    # faults that are asked for

    def aggregation_fails(self) -> bool:
        self._failing_jobs -= 1
        return self._failing_jobs >= 0

    def damages_checkpoint(self, version: int) -> bool:
        if not self._damages or (version == 0 and self._rng.random() < 0.9):
            return False
        self._damages -= 1
        return True

    def result_is_refused(self) -> bool:
        self._bad_updates -= 1
        return self._bad_updates >= 0

    # faults that come

    def _next_fault(self) -> None:
        if not self._stormy:
            return
        (kind,) = self._rng.choices(self._kinds, self._shares)
        self._world.tell("fault: %s", kind)
        self._faults[kind]()
        every = self._world.scenario.fault_every_seconds
        self._world.agenda.after(self._rng.expovariate(1 / every), self._next_fault)

    def _client(self) -> Client:
        return self._rng.choice(self._world.clients)

    def _return_later(self, client: Client) -> None:
        self._world.agenda.after(self._rng.choice((0.05, 1.0, 5.0, 20.0)) * self._rng.random(), client.start)

    def _cut(self) -> None:
        connection = self._client().connection
        if connection is not None:
            connection.cut()
            connection.client.notice_later(connection)
            self._world.server_notices_later(connection)

    def _silence(self) -> None:
        """Nothing gets through any more, and only the silence tells."""
        connection = self._client().connection
        if connection is not None:
            connection.cut()
            self._world.agenda.after(self._rng.uniform(5, 20), lambda: connection.client.notice(connection))

    def _partition(self) -> None:
        until = self._world.agenda.now + self._rng.choice((1.0, 5.0, 15.0))
        for client in self._rng.sample(self._world.clients, self._rng.randint(1, len(self._world.clients))):
            client.partitioned_until = until

    def _client_crash(self) -> None:
        client = self._client()
        client.crash(keeps_outbox=True)
        self._return_later(client)

    def _client_loss(self) -> None:
        client = self._client()
        client.crash(keeps_outbox=False)
        self._return_later(client)

    def _bye(self) -> None:
        client = self._client()
        client.leave()
        self._return_later(client)

    def _drain(self) -> None:
        client = self._client()
        client.drain()
        self._return_later(client)

    def _slow_client(self) -> None:
        self._client().slowness = self._rng.choice((1.0, 5.0, 40.0))

    def _stuck(self) -> None:
        self._client().next.stuck = True

    def _executor_fails(self) -> None:
        self._client().next.fails = Scope.ELSEWHERE

    def _passing_fault(self) -> None:
        self._client().next.fails = Scope.HERE

    def _code_fails(self) -> None:
        self._client().next.fails = Scope.NOBODY

    def _counts_wrong(self) -> None:
        self._client().next.counts_wrong = True

    def _rejects(self) -> None:
        self._client().next.rejects = self._rng.choice(_REJECTIONS)

    def _repeat(self) -> None:
        self._client().repeat_results()

    def _owner_pauses(self) -> None:
        self._client().pause(True)

    def _owner_resumes(self) -> None:
        self._client().pause(False)

    def _server_crash(self) -> None:
        if self._world.server is not None:
            self._world.crash_server()
            self._world.agenda.after(self._rng.choice((0.1, 1.0, 8.0)) * self._rng.random(), self._world.start_server)

    def _clock_jump(self) -> None:
        """The wall clock is set anew; a server reads it when it starts, and only then."""
        self._world.wall_clock_offset += self._rng.choice((-3600.0, -5.0, 5.0, 3600.0))
        self._server_crash()

    def _disk_slow(self) -> None:
        self._disk_slow_until = self._world.agenda.now + self._rng.uniform(1, 10)

    def _disk_full(self) -> None:
        self._disk_full_until = self._world.agenda.now + self._rng.uniform(1, 10)

    def _aggregation_fails(self) -> None:
        self._failing_jobs = self._rng.randint(1, 3)

    def _bad_update(self) -> None:
        self._bad_updates = 1

    def _damage(self) -> None:
        """The newest checkpoints of the tasks that open a round next can't be read."""
        self._damages = self._rng.randint(1, 2)

    def _act(self, action: Action) -> None:
        names = self._world.task_ids
        if action is Action.RETRY:
            names = [name for name in names if self._has_failed(name)] or names
        if names:
            self._world.ask(TaskAction(self._rng.choice(names), action))

    def _has_failed(self, task_id: str) -> bool:
        task = self._world.ledger.tasks.get(task_id)
        return task is not None and task.state is TaskState.FAILED

    def _pause_task(self) -> None:
        self._act(Action.PAUSE)

    def _resume_task(self) -> None:
        self._act(Action.RESUME)

    def _cancel_task(self) -> None:
        if self._rng.random() < 0.2:
            self._act(Action.CANCEL)

    def _retry_task(self) -> None:
        self._act(Action.RETRY)

    def _submit(self) -> None:
        if len(self._world.task_ids) < 4:
            world = self._world
            world.submit(world.scenario.draw_task(self._rng))

"""The life of one assignment on this machine: fetch, hand to an executor, put what it made into the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.environments.keeper import EnvironmentKeeper
from farm_client.agent.errors import ExecutorDied, ExecutorFailed
from farm_client.agent.executors.executor import Executor
from farm_client.agent.executors.executor_pool import RELENT, ExecutorPool
from farm_client.agent.executors.orders import TaskFiles
from farm_client.agent.home.control_store import ControlStore
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.outbox import Outbox, Parcel
from farm_client.agent.home.snapshot_store import SnapshotStore
from farm_client.agent.home.start_marks import StartMarks
from farm_client.agent.work.failed_steps import FailedSteps
from farm_client.agent.work.hang_limit import HangLimit
from farm_client.agent.work.held_assignment import Held, filled_disk, ran_out_of_memory
from farm_client.agent.work.left_files import store_left_files
from farm_client.agent.work.result_sender import ResultSender
from farm_client.agent.work.secure_rounds import SecureRounds
from farm_client.agent.work.weights import Locks, Route, WeightsSupply
from farm_client.executor.messages import FROZEN_DIFFERS, Advance, Done
from farm_client.executor.postmortem import DIED_LATER, ProcessDeath
from farm_client.executor.process import Stream
from farm_client.stage_clock import StageClock
from protocol.artefacts import Artefact
from protocol.assignments import Kind, Phase, Reject, WorkStage
from protocol.errors import FarmError
from protocol.messages import Error
from protocol.tasks import BlobRef

_WORTH_ANOTHER_TRY: Final = frozenset({"killed", "exited", RELENT})
"""How an executor may die for once: of the machine, not of what it said."""
_SCRATCH_BYTES: Final = 64 * 1024**2
"""What is evicted for an executor that found the disk full."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What assignments are done with; it outlives connections."""

    pool: ExecutorPool
    fetcher: Fetcher
    transfers: Transfers
    outbox: Outbox
    sender: ResultSender
    starts: StartMarks
    snapshots: SnapshotStore
    failed_steps: FailedSteps
    home: HomeFolder
    environments: EnvironmentKeeper
    controls: ControlStore
    secure: SecureRounds = field(default_factory=SecureRounds)
    making: Locks = field(default_factory=Locks)


class Job:
    """One assignment being done. Cancel the task that runs ``do`` to stop it."""

    def __init__(self, held: Held, tools: Tools) -> None:
        self.held = held
        self._on_trained: Callable[[], None] = lambda: None
        self.read_output: Callable[[], None] = lambda: None
        """Takes now what its executor printed so far, while it computes."""
        self._is_trained = False
        task = held.assign.task
        self._takes_frozen = task.frozen is not None and not task.base
        """Whether the file of the frozen tensors is needed: the task's code may build the same from its base."""
        self._tools = tools
        counts_samples = held.assign.kind is not Kind.EPOCH_END
        self._hang = HangLimit(held.assign.lease_seconds if counts_samples else None)
        self._weights = WeightsSupply(held.assign, tools.fetcher, tools.making, held.output.add_note)

    async def do(self, on_trained: Callable[[], None] = lambda: None) -> Parcel | Error | Reject:
        """Do the assignment; its result is in the outbox when this returns it. Else say why there is none.

        ``on_trained`` is called, at most once, if its executor is free before that.
        Then the executor is free, and its next assignment touches nothing of the result: the outbox owns the file.
        An executor that dies is replaced once, and the assignment begun again: its weights and shards are here.
        """
        self._on_trained = on_trained
        is_kept = False
        task_id = self.held.assign.task.task_id
        try:
            self._tools.starts.check(task_id)
            with self._tools.starts.at_work(task_id):
                return await self._attempts()
        except (FarmError, OSError, ValidationError) as error:
            return self.held.failure(error)
        except asyncio.CancelledError:
            if not self.held.is_over:
                is_kept = True  # the agent ends: the next one goes on with it
            raise
        finally:
            if not is_kept:
                self._tools.snapshots.drop(self.held.assign)

    async def _attempts(self) -> Parcel:
        try:
            return await self._attempt()
        except (OSError, ExecutorFailed, ExecutorDied) as error:
            # What has left its slot is not begun again: another assignment is in its place.
            if isinstance(error, ExecutorDied) and self._is_trained:
                death = ProcessDeath(DIED_LATER, error.death.message)  # of what it did next, in all likelihood
                raise ExecutorDied(death, "writing what it had computed", error.last_lines) from error
            if self._is_trained or (remedy := await self._remedy(error)) is None:
                raise
            self.held.output.add_note(f"{remedy}; the assignment begins again")
        return await self._attempt()

    async def _remedy(self, error: OSError | ExecutorFailed | ExecutorDied) -> str | None:
        """Do what makes another try worth it, and say what; None if nothing does."""
        if filled_disk(error):
            is_mended = self._tools.fetcher.cache.evict(_SCRATCH_BYTES) > 0
            return "the disk was full, blobs were evicted" if is_mended else None
        if _builds_others(error):
            self._takes_frozen = True
            return "this machine builds other frozen tensors from the base, the submitted ones are fetched"
        if ran_out_of_memory(error):
            is_mended = self._tools.pool.stop_idle()
            await self._tools.pool.settled()
            return "memory ran out, idle executors were stopped" if is_mended else None
        if isinstance(error, ExecutorDied) and self.held.assign.kind is Kind.MAP and error.death.code != RELENT:
            return None  # the farm finds out whether it is an item, by smaller parts
        if isinstance(error, ExecutorDied) and (error.death.code in _WORTH_ANOTHER_TRY or self._weights.shuns_links):
            return f"{error.message}, another one takes its place"
        return None

    def arrived_bytes(self) -> int:
        """Count the bytes of its running downloads that are here."""
        arrived = self._tools.fetcher.arrived_bytes
        if not arrived:
            return 0
        refs = (*self.held.files(), *self._weights.blobs, *self._of_the_model())
        return sum(arrived.get(ref.digest, 0) for ref in refs)

    def _of_the_model(self) -> tuple[BlobRef, ...]:
        """Return what the model is built from besides its code: its base, its frozen tensors if they need a file."""
        task = self.held.assign.task
        frozen = () if task.frozen is None or not self._takes_frozen else (task.frozen,)
        return (*(file.blob for file in task.base), *frozen)

    async def _attempt(self) -> Parcel:
        self.held.phase, self.held.samples_done = Phase.FETCHING, 0
        clock = StageClock()
        self.held.stages = clock.seconds
        task = self.held.assign.task
        executor = self._tools.pool.take(task.task_id)
        self._tools.fetcher.cache.book.name_task(task.task_id, task.name)
        try:
            files = self.held.files()
            route = self._weights.route(executor.held_weights if executor else None)
            kept = (*files, task.code, *self._of_the_model())
            pins = (*(ref.digest for ref in kept), *self._weights.pins(route))
            with self._tools.fetcher.cache.pinned(pins, task.task_id):
                await self._fetch(files, route)
                clock.ended(WorkStage.FETCH)
                if executor is None:
                    executor = await self._load()
                    clock.ended(WorkStage.START)
                    self._tools.fetcher.cache.book.warmed(task.task_id, clock.seconds[WorkStage.START])
                async with self._hang.over(lambda: executor.doing):
                    done = await self._compute(executor, route)
            artefacts = await store_left_files(self.held, executor, done.left, self._tools.transfers)
            return await self._keep(done, executor, artefacts)
        except ExecutorFailed as error:
            if executor is not None and not self._is_trained:
                self.held.failed_step = await self._tools.failed_steps.store(self.held, executor, error.report)
            if executor is not None and not self._is_trained and (ran_out_of_memory(error) or _builds_others(error)):
                self._tools.pool.kill(executor)  # its process keeps what it once had, of a GPU above all
            raise
        finally:
            if executor is not None and not self._is_trained:
                self._release(executor)

    async def _fetch(self, files: Iterable[BlobRef], route: Route) -> None:
        missing = [ref for ref in files if self._tools.fetcher.cache.ready(ref.digest) is None]
        if not missing and not route.by_file:
            return
        await self._fetch_all(missing, self._weights.fetch(route))

    async def _fetch_all(self, refs: Iterable[BlobRef], *beside: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for one in (*beside, *(self._tools.fetcher.fetch(ref) for ref in refs)):
                    group.create_task(one)
        except* (FarmError, OSError) as errors:
            raise errors.exceptions[0] from None

    async def _load(self) -> Executor:
        task = self.held.assign.task
        bundle = await self._tools.fetcher.fetch(task.code)
        await self._fetch_all(self._of_the_model())
        files = TaskFiles(bundle, {file.path: self._tools.fetcher.cache.path(file.blob.digest) for file in task.base})
        if task.frozen is not None and self._takes_frozen:
            files = replace(files, frozen=self._tools.fetcher.cache.path(task.frozen.digest))
        if task.environment is not None:
            files = replace(files, packages=self._tools.environments.packages(task.environment))
        self.held.phase = Phase.STARTING
        async with self._hang.over(lambda: "loading the task"):
            return await self._tools.pool.take_new(task, files, self._on_line)

    async def _compute(self, executor: Executor, route: Route) -> Done:
        executor.on_line, executor.on_advance = self._on_line, self._on_advance
        executor.on_saved = lambda: self._on_saved(executor)
        self.read_output = executor.read_output
        file = await self._weights.file(route, executor) if route.by_file else None
        self.held.phase = Phase.COMPUTING
        self._hang.got_on()
        self._tools.fetcher.prefetch(self.held.assign.prefetch)
        order = self.held.run_order(self._tools.fetcher.cache, route.data, file, self._snapshot_path())
        if self.held.assign.task.scaffold_clients:
            order = order.model_copy(update={"control_path": str(self._control_path)})
        return await executor.run(order, lambda: self._free_early(executor))

    def _free_early(self, executor: Executor) -> None:
        """Let the executor go: all that is left of this assignment is to write its update."""
        self._is_trained = True
        self._hang.lift()
        self._release(executor)
        self._on_trained()

    async def _keep(self, done: Done, executor: Executor, artefacts: tuple[Artefact, ...]) -> Parcel:
        """Put the result into the outbox, before anything of it is sent and before the executor may change its file."""
        parcel = self._parcel(done, executor, artefacts)
        if self.held.assign.secure is not None:
            parcel = await self._tools.secure.masked(self.held.assign, parcel)
        parcel = self._tools.outbox.put(parcel)
        self._keep_control(done, executor)
        return parcel

    def _parcel(self, done: Done, executor: Executor, artefacts: tuple[Artefact, ...]) -> Parcel:
        assign = self.held.assign
        if done.update_path is None:
            update = None if done.update is None else BlobRef.carrying(done.update, done.update_digest)
            return Parcel(self.held.result(done, update, artefacts), assign.round)
        path = executor.room.take(done.update_path)
        if path is None or done.update_digest is None:
            raise FarmError("the executor named an update that is not in its scratch folder")
        ref = BlobRef(digest=done.update_digest, size_bytes=done.update_bytes)
        return Parcel(self.held.result(done, ref), assign.round, path)

    @property
    def _control_path(self) -> Path:
        return self._tools.controls.path(self.held.assign.task.task_id)

    def _keep_control(self, done: Done, executor: Executor) -> None:
        """Keep the client's own control variate as it has become, once the update that goes with it is kept.

        If the agent dies in between, the change that the update brings is counted, and made once more next time.
        """
        if done.control_path is None or (file := executor.room.take(done.control_path)) is None:
            return
        assign = self.held.assign
        self._tools.controls.keep(assign.task.task_id, file, assign.weights.size_bytes)

    def _on_line(self, stream: Stream, line: str) -> None:
        self.held.output.add_line(stream, line)

    def _on_advance(self, advance: Advance) -> None:
        if advance.samples_done > self.held.samples_done:
            self._hang.got_on()
        self.held.samples_done = advance.samples_done
        self.held.output.add_metrics(advance.metrics)

    def _on_saved(self, executor: Executor) -> None:
        self._tools.snapshots.keep(
            self.held.assign, executor.take_snapshot(self._tools.snapshots.path(self.held.assign))
        )
        self._tools.starts.got_on(self.held.assign.task.task_id)

    def _snapshot_path(self) -> Path | None:
        assign = self.held.assign
        is_kept = assign.kind is Kind.TRAIN and assign.task.snapshot_seconds > 0
        is_kept = is_kept and assign.secure is None  # whose keys end with this process
        return self._tools.snapshots.path(assign) if is_kept else None

    def _release(self, executor: Executor) -> None:
        if executor.running is not None:  # stopped in mid-step
            self._tools.pool.kill(executor)
        else:
            self._tools.pool.give_back(executor)


def _builds_others(error: BaseException) -> bool:
    """Return whether the executor lacked the file of the frozen tensors."""
    return isinstance(error, ExecutorFailed) and error.report.code == FROZEN_DIFFERS

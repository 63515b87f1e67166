"""The executors of this machine: tasks' own, kept warm between rounds, and a spare that is warm before any task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from farm_client.agent.executors.executor import Executor, OnLine
from farm_client.agent.executors.orders import TaskFiles
from farm_client.executor.postmortem import ProcessDeath
from farm_client.executor.process import ExecutorProcess, Launch
from farm_client.sandbox.policy import Caps
from protocol.tasks import TaskBrief

SPARE_RAM_BYTES: Final = 300 * 1024**2
"""What an executor holds before it has a task: Python, torch and its optimizers."""
RELENT: Final = "relent"
"""The code of an executor's death by ``lend_gpus``."""
_RELENT_DEATH: Final = ProcessDeath(RELENT, "the owner lends other GPUs now, or another share of their memory")
_SWEEP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """How many executors are kept, and for how long.

    ``fewest`` serve tasks whatever the memory; more of them, up to ``most``, stay warm while ``has_room`` says that
    there is memory in plenty beside so many bytes. One that was idle for ``idle_seconds`` is stopped. Once a task was
    served for ``settled_seconds``, a spare is kept beside it, should its executor die, for as long as ``may_spare``
    says so: not at once, because its start takes processor time from the task's first rounds.
    """

    fewest: int
    idle_seconds: float
    most: int = 0
    has_room: Callable[[int], bool] = lambda _ram_bytes: False
    settled_seconds: float = 3.0
    may_spare: Callable[[], bool] = lambda: True


class ExecutorPool:
    """The executors that serve tasks, plus a spare; the least recently used idle one goes first."""

    def __init__(self, launch: Launch, keeping: Keeping, executor: type[Executor] = Executor) -> None:
        self._launch = launch
        self._executor_type = executor
        self._keeping = keeping
        self._serving: list[Executor] = []
        self._spare: Executor | None = None
        self._starting: asyncio.Task[None] | None = None
        self._retiring = False
        self._suspended = False
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def is_cold(self) -> bool:
        """Whether nothing could begin at once, and something soon can: no executor is warm, and one warms up."""
        if any(executor.is_warm for executor in self._living()):
            return False
        return any(executor.death is None for executor in self._living()) or self._is_starting()

    @property
    def caps(self) -> Caps:
        """The bounds of all executors that may change while they live."""
        return self._launch.caps

    @property
    def has_cgroups(self) -> bool:
        """Whether each executor has a control group of its own."""
        return self._launch.cgroups is not None

    def lend_gpus(self, gpus: str, devices: tuple[Path, ...], vram_share: float | None) -> None:
        """Start executors with these GPUs from now on; those that live with others are ended, in mid-step.

        Their assignments begin again: see ``RELENT``. ``devices``: the GPUs' nodes, for the sandbox.
        """
        former = self._launch
        if (gpus, vram_share) == (former.gpus, former.vram_share):
            return
        confinement = former.confinement if gpus == former.gpus else former.confinement.seeing(devices)
        self._launch = replace(former, gpus=gpus, vram_share=vram_share, confinement=confinement)
        ended = self._living()
        for executor in ended:
            executor.kill(_RELENT_DEATH)
            if not executor.leased:
                self._end(executor)
        if ended:
            self.prestart()

    def processes(self) -> tuple[ExecutorProcess, ...]:
        """List the processes of all executors that live."""
        return tuple(executor.process for executor in self._living() if executor.death is None)

    async def warmed_up(self) -> None:
        """Wait while it is cold."""
        while self.is_cold:
            if self._starting is not None:
                await asyncio.wait((self._starting,))
            for executor in self._living():
                await executor.warmed()

    def find(self, task_id: str) -> Executor | None:
        """Return a free executor that has loaded this task, without taking it."""
        return next((e for e in self._serving if e.task_id == task_id and _is_free(e)), None)

    def take(self, task_id: str) -> Executor | None:
        """Lease a free executor that has loaded this task."""
        executor = self.find(task_id)
        if executor is not None:
            executor.leased = True
            self.abandon(but=executor)
        return executor

    def abandon(self, but: Executor | None = None) -> None:
        """Have every executor but one give up what it began unasked: the machine is wanted for something else."""
        for executor in self._serving:
            if executor is not but:
                executor.abandon()

    def packages_in_use(self) -> frozenset[Path]:
        """Return the folders of environments that executors have on their path."""
        return frozenset(executor.packages for executor in self._serving if executor.packages is not None)

    async def take_new(self, task: TaskBrief, files: TaskFiles, on_line: OnLine) -> Executor:
        """Lease the spare, or a new executor, for a task; returns when the task's code is loaded.

        ``on_line`` gets what the code prints, from its import on.

        Raises: ExecutorFailed, ExecutorDied, BadBundle; OSError if no process can be started.
        """
        self._make_room(task)
        self.abandon()
        # a spare's sandbox does not see a task's packages
        spare = await self._take_spare() if files.packages is None else None
        executor = spare or await self._start(files.packages)
        executor.leased, executor.on_line = True, on_line
        executor.serves_since = time.monotonic()
        self._serving.append(executor)
        try:
            await executor.load(task, files)
        except BaseException:
            self.kill(executor)
            raise
        return executor

    def give_back(self, executor: Executor) -> None:
        """End a lease. The executor stays warm for the task's next round; a dead one is forgotten."""
        executor.leased = False
        executor.idle_since = time.monotonic()
        executor.clear_callbacks()
        if executor.death is not None:
            self.kill(executor)

    def kill(self, executor: Executor) -> None:
        """End an executor at once, and start a spare to take its place."""
        self._end(executor)
        self.prestart()

    def prestart(self) -> None:
        """Start the spare in the background, unless there is one or the agent is leaving."""
        if not self._retiring and not self._suspended and not self._has_spare() and not self._is_starting():
            self._starting = asyncio.get_running_loop().create_task(self._start_spare())

    def retire(self) -> None:
        """Start no more spares: the agent is leaving."""
        self._retiring = True

    async def suspend(self, longest_seconds: float) -> None:
        """Free all memory and GPUs, and start nothing before ``resume``.

        Executors have so long to keep what they did, then they are killed, whatever they do; who leases one must not
        take its death for a failure.
        """
        self._suspended = True
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_seconds):
                await asyncio.gather(*(executor.suspend() for executor in self._serving))
        if self._starting is not None:
            self._starting.cancel()
        for executor in self._living():
            self._end(executor)

    def resume(self) -> None:
        """Start executors again."""
        self._suspended = False
        self.prestart()

    def release(self, task_id: str | None) -> None:
        """End every executor of a task (None: of all tasks): its memory and its GPU are free for others."""
        for executor in [e for e in self._serving if task_id in (None, e.task_id)]:
            self.kill(executor)

    async def sweep_regularly(self) -> None:
        """Sweep until cancelled, with a connection or without: what is idle holds memory, and perhaps a GPU."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Drop the dead, stop what was idle for too long, and start a spare beside what has settled.

        A spare holds no GPU, so it also takes the place of the last one that was idle.
        """
        now = time.monotonic()
        old = [e for e in self._serving if _is_idle(e) and e.idle_since < now - self._keeping.idle_seconds]
        dead = [e for e in self._serving if not e.leased and e.death is not None]
        for executor in (*old, *dead):
            self._end(executor)
        if len(self._serving) > self._keeping.fewest and not self._keeping.has_room(0):
            self._end_least_recent()  # other programs need the memory
        settled = any(e.serves_since < now - self._keeping.settled_seconds for e in self._serving)
        idle_again = bool(old) and not self._serving
        if (settled or idle_again) and not self._has_spare() and self._keeping.may_spare():
            self.prestart()

    def stop_idle(self) -> bool:
        """Stop every idle executor and the spare, to free their memory; return whether there was one."""
        idle = [e for e in self._living() if _is_idle(e)]
        for executor in idle:
            self._end(executor)
        return bool(idle)

    async def settled(self) -> None:
        """Wait until every executor that was ended is gone."""
        while self._ending:
            await asyncio.wait(self._ending)

    async def close(self) -> None:
        """End them all and wait until they are gone, with their scratch folders."""
        self.retire()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        for executor in self._living():
            self._end(executor)
        await self.settled()

    def _make_room(self, task: TaskBrief) -> None:
        """Keep within memory and limits. An executor of the same task that could not be taken is dead."""
        for executor in [e for e in self._serving if e.task_id == task.task_id and not e.leased]:
            self._end(executor)
        if len(self._serving) < self._keeping.fewest:
            return
        likely_bytes = max(task.needed_ram_bytes, SPARE_RAM_BYTES, *(e.memory_bytes() for e in self._serving))
        if len(self._serving) >= self._keeping.most or not self._keeping.has_room(likely_bytes):
            self._end_least_recent()

    def _end_least_recent(self) -> None:
        unused = [e for e in self._serving if not e.leased and not e.is_writing]
        if unused:
            self._end(min(unused, key=lambda e: e.idle_since))

    async def _take_spare(self) -> Executor | None:
        starting, self._starting = self._starting, None
        if starting is not None:
            await starting
        spare = self._spare if self._has_spare() else None
        self._spare = None
        return spare

    async def _start(self, packages: Path | None = None) -> Executor:
        launch = self._launch
        executor = await self._executor_type.start(launch if packages is None else launch.reading(packages))
        if launch is not self._launch:  # other GPUs are lent by now
            executor.kill(_RELENT_DEATH)
        return executor

    async def _start_spare(self) -> None:
        with suppress(OSError):  # whoever needs one starts it, and hears why it can't be
            self._spare = await self._start()

    def _has_spare(self) -> bool:
        return self._spare is not None and self._spare.death is None

    def _is_starting(self) -> bool:
        return self._starting is not None and not self._starting.done()

    def _living(self) -> tuple[Executor, ...]:
        """List what serves, and the spare; some of it may be dead already."""
        return (*self._serving, *([self._spare] if self._spare is not None else []))

    def _end(self, executor: Executor) -> None:
        executor.kill()
        if executor in self._serving:
            self._serving.remove(executor)
        elif executor is self._spare:
            self._spare = None
        ending = asyncio.get_running_loop().create_task(executor.closed())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def _is_free(executor: Executor) -> bool:
    return not executor.leased and executor.running is None and executor.death is None


def _is_idle(executor: Executor) -> bool:
    """Return whether nothing is lost if it ends: one that is free may still write an update."""
    return _is_free(executor) and not executor.is_writing

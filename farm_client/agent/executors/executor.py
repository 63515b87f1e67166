"""One executor as the agent sees it: a process with a task, the weights it holds, and the order it works on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from farm_client.agent.errors import ExecutorDied, ExecutorFailed
from farm_client.agent.executors.bundle import unpack_bundle
from farm_client.agent.executors.orders import (
    CODE_DIR,
    OWN_DIR,
    SNAPSHOTS_DIR,
    TaskFiles,
    given_difference,
    given_order,
    load_order,
)
from farm_client.executor.messages import (
    Abandon,
    Advance,
    Building,
    Difference,
    Done,
    Failed,
    Holds,
    Loaded,
    Rebase,
    Rebased,
    Report,
    Run,
    Saved,
    StepsDone,
    Suspend,
    Suspended,
    Warm,
)
from farm_client.executor.postmortem import ProcessDeath
from farm_client.executor.process import ExecutorListener, ExecutorProcess, Launch, Stream, start_executor
from farm_client.sandbox.room import Room
from protocol.assignments import Kind
from protocol.errors import FarmError
from protocol.limits import MAX_LOG_LINES_PER_MESSAGE
from protocol.tasks import TaskBrief

LAST_LINES: Final = 20
"""How much of its output a dead executor's error carries."""

_DOING: Final = MappingProxyType(
    {
        Kind.TRAIN: "training",
        Kind.EVALUATE: "evaluating",
        Kind.EPOCH_END: "running on_epoch_end",
        Kind.MAP: "mapping",
    }
)
_STOPPED: Final = ProcessDeath("stopped", "the agent stopped the executor")

OnLine = Callable[[Stream, str], None]
OnAdvance = Callable[[Advance], None]
OnTrained = Callable[[], None]
OnSaved = Callable[[], None]


def _ignore_trained() -> None:
    """Nobody waits for an executor that is free early."""


class Executor:
    """An executor and its state. It does one assignment at a time: ``leased`` says that somebody uses it."""

    def __init__(self) -> None:
        self.task_id: str | None = None
        self.packages: Path | None = None
        """The folder of its task's environment."""
        self.leased = False
        self.running: str | None = None
        """The assignment that its process works on."""
        self.doing = "starting"
        """What it was last told or heard to do, for the report of its death."""
        self.held_weights: str | None = None
        self.speculates = False
        """Whether it goes on unasked with what is likely to come."""
        self.serves_since = 0.0
        self.idle_since = 0.0
        self.death: ProcessDeath | None = None
        self._warmed = asyncio.Event()
        self._suspended = asyncio.Event()
        """Set once nothing more is done of what it was told to do last, whatever the reason."""
        self.on_line: OnLine = _ignore_line
        self.on_advance: OnAdvance = _ignore_advance
        self.on_saved: OnSaved = _ignore_saved
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._early_lines: deque[tuple[Stream, str]] = deque(maxlen=MAX_LOG_LINES_PER_MESSAGE)
        """What the code printed in steps that were begun unasked, for the assignment that adopts them."""
        self._writing: dict[str, asyncio.Future[Report | ProcessDeath]] = {}
        """Who waits for what it writes beside its work, by assignment."""
        self._on_trained: OnTrained = _ignore_trained
        self._process: ExecutorProcess
        self._answer: asyncio.Future[Report | ProcessDeath]
        self._expected: type[Report]
        self._ask(Warm)  # which comes without being asked

    @classmethod
    async def start(cls, launch: Launch) -> Self:
        """Start a process; it warms up by itself. Raises: OSError if none can be started."""
        executor = cls()
        listener = ExecutorListener(executor._on_report, executor._on_line, executor._on_death)
        executor._process = await start_executor(launch, listener)
        return executor

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    @property
    def process(self) -> ExecutorProcess:
        """Its process."""
        return self._process

    @property
    def room(self) -> Room:
        """Its folders."""
        return self._process.room

    async def load(self, task: TaskBrief, files: TaskFiles) -> None:
        """Wait until it is warm, then have it import the task's code and take its frozen tensors, if they have a file.

        Raises: BadBundle, ExecutorFailed if the code cannot be loaded, ExecutorDied.
        """
        self.task_id, self.packages = task.task_id, files.packages
        await asyncio.to_thread(unpack_bundle, files.bundle, self.room.scratch / CODE_DIR)
        (self.room.scratch / OWN_DIR).mkdir()
        given = files.given(self.room)
        await self._answered()
        self.doing = "importing the task's code"
        self._ask(Loaded)
        self._process.send(load_order(task, given, self.room))
        await self._answered()

    async def run(self, order: Run, on_trained: OnTrained = _ignore_trained) -> Done:
        """Have it do one assignment, whose order names files of the agent. If this is cancelled it works on: kill it.

        ``on_trained`` is called if it is ready for the next one before the update of this one is written: from then on
        it is free, and a cancellation leaves it alone.
        Raises: ExecutorFailed with the researcher's traceback, ExecutorDied; OSError if the files can't be given to it.
        """
        order = given_order(order, self.room)
        self._on_trained = on_trained
        self.running, self.held_weights = order.assignment_id, order.weights_digest
        self.speculates = False
        self.doing = _DOING[order.kind]
        self._ask(Done)
        self._process.send(order)
        while self._early_lines:
            self.on_line(*self._early_lines.popleft())
        report = await self._answered()
        assert isinstance(report, Done)  # noqa: S101  nothing else is taken for an answer
        return report

    async def rebase(self, assignment_id: str, base: Path, differences: tuple[Difference, ...]) -> Path:
        """Have it write the weights file that follows from ``base``, for an assignment; return where it is.

        The file is only what a stranger's process says it is, and that process may still have it open: check the digest
        of a copy, and delete it. If this is cancelled the process works on: kill it.
        Raises: ExecutorFailed, ExecutorDied, FarmError; OSError if the files can't be given to it.
        """
        made = self.room.scratch / "rebased.weights"
        named = [Path(link.path) for link in differences if link.path is not None]
        self.room.give_all((base, *named))
        self.running = assignment_id
        self.doing = "making the weights from a difference"
        self._ask(Rebased)
        self._process.send(
            Rebase(
                assignment_id=assignment_id,
                base_path=str(self.room.give(base)),
                differences=tuple(given_difference(link, self.room) for link in differences),
                made_path=str(made),
            )
        )
        await self._answered()
        if (path := self.room.take(str(made))) is None:
            raise FarmError("the executor left no file in place of the weights that it was to write")
        return path

    def take_snapshot(self, kept_at: Path) -> Path | None:
        """Take the last snapshot of the assignment whose order named this path; None if there is none."""
        return self.room.take(str(self.room.scratch / SNAPSHOTS_DIR / kept_at.name))

    async def suspend(self) -> None:
        """Have it keep what it did, and return when it has: it does nothing more then, and is to be killed.

        How long that may take is the caller's business: deep in a step it hears nothing. A throttle halts it no more.
        """
        self._process.let_end()
        if self.running is not None and self._expected is Done and self.death is None:
            self._suspended.clear()
            self._process.send(Suspend())
            await self._suspended.wait()
        if self._writing:
            await asyncio.wait(self._writing.values())

    def abandon(self) -> None:
        """Have it give up what it began unasked: the machine is wanted for something else."""
        if self.speculates and self.running is None and self.death is None:
            self.speculates = False
            self._early_lines.clear()
            self._process.send(Abandon())

    def kill(self, why: ProcessDeath = _STOPPED) -> None:
        """End it at once, in mid-step."""
        self._process.kill()
        self._end(why)

    @property
    def is_writing(self) -> bool:
        """Whether it still writes an update, whatever else it does."""
        return bool(self._writing)

    @property
    def is_warm(self) -> bool:
        """Whether it lives and can begin at once."""
        return self._warmed.is_set() and self.death is None

    async def warmed(self) -> None:
        """Wait until it is warm, or dead."""
        await self._warmed.wait()

    def memory_bytes(self) -> int:
        """Measure the resident memory of its processes; 0 if they are gone."""
        return self._process.memory_bytes()

    async def closed(self) -> None:
        """Wait until its process is gone and its scratch folder with it."""
        await self._process.closed()

    def read_output(self) -> None:
        """Take now all that it printed so far: it is about to be killed."""
        self._process.read_output()

    def clear_callbacks(self) -> None:
        """Drop its callbacks until the next assignment."""
        self.on_line, self.on_advance, self.on_saved = _ignore_line, _ignore_advance, _ignore_saved

    def _ask(self, expected: type[Report]) -> None:
        self._expected = expected
        self._answer = asyncio.get_running_loop().create_future()
        if self.death is not None:
            self._answer.set_result(self.death)

    async def _answered(self) -> Report:
        outcome = await self._answer
        if isinstance(outcome, ProcessDeath):
            raise ExecutorDied(outcome, self.doing, tuple(self._last_lines))
        if isinstance(outcome, Failed):
            raise ExecutorFailed(outcome)
        return outcome

    def _on_report(self, report: Report) -> None:
        """Match a report with the order; one that answers no order is ignored."""
        match report:
            case Building():
                self.doing = "building the model"
            case Advance() | Saved():
                self._on_progress(report)
            case Holds():
                if self.running is None:  # else its order came with weights
                    self.held_weights = report.weights_digest
            case StepsDone():
                self._free_early(report.assignment_id)
            case Suspended():
                self._suspended.set()
            case Done() | Failed() if report.assignment_id in self._writing:
                self._settle(self._writing.pop(report.assignment_id), report)
            case _:
                self._on_answer(report)

    def _on_progress(self, report: Advance | Saved) -> None:
        if report.assignment_id != self.running:
            return
        if isinstance(report, Advance):
            self.on_advance(report)
        else:
            self.on_saved()

    def _on_answer(self, report: Report) -> None:
        if not isinstance(report, self._expected | Failed):
            return
        answers = report.assignment_id if isinstance(report, Done | Rebased | Failed) else None
        if answers != self.running:
            return
        self.running = None
        self._warmed.set()
        if isinstance(report, Done):
            self.held_weights = report.holds or self.held_weights
            self.speculates = report.holds is not None
        if isinstance(report, Failed):
            self.held_weights = None  # it may have failed before it took them
        self._suspended.set()
        if not self._answer.done():
            self._answer.set_result(report)

    def _free_early(self, assignment_id: str) -> None:
        if assignment_id != self.running or self._expected is not Done:
            return
        self._writing[assignment_id] = self._answer
        self.running = None
        self._suspended.set()
        self._on_trained()

    def _settle(self, waiting: asyncio.Future[Report | ProcessDeath], report: Report) -> None:
        """Tell who waits for an update; of one that nobody wants any more no file is left."""
        if not waiting.done():
            waiting.set_result(report)
        elif isinstance(report, Done) and report.update_path and (path := self.room.take(report.update_path)):
            path.unlink(missing_ok=True)

    def _on_line(self, stream: Stream, line: str) -> None:
        self._last_lines.append(line)
        if self.speculates and not self.leased:
            self._early_lines.append((stream, line))
        else:
            self.on_line(stream, line)

    def _on_death(self, death: ProcessDeath) -> None:
        self._end(death)

    def _end(self, death: ProcessDeath) -> None:
        self.death = self.death or death
        self.running = None
        self._warmed.set()
        self._suspended.set()
        for waiting in (self._answer, *self._writing.values()):
            if not waiting.done():
                waiting.set_result(self.death)
        self._writing.clear()


def _ignore_line(_stream: Stream, _line: str) -> None:
    """Nobody waits for what an idle executor prints."""


def _ignore_advance(_advance: Advance) -> None:
    """Nobody waits for an idle executor's progress."""


def _ignore_saved() -> None:
    """Nobody waits for an idle executor's snapshots."""

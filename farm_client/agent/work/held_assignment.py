"""One assignment that this client holds, and the messages that report it: progress, output in batches, its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from pydantic import ValidationError

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.disk_space import is_full
from farm_client.agent.errors import (
    BadBundle,
    CacheFull,
    DiskFull,
    ExecutorDied,
    ExecutorFailed,
    HomeGone,
    LacksModule,
    NoEnvironment,
)
from farm_client.agent.reporting.status import WorkView
from farm_client.executor.messages import DISK_FULL, OUT_OF_MEMORY, Done, Piece, Run
from protocol.artefacts import Artefact
from protocol.assignments import (
    Assign,
    AssignmentProgress,
    LogLine,
    MetricPoint,
    Phase,
    Progress,
    Reject,
    RejectCode,
    Result,
    Slice,
)
from protocol.errors import DigestMismatch, FarmError, NotFound, Unavailable
from protocol.limits import MAX_LOG_LINE_CHARS, MAX_LOG_LINES_PER_MESSAGE
from protocol.messages import Error, Scope
from protocol.tasks import BlobRef

MAX_METRICS_PER_FLUSH: Final = 200
_MAX_NOTES_PER_FLUSH: Final = 4  # one of them on what was dropped
_MAX_LINES_PER_FLUSH: Final = MAX_LOG_LINES_PER_MESSAGE - _MAX_NOTES_PER_FLUSH


@dataclass(slots=True)
class PendingOutput:
    """Lines and metrics since the last flush. What is over the limit is dropped and counted in a note."""

    lines: list[LogLine] = field(default_factory=list)
    metrics: list[MetricPoint] = field(default_factory=list)
    notes: list[LogLine] = field(default_factory=list)
    dropped: int = 0

    def add_line(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Keep a printed line."""
        if len(self.lines) < _MAX_LINES_PER_FLUSH:
            self.lines.append(LogLine(stream=stream, text=text))
        else:
            self.dropped += 1

    def add_note(self, text: str) -> None:
        """Keep a line of the agent's own; what the code prints cannot crowd it out."""
        if len(self.notes) < _MAX_NOTES_PER_FLUSH - 1:
            self.notes.append(LogLine(stream="agent", text=text[:MAX_LOG_LINE_CHARS]))

    def add_metrics(self, points: tuple[MetricPoint, ...]) -> None:
        """Keep logged values."""
        room = MAX_METRICS_PER_FLUSH - len(self.metrics)
        self.metrics.extend(points[:room])
        self.dropped += max(0, len(points) - room)

    def take(self, progress: Callable[[], AssignmentProgress]) -> Progress | None:
        """Return what is pending as one message, and forget it; None if there is nothing."""
        if not self.lines and not self.metrics and not self.notes:
            return None
        if self.dropped:
            note = f"{self.dropped} lines or metrics dropped: too many at once"
            self.notes.append(LogLine(stream="agent", text=note))
        message = Progress(progress=progress(), metrics=tuple(self.metrics), logs=(*self.lines, *self.notes))
        self.lines, self.metrics, self.notes, self.dropped = [], [], [], 0
        return message


_MAX_MESSAGE_CHARS: Final = 2000
_MAX_TRACEBACK_CHARS: Final = 20_000

_HANDED_BACK: Final[Mapping[type[Exception], RejectCode]] = MappingProxyType(
    {
        NoEnvironment: RejectCode.ENVIRONMENT,
        NotFound: RejectCode.BLOB_UNAVAILABLE,
        Unavailable: RejectCode.BLOB_UNAVAILABLE,
        DigestMismatch: RejectCode.BLOB_UNAVAILABLE,
        CacheFull: RejectCode.DOES_NOT_FIT,
        DiskFull: RejectCode.BLOB_UNAVAILABLE,
        HomeGone: RejectCode.BLOB_UNAVAILABLE,
    }
)
"""Errors that say nothing against the assignment itself: it is handed back undone."""


@dataclass(slots=True)
class Held:
    """An accepted assignment and how far it is."""

    assign: Assign
    phase: Phase = Phase.FETCHING
    samples_done: int = 0
    sent_bytes: int = 0
    """Of its update, while that is uploaded."""
    is_over: bool = False
    """Whether it is stopped for good: cancelled, or handed back."""
    waits: int = 0
    """How often the farm told that upload to wait for its turn."""
    output: PendingOutput = field(default_factory=PendingOutput)
    failed_step: BlobRef | None = None
    """What is stored at the farm of the step in which the task's code failed."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of what came before its executor, by ``WorkStage``."""

    def shards(self) -> list[BlobRef]:
        """List the shards' files."""
        refs = (part.shard.blob for part in self.assign.slices if part.shard.blob is not None)
        return list({ref.digest: ref for ref in refs}.values())

    def files(self) -> list[BlobRef]:
        """List what must be in the cache besides the weights: shards, and an inner state that did not come along."""
        state = self.assign.inner_state
        return self.shards() if state is None or state.carried is not None else [*self.shards(), state]

    def blobs(self) -> tuple[BlobRef, ...]:
        """List everything that the assignment refers to."""
        task, links = self.assign.task, (link.blob for link in self.assign.deltas)
        frozen = () if task.frozen is None else (task.frozen,)
        state = () if self.assign.inner_state is None else (self.assign.inner_state,)
        base = (file.blob for file in task.base)
        lock = () if task.environment is None else (task.environment,)
        return (task.code, *frozen, *base, *lock, self.assign.weights, *links, *state, *self.shards())

    def sent(self, count: int) -> None:
        """Take how many bytes of the update have left."""
        self.sent_bytes = count

    def waited(self, reason: str | None) -> None:
        """Note that the upload is to wait for its turn, or (None) that the turn has come."""
        self.waits += reason is not None

    def progress(self, arrived_bytes: int = 0) -> AssignmentProgress:
        """Return how far it is: the more bytes have come, or left, the longer the farm waits for the rest."""
        return AssignmentProgress(
            assignment_id=self.assign.assignment_id,
            fence=self.assign.fence,
            phase=self.phase,
            samples_done=self.samples_done,
            fetched_bytes=self.sent_bytes if self.phase is Phase.UPLOADING else arrived_bytes,
            waits=self.waits,
        )

    def view(self) -> WorkView:
        """Describe it for whoever looks on."""
        assign = self.assign
        return WorkView(
            task_id=assign.task.task_id,
            name=assign.task.name,
            submitter=assign.task.submitter,
            kind=assign.kind,
            round=assign.round,
            phase=self.phase,
            samples=assign.samples,
            samples_done=self.samples_done,
        )

    def run_order(
        self, cache: BlobCache, weights: bytes | None, weights_file: Path | None, snapshot: Path | None = None
    ) -> Run:
        """Turn the assignment into an executor's order; without weights it takes those that it holds."""
        assign, state = self.assign, self.assign.inner_state
        carried = None if state is None else state.carried
        return Run(
            assignment_id=assign.assignment_id,
            kind=assign.kind,
            round=assign.round,
            epoch=assign.epoch,
            samples_before=assign.samples_before,
            round_samples=assign.round_samples,
            weights_digest=assign.weights.digest,
            weights=weights,
            weights_path=None if weights_file is None else str(weights_file),
            inner_state=carried,
            inner_state_path=None if state is None or carried is not None else str(cache.path(state.digest)),
            failed_step_bytes=assign.failed_step_bytes,
            snapshot_path=None if snapshot is None else str(snapshot),
            pieces=_pieces(assign.slices, cache),
            position=assign.position,
            data_part=assign.data_part,
            upcoming=_pieces(assign.upcoming, cache),
        )

    def result(self, done: Done, update: BlobRef | None, artefacts: tuple[Artefact, ...] = ()) -> Result:
        """Say that it is done; ``artefacts`` are stored at the farm."""
        return Result(
            assignment_id=self.assign.assignment_id,
            fence=self.assign.fence,
            samples=done.samples,
            metrics=done.metrics,
            update=update,
            artefacts=artefacts,
            compute_seconds=done.compute_seconds,
            stage_seconds={**self.stages, **done.stage_seconds},
            flops_per_sample=done.flops_per_sample,
        )

    def reject(self, code: RejectCode, message: str) -> Reject:
        """Hand it back undone."""
        return Reject(
            assignment_id=self.assign.assignment_id,
            fence=self.assign.fence,
            code=code,
            message=_sendable(message)[:_MAX_MESSAGE_CHARS],
        )

    def failure(self, error: Exception) -> Error | Reject:
        """Return why it failed, and who could succeed. Any error has an answer: the agent outlives each assignment."""
        code = RejectCode.BLOB_UNAVAILABLE if filled_disk(error) else _HANDED_BACK.get(type(error))
        if code is not None:
            return self.reject(code, str(error))
        match error:
            case ExecutorFailed(report=report):
                problem = self._error(report.code, report.message, report.scope, report.traceback)
                return problem.model_copy(update={"failed_step": self.failed_step})
            case ExecutorDied(death=death, last_lines=last_lines):
                return self._error(death.code, error.message, Scope.ELSEWHERE, "\n".join(last_lines))
            case ValidationError():
                reason = f"the executor's result breaks the contract: {error.errors()[0]['msg']}"
                return self._error("bad_report", reason, Scope.NOBODY)
            case FarmError():
                scope = Scope.NOBODY if isinstance(error, BadBundle) else Scope.ELSEWHERE
                return self._error(error.code, error.message, scope)
        return self._error(*_machines_fault(error), Scope.ELSEWHERE)

    def _error(self, code: str, message: str, scope: Scope, traceback: str | None = None) -> Error:
        return Error(
            code=code[:64],
            message=_sendable(message)[:_MAX_MESSAGE_CHARS],
            assignment_id=self.assign.assignment_id,
            fence=self.assign.fence,
            scope=scope,
            traceback=_sendable(traceback)[-_MAX_TRACEBACK_CHARS:] if traceback else None,
        )


def filled_disk(error: BaseException) -> bool:
    """Return whether the disk was full, for the agent or for its executor."""
    return is_full(error) or (isinstance(error, ExecutorFailed) and error.report.code == DISK_FULL)


def is_of_this_machine(problem: Error | Reject) -> bool:
    """Return whether an assignment failed for a reason that others may not have, and that installing nothing mends."""
    return isinstance(problem, Error) and problem.scope is not Scope.NOBODY and problem.code != LacksModule.code


def shown(assign: Assign, problem: Error | Reject) -> str:
    """Return what this machine's owner is told of an assignment that came to nothing."""
    told = f"{assign.task.name}: {problem.message}"
    if isinstance(problem, Error) and problem.code == LacksModule.code:
        return f"{told}; install it here and join again to take part, others are asked meanwhile"
    return told


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, the machine's or the accelerator's."""
    code = error.report.code if isinstance(error, ExecutorFailed) else None
    return OUT_OF_MEMORY in (code, error.death.code if isinstance(error, ExecutorDied) else None)


def _machines_fault(error: Exception) -> tuple[str, str]:
    """Return the code and the sentence of what no error of the farm's own stands for."""
    if isinstance(error, OSError):
        return "machine", f"this machine could not do it: {error}"
    cause: BaseException = error
    while isinstance(cause, BaseExceptionGroup):  # one of the things that were done side by side
        cause = cause.exceptions[0]
    return "agent_error", f"a mistake in the agent of this machine ended it ({cause!r}); its log shows where"


def _sendable(text: str) -> str:
    """Replace what no message can carry: the bytes of a path that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _pieces(slices: Iterable[Slice], cache: BlobCache) -> tuple[Piece, ...]:
    return tuple(
        Piece(
            shard=part.shard.index,
            split=part.shard.split,
            shard_samples=part.shard.samples,
            first_row=part.shard.start,
            stride=part.shard.stride,
            path=str(cache.path(part.shard.blob.digest)) if part.shard.blob is not None else None,
            start=part.start,
            stop=part.stop,
        )
        for part in slices
    )

"""The end of an epoch: one client runs the code's ``on_epoch_end`` on the version, and the farm keeps what it leaves.

Training waits for it, as for an evaluation. It is run once for each epoch, whatever ends in between; where the code
fails in it, or nobody is done with it, training goes on without the files.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.evidence import Evidence
from coordinator.in_flight import Home, Part
from coordinator.offers import offer
from coordinator.records import ArtefactRecord
from coordinator.rounds import close_look
from coordinator.scoring import best
from coordinator.state import ClientState, Step, TaskRun
from coordinator.stopping import has_artefact_room
from coordinator.turn import Turn
from protocol.artefacts import Artefact
from protocol.assignments import Kind
from protocol.failed_steps import error_line
from protocol.wording import counted, sized

_PART = Part(position=0, ranges=(), samples=1)
"""What is given to one client: no rows, in a place of the step's books."""


def open_epoch_end(turn: Turn, run: TaskRun, clients: Sequence[ClientState]) -> None:
    """Give the newest version, which ended an epoch, to the best of these clients."""
    run.attempt += 1
    version = run.record.version
    run.step = Step(
        kind=Kind.EPOCH_END,
        number=version,
        attempt=run.attempt,
        epoch=run.record.epoch - 1,
        opened_at=turn.now,
        parts=run.leases.open(Home(Kind.EPOCH_END, version), _PART.samples),
        policy=run.policy(Kind.EPOCH_END),
        collect_since=turn.now,
    )
    run.update(served_at=turn.now)
    if clients:
        offer(turn, run, best(run, clients, 1)[0], _PART)
    else:
        turn.farm.leases.wait(run.step.parts, _PART)


def keep_artefacts(turn: Turn, run: TaskRun, artefacts: Sequence[Artefact]) -> None:
    """Record what the client left of the epoch's end."""
    task = run.record
    epoch, size_bytes = task.epoch - 1, sum(file.size_bytes for file in artefacts)
    for file in artefacts:
        turn.save(ArtefactRecord(run.task_id, epoch, file.name, file.digest, file.size_bytes))
    files = task.artefact_files + len(artefacts)
    run.update(artefact_files=files, artefact_bytes=task.artefact_bytes + size_bytes)
    if artefacts:
        told = f"{counted(len(artefacts), 'file')} of epoch {epoch} kept, {sized(size_bytes)}: farm artefacts"
        turn.note("artefacts_kept", told, run)
    if not has_artefact_room(run.record):
        turn.note("artefacts_full", "the task has as many artefacts as the farm keeps: on_epoch_end runs no more", run)


def finish_epoch_end(turn: Turn, run: TaskRun, step: Step) -> None:
    """The client is done: training goes on."""
    close_look(turn, run, step)
    run.evidence = Evidence()
    turn.save(run.update(epochs_ended=run.record.epoch))


def give_up_epoch_end(turn: Turn, run: TaskRun, why: str) -> None:
    """Training goes on without this epoch's artefacts; a fault that was told already is not told again."""
    is_news = not was_told(run, why)
    turn.save(run.update(epochs_ended=run.record.epoch, epoch_end_error=why))
    if is_news:
        turn.note("epoch_end_given_up", f"epoch {run.record.epoch - 1} left no artefacts: {why}", run)


def was_told(run: TaskRun, why: str) -> bool:
    """Whether the newest end of an epoch that failed did so in the same place of the code."""
    before = run.record.epoch_end_error
    return before is not None and error_line(before) == error_line(why)

"""Evaluation: the held-out shards go to volunteers, the metrics come back as sample-weighted means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.early_stopping import evaluated
from coordinator.handing_out import works_on
from coordinator.in_flight import Home
from coordinator.planning import count_samples
from coordinator.records import SampleRange
from coordinator.rounds import close_look, mean_metrics, part_out, part_out_equally
from coordinator.state import ClientState, Step, TaskRun
from coordinator.turn import Turn
from protocol.assignments import Kind
from protocol.tasks import Split


def holdout_ranges(run: TaskRun) -> tuple[SampleRange, ...]:
    """Return all held-out rows, in stored order."""
    return tuple(SampleRange(s.index, 0, s.samples) for s in run.record.spec.dataset.of(Split.HOLDOUT))


def open_evaluation(turn: Turn, run: TaskRun, clients: Sequence[ClientState]) -> None:
    """Evaluate the newest version on these clients."""
    ranges = holdout_ranges(run)
    run.attempt += 1
    run.evaluate_next = False
    run.step = Step(
        kind=Kind.EVALUATE,
        number=run.record.version,
        attempt=run.attempt,
        epoch=run.record.epoch,
        opened_at=turn.now,
        parts=run.leases.open(Home(Kind.EVALUATE, run.record.version), count_samples(ranges)),
        policy=run.policy(Kind.EVALUATE),
        collect_since=turn.now,
    )
    run.update(served_at=turn.now)
    if run.policy(Kind.TRAIN).hands_out:  # most clients are at work: each has a part, those of the busy wait for them
        busy = works_on(run).difference(client.client_id for client in clients)
        part_out_equally(turn, run, clients, ranges, len(clients) + len(busy))
    else:
        part_out(turn, run, clients, ranges)


def finish_evaluation(turn: Turn, run: TaskRun, step: Step) -> None:
    """All parts are in: keep the means with the task and the checkpoint they belong to."""
    metrics, samples = mean_metrics(step.parts.delivered_records), step.parts.delivered_samples
    close_look(turn, run, step)
    run.checkpoint = replace(run.checkpoint, metrics=metrics)
    turn.save(run.checkpoint)
    judged = evaluated(replace(run.record, metrics=metrics))
    early = {"best_value": judged.best_value, "stale_evaluations": judged.stale_evaluations, "stopped": judged.stopped}
    turn.save(run.update(metrics=metrics, **early))
    turn.measure(run, step.number, "eval", metrics)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    turn.note("evaluated", f"version {step.number} on {samples} held-out samples: {shown}", run)


def give_up_evaluation(turn: Turn, run: TaskRun, why: str) -> None:
    """Training goes on without the metrics of this version."""
    run.evaluate_next = False
    turn.note("evaluation_given_up", f"version {run.record.version} was not evaluated: {why}", run)

"""Views for people: tasks, clients, scores, and what a task waits for. Read-only."""

from __future__ import annotations

from coordinator.durability import durable_record
from coordinator.eligibility import eligible
from coordinator.lifecycle import ACTIVE, TaskState
from coordinator.privacy import epsilon_spent
from coordinator.records import RoundState, TaskRecord
from coordinator.scoring import rank, reliability
from coordinator.secure_sum import standing
from coordinator.state import ClientState, Step, StepPhase, TaskRun
from coordinator.stopping import rounds_total
from coordinator.turn import Turn
from coordinator.verdict import Outlook, verdict
from protocol.rest import ClientScore, ClientView, Explanation, RoundView, TaskView
from protocol.tasks import Split
from protocol.wording import counted


def task_view(turn: Turn, run: TaskRun) -> TaskView:
    """Return one task as people see it."""
    step = run.step
    working = step is not None and step.policy.is_the_work
    return _task_view(
        durable_record(run),
        _state_line(turn, run),
        clients=len({lease.record.client_id for lease in step.parts.held.values()}) if step else 0,
        samples_in_progress=_samples_in_progress(step) if step and working else 0,
        samples_per_second=run.speed.value or 0.0,
    )


def ended_view(task: TaskRecord) -> TaskView:
    """Return one task as people see it that only the ledger has; its speed is the mean of all its time."""
    seconds = (task.finished_at or 0.0) - (task.started_at or task.created_at)
    speed = task.samples_done / seconds if seconds > 0 else 0.0
    return _task_view(task, ended_line(task), samples_per_second=speed)


def _task_view(
    task: TaskRecord, why: str, *, clients: int = 0, samples_in_progress: int = 0, samples_per_second: float
) -> TaskView:
    spec = task.spec
    return TaskView(
        task_id=task.task_id,
        name=spec.name,
        submitter=spec.submitter,
        topics=spec.topics,
        state=task.state,
        why=why,
        priority=task.priority,
        mode=spec.recipe.mode if spec.map is None else "map",
        round=task.version,
        rounds_total=max(rounds_total(spec), task.version) if spec.map is None else 0,
        epoch=task.epoch,
        clients=clients,
        samples_done=task.samples_done + samples_in_progress,
        samples_per_second=samples_per_second,
        items_total=None if spec.map is None else spec.dataset.samples(Split.TRAIN),
        loss=task.loss,
        metrics=dict(task.metrics),
        retries=task.retries,
        error=task.error,
        epsilon=epsilon_spent(spec.recipe, task.version),
        submitted_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
    )


def _samples_in_progress(step: Step) -> int:
    running = sum(lease.progress.samples_done for lease in step.parts.held.values() if lease.progress)
    return step.parts.delivered_samples + running


def open_round_view(run: TaskRun, now: float) -> RoundView | None:
    """Return the round that is open, if one is."""
    step = run.step
    if step is None or not step.policy.brings_updates:
        return None
    return RoundView(
        number=step.number,
        state=RoundState.OPEN,
        epoch=step.epoch,
        samples=step.samples,
        clients=len(step.parts.held) + len(step.parts.delivered),
        seconds=now - step.opened_at,
        loss=None,
        committed_at=None,
    )


def _state_line(turn: Turn, run: TaskRun) -> str:
    task, now = durable_record(run), turn.now
    match task.state:
        case TaskState.PENDING if reason := verdict(turn, run, Outlook(turn)).reason():
            return reason
        case TaskState.PENDING | TaskState.ASSIGNED | TaskState.RUNNING if run.step:
            return _step_line(run.step, now, task)
        case TaskState.PENDING | TaskState.ASSIGNED | TaskState.RUNNING:
            return verdict(turn, run, Outlook(turn)).reason() or task.reason
        case TaskState.PAUSED:
            place = f"round {task.version}" if task.spec.map is None else f"item {task.samples_done}"
            return f"{task.reason}; `farm resume {task.task_id}` continues it from {place}"
        case _:
            return ended_line(task)


def ended_line(task: TaskRecord) -> str:
    """Say in one line how a task ended, and what may be done."""
    if task.state is not TaskState.FAILED:
        return task.reason
    return f"{task.error}; `farm logs {task.task_id}` shows more, `farm retry {task.task_id}` tries again"


def _step_line(step: Step, now: float, task: TaskRecord) -> str:
    name = step.policy.title(step.number)
    if step.policy.brings_outputs:
        clients = len({lease.record.client_id for lease in step.parts.held.values()})
        return (
            f"{name}: {task.samples_done} of {counted(step.samples, 'item')} done, {counted(clients, 'client')} at work"
        )
    if step.phase is StepPhase.COMMIT:
        return f"{name}: writing the checkpoint"
    parts = len(step.parts.held) + len(step.parts.waiting) + len(step.parts.delivered)
    doing = f"{len(step.parts.delivered)} of {parts} parts delivered"
    if step.secure is not None:
        doing = standing(step.secure, step.parts)
    line = f"{name}: {doing} after {now - step.opened_at:.1f} s"
    return f"{line}; {len(step.parts.waiting)} wait for a free client" if step.parts.waiting else line


def why(turn: Turn, run: TaskRun) -> str:
    """Return in one line what the task waits for; for an open step, who holds which part and how far it is."""
    line = _state_line(turn, run)
    if turn.farm.server_lacks is not None and run.record.state in ACTIVE:
        line = f"{line}; it waits for the server: {turn.farm.server_lacks}"
    if run.step is None or not run.step.parts.held:
        return line
    holders = []
    for lease in run.step.parts.held.values():
        name = turn.farm.clients[lease.record.client_id].record.name
        if lease.progress is None:
            holders.append(f"{name} ({lease.record.state})")
        else:
            share = lease.progress.samples_done / lease.record.samples
            holders.append(f"{name} ({lease.progress.phase}, {share:.0%})")
    return f"{line}; waits for {', '.join(holders)}"


def client_view(client: ClientState, now: float) -> ClientView:
    """Return one client as people see it."""
    state, reason = _client_state(client, now)
    record = client.record
    breaker = client.breaker.state(now)
    return ClientView(
        client_id=record.client_id,
        name=record.name,
        state=state,
        reason=reason,
        resources=record.resources,
        load=client.load,
        link=client.link,
        tags=record.tags,
        sandbox=record.sandbox,
        slots=client.slots,
        assignments=len(client.held),
        delivered=record.delivered,
        failed=record.failed,
        reliability=reliability(record.delivered, record.failed),
        breaker=breaker,
        samples_per_second={task_id: m.value for task_id, m in client.speeds.items() if m.value is not None},
        incarnation=record.incarnation,
        last_seen=client.last_beat or record.last_seen,
    )


def _client_state(client: ClientState, now: float) -> tuple[str, str]:
    if not client.online:
        return "offline", client.offline_reason
    if client.draining:
        return "draining", "finishes what it holds and leaves"
    if client.throttled:
        return "paused", "it sends more than a connection may"
    if client.paused is not None:
        return "paused", client.paused
    verdict = client.breaker.allows(now, 0)
    if not verdict.value:
        return "online", verdict.reason
    held = len(client.held)
    return "online", f"works on {held} assignment{'s' if held > 1 else ''}" if held else "is free"


def explain(turn: Turn, run: TaskRun) -> Explanation:
    """Return every known client's standing for the task: best first, the left-out ones last, with the reason."""
    verdicts = {c.client_id: eligible(c, run, turn.now) for c in turn.farm.clients.values()}
    scores = [
        ClientScore(
            client_id=client.client_id,
            name=client.record.name,
            eligible=True,
            reason="works on it" if client.held else "could work on it",
            score=score,
            terms=terms,
        )
        for score, client, terms in rank(run, [c for c in turn.farm.clients.values() if verdicts[c.client_id].value])
    ]
    for client in sorted(turn.farm.clients.values(), key=lambda c: c.record.name):
        verdict = verdicts[client.client_id]
        if not verdict.value:
            scores.append(
                ClientScore(
                    client_id=client.client_id,
                    name=client.record.name,
                    eligible=False,
                    reason=verdict.reason,
                    score=0.0,
                )
            )
    return Explanation(task_id=run.task_id, why=why(turn, run), clients=tuple(scores))

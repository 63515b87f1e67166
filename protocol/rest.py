"""The JSON bodies of the HTTP API, shared by the server and the `farm` CLI. Times are Unix seconds (UTC)."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from protocol.frozen import Frozen
from protocol.resources import Load, Resources
from protocol.tasks import TaskSpec


class ErrorBody(Frozen):
    """Every error answer: ``code`` is one of ``protocol.errors``, ``message`` says what to do next."""

    code: str
    message: str


class FarmView(Frozen):
    """GET /v1/farm."""

    name: str
    version: str
    clients_online: int
    tasks_active: int
    inline_bytes: int
    started_at: float
    problem: str | None = None
    """Why it can take no new work now (a full disk, a ledger that can't be written, a shutdown), if so."""


class TaskView(Frozen):
    """One task as people see it. ``round`` counts committed rounds; ``rounds_total`` is known in advance."""

    task_id: str
    name: str
    submitter: str
    state: str
    why: str
    priority: int
    mode: str
    round: int
    rounds_total: int
    epoch: int
    clients: int
    """Clients that hold an assignment of it now."""
    samples_done: int
    samples_per_second: float
    loss: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """The newest evaluation's metrics."""
    retries: int = 0
    error: str | None = None
    submitted_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None


class SubmitReply(Frozen):
    """POST /v1/tasks (body: TaskSpec). ``created`` is false when the submit token was seen before."""

    task: TaskView
    created: bool


class TaskDetail(Frozen):
    """GET /v1/tasks/{id}."""

    task: TaskView
    spec: TaskSpec
    rounds: tuple[RoundView, ...]
    """The newest 50, newest first."""


class RoundView(Frozen):
    """One round of a task."""

    number: int
    state: str
    epoch: int
    samples: int
    clients: int
    seconds: float | None
    loss: float | None
    metrics: dict[str, float] = Field(default_factory=dict)
    committed_at: float | None


class CheckpointView(Frozen):
    """GET /v1/tasks/{id}/checkpoints, one each, oldest first. ``round`` counts the committed rounds it contains."""

    task_id: str
    round: int
    epoch: int
    digest: str
    size_bytes: int
    created_at: float
    metrics: dict[str, float] = Field(default_factory=dict)
    newest: bool = False


class ClientView(Frozen):
    """GET /v1/clients, one each. ``state`` is online, draining, paused or offline."""

    client_id: str
    name: str
    state: str
    reason: str
    resources: Resources
    load: Load
    tags: tuple[str, ...] = ()
    slots: int
    assignments: int
    delivered: int
    failed: int
    reliability: float
    breaker: str = "closed"
    """closed, open (it failed again and again: no work until the reason's time) or half-open (one probe is out)."""
    samples_per_second: dict[str, float] = Field(default_factory=dict)
    """By task id."""
    incarnation: int
    last_seen: float


class WhyView(Frozen):
    """GET /v1/tasks/{id}/why: what the task waits for, in one line."""

    why: str


class ScoreTerm(Frozen):
    """One term of a score: ``value`` from 0 to 1 times ``weight`` is its ``contribution``."""

    name: str
    value: float
    weight: float
    contribution: float
    detail: str


class ClientScore(Frozen):
    """One client's standing for one task: a score with its terms, or why it was filtered out."""

    client_id: str
    name: str
    eligible: bool
    reason: str
    score: float
    terms: tuple[ScoreTerm, ...] = ()


class Explanation(Frozen):
    """GET /v1/tasks/{id}/explain: every known client, best first, the filtered-out ones last."""

    task_id: str
    why: str
    clients: tuple[ClientScore, ...]


class EventView(Frozen):
    """GET /v1/tasks/{id}/events?after=SEQ&wait=SECONDS&limit=N: what happened, oldest first."""

    seq: int
    at: float
    task_id: str | None
    kind: str
    message: str
    client_id: str | None = None
    round: int | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class LogView(Frozen):
    """GET /v1/tasks/{id}/logs?after=SEQ&wait=SECONDS&limit=N: the researcher's own output, by client."""

    seq: int
    at: float
    client_id: str
    client_name: str
    round: int
    stream: str
    text: str


class MetricView(Frozen):
    """GET /v1/tasks/{id}/metrics?after=SEQ&wait=SECONDS&limit=N.

    ``source`` is ``train`` (the round's mean), ``eval`` (the held-out mean) or ``client`` (from ``log(...)``).
    A value that is no number in JSON is the text "NaN", "Infinity" or "-Infinity".
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    seq: int
    at: float
    round: int
    step: int
    name: str
    value: float
    source: str
    client_id: str | None = None


class ShardBook(Frozen):
    """GET /v1/tasks/{id}/shards: how often each sample of a shard was counted in an epoch.

    The books balance when every shard of a finished epoch has ``counted_samples == samples`` and no ``repeated``.
    """

    epoch: int
    shard: int
    samples: int
    counted_samples: int
    repeated_samples: int


class ModelView(Frozen):
    """GET /v1/tasks/{id}/model[?round=N]: the checkpoint to pull; fetch ``digest`` from /v1/blobs."""

    task_id: str
    round: int
    digest: str
    size_bytes: int
    metrics: dict[str, float] = Field(default_factory=dict)
    state: str


TaskDetail.model_rebuild()

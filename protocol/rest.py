"""The JSON bodies of the HTTP API, shared by the server and the `farm` CLI. Times are Unix seconds (UTC)."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from protocol.bounds import Code, LongText, Measured
from protocol.failed_steps import FailedStepView
from protocol.frozen import Frozen
from protocol.resources import LinkFigures, Load, Resources
from protocol.sandbox import Sandbox
from protocol.tasks import BlobRef, TaskSpec


class View(Frozen):
    """The base of the API's views. A float that JSON has no number for is the text "NaN", "Infinity" or "-Infinity"."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class ErrorBody(Frozen):
    """Every error answer: ``code`` is one of ``protocol.errors``, ``message`` says what to do next."""

    code: Code
    message: LongText


class WireTraffic(Frozen):
    """What went over the WebSockets of all clients in one direction, since the server's start.

    A message that shared its frame with others counts as batched, one that had a frame of its own as solo.
    """

    bytes: int = 0
    frames: int = 0
    solo_messages: int = 0
    batched_messages: int = 0


class PaceView(View):
    """How often clients beat and report now, after how long a silent one is lost, and why.

    ``idle_heartbeat_seconds``: how often those without work do; None from a server that knows no difference.
    """

    heartbeat_seconds: float
    progress_seconds: float
    lost_after_seconds: float
    idle_heartbeat_seconds: float | None = None
    reason: str


class FarmView(View):
    """GET /v1/farm."""

    name: str
    version: str
    clients_online: int
    tasks_active: int
    inline_bytes: int
    features: tuple[str, ...] = ()
    """What the server knows of ``protocol.features``; one that says nothing is older than all of them."""
    started_at: float
    problem: str | None = None
    """Why it can take no new work now (a full disk, a ledger that can't be written, a shutdown), if so."""
    uploads_open: int = 0
    """Uploads that hold one of the credits now."""
    uploads_waiting: int = 0
    """Uploads that wait for one."""
    pace: PaceView | None = None
    received: WireTraffic = WireTraffic()
    sent: WireTraffic = WireTraffic()


class TaskView(View):
    """One task as people see it. ``round`` counts committed rounds; ``rounds_total`` is known in advance."""

    task_id: str
    name: str
    submitter: str
    topics: tuple[str, ...] = ()
    """What it is about, in the submitter's words."""
    state: str
    why: LongText
    priority: int
    mode: str
    round: int
    rounds_total: int
    epoch: int
    clients: int
    """Clients that hold an assignment of it now."""
    samples_done: int
    samples_per_second: float
    items_total: int | None = None
    """Of a map, whose ``mode`` is ``map``: how many items it has; ``samples_done`` of them have an output."""
    loss: float | None = None
    metrics: dict[str, Measured] = Field(default_factory=dict)
    """The newest evaluation's metrics."""
    retries: int = 0
    error: LongText | None = None
    epsilon: float | None = None
    """The privacy loss of its newest version, at the recipe's ``dp_delta``; None where it is not private."""
    submitted_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None


class TaskRoom(View):
    """What one task takes on the server: bytes of the blobs that it names, and rows of its history."""

    task_id: str
    name: str
    state: str
    blob_bytes: int
    rows: int


class RoomView(View):
    """GET /v1/room: what takes the server's disk. A blob that two tasks name counts for both."""

    free_bytes: int
    ledger_bytes: int
    policy: str
    """What is kept of tasks, and for how long, in a sentence."""
    tasks: tuple[TaskRoom, ...]
    """The largest 100, the largest first."""


class CollectedView(View):
    """POST /v1/gc?dry_run=BOOL: what was removed, or would be: blobs that nothing needs, and rows of histories."""

    dry_run: bool
    blobs: int
    bytes: int
    rows: int


class RemovedView(View):
    """DELETE /v1/tasks/{id}?force=BOOL: the task is gone; blobs that only it needed follow within a minute."""

    task_id: str
    removed: bool = True


class RemovedClientView(View):
    """DELETE /v1/clients/{id}?force=BOOL: the client is forgotten; if it joins again, it is a newcomer."""

    client_id: str
    removed: bool = True


class PriorityRequest(Frozen):
    """PUT /v1/tasks/{id}/priority: 9 is served first."""

    priority: int = Field(ge=0, le=9)


class SubmitReply(View):
    """POST /v1/tasks (body: TaskSpec). ``created`` is false when the submit token was seen before."""

    task: TaskView
    created: bool


class RoundView(View):
    """One round of a task."""

    number: int
    state: str
    epoch: int
    samples: int
    clients: int
    seconds: float | None
    loss: float | None
    metrics: dict[str, Measured] = Field(default_factory=dict)
    committed_at: float | None


class TaskDetail(View):
    """GET /v1/tasks/{id}. The newest 50 rounds, newest first; ``failed_steps``: None from a farm that keeps none."""

    task: TaskView
    spec: TaskSpec
    rounds: tuple[RoundView, ...]
    failed_steps: tuple[FailedStepView, ...] | None = None


class CheckpointView(View):
    """GET /v1/tasks/{id}/checkpoints, one each, oldest first. ``round`` counts the committed rounds it contains."""

    task_id: str
    round: int
    epoch: int
    digest: str
    size_bytes: int
    frozen: BlobRef | None = None
    """The file of the task's frozen tensors, where the checkpoint is without them."""
    created_at: float
    metrics: dict[str, Measured] = Field(default_factory=dict)
    newest: bool = False


class ClientView(View):
    """GET /v1/clients, one each. ``state`` is online, draining, paused or offline."""

    client_id: str
    name: str
    state: str
    reason: str
    resources: Resources
    load: Load
    link: LinkFigures = LinkFigures()
    tags: tuple[str, ...] = ()
    sandbox: Sandbox | None = None
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


class LinksView(View):
    """GET /v1/links: the farm's links to the clients that can take work now, as the clients measure them.

    Each figure is that of the client at its slowest tenth, for a round of an exact gradient needs every client in it;
    0 where none has measured it. ``round_trips`` and ``speeds`` count the clients that measured a round trip, and a
    speed in either direction.
    """

    clients: int
    round_trips: int
    speeds: int
    round_trip_seconds: float
    download_bytes_per_second: float
    upload_bytes_per_second: float


class WhyView(View):
    """GET /v1/tasks/{id}/why: what the task waits for, in one line."""

    why: str


class ScoreTerm(View):
    """One term of a score: ``value`` from 0 to 1 times ``weight`` is its ``contribution``."""

    name: str
    value: float
    weight: float
    contribution: float
    detail: str


class ClientScore(View):
    """One client's standing for one task: a score with its terms, or why it was filtered out."""

    client_id: str
    name: str
    eligible: bool
    reason: str
    score: float
    terms: tuple[ScoreTerm, ...] = ()


class Explanation(View):
    """GET /v1/tasks/{id}/explain: every known client, best first, the filtered-out ones last."""

    task_id: str
    why: str
    clients: tuple[ClientScore, ...]


class EventView(View):
    """GET /v1/tasks/{id}/events?after=SEQ&wait=SECONDS&limit=N: what happened, oldest first."""

    seq: int
    at: float
    task_id: str | None
    kind: str
    message: str
    client_id: str | None = None
    round: int | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class LogView(View):
    """GET /v1/tasks/{id}/logs?after=SEQ&wait=SECONDS&limit=N: the researcher's own output, by client."""

    seq: int
    at: float
    client_id: str
    client_name: str
    round: int
    stream: str
    text: str


class MetricView(View):
    """GET /v1/tasks/{id}/metrics?after=SEQ&wait=SECONDS&limit=N.

    ``source`` is ``train`` (the round's mean), ``eval`` (the held-out mean) or ``client`` (from ``log(...)``).
    """

    seq: int
    at: float
    round: int
    step: int
    name: str
    value: Measured
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


class ModelView(View):
    """GET /v1/tasks/{id}/model[?round=N]: the checkpoint to pull; fetch ``digest`` from /v1/blobs."""

    task_id: str
    round: int
    digest: str
    size_bytes: int
    frozen: BlobRef | None = None
    """The file of the task's frozen tensors, where the checkpoint is without them."""
    metrics: dict[str, Measured] = Field(default_factory=dict)
    state: str

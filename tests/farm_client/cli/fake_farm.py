"""A farm that answers from memory, so that verbs can be tested without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from pydantic import BaseModel

from protocol.artefacts import ArtefactList
from protocol.digests import digest_bytes
from protocol.failed_steps import FailedStepView
from protocol.features import FEATURES
from protocol.maps import OutputList
from protocol.ranges import ByteRanges, ContentRange
from protocol.recipe import Recipe
from protocol.resources import Load, Resources
from protocol.rest import (
    CheckpointView,
    ClientScore,
    ClientView,
    EventView,
    Explanation,
    FarmView,
    LogView,
    MetricView,
    ModelView,
    RemovedClientView,
    RemovedView,
    RoundView,
    ScoreTerm,
    ShardBook,
    SubmitReply,
    TaskDetail,
    TaskView,
)
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState
from protocol.tasks import BlobRef, Dataset, Shard, TaskSpec

TOKEN = "t0ken"
ADDRESS = f"http://{TOKEN}@farm.test:8470"
A_BLOB = BlobRef(digest="0" * 64, size_bytes=1)


def make_task(task_id: str = "abcd2345", **changes: object) -> TaskView:
    """Return a task that runs, round 3 of 20."""
    view = TaskView(
        task_id=task_id,
        name="digits",
        submitter="ada@lab",
        state="running",
        why="round 3 is with 2 clients",
        priority=5,
        mode="weights",
        round=3,
        rounds_total=20,
        epoch=2,
        clients=2,
        samples_done=4314,
        samples_per_second=1234.5,
        loss=0.4123,
        metrics={"accuracy": 0.9312},
        submitted_at=1_700_000_000.0,
        started_at=1_700_000_001.0,
    )
    return view.model_copy(update=changes)


def make_spec(recipe: Recipe | None = None) -> TaskSpec:
    """Return the spec of every task of the fake farm."""
    shards = (Shard(index=0, samples=100, blob=A_BLOB),)
    dataset = Dataset(kind="files", shards=shards)
    return TaskSpec(
        name="digits",
        code=A_BLOB,
        config={"lr": 0.1},
        dataset=dataset,
        initial_weights=A_BLOB,
        recipe=recipe or Recipe(rounds=20),
    )


def make_checkpoint(round_number: int, **changes: object) -> CheckpointView:
    """Return a checkpoint of the task that ``make_task`` makes."""
    view = CheckpointView(
        task_id="abcd2345",
        round=round_number,
        epoch=round_number // 2,
        digest="f" * 64,
        size_bytes=2048,
        created_at=1_700_000_000.0,
        metrics={"accuracy": 0.9},
    )
    return view.model_copy(update=changes)


def make_client(name: str = "laptop", **changes: object) -> ClientView:
    """Return a client that holds one assignment."""
    view = ClientView(
        client_id=f"id-{name}",
        name=name,
        state="online",
        reason="",
        resources=Resources(cpu_cores=4, ram_bytes=16 * 2**30),
        load=Load(cpu=0.5),
        slots=1,
        assignments=1,
        delivered=7,
        failed=0,
        reliability=1.0,
        samples_per_second={"abcd2345": 600.0},
        incarnation=1,
        last_seen=1_700_000_002.0,
    )
    return view.model_copy(update=changes)


@dataclass
class FakeFarm:
    """What the fake farm answers; tests change the fields, or add an answer to ``overrides`` by method and path."""

    tasks: list[TaskView] = field(default_factory=lambda: [make_task()])
    clients: list[ClientView] = field(default_factory=lambda: [make_client()])
    events: list[EventView] = field(default_factory=list)
    logs: list[LogView] = field(default_factory=list)
    metrics: list[MetricView] = field(default_factory=list)
    shards: list[ShardBook] = field(default_factory=list)
    recipe: Recipe | None = None
    spec: TaskSpec | None = None
    features: tuple[str, ...] = tuple(FEATURES)
    checkpoints: list[CheckpointView] = field(default_factory=list)
    failed_steps: tuple[FailedStepView, ...] | None = None
    artefacts: ArtefactList | None = None
    outputs: OutputList | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    arrived: dict[str, tuple[bytearray, ByteRanges]] = field(default_factory=dict)
    upload_waits: list[str] = field(default_factory=list)
    model_digest: str = "f" * 64
    submitted: list[TaskSpec] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    overrides: dict[tuple[str, str], Callable[[], httpx.Response]] = field(default_factory=dict)

    def transport(self) -> httpx.MockTransport:
        """Return what replaces the network."""
        return httpx.MockTransport(self.answer)

    def sent(self) -> list[str]:
        """List the requests so far, as ``METHOD /path``."""
        return [f"{request.method} {request.url.path}" for request in self.requests]

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request as a farm would."""
        self.requests.append(request)
        path = request.url.path
        if (request.method, path) in self.overrides:
            return self.overrides[request.method, path]()
        if request.headers.get("authorization") != f"Bearer {TOKEN}" and path != "/":
            return problem(401, "unauthorized", "wrong token")
        match path.strip("/").split("/"):
            case ["v1", "farm"]:
                farm = FarmView(
                    name="barn", version="0.1.0", clients_online=1, tasks_active=1, inline_bytes=1, started_at=0,
                    features=self.features,
                )  # fmt: skip
                return answer(farm)
            case ["v1", "clients", *rest]:
                return self._clients_answer(request, rest)
            case ["v1", "tasks"] if request.method == "POST":
                self.submitted.append(TaskSpec.model_validate_json(request.content))
                return answer(SubmitReply(task=self.tasks[0], created=True))
            case ["v1", "tasks"]:
                newest_first = sorted(self.tasks, key=lambda task: -task.submitted_at)
                return answer(newest_first[: int(request.url.params.get("limit", 1000))])
            case ["v1", "tasks", task_id, *rest]:
                return self._task_answer(request, task_id, rest)
            case ["v1", "blobs", digest]:
                return self._blob_answer(request, digest)
            case ["v1", "blobs", digest, "upload"]:
                return self._upload_answer(digest, UploadRequest.model_validate_json(request.content))
        return problem(404, "not_found", f"no {path}")

    def _task_answer(self, request: httpx.Request, task_id: str, rest: list[str]) -> httpx.Response:
        task = next((task for task in self.tasks if task.task_id == task_id), None)
        if task is None:
            return problem(404, "not_found", f"no task {task_id}")
        match rest:
            case [] if request.method == "DELETE":
                return self._removal_answer(request, task)
            case []:
                rounds = (
                    RoundView(
                        number=2, state="committed", epoch=1, samples=1438, clients=2, seconds=0.5, loss=0.41,
                        metrics={"accuracy": 0.93}, committed_at=1.0,
                    ),
                )  # fmt: skip
                spec = self.spec or make_spec(self.recipe)
                return answer(TaskDetail(task=task, spec=spec, rounds=rounds, failed_steps=self.failed_steps))
            case ["pause" | "resume" | "cancel" | "retry" | "priority" as action]:
                changed = json.loads(request.content) if action == "priority" else {"state": f"{action}d"}
                return answer(task.model_copy(update=changed))
            case ["why"]:
                return httpx.Response(200, json={"why": task.why})
            case ["explain"]:
                return answer(make_explanation(task_id))
            case ["shards" | "checkpoints" | "artefacts" | "outputs" as records]:
                kept = self.artefacts or ArtefactList(task_id=task_id)
                lists = {"shards": self.shards, "checkpoints": self.checkpoints, "artefacts": kept}
                empty = OutputList(task_id=task_id, items=0, is_over=True)
                return answer({**lists, "outputs": self.outputs or empty}[records])
            case ["model"]:
                return self._model_answer(task, int(request.url.params.get("round", task.round)))
            case ["events" | "logs" | "metrics" as feed]:
                after, limit = int(request.url.params["after"]), int(request.url.params["limit"])
                entries = {"events": self.events, "logs": self.logs, "metrics": self.metrics}[feed]
                return answer([entry for entry in entries if entry.seq > after][:limit])
        return problem(404, "not_found", "no such question")

    def _removal_answer(self, request: httpx.Request, task: TaskView) -> httpx.Response:
        if task.state == "running" and request.url.params.get("force") != "true":
            return problem(409, "conflict", "only one that is over can be removed")
        self.tasks.remove(task)
        return answer(RemovedView(task_id=task.task_id))

    def _clients_answer(self, request: httpx.Request, rest: list[str]) -> httpx.Response:
        if not rest:
            return answer(self.clients)
        (client,) = (client for client in self.clients if client.client_id == "/".join(rest))
        if client.state != "offline" and request.url.params.get("force") != "true":
            return problem(409, "conflict", "it is connected: give --force")
        self.clients.remove(client)
        return answer(RemovedClientView(client_id=client.client_id))

    def _model_answer(self, task: TaskView, number: int) -> httpx.Response:
        if self.checkpoints and number not in {checkpoint.round for checkpoint in self.checkpoints}:
            return problem(404, "not_found", "there is no such checkpoint")
        size = len(self.blobs.get(self.model_digest, b"x"))
        return answer(
            ModelView(task_id=task.task_id, round=number, digest=self.model_digest, size_bytes=size, state=task.state)
        )

    def _blob_answer(self, request: httpx.Request, digest: str) -> httpx.Response:
        if request.method == "PUT":
            data = request.read()
            if digest_bytes(data) != digest:
                return problem(422, "digest_mismatch", "the bytes do not hash to their name")
            self.blobs[digest] = data
            return httpx.Response(201)
        if request.method == "PATCH":
            return self._part_answer(request, digest)
        if digest not in self.blobs:
            return problem(404, "not_found", "no such blob")
        return self._download_answer(request, self.blobs[digest])

    def _download_answer(self, request: httpx.Request, data: bytes) -> httpx.Response:
        if "range" not in request.headers:
            return streamed(200, data)
        first, last = (int(number) for number in request.headers["range"].removeprefix("bytes=").split("-"))
        place = ContentRange(first, last + 1, len(data))
        return streamed(206, data[first : last + 1], {"content-range": str(place)})

    def _upload_answer(self, digest: str, asked: UploadRequest) -> httpx.Response:
        if digest in self.blobs:
            return answer(UploadReply(state=UploadState.STORED))
        if self.upload_waits:
            reason = self.upload_waits.pop(0)
            return answer(UploadReply(state=UploadState.WAIT, ahead=1, reason=reason, retry_seconds=0.0))
        data, here = self.arrived.setdefault(digest, (bytearray(asked.size_bytes), ByteRanges()))
        missing = tuple(here.missing(len(data)))
        return answer(UploadReply(state=UploadState.GO, missing=missing, part_bytes=2**20, parallel=2))

    def _part_answer(self, request: httpx.Request, digest: str) -> httpx.Response:
        place = ContentRange.parse(request.headers["content-range"])
        data, here = self.arrived[digest]
        data[place.start : place.end] = request.content
        here.add(place.start, place.end)
        if here.prefix_bytes < len(data):
            return httpx.Response(204)
        del self.arrived[digest]
        if digest_bytes(data) != digest:
            return problem(422, "digest_mismatch", "the bytes do not hash to their name")
        self.blobs[digest] = bytes(data)
        return httpx.Response(201)


def answer(body: BaseModel | list) -> httpx.Response:
    """Return records as a JSON answer."""
    plain = body.model_dump(mode="json") if isinstance(body, BaseModel) else [b.model_dump(mode="json") for b in body]
    return httpx.Response(200, content=json.dumps(plain))


def streamed(status: int, data: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return bytes as an answer that is not read yet, as one from a network."""
    length = {"content-length": str(len(data))}
    return httpx.Response(status, stream=httpx.ByteStream(data), headers=length | (headers or {}))


def problem(status: int, code: str, message: str) -> httpx.Response:
    """Return an error answer."""
    return httpx.Response(status, json={"code": code, "message": message})


def make_explanation(task_id: str) -> Explanation:
    """Return one eligible client with two terms, and one that was filtered out."""
    terms = (
        ScoreTerm(name="throughput", value=0.8, weight=0.5, contribution=0.4, detail="600 samples/s"),
        ScoreTerm(name="free_memory", value=0.5, weight=0.2, contribution=0.1, detail="8 GiB"),
    )
    best = ClientScore(client_id="a", name="laptop", eligible=True, reason="", score=0.5, terms=terms)
    small = ClientScore(client_id="b", name="phone", eligible=False, reason="needs 8.0 GiB of memory", score=0)
    return Explanation(task_id=task_id, why="running on 1 client", clients=(best, small))

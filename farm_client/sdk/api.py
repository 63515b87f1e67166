"""The farm's HTTP API as typed calls: ``protocol.rest`` records come back, ``FarmError`` is raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, Self, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from farm_client.sdk.answers import explaining, parse, raise_for_error
from farm_client.sdk.config import FarmAddress
from farm_client.sdk.retrying import RetryWhileAway
from farm_client.sdk.tidy import tidied
from farm_client.transfer.answers import client_options, read_answer
from farm_client.transfer.bulk_transport import BulkTransport
from protocol.artefacts import ArtefactList
from protocol.certificate import from_file, to_file
from protocol.errors import NotFound
from protocol.maps import OutputList
from protocol.rest import (
    CheckpointView,
    ClientView,
    EventView,
    Explanation,
    FarmView,
    LinksView,
    LogView,
    MetricView,
    ModelView,
    PriorityRequest,
    RemovedClientView,
    RemovedView,
    ShardBook,
    SubmitReply,
    TaskDetail,
    TaskView,
)
from protocol.rest_credit import CertificateKeyView, LeaderboardView
from protocol.tasks import TaskSpec

Action = Literal["pause", "resume", "cancel", "retry"]
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 60.0
"""How long the farm may take to begin an answer; a long-poll's wait comes on top."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Far more than the books of the largest task."""


class FarmApi:
    """A farm's HTTP API. Use as a context manager, or call ``close``; safe to share between threads.

    Every call raises: the FarmError that the farm answered; FarmUnreachable if it answered none; Unauthorized.
    ``tidy``: the texts of what comes back are made fit to be shown (see ``sdk.tidy``). ``retry``: what only reads,
    and transfers, bear a farm that is away for so long. ``transport`` replaces the network in tests.
    Making one raises: BadProxy.
    """

    def __init__(
        self,
        address: FarmAddress,
        transport: httpx.MockTransport | None = None,
        *,
        tidy: bool = False,
        retry: RetryWhileAway | None = None,
    ) -> None:
        self.address = address
        self.retry = retry or RetryWhileAway()
        self._tidy = tidy
        self._options = client_options(address.url, address.headers) | {"transport": transport}
        if transport is not None:
            self._options["proxy"] = None
        self._http = httpx.Client(**self._options, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def farm(self) -> FarmView:
        """Return what the farm says of itself."""
        return self._get("/v1/farm", FarmView)

    def submit(self, spec: TaskSpec) -> SubmitReply:
        """Submit a task whose blobs are uploaded."""
        response = self._request("POST", "/v1/tasks", json=spec.model_dump(mode="json"))
        return self._parsed(TypeAdapter(SubmitReply), response)

    def tasks(self) -> list[TaskView]:
        """List all tasks, newest first."""
        return list(self.each_task())

    def each_task(self, page: int | None = None) -> Iterator[TaskView]:
        """Iterate over all tasks, newest first; what nobody asks for is not fetched.

        ``page``: how many come in one answer, from 1 to 1,000; None leaves that to the farm. A farm that knows of no
        pages gives all at once.
        """
        adapter = TypeAdapter(list[TaskView])
        query: dict[str, str] | None = {} if page is None else {"limit": str(page)}
        while query is not None:
            response, tasks = self.retry.call(partial(self._page, adapter, query))
            yield from tasks
            link = response.links.get("next", {}).get("url")
            query = dict(httpx.URL(link).params) if link else None

    def _page(self, adapter: TypeAdapter[T], query: dict[str, str]) -> tuple[httpx.Response, T]:
        response = self._request("GET", "/v1/tasks", params=query)
        return response, self._parsed(adapter, response)

    def active_tasks(self) -> list[TaskView]:
        """List the tasks that may still train, newest first. A farm of before may give others, too."""
        return self._read(TypeAdapter(list[TaskView]), "/v1/tasks", params={"active": "true"})

    def task(self, task_id: str) -> TaskDetail:
        """Return one task with its spec and newest rounds."""
        return self._get(f"/v1/tasks/{task_id}", TaskDetail)

    def spec(self, task_id: str) -> TaskSpec:
        """Return what was submitted, to the letter: for a program, not for the screen."""
        answer = self.retry.call(lambda: self._request("GET", f"/v1/tasks/{task_id}"))
        return parse(TypeAdapter(TaskDetail), answer, self.address).spec

    def act(self, task_id: str, action: Action) -> TaskView:
        """Ask for a change of the task's state. Raises: Conflict where its state forbids it."""
        return self._parsed(TypeAdapter(TaskView), self._request("POST", f"/v1/tasks/{task_id}/{action}"))

    def remove(self, task_id: str, *, force: bool = False) -> RemovedView:
        """Remove a task and all that is recorded of it. Raises: Conflict if it is not over, unless ``force``."""
        query = {"force": "true"} if force else {}
        response = self._request("DELETE", f"/v1/tasks/{task_id}", params=query)
        return self._parsed(TypeAdapter(RemovedView), response)

    def prioritize(self, task_id: str, priority: int) -> TaskView:
        """Give the task another priority, from 0 to 9. Raises: Conflict if it is completed or cancelled."""
        request = PriorityRequest(priority=priority)
        response = self._request("PUT", f"/v1/tasks/{task_id}/priority", json=request.model_dump())
        return self._parsed(TypeAdapter(TaskView), response)

    def why(self, task_id: str) -> str:
        """Return in one line what the task waits for."""
        answer = self._read(TypeAdapter(dict[str, str]), f"/v1/tasks/{task_id}/why")
        return answer.get("why", "")

    def explain(self, task_id: str) -> Explanation:
        """Return every client's score for the task."""
        return self._get(f"/v1/tasks/{task_id}/explain", Explanation)

    def shards(self, task_id: str) -> list[ShardBook]:
        """Return how often each sample was counted, by epoch and shard."""
        return self._list(f"/v1/tasks/{task_id}/shards", ShardBook)

    def model(self, task_id: str, round_number: int | None = None) -> ModelView:
        """Return which checkpoint to pull: the newest, or the one after ``round_number`` rounds."""
        query = {} if round_number is None else {"round": round_number}
        return self._get(f"/v1/tasks/{task_id}/model", ModelView, query)

    def checkpoints(self, task_id: str) -> list[CheckpointView]:
        """List the checkpoints that the task keeps, oldest first."""
        return self._list(f"/v1/tasks/{task_id}/checkpoints", CheckpointView)

    def artefacts(self, task_id: str) -> ArtefactList:
        """List the files that the ends of the task's epochs left. Raises: NotFound also from an older farm."""
        return self._get(f"/v1/tasks/{task_id}/artefacts", ArtefactList)

    def outputs(self, task_id: str, start: int = 0) -> OutputList:
        """List outputs of a map from an item on, without a gap. Raises: NotFound also from an older farm."""
        return self._get(f"/v1/tasks/{task_id}/outputs", OutputList, {"start": start})

    def clients(self) -> list[ClientView]:
        """List the known volunteer machines."""
        return self._list("/v1/clients", ClientView)

    def leaderboard(
        self, by: str = "client", *, since_days: int | None = None, task_id: str | None = None, limit: int = 100
    ) -> LeaderboardView:
        """Return whose work counts most: the first ``limit`` (1 to 1,000) clients, teams or tasks."""
        query: dict[str, str | int | None] = {"by": by, "since_days": since_days, "task": task_id, "limit": limit}
        given = {name: value for name, value in query.items() if value is not None}
        return self._read(TypeAdapter(LeaderboardView), "/v1/leaderboard", params=given)

    def certificate(self, kind: str, subject: str) -> bytes:
        """Return the file of a client's or a team's certificate (``kind``), as the farm made it. Raises: NotFound."""
        name = quote(subject, safe="").replace(".", "%2E")
        response = self.retry.call(lambda: self._request("GET", f"/v1/certificates/{kind}s/{name}"))
        raise_for_error(response, self.address)
        return to_file(from_file(response.content))

    def certificate_key(self) -> str:
        """Return the public key that the farm's certificates are signed with."""
        return self._get("/v1/keys/certificate", CertificateKeyView).public_key

    def links(self) -> LinksView | None:
        """Return what the clients measured of their links; None from a farm that is older than this route."""
        try:
            return self._get("/v1/links", LinksView)
        except NotFound:
            return None

    def remove_client(self, client_id: str, *, force: bool = False) -> RemovedClientView:
        """Let the farm forget a client. Raises: Conflict if it is connected, unless ``force``."""
        query = {"force": "true"} if force else {}
        # a client says its id itself: it may hold anything that a path could be misled by
        name = quote(client_id, safe="").replace(".", "%2E")
        response = self._request("DELETE", f"/v1/clients/{name}", params=query)
        return self._parsed(TypeAdapter(RemovedClientView), response)

    def events(self, task_id: str, after: int = 0, wait_seconds: float = 0, limit: int = 200) -> list[EventView]:
        """Return events numbered above ``after``, oldest first; wait up to ``wait_seconds`` (<= 30) for the first."""
        return self._feed(f"/v1/tasks/{task_id}/events", EventView, after, wait_seconds, limit)

    def logs(self, task_id: str, after: int = 0, wait_seconds: float = 0, limit: int = 1000) -> list[LogView]:
        """Return log lines numbered above ``after``, as ``events`` does."""
        return self._feed(f"/v1/tasks/{task_id}/logs", LogView, after, wait_seconds, limit)

    def metrics(self, task_id: str, after: int = 0, wait_seconds: float = 0, limit: int = 1000) -> list[MetricView]:
        """Return metric values numbered above ``after``, as ``events`` does."""
        return self._feed(f"/v1/tasks/{task_id}/metrics", MetricView, after, wait_seconds, limit)

    def page(self) -> str:
        """Return the farm's status page: HTML."""
        response = self._request("GET", "/")
        raise_for_error(response, self.address)
        return response.text

    def open_async(self, timeout: httpx.Timeout, headers: dict[str, str]) -> httpx.AsyncClient:
        """Return a client for the same farm in an event loop, as transfers use it; the caller closes it."""
        return httpx.AsyncClient(**self._options_with(timeout, headers))

    def open_bulk(self, timeout: httpx.Timeout, headers: dict[str, str]) -> httpx.Client:
        """Return a client for the bodies of the same farm's downloads; the caller closes it."""
        options = self._options_with(timeout, headers)
        return httpx.Client(**options | {"transport": options["transport"] or BulkTransport(), "proxy": None})

    def _options_with(self, timeout: httpx.Timeout, headers: dict[str, str]) -> dict[str, Any]:
        both = client_options(self.address.url, self.address.headers | headers)["headers"]
        return self._options | {"timeout": timeout, "headers": both}

    @contextmanager
    def get_blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        """Download bytes by their digest, chunk by chunk; unchecked: ``sdk.download`` fetches whole blobs."""
        with explaining(self.address), self._http.stream("GET", f"/v1/blobs/{digest}") as response:
            if not response.is_success:
                raise_for_error(read_answer(response, MAX_ANSWER_BYTES), self.address)
            yield response.iter_raw()

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with explaining(self.address), self._http.stream(method, path, **arguments) as response:
            return read_answer(response, MAX_ANSWER_BYTES)

    def _get(self, path: str, model: type[M], query: dict[str, int] | None = None) -> M:
        return self._read(TypeAdapter(model), path, params=query)

    def _list(self, path: str, model: type[M]) -> list[M]:
        return self._read(TypeAdapter(list[model]), path)  # type: ignore[valid-type]

    def _feed(self, path: str, model: type[M], after: int, wait_seconds: float, limit: int) -> list[M]:
        return self._read(
            TypeAdapter(list[model]),  # type: ignore[valid-type]
            path,
            params={"after": after, "wait": wait_seconds, "limit": limit},
            timeout=httpx.Timeout(ANSWER_SECONDS + wait_seconds, connect=CONNECT_SECONDS),
        )

    def _read(self, adapter: TypeAdapter[T], path: str, **arguments: Any) -> T:
        """Put a question that changes nothing, again while the farm is away, for as long as the API tries."""
        return self.retry.call(lambda: self._parsed(adapter, self._request("GET", path, **arguments)))

    def _parsed(self, adapter: TypeAdapter[T], response: httpx.Response) -> T:
        answer = parse(adapter, response, self.address)
        return cast("T", tidied(answer)) if self._tidy else answer

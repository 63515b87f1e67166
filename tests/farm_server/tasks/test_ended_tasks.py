"""What has ended is in the ledger alone: everything that can be asked of it is answered from there, page by page."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from coordinator.lifecycle import TaskState
from coordinator.records import CheckpointRecord, RoundRecord, RoundState
from farm_server.tasks.ended_tasks import EndedTasks
from protocol.errors import NotFound
from tests.farm_server import model
from tests.farm_server.conftest import Running

QUESTIONS = ("", "/why", "/explain", "/shards", "/checkpoints", "/model", "/events", "/logs", "/metrics")


async def ended(server: Running, count: int = 1) -> list[str]:
    """Submit tasks and cancel them."""
    names = [await model.submit(server.http) for _ in range(count)]
    for name in names:
        (await server.http.post(f"/v1/tasks/{name}/cancel")).raise_for_status()
    return names


async def failed(server: Running) -> str:
    """A task that failed after two rounds, as the ledger has it."""
    (name,) = await ended(server)
    record = await server.farm.ledger.task(name)
    assert record is not None
    now = record.created_at
    await server.farm.ledger.save(
        [
            replace(record, state=TaskState.FAILED, error="the code is wrong", version=2, samples_done=128),
            CheckpointRecord(name, 2, 2, 0, model.ref(model.weights()), None, None, now, {"loss": 0.5}),
            RoundRecord(name, 1, RoundState.COMMITTED, 9, 1, 0, 64, now, committed_at=now + 1),
        ]
    )
    return name


async def answers(server: Running, name: str) -> dict[str, Any]:
    found = {question: await server.http.get(f"/v1/tasks/{name}{question}") for question in QUESTIONS}
    assert {question: answer.status_code for question, answer in found.items()} == dict.fromkeys(QUESTIONS, 200)
    return {question: answer.json() for question, answer in found.items()}


async def test_everything_is_answered_from_the_ledger_also_after_a_restart(start) -> None:
    async with start() as server:
        name = await failed(server)
        assert not server.farm.coordinator.holds(name)
        before = await answers(server, name)
        assert before[""]["task"]["state"] == "failed"
        assert before[""]["rounds"][0]["number"] == 1
        assert before["/why"]["why"].startswith("the code is wrong; `farm logs")
        assert before["/model"]["round"] == 2
        assert [event["kind"] for event in before["/events"]] == ["task_submitted", "task_cancelled"]
    async with start() as server:
        assert server.farm.coordinator.task_views(0.0) == []
        assert await answers(server, name) == before
        assert 'farm_tasks{state="failed"} 1.0' in (await server.http.get("/metrics")).text
        page = (await server.http.get("/", headers={"authorization": f"Bearer {server.farm.tokens.farm}"})).text
        assert name in page
        room = (await server.http.get("/v1/room")).json()
        assert [(task["task_id"], task["state"]) for task in room["tasks"]] == [(name, "failed")]


async def test_a_failed_task_comes_back_when_it_is_retried(server) -> None:
    name = await failed(server)
    answer = await server.http.post(f"/v1/tasks/{name}/retry")
    assert (answer.status_code, answer.json()["state"], answer.json()["round"]) == (200, "pending", 2)
    run = server.farm.coordinator._farm.tasks[name]
    assert (run.checkpoint.round, run.checkpoint.metrics) == (2, {"loss": 0.5})
    assert (await server.http.post(f"/v1/tasks/{name}/retry")).status_code == 409


async def test_what_is_refused_of_an_ended_task_leaves_it_where_it_is(server) -> None:
    (name,) = await ended(server)
    for action in ("pause", "resume", "cancel", "retry"):
        answer = await server.http.post(f"/v1/tasks/{name}/{action}")
        assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    assert (await server.http.put(f"/v1/tasks/{name}/priority", json={"priority": 3})).status_code == 409
    assert (await server.http.post("/v1/tasks/nosuch22/retry")).status_code == 404
    assert not server.farm.coordinator.holds(name)
    assert server.farm._layouts._submitted == {}


async def test_many_who_retry_at_once_bring_one_task_back(server) -> None:
    name = await failed(server)
    found = await asyncio.gather(*(server.http.post(f"/v1/tasks/{name}/retry") for _ in range(5)))
    assert sorted(answer.status_code for answer in found) == [200, 409, 409, 409, 409]


async def test_a_task_that_is_being_removed_is_unknown(server) -> None:
    name = await failed(server)
    tasks: EndedTasks = server.farm._ended
    with tasks.removing(name):
        for question in QUESTIONS:
            assert (await server.http.get(f"/v1/tasks/{name}{question}")).status_code == 404, question
        assert (await server.http.post(f"/v1/tasks/{name}/retry")).status_code == 404
        assert (await server.http.delete(f"/v1/tasks/{name}")).status_code == 404
        assert (await server.http.get("/v1/tasks")).json() == []
    assert (await server.http.delete(f"/v1/tasks/{name}")).status_code == 200
    with pytest.raises(NotFound):
        await tasks.record(name)


async def walk(http: httpx.AsyncClient, address: str) -> tuple[list[str], str | None]:
    answer = await http.get(address)
    answer.raise_for_status()
    return [task["task_id"] for task in answer.json()], answer.links.get("next", {}).get("url")


async def test_the_list_comes_page_by_page_and_stays_in_place(server) -> None:
    names = await ended(server, 3)
    names += [await model.submit(server.http) for _ in range(2)]
    newest_first = names[::-1]
    assert await walk(server.http, "/v1/tasks") == (newest_first, None)
    first, link = await walk(server.http, "/v1/tasks?limit=2")
    await model.submit(server.http)
    assert link is not None
    second, link = await walk(server.http, link)
    assert link is not None
    third, end = await walk(server.http, link)
    assert (first + second + third, end) == (newest_first, None)
    active, _ = await walk(server.http, "/v1/tasks?active=true&limit=1")
    assert active[1:] == newest_first[:2]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "cursor=x", "cursor=nan_a", "cursor=1.5_", "active=maybe"])
async def test_a_page_that_there_cannot_be_is_refused(server, query: str) -> None:
    assert (await server.http.get(f"/v1/tasks?{query}")).status_code == 422

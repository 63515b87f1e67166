from __future__ import annotations

import asyncio
import functools
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from farm_server.http.app import create_app
from farm_server.http.spec_json import parse_spec
from farm_server.server import FarmServer
from protocol.assignments import Assign
from protocol.digests import digest_bytes
from protocol.messages import Ready
from protocol.recipe import Requirements
from protocol.sandbox import Rung, Sandbox
from protocol.tasks import Dataset, Shard
from protocol.tensors import Role, weights_metadata
from tests.farm_server import model

DATA = bytes(range(256)) * 16


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/tasks", 405, "method_not_allowed"),
        ("GET", "/v1/tasks/unknown1", 404, "not_found"),
        ("GET", "/v1/tasks/unknown1/why", 404, "not_found"),
        ("GET", "/v1/tasks/unknown1/explain", 404, "not_found"),
        ("GET", "/v1/tasks/unknown1/shards", 404, "not_found"),
        ("GET", "/v1/tasks/unknown1/model", 404, "not_found"),
        ("GET", "/v1/tasks/unknown1/logs", 404, "not_found"),
        ("POST", "/v1/tasks/unknown1/pause", 404, "not_found"),
        ("POST", "/v1/tasks/unknown1/explode", 422, "invalid_request"),
        ("GET", "/v1/events?limit=0", 422, "invalid_request"),
        ("GET", "/v1/events?wait=31", 422, "invalid_request"),
        ("GET", "/v1/blobs/nodigest", 422, "invalid_request"),
        ("GET", f"/v1/blobs/{'0' * 64}", 404, "not_found"),
        ("POST", "/v1/tasks", 422, "invalid_task"),
    ],
)
async def test_every_error_is_an_error_body(server, method, path, status, code):
    answer = await server.http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["message"]


async def test_a_defect_is_an_error_body_without_internals(server, monkeypatch):
    def broken(_now: float) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server.farm.coordinator, "client_views", broken)
    answer = await server.http.get("/v1/clients")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert (await server.http.get("/v1/farm")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/farm", "/v1/tasks", "/v1/clients", "/v1/links", "/v1/events"])
async def test_the_api_needs_the_farm_token(server, path):
    async with server.client() as nobody:
        assert (await nobody.get(path)).json()["code"] == "unauthorized"
        volunteer = {"Authorization": f"Bearer {server.farm.tokens.join}"}
        refused = await nobody.get(path, headers=volunteer)
        assert refused.status_code == 401
        assert "farm token" in refused.json()["message"]
        assert (await nobody.get(path, auth=(server.farm.tokens.farm, ""))).status_code == 200


async def test_blobs_take_either_token_and_no_other(server):
    path = f"/v1/blobs/{digest_bytes(DATA)}"
    async with server.client() as http:
        assert (await http.put(path, content=DATA)).status_code == 401
        for token in (server.farm.tokens.join, server.farm.tokens.farm):
            headers = {"Authorization": f"Bearer {token}"}
            assert (await http.put(path, content=DATA, headers=headers)).status_code in (200, 201)


async def test_a_blob_goes_up_once_and_comes_down_whole_or_in_part(server):
    digest = digest_bytes(DATA)
    path = f"/v1/blobs/{digest}"
    assert (await server.http.head(path)).status_code == 404
    assert (await server.http.put(path, content=DATA)).status_code == 201
    assert (await server.http.put(path, content=DATA)).status_code == 200
    head = await server.http.head(path)
    assert (head.status_code, head.headers["content-length"], head.headers["etag"]) == (200, "4096", f'"{digest}"')
    assert (await server.http.get(path)).content == DATA
    part = await server.http.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, DATA[10:20])
    assert (await server.http.get(path, headers={"Range": "bytes=9999-"})).status_code == 416
    unchanged = await server.http.get(path, headers={"If-None-Match": f'"{digest}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


async def test_bytes_that_do_not_hash_to_their_name_are_refused(server):
    path = f"/v1/blobs/{digest_bytes(b'something else')}"
    answer = await server.http.put(path, content=DATA)
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert (await server.http.head(path)).status_code == 404


async def test_a_blob_over_the_limit_is_refused_whether_announced_or_not(start):
    async with start(max_blob_bytes=1024 * 1024) as server:
        data = bytes(1024 * 1024 + 1)
        path = f"/v1/blobs/{digest_bytes(data)}"
        announced = await server.http.put(path, content=data)

        async def chunks():
            yield data

        streamed = await server.http.put(path, content=chunks())
        assert [a.status_code for a in (announced, streamed)] == [413, 413]
        assert announced.json()["code"] == "blob_too_large"


async def test_no_upload_is_taken_when_the_disk_is_nearly_full(server, monkeypatch):
    monkeypatch.setattr(server.farm.disk_space, "lacks", lambda _size=0: "only 5 bytes are free")
    answer = await server.http.put(f"/v1/blobs/{digest_bytes(DATA)}", content=DATA)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    ready = await server.http.get("/readyz")
    assert (ready.status_code, ready.text) == (503, "only 5 bytes are free\n")


async def test_a_request_over_the_limit_is_refused(start):
    async with start(max_body_bytes=64 * 1024) as server:
        answer = await server.http.post("/v1/tasks", json={"name": "x" * 70_000})
        assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")

        async def chunks():
            for _ in range(80):
                yield b"x" * 1024

        assert (await server.http.post("/v1/tasks", content=chunks())).status_code == 413


async def test_a_submission_names_the_blobs_that_are_missing(server):
    await model.upload(server.http, model.CODE)
    answer = await server.http.post("/v1/tasks", json=model.spec().model_dump(mode="json"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_task")
    message = answer.json()["message"]
    assert digest_bytes(model.SHARD) in message
    assert digest_bytes(model.CODE) not in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"initial_weights": model.ref(model.SHARD)}, "initial weights"),
        ({"recipe": {"rounds": 1, "outer": {"name": "sgd", "options": {"betas": [0.9, 0.99]}}}}, "betas"),
        ({"recipe": {"round_samples": 5}}, "rounds or epochs"),
        ({"recipe": {"rounds": 1, "min_clients": 5, "max_clients": 2}}, "min_clients is 5 and max_clients is 2"),
        ({"config": {"x": "y" * 300_000}}, "config"),
        ({"code": {"digest": digest_bytes(model.CODE), "size_bytes": 1}}, "1"),
    ],
)
async def test_a_submission_that_can_never_run_is_refused(server, change, complaint):
    await model.upload(server.http, model.CODE, model.SHARD, model.weights())
    body = model.spec().model_dump(mode="json")
    body |= {k: v if isinstance(v, dict) else v.model_dump(mode="json") for k, v in change.items()}
    answer = await server.http.post("/v1/tasks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_task")
    assert complaint in answer.json()["message"]


@pytest.mark.parametrize(
    ("name", "role", "complaint"),
    [
        ("w", Role.FROZEN, "'w' is among the frozen tensors and in the weights as well"),
        ("base", Role.BUFFER, "has 'base', which it does not call frozen"),
        ("base", Role.FROZEN, None),
    ],
)
async def test_frozen_tensors_are_a_part_of_the_model_and_nothing_else(server, name, role, complaint):
    frozen = save({name: np.ones(3, np.float32)}, weights_metadata({name: role}, {}))
    await model.upload(server.http, model.CODE, model.SHARD, model.weights(), frozen)
    body = model.spec(frozen=model.ref(frozen)).model_dump(mode="json")
    answer = await server.http.post("/v1/tasks", json=body)
    if complaint is not None:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_task")
        assert complaint in answer.json()["message"]
        return
    task_id = answer.json()["task"]["task_id"]
    kept = model.ref(frozen).model_dump(mode="json")
    assert (await server.http.get(f"/v1/tasks/{task_id}/model")).json()["frozen"] == kept
    assert [c["frozen"] for c in (await server.http.get(f"/v1/tasks/{task_id}/checkpoints")).json()] == [kept]
    await server.http.post(f"/v1/tasks/{task_id}/cancel")
    assert digest_bytes(frozen) in await server.farm.ledger.referenced_digests(), "a model is nothing without them"


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        ({"needs": ["telepathy"]}, 422, "this farm's server does not know telepathy: it must be upgraded first"),
        ({"continues": {"task_id": "aaaaaaaa", "round": 2}}, 404, "no checkpoint aaaaaaaa@2 any more"),
    ],
)
async def test_a_task_that_needs_what_is_not_here_is_refused(server, change, status, complaint):
    await model.upload(server.http, model.CODE, model.SHARD, model.weights())
    answer = await server.http.post("/v1/tasks", json=model.spec().model_dump(mode="json") | change)
    assert answer.status_code == status
    assert complaint in answer.json()["message"]
    assert {"continued_tasks", "schedules"} <= set((await server.http.get("/v1/farm")).json()["features"])


async def test_a_task_that_asks_for_a_sandbox_is_given_to_who_proved_one(server):
    task_id = await model.submit(server.http, model.spec(requirements=Requirements(sandbox=Rung.LANDLOCK)))
    async with server.volunteer("old") as old:
        await old.send(Ready(slots=1))
        why = (await server.http.get(f"/v1/tasks/{task_id}/why")).json()["why"]
        assert "old is older than sandboxes, and the task asks for landlock" in why
        async with server.volunteer("new", sandbox=Sandbox(rung=Rung.STRICT, probes=1)) as new:
            await new.send(Ready(slots=1))
            assert (await new.next(Assign)).task.submitter == "anonymous"
            told = {client["name"]: client["sandbox"] for client in (await server.http.get("/v1/clients")).json()}
            assert told == {"old": None, "new": {"rung": "strict", "probes": 1}}


async def test_a_task_goes_on_from_the_start_of_another(server):
    before = await model.submit(server.http)
    await server.http.post(f"/v1/tasks/{before}/cancel")
    kept = (await server.http.get(f"/v1/tasks/{before}/checkpoints")).json()
    assert [checkpoint["round"] for checkpoint in kept] == [0]
    inputs = {model.ref(model.CODE).digest, model.ref(model.SHARD).digest}
    assert inputs <= await server.farm.ledger.referenced_digests(ended_since=0.0)
    body = model.spec().model_dump(mode="json") | {"continues": {"task_id": before, "round": 0}}
    answer = await server.http.post("/v1/tasks", json=body)
    assert answer.status_code == 201, answer.text
    detail = (await server.http.get(f"/v1/tasks/{answer.json()['task']['task_id']}")).json()
    assert detail["spec"]["continues"] == {"task_id": before, "round": 0}


async def test_a_submit_token_makes_a_repeat_harmless_even_at_the_same_time(server):
    await model.upload(server.http, model.CODE, model.SHARD, model.weights())
    body = model.spec(submit_token="once").model_dump(mode="json")
    answers = await asyncio.gather(*(server.http.post("/v1/tasks", json=body) for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 201]
    assert len({a.json()["task"]["task_id"] for a in answers}) == 1
    assert len((await server.http.get("/v1/tasks")).json()) == 1


async def test_actions_take_effect_and_illegal_ones_conflict(server):
    task_id = await model.submit(server.http)
    assert (await server.http.post(f"/v1/tasks/{task_id}/pause")).json()["state"] == "paused"
    assert (await server.http.post(f"/v1/tasks/{task_id}/resume")).json()["state"] == "pending"
    assert (await server.http.post(f"/v1/tasks/{task_id}/cancel")).json()["state"] == "cancelled"
    illegal = await server.http.post(f"/v1/tasks/{task_id}/resume")
    assert (illegal.status_code, illegal.json()["code"]) == (409, "illegal_transition")


async def test_a_task_is_shown_with_its_reason(server):
    task_id = await model.submit(server.http)
    detail = (await server.http.get(f"/v1/tasks/{task_id}")).json()
    assert (detail["task"]["state"], detail["spec"]["name"], detail["rounds"]) == ("pending", "tiny", [])
    assert (await server.http.get(f"/v1/tasks/{task_id}/why")).json()["why"]
    assert (await server.http.get(f"/v1/tasks/{task_id}/explain")).json()["clients"] == []
    initial = (await server.http.get(f"/v1/tasks/{task_id}/model")).json()
    assert (initial["round"], initial["digest"]) == (0, digest_bytes(model.weights()))


async def test_a_feed_wakes_its_reader_when_something_happens(server):
    before = (await server.http.get("/v1/events")).json()
    waiting = asyncio.create_task(server.http.get("/v1/events", params={"after": len(before), "wait": 20}))
    task_id = await model.submit(server.http)
    (event, *_) = (await waiting).json()
    assert (event["kind"], event["task_id"]) == ("task_submitted", task_id)


async def test_a_feed_without_news_is_empty_after_its_wait(server):
    assert (await server.http.get("/v1/events", params={"after": 10**9, "wait": 0.05})).json() == []


async def test_what_watches_needs_no_token(server):
    async with server.client() as http:
        assert (await http.get("/healthz")).text == "ok\n"
        assert (await http.get("/readyz")).text == "ready\n"
        counters = (await http.get("/metrics")).text
        for name in ("farm_rounds_committed_total", 'farm_tasks{state="running"}', "farm_loop_lag_seconds_bucket"):
            assert name in counters


async def test_bytes_are_counted_while_a_connection_lasts(server):
    async with server.volunteer("c1"), server.client() as http:
        counters = (await http.get("/metrics")).text
    counted = dict(line.rsplit(" ", 1) for line in counters.splitlines() if line.startswith("farm_wire_bytes_total{"))
    assert {name: float(value) > 0 for name, value in counted.items()} == {
        'farm_wire_bytes_total{direction="in"}': True,
        'farm_wire_bytes_total{direction="out"}': True,
    }


async def test_the_api_describes_itself(server):
    document = (await server.http.get("/openapi.json")).json()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert all(op.get("summary") and op.get("tags") for op in operations)


async def test_the_reference_page_lists_every_route(server):
    page = (Path(__file__).parents[3] / "docs/reference/http-api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", page, re.MULTILINE))
    document = (await server.http.get("/openapi.json")).json()
    served = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    assert listed == served | {"GET /"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/events?after=18446744073709551616", None),
        ("GET", f"/v1/events?after={2**63}", None),
        ("GET", "/v1/events?after=-1", None),
        ("GET", f"/v1/events?limit={10**30}", None),
        ("GET", "/v1/events?after=0&wait=nan", None),
        ("GET", f"/v1/tasks/x/model?round={2**63}", None),
        ("POST", f"/v1/blobs/{'0' * 64}/upload", {"size_bytes": 0}),
        ("POST", f"/v1/blobs/{'0' * 64}/upload", {"size_bytes": 2**70}),
        ("POST", f"/v1/blobs/{'0' * 64}/upload", {"size_bytes": 1, "wait_seconds": 1e308}),
    ],
)
async def test_numbers_out_of_range_are_refused(server, method, path, body):
    answer = await server.http.request(method, path, json=body)
    assert answer.status_code == 422, answer.text


async def test_an_upload_of_nothing_is_stored(server):
    answer = await server.http.post(f"/v1/blobs/{digest_bytes(b'')}/upload", json={"size_bytes": 0})
    assert answer.json()["state"] == "stored"


async def test_a_long_submission_is_read_beside_the_event_loop(server, monkeypatch):
    read_by: list[str] = []

    def parse(body: bytes):
        read_by.append(threading.current_thread().name)
        return parse_spec(body)

    monkeypatch.setattr("farm_server.http.tasks.parse_spec", parse)
    await model.upload(server.http, model.CODE, model.SHARD, model.weights())
    shards = tuple(Shard(index=i, samples=1, blob=model.ref(model.SHARD)) for i in range(2000))
    renewed: list[str] = []
    renew = server.farm.blobs.renew
    monkeypatch.setattr(server.farm.blobs, "renew", lambda digest: renewed.append(digest) or renew(digest))
    for count in (1, 2000):
        spec = model.spec(dataset=Dataset(kind="files", shards=shards[:count]))
        answer = await server.http.post("/v1/tasks", json=spec.model_dump(mode="json"))
        assert answer.status_code == 201, answer.text
    assert read_by[0] == threading.main_thread().name != read_by[1]
    assert len(renewed) == 2 * 3  # each blob once, however many shards are in it


_ODD_TEXTS = ["", "x", "é", "\udc00", "\0", "a" * 70_000, "../..", "%00", "1e999"]
_ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30, -1, -(2**63)]),
        st.floats(),
        st.sampled_from(_ODD_TEXTS),
        st.text(max_size=20),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_ODD_TEXTS), inner, max_size=4),
    max_leaves=12,
)
_SPEC_FIELDS = ["name", "submitter", "code", "entry", "config", "dataset", "initial_weights", "recipe", "priority"]
_RECIPE_FIELDS = sorted(model.spec().recipe.model_dump())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_odd_submission_is_a_fault_of_the_server(server, data):
    body: dict[str, Any] = model.spec().model_dump(mode="json")
    if data.draw(st.booleans()):
        body["recipe"][data.draw(st.sampled_from(_RECIPE_FIELDS))] = data.draw(_ODD)
    else:
        body[data.draw(st.sampled_from([*_SPEC_FIELDS, "requirements", "footprint", "submit_token"]))] = data.draw(_ODD)
    await model.upload(server.http, model.CODE, model.SHARD, model.weights())
    answer = await server.http.post("/v1/tasks", content=json.dumps(body).encode())
    assert answer.status_code < 500, answer.text
    assert (await server.http.get("/v1/tasks")).status_code == 200
    if answer.status_code == 201:
        task_id = answer.json()["task"]["task_id"]
        assert (await server.http.get(f"/v1/tasks/{task_id}")).status_code == 200
        assert (await server.http.post(f"/v1/tasks/{task_id}/cancel")).status_code < 500


@functools.cache
def routes(farm: FarmServer) -> list[tuple[str, str]]:
    paths = create_app(farm.services).openapi()["paths"]
    return sorted((method.upper(), path) for path, item in paths.items() for method in item)


_QUERY = ["after", "limit", "round", "wait"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_odd_request_is_a_fault_of_the_server(server, data):
    method, path = data.draw(st.sampled_from(routes(server.farm)))
    text = st.one_of(st.sampled_from(_ODD_TEXTS), st.text(max_size=10), st.integers().map(str)).filter(len)
    digest = st.one_of(st.just("0" * 64), text)
    for name, values in (("{digest}", digest), ("{task_id}", text), ("{action}", text)):
        if name in path:
            path = path.replace(name, quote(data.draw(values)[:300], safe="", errors="replace"))
    query = data.draw(st.dictionaries(st.sampled_from(_QUERY), text.map(lambda t: t[:50]), max_size=2))
    wait = query.get("wait", "").strip().lower()
    if wait not in ("", "nan", "inf"):
        query["wait"] = f"-{wait.lstrip('-')}"  # never a long one
    odd_body = json.dumps(data.draw(_ODD)).encode()
    headers = {"content-type": data.draw(st.sampled_from(["application/json", "text/plain", "é"])).encode()}
    encoded = urlencode(query, errors="replace")
    answer = await server.http.request(method, f"{path}?{encoded}", content=odd_body, headers=headers)
    assert answer.status_code < 500, (answer.status_code, answer.text)

"""Who may call what: each route with each token, and what the gate lets through of a request before it is read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from farm_server.edge.hosts import AllowedHosts
from farm_server.environment.tokens import TokenRole, Tokens
from farm_server.http import gate
from farm_server.http.app import create_app
from farm_server.http.callers import CLIENT_HEADER, Callers
from farm_server.http.gate import SMALL_BODY_BYTES, Body, Gate, Needs, needs_of

TOKENS = Tokens(join="join-secret", farm="farm-secret")
VOLUNTEER, RESEARCHER = "Bearer join-secret", "Bearer farm-secret"
WATCHED = {"/", "/login", "/logout", "/healthz", "/readyz", "/metrics"}
"""Pages and probes, which need no token."""
OPEN = WATCHED | {"/v1/keys/certificate"}
"""And a public key, with which anybody may check a certificate."""
MAX_BODY_BYTES = 1_000_000


async def test_each_route_takes_the_tokens_of_its_role_and_no_other(server):
    """A route that somebody adds and forgets to guard fails here."""
    app = create_app(server.farm.services)
    async with server.client() as http:
        for path, operations in app.openapi()["paths"].items():
            url = re.sub(r"\{.*?\}", "0" * 64, path)
            for method in operations:
                found = {
                    role: (await http.request(method, url, headers=headers)).status_code
                    for role, headers in {
                        "none": {},
                        "wrong": {"Authorization": "Bearer guessed"},
                        "volunteer": {"Authorization": f"Bearer {server.farm.tokens.join}"},
                        "researcher": {"Authorization": f"Bearer {server.farm.tokens.farm}"},
                    }.items()
                }
                let_in = {role for role, status in found.items() if status != 401}
                assert let_in == roles_of(path), (method, path, found)


def roles_of(path: str) -> set[str]:
    if path in OPEN:
        return {"none", "wrong", "volunteer", "researcher"}
    return {"volunteer", "researcher"} if path.startswith(("/v1/blobs/", "/v1/certificates/")) else {"researcher"}


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("PUT", "/v1/blobs/abc", Needs(TokenRole.VOLUNTEER, None)),
        ("PATCH", "/v1/blobs/abc", Needs(TokenRole.VOLUNTEER, None)),
        ("POST", "/v1/blobs/abc/upload", Needs(TokenRole.VOLUNTEER, SMALL_BODY_BYTES)),
        ("GET", "/v1/blobs/abc", Needs(TokenRole.VOLUNTEER, SMALL_BODY_BYTES)),
        ("GET", "/v1/blobs", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("POST", "/v1/tasks", Needs(TokenRole.RESEARCHER, MAX_BODY_BYTES)),
        ("GET", "/v1/tasks", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("POST", "/v1/tasks/", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("POST", "/v1/tasks/abc/pause", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("GET", "/v1/certificates/clients/c1", Needs(TokenRole.VOLUNTEER, SMALL_BODY_BYTES)),
        ("GET", "/v1/certificates", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("GET", "/v1/keys/certificate", Needs(None, SMALL_BODY_BYTES)),
        ("GET", "/v1/keys/certificate/", Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)),
        ("GET", "/healthz", Needs(None, SMALL_BODY_BYTES)),
        ("GET", "/v1", Needs(None, SMALL_BODY_BYTES)),
        ("PUT", "/login", Needs(None, SMALL_BODY_BYTES)),
    ],
)
def test_what_a_route_needs(method: str, path: str, needs: Needs) -> None:
    assert needs_of(method, path, MAX_BODY_BYTES) == needs


@given(
    method=st.sampled_from(("GET", "PUT", "POST", "PATCH", "odd")),
    rest=st.text("abltsk/.%_-", max_size=12),
)
def test_whatever_follows_the_api_has_a_role_and_only_bulk_has_no_bound(method: str, rest: str) -> None:
    needs = needs_of(method, f"/v1/{rest}", MAX_BODY_BYTES)
    assert needs.role is not None
    if needs.body_bytes is None:
        assert rest.startswith("blobs/")
        assert method in ("PUT", "PATCH")


Headers = list[tuple[bytes, bytes]]


async def through(
    path: str, headers: Headers, *, method: str = "GET", pieces: list[bytes] | None = None, hosts: Iterable[str] = ()
) -> tuple[int, bytes]:
    """Send a request through a gate to an application that answers with what it read of the body."""

    async def app(_scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    waiting = pieces if pieces is not None else [b""]
    answered: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await Gate(app, TOKENS, AllowedHosts(hosts), MAX_BODY_BYTES)(scope, receive, send)  # type: ignore[arg-type]
    return answered[0]["status"], answered[1]["body"]


async def test_without_a_token_nothing_of_a_body_is_read() -> None:
    unread = [b"x"]
    status, body = await through("/v1/tasks", [], method="POST", pieces=unread)
    assert (status, b"unauthorized" in body, unread) == (401, True, [b"x"])
    as_volunteer = [(b"authorization", VOLUNTEER.encode())]
    status, body = await through("/v1/tasks", as_volunteer, method="POST", pieces=unread)
    assert (status, b"farm token" in body, unread) == (401, True, [b"x"])


@pytest.mark.parametrize(("size", "status"), [(SMALL_BODY_BYTES, 200), (SMALL_BODY_BYTES + 1, 413)])
async def test_what_a_head_announces_is_believed_before_it_comes(size: int, status: int) -> None:
    headers = [(b"authorization", RESEARCHER.encode()), (b"content-length", str(size).encode())]
    assert (await through("/v1/gc", headers, method="POST"))[0] == status


@pytest.mark.parametrize("said", [b"-5", b"ten", "٣".encode(), b"1e9", b""])
async def test_a_length_that_is_no_number_is_counted_as_it_comes(said: bytes) -> None:
    headers = [(b"authorization", RESEARCHER.encode()), (b"content-length", said)]
    assert await through("/v1/gc", headers, method="POST", pieces=[b"ab", b"c"]) == (200, b"abc")


async def test_a_body_that_grows_over_its_bound_is_cut_off() -> None:
    headers = [(b"authorization", RESEARCHER.encode())]
    half = b"x" * (SMALL_BODY_BYTES // 2)
    assert (await through("/v1/gc", headers, method="POST", pieces=[half, half]))[0] == 200
    with pytest.raises(HTTPException) as cut:
        await through("/v1/gc", headers, method="POST", pieces=[half, half, b"x"])
    assert cut.value.status_code == 413
    assert "upload data as blobs" in cut.value.detail


async def test_bulk_is_counted_by_its_own_route() -> None:
    big = b"x" * (2 * MAX_BODY_BYTES)
    headers = [(b"authorization", VOLUNTEER.encode()), (b"content-length", str(len(big)).encode())]
    assert await through("/v1/blobs/abc", headers, method="PUT", pieces=[big]) == (200, big)


async def test_a_page_answers_to_our_names_only_and_a_token_speaks_for_itself() -> None:
    foreign = [(b"host", b"evil.example")]
    assert (await through("/healthz", foreign))[0] == 421
    assert (await through("/healthz", foreign, hosts=("evil.example",)))[0] == 200
    assert (await through("/v1/farm", [*foreign, (b"authorization", RESEARCHER.encode())]))[0] == 200


async def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_GRACE_SECONDS", 0.0)
    waits = asyncio.Event()

    async def silent() -> Any:
        await waits.wait()

    with pytest.raises(HTTPException) as late:
        await Body(silent, 100).receive()
    assert late.value.status_code == 408


async def test_what_comes_after_the_body_is_waited_for_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next message says that the peer is gone: it may take hours."""
    messages = [{"type": "http.request", "body": b"all"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    body = Body(receive, 3)
    assert (await body.receive())["body"] == b"all"
    monkeypatch.setattr(gate, "BODY_GRACE_SECONDS", -1e6)
    assert (await body.receive())["type"] == "http.disconnect"


def request(token: str | None, said: str | None = None, address: str | None = "10.0.0.1") -> Request:
    headers = [(b"authorization", token.encode())] if token else []
    headers += [(CLIENT_HEADER.encode(), said.encode("latin-1"))] if said is not None else []
    return Request({"type": "http", "headers": headers, "client": (address, 1) if address else None})


@pytest.mark.parametrize(
    ("token", "said", "counted_for"),
    [
        (RESEARCHER, "anybody", "anybody"),
        (VOLUNTEER, "c1", "c1"),
        (VOLUNTEER, "c2", "10.0.0.1"),
        (VOLUNTEER, "", "10.0.0.1"),
        (VOLUNTEER, None, "10.0.0.1"),
        (RESEARCHER, "bad\tname", "10.0.0.1"),
        (RESEARCHER, "jörg", "10.0.0.1"),
        (RESEARCHER, "n" * 200, "n" * 64),
    ],
)
def test_a_volunteer_is_who_it_says_where_that_client_is_connected(token, said, counted_for):
    callers = Callers(TOKENS, lambda client, address: (client, address) == ("c1", "10.0.0.1"))
    assert callers.client_of(request(token, said)) == counted_for
    assert callers.owner_of(request(token, said)) == (None if token == RESEARCHER else counted_for)


def test_one_volunteer_cannot_be_counted_for_another_from_elsewhere() -> None:
    callers = Callers(TOKENS, lambda client, address: (client, address) == ("c1", "10.0.0.1"))
    assert callers.client_of(request(VOLUNTEER, "c1", "10.0.0.2")) == "10.0.0.2"
    assert callers.client_of(request(VOLUNTEER, "c1", None)) == "unknown"

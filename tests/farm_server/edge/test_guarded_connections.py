"""What the server takes from who has shown no token, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from contextlib import asynccontextmanager

import pytest

from farm_server.edge import http_protocol
from farm_server.edge.guard import Linger
from farm_server.edge.head import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LINE_BYTES

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n".format(
    "x3JJHMbDL1EzLkh9GBhXDw=="
)


def address(server) -> tuple[str, int]:
    host, port = server.info.url.removeprefix("http://").split(":")
    return host, int(port)


@asynccontextmanager
async def dialled(server):
    reader, writer = await asyncio.open_connection(*address(server))
    try:
        yield reader, writer
    finally:
        writer.close()


async def status_of(reader) -> int | None:
    """Return the next answer's status, None where the connection ended without one."""
    try:
        line = await asyncio.wait_for(reader.readline(), 15)
    except ConnectionError:
        return None
    return int(line.split()[1]) if line else None


async def ask(server, head: str, body: bytes = b"") -> int | None:
    async with dialled(server) as (reader, writer):
        writer.write(head.encode("latin-1") + body)
        return await status_of(reader)


def request(line: str, *headers: str) -> str:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""])


@pytest.mark.parametrize("path", ["/v1/tasks", f"/v1/blobs/{'0' * 64}/upload", "/v1/nothing"])
async def test_a_token_is_asked_for_before_the_body(server, path):
    # the body is announced and never sent: the answer comes all the same, and ends the connection
    async with dialled(server) as (reader, writer):
        writer.write(request(f"POST {path}", "Content-Length: 16000000", "Content-Type: application/json").encode())
        assert await status_of(reader) == 401
        answer = await asyncio.wait_for(reader.read(), 5)  # to the end of the connection
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert json.loads(body)["code"] == "unauthorized"


async def test_who_sends_a_body_to_its_end_gets_the_answer(server):
    """A socket that is closed with bytes unread resets the peer's, which may lose the answer, or never look for it."""

    def send_slowly() -> bytes:
        with socket.create_connection(address(server)) as connection:
            connection.sendall(request("POST /v1/tasks", "Content-Length: 200000").encode())
            for _ in range(10):
                time.sleep(0.02)
                connection.sendall(bytes(20_000))
            return connection.recv(100)

    assert (await asyncio.to_thread(send_slowly)).startswith(b"HTTP/1.1 401 ")


async def pour(writer) -> None:
    while True:
        writer.write(bytes(256 * 1024))
        await writer.drain()


async def test_unread_bodies_are_not_kept_in_memory(server, monkeypatch):
    read_bytes = 0
    before = http_protocol.GuardedHttp.data_received

    def counting(self, data):
        nonlocal read_bytes
        read_bytes += len(data)
        before(self, data)

    monkeypatch.setattr(http_protocol.GuardedHttp, "data_received", counting)
    async with dialled(server) as (_, writer):
        writer.write(request("POST /v1/tasks", "Content-Length: 16000000").encode())
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(pour(writer), 15)
    assert read_bytes < 2 * 1024 * 1024


@pytest.mark.parametrize("upgrade", ["", UPGRADE])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("".join(f"X-{n}: 1\r\n" for n in range(MAX_HEADERS + 1)), 431),
        ("".join(f"X-{n}: 1\r\n" for n in range(100_000)), 431),
        (f"X-Long: {'x' * MAX_LINE_BYTES}\r\n", 431),
        (f"X-Endless: {'x' * 10_000_000}", 431),
        ("".join(f"X-{n}: {'x' * 4000}\r\n" for n in range(MAX_HEAD_BYTES // 4000 + 1)), 431),
        (f"Authorization: Bearer {'x' * 60_000}\r\n", 431),
    ],
    ids=["count", "100000", "line", "endless", "total", "token"],
)
async def test_large_heads_are_refused(server, upgrade, headers, status):
    head = f"GET /v1/farm HTTP/1.1\r\nHost: localhost\r\n{upgrade}{headers}\r\n"
    assert await ask(server, head) in (status, None)
    if len(head) < 200_000:  # so much is read to its end: the answer arrives
        assert await ask(server, head) == status


async def test_a_long_address_is_refused(server):
    assert await ask(server, request(f"GET /{'x' * 9000}")) == 414
    assert await ask(server, request(f"GET /{'x' * 9000}", UPGRADE.rstrip())) == 414


@pytest.mark.parametrize("size", [7000, 7990, 8190, 8300, 16_000, 31_000, 60_000])
async def test_any_bearer_token_is_answered_at_the_upgrade(server, size):
    head = request("GET /v1/farm", *UPGRADE.strip().split("\r\n"), f"Authorization: Bearer {'x' * size}")
    assert await ask(server, head) in (401, 431)


@pytest.mark.parametrize(
    "value", ["Basic \xff\xfe", "Basic é", "Bearer \xff", "Basic", "Basic ====", "\xe9", "basic  "]
)
async def test_any_authorization_header_is_answered(server, value):
    assert await ask(server, request("GET /v1/farm", f"Authorization: {value}")) == 401
    upgrade = request("GET /v1/farm", *UPGRADE.strip().split("\r\n"), f"Authorization: {value}")
    assert await ask(server, upgrade) == 401


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "STRANGERS_LINGER", Linger(256 * 1024, 0.2))


async def ended_within(reader, writer, seconds: float, trickle: bytes) -> None:
    """Send a byte now and then until the server ends the connection."""

    async def go_on() -> None:
        for byte in trickle * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    sending = asyncio.create_task(go_on())
    try:
        await asyncio.wait_for(reader.read(), seconds)
    except ConnectionError:
        pass
    finally:
        sending.cancel()


@pytest.mark.parametrize(
    ("first", "trickle"),
    [
        (b"", b""),
        (b"GET", b""),
        (b"GET / HTTP/1.1\r\n", b"X-a: b\r\n"),
        (b"", b"\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silent", "begun", "trickled head", "blank lines", "blank lines after", "half a second one", "body of a GET",
         "body without a token", "chunks without a token"],
)  # fmt: skip
async def test_unfinished_requests_are_closed(server, soon, first, trickle):
    began_at = time.monotonic()
    async with dialled(server) as (reader, writer):
        writer.write(first)
        await ended_within(reader, writer, 8, trickle)
    assert time.monotonic() - began_at < 7


async def test_an_answer_may_take_its_time(server, soon):
    async with dialled(server) as (reader, writer):
        token = f"Authorization: Bearer {server.farm.tokens.farm}"
        writer.write(request("GET /v1/events?after=1000000&wait=0.8", token).encode())
        assert await status_of(reader) == 200


@pytest.mark.parametrize(("late_seconds", "status"), [(0.5, None), (5.0, 200)])
async def test_a_late_timer_is_the_servers_fault(server, late_seconds, status):
    async with dialled(server) as (reader, writer):
        await server.http.get("/healthz")  # so that the server has seen the new connection
        (protocol,) = (c for c in server.serving._server.server_state.connections if c.cycle is None)
        protocol._disarm()
        protocol._due = asyncio.get_running_loop().time() - late_seconds
        protocol._out_of_time()
        with contextlib.suppress(ConnectionError):
            writer.write(request("GET /healthz").encode())
        assert await status_of(reader) == status


async def test_a_body_with_a_token_must_come_on(server, monkeypatch):
    monkeypatch.setattr("farm_server.http.gate.BODY_GRACE_SECONDS", 0.2)
    token = f"Authorization: Bearer {server.farm.tokens.farm}"
    json_type = "Content-Type: application/json"
    assert await ask(server, request("POST /v1/tasks", token, json_type, "Content-Length: 1000"), b'{"a"') == 408


async def test_idle_connections_push_out_each_other_and_nobody_else(start):
    async with start(max_unknown_per_address=4) as server, server.volunteer(), dialled(server) as (reader, writer):
        writer.write(request("GET /v1/farm", f"Authorization: Bearer {server.farm.tokens.farm}").encode())
        assert await status_of(reader) == 200
        idle = [await asyncio.open_connection(*address(server)) for _ in range(10)]
        ended = [asyncio.create_task(pipe.read()) for pipe, _ in idle]
        done, _ = await asyncio.wait(ended[:6], timeout=5)
        assert len(done) == 6
        assert not any(task.done() for task in ended[6:])
        await asyncio.gather(*done, return_exceptions=True)
        assert (await server.http.get("/v1/farm")).json()["clients_online"] == 1
        for _, pipe in idle:
            pipe.close()


async def test_the_book_forgets_who_has_gone(server):
    book = server.serving.guard.book
    async with server.volunteer(), dialled(server):
        await server.http.get("/healthz")
        assert len(book) >= 3
    await server.http.aclose()
    for _ in range(500):
        if not len(book):
            break
        await asyncio.sleep(0.01)
    assert (len(book), book.unknown_count) == (0, 0)


async def test_a_refused_client_is_a_line_in_the_log_and_no_fault_of_the_server(server, caplog, capsys):
    head = request("GET /v1/farm", *UPGRADE.strip().split("\r\n"))
    assert [await ask(server, head) for _ in range(5)] == [401] * 5
    told = capsys.readouterr().out + caplog.text
    assert told.count("requests are refused") == 1
    assert "ASGI" not in told


async def test_pipelined_requests_are_all_answered(server):
    async with dialled(server) as (reader, writer):
        writer.write(request("GET /healthz").encode() * 3 + request("GET /healthz", "Connection: close").encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.count(b"HTTP/1.1 200") == 4

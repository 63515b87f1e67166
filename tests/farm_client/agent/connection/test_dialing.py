"""What may answer in a farm's place, and what it means: nothing that a network does may end an agent for good."""

import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import websockets.exceptions as wse
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Response

from farm_client.agent.connection import link as module
from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.dialing import LONGEST_RETRY_AFTER_SECONDS, explain, retry_after_seconds
from farm_client.agent.connection.link import open_link
from farm_client.agent.errors import BadAddress, NotAFarm, OutOfReach
from protocol.errors import Unauthorized
from protocol.link_capacity import LinkCapacity
from tests.farm_client.agent.connection.test_link import hello
from tests.farm_client.agent.odd_server import BEFORE_THE_REQUEST, RESET, SILENCE, odd_server, status

ADDRESS = parse_address("ws://token@farm.example:8470")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PASSING = {
    "cut": b"",
    "reset": RESET,
    "half a status line": b"HTTP/1.1 40",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "500": status(500),
    "502": status(502, body=b"<html>bad gateway</html>"),
    "503": status(503),
    "429": status(429),
    "408 before the request": (BEFORE_THE_REQUEST, status(408)),
    "503 before the request": (BEFORE_THE_REQUEST, status(503)),
    "a cut before the request": (BEFORE_THE_REQUEST, b""),
    "a reset before the request": (BEFORE_THE_REQUEST, RESET),
    "an endless body": status(502).replace(b"Content-Length: 0\r\n", b"") + b"x" * 2_000_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "a very long line": b"HTTP/1.1 200 " + b"x" * 20_000 + b"\r\n\r\n",
}
STRANGE = {
    "200": status(200, body=b"<html>welcome to the hotel</html>"),
    "204": status(204),
    "301": status(301, "Location: https://farm.example/"),
    "302": status(302, "Location: http://127.0.0.1:9/login"),
    "307 to itself": status(307, "Location: /v1/farm"),
    "308 to nowhere": status(308, "Location: \t"),
    "a redirect without a place": status(302),
    "403": status(403),
    "404": status(404),
    "404 before the request": (BEFORE_THE_REQUEST, status(404)),
    "418": status(418),
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "101 for something else": b"HTTP/1.1 101 Yes\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "101 without a proof": b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
}


async def failure(server):
    address = parse_address(f"ws://token@127.0.0.1:{server.port}")
    with pytest.raises(Exception) as told:  # noqa: PT011  which one is what the tests look at
        await open_link(address, hello(2), LinkCapacity())
    return told.value


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
async def test_what_passes_is_worth_another_try_wherever_it_is_met(answer):
    async with odd_server(answer) as server:
        error = await failure(server)
    assert type(error) is OutOfReach
    assert len(error.message) < 250


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
async def test_an_answer_that_no_farm_gives_is_told_from_a_passing_one(answer):
    async with odd_server(answer) as server:
        error = await failure(server)
        assert server.dials == 1  # no redirect is followed
    assert type(error) is NotAFarm
    assert "check the address" in error.final().message


@pytest.mark.parametrize("answer", [status(401), (BEFORE_THE_REQUEST, status(401))], ids=["in order", "early"])
async def test_a_refused_token_is_final_even_where_the_refusal_comes_early(answer):
    async with odd_server(answer) as server:
        error = await failure(server)
    assert type(error) is Unauthorized
    assert "token" in error.message


async def test_silence_is_not_waited_for_forever_and_counts_as_slow(monkeypatch):
    monkeypatch.setattr(module, "_OPEN_SECONDS", 0.1)
    async with odd_server(SILENCE) as server:
        error = await failure(server)
    assert (type(error), error.was_slow) == (OutOfReach, True)


async def test_nobody_there_is_worth_another_try(closed_port):
    with pytest.raises(OutOfReach, match="refused") as told:
        await open_link(parse_address(f"ws://127.0.0.1:{closed_port}"), hello(2), LinkCapacity())
    assert not told.value.was_slow


async def test_how_long_to_wait_is_read_from_the_answer():
    async with odd_server(status(503, "Retry-After: 7", "Retry-After: 9")) as server:
        assert (await failure(server)).retry_after_seconds == 7.0


def instances():
    """One of every error that websockets knows."""
    answer = Response(418, "Teapot", Headers())
    made = {
        wse.InvalidURI: ("ws://x", "odd"),
        wse.InvalidProxy: ("x", "odd"),
        wse.InvalidProxyStatus: (answer,),
        wse.InvalidStatus: (answer,),
        wse.InvalidHeaderFormat: ("Upgrade", "odd", "x", 0),
        wse.InvalidParameterValue: ("x", "odd"),
        wse.ConnectionClosed: (None, None),
        wse.ConnectionClosedOK: (None, None),
        wse.ConnectionClosedError: (None, None),
        wse.PayloadTooBig: (9, 1),
        wse.TooManyFragments: (1,),
    }
    kinds = [getattr(wse, name) for name in wse.__all__]
    return [kind(*made.get(kind, ("odd",))) for kind in kinds]


@pytest.mark.parametrize("error", instances(), ids=lambda error: type(error).__name__)
def test_every_error_of_websockets_has_a_meaning(error):
    told = explain(error, ADDRESS)
    assert isinstance(told, BadAddress if isinstance(error, wse.InvalidURI) else OutOfReach)
    assert "farm.example" in told.message


@pytest.mark.parametrize(
    "error",
    [
        OSError(113, "No route to host"),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
        ConnectionResetError(),
        AssertionError(),
        RuntimeError("unable to perform operation on <TCPTransport closed>; the handler is closed"),
        UnicodeError("label empty or too long"),
        ValueError("embedded null byte"),
        EOFError(),
        asyncio.InvalidStateError(),
        IndexError("\x1b[2J" + "x" * 10_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_else_happens_on_the_way_is_worth_another_try(error):
    told = explain(error, ADDRESS)
    assert type(told) is OutOfReach
    assert len(told.message) < 250
    assert told.message.isprintable()


def test_an_untrusted_certificate_is_a_wrong_address_only_to_a_stranger():
    assert isinstance(explain(ssl.SSLCertVerificationError(1, "expired"), ADDRESS), NotAFarm)


@pytest.mark.parametrize("number", [400, 403, 502])
def test_a_proxy_that_cannot_reach_the_farm_is_worth_another_try(number):
    told = explain(wse.InvalidProxyStatus(Response(number, "Odd", Headers())), ADDRESS)
    assert type(told) is OutOfReach
    assert "proxy" in told.message


def test_a_proxy_that_asks_for_a_password_says_where_to_write_it():
    told = explain(wse.InvalidProxyStatus(Response(407, "Odd", Headers())), ADDRESS)
    assert isinstance(told, NotAFarm)
    assert "USER:PASSWORD" in told.message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("0", 0.0),
        (" 5 ", 5.0),
        ("3600", LONGEST_RETRY_AFTER_SECONDS),
        ("-3", 0.0),
        ("nan", 0.0),
        ("1e308", 0.0),
        ("soon", 0.0),
        ("٣", 0.0),
        ("9" * 5000, LONGEST_RETRY_AFTER_SECONDS),
        (format_datetime(NOW + timedelta(seconds=8), usegmt=True), 8.0),
        (format_datetime(NOW - timedelta(days=8)), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER_SECONDS),
        ("Fri, 32 Dec 2026 23:59:59 GMT", 0.0),
    ],
)
def test_what_an_answer_asks_for_is_bounded(value, seconds):
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text())
def test_no_header_is_too_odd(text):
    assert 0.0 <= retry_after_seconds(text, NOW) <= LONGEST_RETRY_AFTER_SECONDS

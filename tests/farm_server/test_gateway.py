from __future__ import annotations

import asyncio
import contextlib

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from protocol.codec import decode, encode
from protocol.messages import Bye, Drain, Error, Hello, Message, Ready
from protocol.recipe import Recipe
from tests.farm_server import model
from tests.farm_server.volunteer import SECRET, Volunteer

pytestmark = pytest.mark.timeout(60)


async def dial(server, token: str | None = None) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token or server.farm.tokens.join}"}
    return await connect(server.websocket_url, additional_headers=headers, compression=None, proxy=None)


async def said(connection: ClientConnection) -> list[Message]:
    """Return all that the server says until it closes."""
    messages = []
    async with asyncio.timeout(10):
        try:
            while True:
                messages.append(decode(await connection.recv()))
        except ConnectionClosed:
            return messages


async def states(server) -> dict[str, tuple[str, str]]:
    clients = (await server.http.get("/v1/clients")).json()
    return {c["client_id"]: (c["state"], c["reason"]) for c in clients}


async def happened(server, kind: str, after: int = 0) -> dict:
    async with asyncio.timeout(20):
        while True:
            events = (await server.http.get("/v1/events", params={"after": after, "wait": 5})).json()
            for event in events:
                after = event["seq"]
                if event["kind"] == kind:
                    return event


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_a_wrong_token_is_refused_at_the_handshake_with_a_reason(server, token):
    with pytest.raises(InvalidStatus) as refusal:
        await connect(server.websocket_url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None)
    assert refusal.value.response.status_code == 401
    assert b'"unauthorized"' in refusal.value.response.body


async def test_no_token_is_refused(server):
    with pytest.raises(InvalidStatus):
        await connect(server.websocket_url, proxy=None)


@pytest.mark.parametrize(
    "frame",
    [b"\xc1 no msgpack", b"", msgpack.packb([1, 2]), msgpack.packb({"type": "hello"}), "text", encode(Ready(slots=1))],
    ids=["garbage", "empty", "list", "fields missing", "text", "out of order"],
)
async def test_bad_frames_are_answered_and_the_third_closes(server, frame):
    connection = await dial(server)
    for _ in range(3):
        await connection.send(frame)
    errors = await said(connection)
    assert len(errors) == 3
    assert all(isinstance(e, Error) for e in errors)
    assert [e.fatal for e in errors] == [False, False, True]
    assert connection.close_code == 1002


async def test_an_oversized_frame_closes_that_connection_and_no_other(server):
    async with server.volunteer("good") as good:
        connection = await dial(server)
        with contextlib.suppress(ConnectionClosed):  # it may notice while it still sends
            await connection.send(b"x" * (server.farm.settings.max_frame_bytes + 1))
        await said(connection)
        assert connection.close_code == 1009
        await good.ready()
        assert (await states(server))["good"][0] == "online"


async def test_no_common_version_is_fatal(server):
    connection = await dial(server)
    await connection.send(encode(Hello(versions=(99,), client_id="new", client_secret=SECRET)))
    (error,) = await said(connection)
    assert (error.code, error.fatal) == ("version_mismatch", True)


async def test_another_secret_for_a_known_client_is_refused(server):
    async with server.volunteer("c1"):
        pass
    connection = await dial(server)
    await connection.send(encode(Hello(versions=(1,), client_id="c1", client_secret="an impostor's secret")))
    (error,) = await said(connection)
    assert (error.code, error.fatal, connection.close_code) == ("unauthorized", True, 1008)


async def test_the_first_secret_still_counts_after_a_restart(start):
    async with start() as server, server.volunteer("c1"):
        pass
    async with start() as server:
        connection = await dial(server)
        await connection.send(encode(Hello(versions=(1,), client_id="c1", client_secret="an impostor's secret")))
        (error,) = await said(connection)
        assert error.code == "unauthorized"


async def test_a_newer_connection_replaces_the_older(server):
    async with server.volunteer("c1") as old:
        async with server.volunteer("c1") as new:
            assert new.welcome.incarnation == old.welcome.incarnation + 1
            await asyncio.wait_for(old.connection.wait_closed(), 5)
            assert (await states(server))["c1"][0] == "online"
        lost = await happened(server, "client_lost", after=(await happened(server, "client_lost"))["seq"])
        assert "closed" in lost["message"]


async def test_a_client_that_never_says_hello_is_closed(start):
    async with start(hello_seconds=0.1) as server:
        (error,) = await said(await dial(server))
        assert (error.code, error.fatal) == ("out_of_order", True)


async def test_a_silent_client_is_lost(start):
    async with start(lost_after_seconds=0.3) as server, server.volunteer("c1"):
        lost = await happened(server, "client_lost")
        assert "silent" in lost["message"]
        assert (await states(server))["c1"] == ("offline", "silent for more than 0.3 s")


async def test_a_goodbye_is_noticed_at_once_with_its_reason(server):
    async with server.volunteer("c1") as volunteer:
        started = asyncio.get_running_loop().time()
        await volunteer.send(Bye(reason="out of memory", crashed=True))
        lost = await happened(server, "client_lost")
    assert asyncio.get_running_loop().time() - started < 1
    assert "it crashed: out of memory" in lost["message"]


async def test_a_cut_connection_frees_its_assignment_at_once(server):
    await model.submit(server.http)
    async with server.volunteer("a") as a:
        await a.ready()
        first = await a.accept()
        a.connection.transport.abort()
        async with server.volunteer("b") as b:
            await b.ready()
            assert (await b.accept()).task.task_id == first.task.task_id


async def test_an_unread_connection_is_dropped_and_others_go_on(start):
    """The slow one never reads; assignments with inline weights pile up until its queue is full."""
    elements = 250_000
    initial = model.weights(0.0, elements)
    recipe = Recipe(rounds=1000, round_samples=64)
    async with start(max_outbox_bytes=1024 * 1024) as server:
        await model.submit(server.http, model.spec(initial, recipe=recipe), initial=initial)
        slow = Volunteer(server.websocket_url, server.farm.tokens.join, "slow")
        async with slow:
            slow.connection.transport.pause_reading()
            peer = next(iter(server.farm.registry))
            for _ in range(40):
                peer.wire.send(Error(code="x", message="y" * 4000, traceback="z" * 20000))
            for _ in range(200):
                if peer.wire.is_over:
                    break
                peer.wire.send(Error(code="x", message="y" * 4000, traceback="z" * 20000))
            assert "too slowly" in peer.wire.over.result()
            async with server.volunteer("quick") as quick:
                await quick.ready()
                assert (await quick.accept()).weights.inline == initial


async def test_draining_tells_clients_and_says_goodbye(server):
    async with server.volunteer("c1") as volunteer:
        draining = asyncio.create_task(server.farm.drain("upgrade"))
        assert (await volunteer.next(Drain)).reason == "upgrade"
        assert (await volunteer.next(Bye)).reason == "upgrade"
        await draining
        assert (await server.http.get("/readyz")).status_code == 503


async def test_the_farm_is_full(start):
    async with start(max_clients=1) as server, server.volunteer("a"):
        connection = await dial(server)
        await connection.send(encode(Hello(versions=(1,), client_id="b", client_secret=SECRET)))
        (error,) = await said(connection)
        assert error.code == "unavailable"

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from farm_server.clients import report_interval
from farm_server.environment.clock import Clock
from protocol.assignments import Ack, Assign, AssignmentProgress, Cancel, Phase
from protocol.codec import decode, encode, join
from protocol.limits import LOST_AFTER_SECONDS
from protocol.messages import Bye, Drain, Error, Heartbeat, HeldAssignment, Hello, Message, Pace, Ready
from protocol.recipe import Recipe
from protocol.resources import Load
from protocol.session import Session, Side
from tests.farm_server import model
from tests.farm_server.clients.offers import assign
from tests.farm_server.volunteer import SECRET, Volunteer

pytestmark = pytest.mark.timeout(60)


async def dial(server, token: str | None = None) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token or server.farm.tokens.join}"}
    return await connect(server.websocket_url, additional_headers=headers, compression=None, proxy=None)


async def said(connection: ClientConnection) -> list[Message]:
    """Return all that the server says until it closes."""
    messages = []
    async with asyncio.timeout(30):
        try:
            while True:
                messages.append(decode(await connection.recv()))
        except ConnectionClosed:
            return messages


async def states(server) -> dict[str, tuple[str, str]]:
    clients = (await server.http.get("/v1/clients")).json()
    return {c["client_id"]: (c["state"], c["reason"]) for c in clients}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # there is no event for a peer's book-keeping
            await asyncio.sleep(0.01)


class Ahead:
    """The gateway's clock, as far ahead as it is told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.0

    def now(self) -> float:
        return self._clock.now() + self.seconds


def ahead(server) -> Ahead:
    clock = server.farm.gateway._clock = Ahead(server.farm.clock)
    return clock


async def happened(server, kind: str, after: int = 0) -> dict:
    async with asyncio.timeout(30):
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
            await asyncio.wait_for(old.connection.wait_closed(), 30)
            assert (await states(server))["c1"][0] == "online"
        lost = await happened(server, "client_lost", after=(await happened(server, "client_lost"))["seq"])
        assert "closed" in lost["message"]


async def test_who_is_replaced_hears_that_another_machine_has_its_identity(server):
    async with server.volunteer("c1", run_id="a") as old, server.volunteer("c1", run_id="b"):
        assert (await old.next(Bye)).replaced


async def test_a_run_that_comes_back_is_refused_while_the_other_works_and_it_is_said_once(server, capsys):
    async with server.volunteer("c1", run_id="a") as first, server.volunteer("c1", run_id="b") as second:
        assert (await first.next(Bye)).replaced
        for _ in range(3):
            connection = await dial(server)
            await connection.send(Session(Side.CLIENT).send(first.hello))
            (error,) = await said(connection)
            assert (error.code, error.fatal) == ("identity_in_use", True)
            assert connection.close_code == 1008
        notice = await second.next(Error)
        assert (notice.code, notice.fatal) == ("identity_in_use", False)
        assert "--new-identity" in notice.message
        await happened(server, "identity_shared")
        await second.send(Heartbeat())
        assert (await states(server))["c1"][0] == "online"
    events = (await server.http.get("/v1/events", params={"limit": 1000})).json()
    assert [event["kind"] for event in events].count("identity_shared") == 1
    assert [event["kind"] for event in events].count("client_joined") == 2
    async with server.volunteer("c1", run_id="a"):  # the other one has left
        assert (await states(server))["c1"][0] == "online"


async def test_copies_that_cannot_be_told_apart_are_suspected_and_never_refused(server):
    """A machine that was copied while its agent ran: both copies are the same run."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            newest = await stack.enter_async_context(server.volunteer("c1", run_id="a"))
        shared = await happened(server, "identity_shared")
        assert "two machines" in shared["message"]
        await newest.send(Heartbeat())
        assert (await states(server))["c1"][0] == "online"


async def test_a_client_that_never_says_hello_is_closed(start):
    async with start(hello_seconds=0.1) as server:
        (error,) = await said(await dial(server))
        assert (error.code, error.fatal) == ("out_of_order", True)


async def test_a_silent_client_is_lost(start):
    async with start(lost_after_seconds=0.3) as server, server.volunteer("c1"):
        lost = await happened(server, "client_lost")
        assert "silent" in lost["message"]
        assert (await states(server))["c1"] == ("offline", "silent for more than 0.3 s")


async def test_a_stop_of_the_server_is_no_silence_of_its_clients(start):
    async with start(lost_after_seconds=0.5) as server, server.volunteer("c1") as volunteer:
        beat = Heartbeat(load=Load(), assignments=())
        sock = volunteer.connection.transport.get_extra_info("socket")
        frame = volunteer.session.send(beat)
        header = bytes([0x82, 0x80 | len(frame), 0, 0, 0, 0])  # a binary frame, its mask zeros
        sock.setblocking(False)
        os.write(sock.fileno(), header + frame)  # it waits in the server's socket while everything stands still
        time.sleep(3)  # noqa: ASYNC251
        woke_at = time.monotonic()
        assert await happened(server, "client_lost")  # for a silence of its own
        assert time.monotonic() - woke_at > 0.4


async def test_the_silence_of_a_stop_is_forgiven_once(server):
    async with server.volunteer("c1"):
        (peer,) = server.farm.registry
        clock = ahead(server)
        clock.seconds += 20
        server.farm.gateway.sweep(late_seconds=19)
        assert not peer.wire.is_over
        clock.seconds += 20
        server.farm.gateway.sweep(late_seconds=0)
        assert peer.wire.is_over


async def test_who_comes_in_a_crowd_is_told_when_to_come_again(server, monkeypatch):
    monkeypatch.setattr(server.farm.entrance._admission, "ask", lambda _now: 6.2)
    with pytest.raises(InvalidStatus) as refused:
        await dial(server)
    response = refused.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
    assert "come again" in json.loads(response.body)["message"]


async def test_a_crowd_gets_in_by_and_by(server, monkeypatch):
    # the first has to wait: a slow machine may dial no faster than is greeted
    monkeypatch.setattr(server.farm.entrance._admission, "_tokens", 0.0)

    async def join(number: int) -> int:
        dials = 0
        while True:
            dials += 1
            try:
                async with server.volunteer(f"c{number}"):
                    return dials
            except InvalidStatus as error:
                await asyncio.sleep(float(error.response.headers["Retry-After"]) * 0.05)

    dials = await asyncio.gather(*(join(number) for number in range(120)))
    assert max(dials) > 1
    assert len((await server.http.get("/v1/clients")).json()) == 120


async def test_a_goodbye_is_noticed_at_once_with_its_reason(server):
    async with server.volunteer("c1") as volunteer:
        started = asyncio.get_running_loop().time()
        await volunteer.send(Bye(reason="out of memory", crashed=True))
        lost = await happened(server, "client_lost")
    assert asyncio.get_running_loop().time() - started < LOST_AFTER_SECONDS / 2, "nobody waited for its silence"
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


async def test_clients_are_told_to_beat_less_often_while_the_server_has_too_much_to_do(server):
    usual = server.farm.gateway.pace_view()
    async with server.volunteer("a") as a:
        server.farm.gateway.keep_pace(lag_seconds=0.0, backlog=10**6)
        told = await a.next(Pace)
        assert (told.heartbeat_seconds, told.lost_after_seconds) == (10.0, 24.0)
        (peer,) = server.farm.registry
        assert peer.silence_limit.at(server.farm.clock.now()) == 24.0
        view = (await server.http.get("/v1/farm")).json()
        assert view["pace"]["heartbeat_seconds"] == 10.0 == 5 * usual.heartbeat_seconds
        assert "wait for the ledger" in view["pace"]["reason"]
        async with server.volunteer("b") as b:
            assert (b.welcome.heartbeat_seconds, b.welcome.lost_after_seconds) == (10.0, 24.0)


async def test_who_waits_for_work_in_a_crowd_may_be_silent_for_longer_until_it_is_offered_some(server, monkeypatch):
    monkeypatch.setattr(report_interval, "IDLE_BEATS_PER_SECOND", 0.05)  # two clients are a crowd
    gateway = server.farm.gateway
    async with server.volunteer("a") as a, server.volunteer("b") as b:
        gateway.keep_pace(lag_seconds=0.0, backlog=0)
        told = await a.next(Pace)
        assert (told.heartbeat_seconds, told.idle_heartbeat_seconds, told.lost_after_seconds) == (2.0, 40.0, 8.0)
        peers = {peer.client_id: peer for peer in server.farm.registry}
        progress = AssignmentProgress(assignment_id="x", fence=1, phase=Phase.COMPUTING)
        await a.send(Heartbeat())
        await b.send(Heartbeat(assignments=(progress,)))
        await until(lambda: peers["a"].is_idle)
        assert [peers[name].longest_silence(server.farm.clock.now()) for name in "ab"] == [84.0, 8.0]
        view = (await server.http.get("/v1/farm")).json()["pace"]
        assert (view["heartbeat_seconds"], view["idle_heartbeat_seconds"]) == (2.0, 40.0)
        clock = ahead(server)
        clock.seconds += 50.0
        server.farm.registry.set_to_work(peers["a"], clock.now())
        gateway.sweep(0.0)  # its silence so far was granted, and is not held against it now
        assert not peers["a"].wire.is_over
        assert peers["a"].longest_silence(clock.now()) == 8.0


async def test_an_idle_client_that_is_offered_work_and_says_nothing_is_lost_as_who_works(start, monkeypatch):
    """Its machine was pulled off the net while it waited: nobody waits for it longer than for others."""
    monkeypatch.setattr(report_interval, "IDLE_BEATS_PER_SECOND", 0.01)
    async with start(lost_after_seconds=0.5, heartbeat_seconds=0.1) as server, server.volunteer("a") as a:
        await a.send(Heartbeat())
        await a.ready()
        await a.next(Pace)
        await until(lambda: all(peer.is_idle for peer in server.farm.registry))
        await model.submit(server.http)
        await a.next(Assign)
        assert "silent for more than 0.5 s" in (await happened(server, "client_lost"))["message"]


async def test_the_load_is_looked_at_by_itself(start, monkeypatch):
    monkeypatch.setattr(report_interval, "BEATS_PER_SECOND", 0.1)  # one client is a crowd
    async with start() as server, server.volunteer("a") as a:
        assert (await a.next(Pace)).heartbeat_seconds == 10.0
        assert "1 client beats" in (await server.http.get("/v1/farm")).json()["pace"]["reason"]


async def test_a_client_of_an_older_version_keeps_its_pace_and_is_lost_by_it(server):
    async with server.volunteer("old", versions=(1,)) as old:
        assert old.welcome.version == 1
        server.farm.gateway.keep_pace(lag_seconds=0.0, backlog=10**6)
        (peer,) = server.farm.registry
        assert peer.silence_limit.at(server.farm.clock.now()) == old.welcome.lost_after_seconds == 8.0
        server.farm.gateway.dismiss(peer, "enough")
        assert isinstance(await old.next(object), Bye)  # and no pace before it


async def test_batches_are_counted(server):
    async with server.volunteer("a") as a:
        said = [Ready(slots=1), Heartbeat(), Heartbeat()]
        await a.connection.send(join([a.session.send(message) for message in said]))
        await a.connection.send(b"\xc1")
        await a.next(Error)  # so the batch before it has been read
        view = (await server.http.get("/v1/farm")).json()
    assert view["received"]["batched_messages"] == 3
    assert view["received"]["solo_messages"] == 1
    assert view["received"]["frames"] == 3
    assert 'farm_wire_messages_total{direction="in",packing="batched"} 3.0' in (await server.http.get("/metrics")).text


async def test_small_frames_make_small_inline_blobs(start):
    initial = model.weights(0.0, 20_000)
    async with start(max_frame_bytes=64 * 1024) as server:
        await model.submit(server.http, model.spec(initial), initial=initial)
        async with server.volunteer("a") as a:
            assert (a.welcome.max_frame_bytes, a.welcome.inline_bytes) == (64 * 1024, 32 * 1024)
            await a.ready()
            assert (await a.accept()).weights.inline is None


async def test_an_offer_that_is_too_long_with_its_weights_goes_without_them(start):
    """A long config leaves no room for weights that would have fitted beside a short one."""
    initial = model.weights(0.0, 7_000)
    async with start(max_frame_bytes=64 * 1024) as server:
        task = model.spec(initial)
        config = {"note": "x" * 40_000}
        await model.submit(server.http, task.model_copy(update={"config": config}), initial=initial)
        async with server.volunteer("a") as a:
            await a.ready()
            assign = await a.accept()
            assert assign.weights.inline is None
            assert assign.task.config == config


async def test_an_order_does_not_wait_behind_megabytes_that_a_slow_reader_has_not_taken(start):
    """Kernel buffers hold what was begun; of forty megabytes that wait, most are still behind the order."""
    offers = 40
    async with start(max_outbox_bytes=64 * 1024 * 1024) as server, server.volunteer("slow") as slow:
        slow.connection.transport.pause_reading()
        (peer,) = server.farm.registry
        for number in range(offers):
            peer.wire.send(assign(number, 1_000_000))
        peer.wire.send(Cancel(assignment_id=f"a{offers - 1}", fence=offers - 1))
        slow.connection.transport.resume_reading()
        heard = [await slow.next(object, 30) for _ in range(offers)]
        place = [m.type for m in heard].index("cancel")
        assert place < offers // 2
        assert [m.assignment_id for m in heard if isinstance(m, Assign)] == [f"a{n}" for n in range(offers - 1)]


async def test_an_error_that_is_told_again_counts_once(server):
    """A client that cannot know whether its last words arrived says them again."""
    await model.submit(server.http)
    async with server.volunteer("a") as a:
        await a.ready()
        held = await a.accept()
        failure = Error(code="x", message="boom", assignment_id=held.assignment_id, fence=held.fence)
        await a.send(failure)
        await a.next(Ack)
    again = HeldAssignment(assignment_id=held.assignment_id, fence=held.fence)
    async with server.volunteer("a", held=(again,)) as a:
        await a.next(Cancel)
        await a.send(failure)
        await a.next(Ack)
        await a.send(failure)
        await a.next(Ack)
    events = (await server.http.get("/v1/events")).json()
    assert [e["message"] for e in events if e["kind"] == "assignment_failed"] == ["a: x: boom"]


async def test_an_error_that_was_lost_with_its_connection_is_heard_over_the_next_one(server):
    await model.submit(server.http)
    async with server.volunteer("a") as a:
        await a.ready()
        held = await a.accept()
    again = HeldAssignment(assignment_id=held.assignment_id, fence=held.fence)
    async with server.volunteer("a", held=(again,)) as a:
        await a.send(Error(code="x", message="boom", assignment_id=held.assignment_id, fence=held.fence))
        assert "boom" in (await happened(server, "assignment_failed"))["message"]

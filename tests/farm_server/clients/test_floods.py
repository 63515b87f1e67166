"""What one connection sends without end: it is read more slowly, struck, closed, and let in again later."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from coordinator import allowance
from farm_server.edge import control_frames
from protocol.assignments import Ack, LogLine, MetricPoint, Progress
from protocol.codec import join
from protocol.messages import Error
from protocol.packing import pack_map
from protocol.recipe import Recipe
from tests.farm_server import model
from tests.farm_server.clients.test_gateway import states
from tests.farm_server.volunteer import Volunteer

pytestmark = pytest.mark.timeout(60)

READY = pack_map({"type": "ready", "slots": 0})


async def end_of(volunteer: Volunteer) -> tuple[int | None, str | None, list[str]]:
    """Read until the connection is closed; return the code, the reason, and the codes of the errors on the way."""
    codes = []
    try:
        while True:
            messages = volunteer.session.receive(await volunteer.connection.recv())
            codes += [message.code for message in messages if isinstance(message, Error)]
    except ConnectionClosed:
        return volunteer.connection.close_code, volunteer.connection.close_reason, codes


async def test_who_sends_too_much_is_read_slowly_then_closed_and_waits_to_come_back(server, monkeypatch):
    monkeypatch.setattr(allowance, "FLOOD_SECONDS", 0.1)
    monkeypatch.setattr(allowance, "TOLERATED_SECONDS", 0.4)
    async with server.volunteer("flooder") as volunteer:
        began = time.monotonic()

        async def flood() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await volunteer.connection.send(join([READY] * 64))

        flooding = asyncio.create_task(flood())
        while (await states(server))["flooder"] != ("paused", "it sends more than a connection may"):
            pass  # each look takes a while
        code, reason, errors = await end_of(volunteer)
        seconds = time.monotonic() - began
        await flooding
    assert (code, reason, errors) == (1002, "too_many", ["too_many"] * 3)
    received = (await server.http.get("/v1/farm")).json()["received"]["batched_messages"]
    assert received <= allowance.MESSAGES_BURST + allowance.MESSAGES_PER_SECOND * seconds + 128
    with pytest.raises(ConnectionClosed) as refused:
        await server.volunteer("flooder").__aenter__()
    assert refused.value.rcvd is not None
    assert refused.value.rcvd.reason == "unavailable"
    async with server.volunteer("somebody else") as volunteer:  # the others are let in as ever
        await volunteer.ready()
    assert (await states(server))["flooder"][0] == "offline"


async def test_others_train_beside_a_flood(server):
    recipe = Recipe(rounds=20, round_samples=64, gather_seconds=0)  # who says 0 slots is waited for as it warms up
    async with server.volunteer("flooder") as flooder, server.volunteer("honest") as honest:

        async def flood() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await flooder.connection.send(join([READY] * 64))

        flooding = asyncio.create_task(flood())
        await honest.ready()
        await model.submit(server.http, model.spec(recipe=recipe))
        async with asyncio.timeout(30):
            for _ in range(20):
                await honest.deliver(await honest.accept(), model.update())
                assert (await honest.next(Ack)).counted
                await honest.ready()
        flooding.cancel()


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
async def test_control_frames_without_end_close_the_connection(server, opcode):
    async with server.volunteer("pinger") as volunteer:
        frame = Frame(opcode, b"x" * 120).serialize(mask=True)
        for _ in range(int(control_frames.CONTROL_BURST) + 10):
            volunteer.connection.transport.write(frame)
        code, reason, _ = await end_of(volunteer)
        assert (code, reason) == (control_frames.TOO_MANY, control_frames.TOO_MANY_REASON)
    with pytest.raises(ConnectionClosed):
        await server.volunteer("pinger").__aenter__()


async def test_ordinary_pings_are_answered(server):
    async with server.volunteer() as volunteer:
        for _ in range(50):
            await (await volunteer.connection.ping())


async def test_a_flood_of_log_lines_is_cut_and_the_task_s_log_says_so(server):
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        task_id = await model.submit(server.http, model.spec())
        assign = await volunteer.accept()
        progress = {"assignment_id": assign.assignment_id, "fence": assign.fence, "phase": "computing"}
        lines = tuple(LogLine(text="x" * 1900) for _ in range(200))
        points = tuple(MetricPoint(name=f"m{n}", value=1.0) for n in range(200))
        for n in range(8):
            named = tuple(p.model_copy(update={"name": f"{n}-{p.name}"}) for p in points)
            await volunteer.send(Progress(progress=progress, logs=lines, metrics=named))  # type: ignore[arg-type]
        names: set[str] = set()
        said: list[str] = []
        async with asyncio.timeout(30):
            # all eight are taken once as many names as a task may have are there
            while len(names) < allowance.MAX_METRIC_NAMES or not said:
                logs = (await server.http.get(f"/v1/tasks/{task_id}/logs", params={"limit": 1000})).json()
                said = [line["text"] for line in logs if "dropped" in line["text"]]
                names = {point.entry.name for point in await server.farm.ledger.metrics(task_id, limit=10_000)}
        assert len(names) == allowance.MAX_METRIC_NAMES
        assert "log lines" in said[0]
        assert sum(len(line["text"]) for line in logs) <= allowance.LOG_BYTES_BURST * 1.2

"""The control socket over real sockets: who may use it, what garbage does, and that nothing is left behind."""

import asyncio
import json
import os
import socket
import stat
import struct
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_client.agent.errors import BadSettings, ControlRefused, NoControlSocket
from farm_client.agent.home import local_socket
from farm_client.agent.owner import control
from farm_client.agent.owner.control import MAX_LINE_BYTES, ControlSocket, ask

TRACED = []


def broken(_request):
    raise KeyError("a mistake")


def refused(_request):
    raise BadSettings("hours: not so")


def full(_request):
    raise OSError(28, "No space left on device")


async def slow(request):
    await asyncio.sleep(0)
    return {"slow": request["n"]}


VERBS = {"echo": lambda request: {"said": request.get("text")}, "slow": slow}
FAILING = {"broken": broken, "refused": refused, "full": full}


@asynccontextmanager
async def serving(path):
    TRACED.clear()
    served = ControlSocket(path, VERBS | FAILING, lambda text, error: TRACED.append((text, error)))
    await served.open()
    try:
        yield served
    finally:
        await served.close()


async def asked(path, **request):
    return await asyncio.to_thread(ask, path, request)


async def answer_to(path, *lines, end=True):
    """Write raw bytes, and return every answer until the agent closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    for line in lines:
        writer.write(line)
    if end:
        writer.write_eof()
    async with asyncio.timeout(10):
        answers = [json.loads(line) async for line in reader]
    writer.close()
    return answers


async def test_a_request_is_answered(tmp_path):
    async with serving(tmp_path / "control.sock"):
        assert await asked(tmp_path / "control.sock", do="echo", text="so") == {"said": "so"}
        assert await asked(tmp_path / "control.sock", do="slow", n=3) == {"slow": 3}


async def test_several_requests_over_one_connection(tmp_path):
    async with serving(tmp_path / "control.sock"):
        answers = await answer_to(tmp_path / "control.sock", b'{"do": "echo", "text": 1}\n{"do": "echo", "text": 2}\n')
    assert [answer["data"]["said"] for answer in answers] == [1, 2]


async def test_only_its_owner_may_open_it_and_nothing_is_left(tmp_path):
    path = tmp_path / "control.sock"
    async with serving(path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local_socket.os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(local_socket, "_ROOT", -1)
    async with serving(tmp_path / "control.sock"):
        (answer,) = await answer_to(tmp_path / "control.sock", b'{"do": "echo"}\n')
    assert (answer["ok"], answer["code"]) == (False, "bad_request")
    assert "only the user" in answer["message"]


async def test_where_a_system_does_not_tell_who_connects_the_mode_alone_holds(tmp_path, monkeypatch):
    monkeypatch.delattr(local_socket.socket, "SO_PEERCRED")
    async with serving(tmp_path / "control.sock"):
        assert await asked(tmp_path / "control.sock", do="echo") == {"said": None}


def test_the_event_loop_of_the_agent_tells_who_connects(tmp_path):
    path = tmp_path / "control.sock"

    async def life():
        async with serving(path):
            return await asked(path, do="echo", text="over uvloop")

    assert uvloop.run(life()) == {"said": "over uvloop"}


async def test_what_a_killed_agent_left_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NoControlSocket, match="restart it"):
        await asked(path, do="echo")
    async with serving(path):
        assert await asked(path, do="echo") == {"said": None}


async def test_a_path_that_is_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("deep" * 30) / ("deeper" * 20)
    folder.mkdir(parents=True)
    async with serving(folder / "control.sock"):
        assert await asked(folder / "control.sock", do="echo") == {"said": None}


async def test_a_folder_that_is_gone_says_so(tmp_path):
    with pytest.raises(NoControlSocket, match="no socket can be made"):
        async with serving(tmp_path / "gone" / "control.sock"):
            pass


async def test_a_system_without_local_sockets_says_so(tmp_path, monkeypatch):
    monkeypatch.delattr(local_socket.socket, "AF_UNIX")
    with pytest.raises(NoControlSocket, match="no local sockets"):
        async with serving(tmp_path / "control.sock"):
            pass
    with pytest.raises(NoControlSocket, match="no local sockets"):
        ask(tmp_path / "control.sock", {})


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "bad_request"),
        (b"pause\n", "bad_request"),
        (b"[1]\n", "bad_request"),
        (b"\xff\xfe\n", "bad_request"),
        (b"[" * 5000 + b"\n", "bad_request"),
        (b'{"do": ["pause"]}\n', "bad_request"),
        (b'{"do": "explode"}\n', "bad_request"),
        (b'{"do": "refused"}\n', "bad_settings"),
        (b'{"do": "full"}\n', "machine"),
        (b'{"do": "broken"}\n', "agent_error"),
        (b"x" * (MAX_LINE_BYTES + 10) + b"\n", "bad_request"),
    ],
)
async def test_what_is_no_request_gets_an_error_and_harms_nothing(tmp_path, line, code):
    path = tmp_path / "control.sock"
    async with serving(path):
        (answer,) = await answer_to(path, line)
        assert (answer["ok"], answer["code"]) == (False, code)
        assert answer["message"]
        assert await asked(path, do="echo") == {"said": None}
    assert bool(TRACED) == (code == "agent_error")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(garbage=st.binary(max_size=200))
async def test_whatever_is_said_it_goes_on(tmp_path, garbage):
    path = tmp_path / "control.sock"
    async with serving(path):
        for answer in await answer_to(path, garbage):
            assert answer["ok"] is False
        assert await asked(path, do="echo") == {"said": None}


async def test_who_says_nothing_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_SILENT_SECONDS", 0.01)
    async with serving(tmp_path / "control.sock"):
        assert await answer_to(tmp_path / "control.sock", b'{"do":', end=False) == []


async def test_too_many_at_once_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_MOST_CONNECTIONS", 1)
    async with serving(tmp_path / "control.sock"):
        _, first = await asyncio.open_unix_connection(tmp_path / "control.sock")
        (answer,) = await answer_to(tmp_path / "control.sock", b'{"do": "echo"}\n')
        assert "more than 1" in answer["message"]
        first.close()


async def test_who_goes_away_in_the_midst_harms_nothing(tmp_path):
    path = tmp_path / "control.sock"
    async with serving(path):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.sendall(b'{"do": "echo"}\n' * 100)
        assert await asked(path, do="echo") == {"said": None}


async def test_a_refusal_carries_the_agent_s_sentence(tmp_path):
    async with serving(tmp_path / "control.sock"):
        with pytest.raises(ControlRefused, match="hours: not so"):
            await asked(tmp_path / "control.sock", do="refused")


async def test_an_agent_that_closes_at_once_has_not_answered(tmp_path):
    server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), tmp_path / "control.sock")
    with pytest.raises(NoControlSocket):
        await asked(tmp_path / "control.sock", do="echo")
    server.close()

"""An agent that a farm has welcomed comes back, whatever stands in the farm's place meanwhile."""

import asyncio
import json

import pytest

from farm_client.agent.connection import link, reconnect_policy
from farm_client.agent.home.known_farms import KnownFarms
from protocol.errors import Unauthorized
from protocol.messages import Bye, Error, Hello
from protocol.retry import RetryPolicy
from tests.farm_client.agent.odd_server import BEFORE_THE_REQUEST, RELAY, RESET, SILENCE, odd_server, status
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

ODD = [b"", RESET, SILENCE, b"HTTP/1.1 40", *map(status, (200, 301, 403, 404, 502)), (BEFORE_THE_REQUEST, status(404))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Strangers get no time at all, so that only what is known of an address counts; waits are short."""
    monkeypatch.setattr(reconnect_policy, "STRANGERS_SECONDS", 0.0)
    monkeypatch.setattr(link, "_OPEN_SECONDS", 0.3)
    for name in ("RECONNECT", "COSTLY", "DISPLACED"):
        monkeypatch.setattr(f"farm_client.agent.connection.reconnect_policy.{name}", RetryPolicy(0.02, 0.05))


def doing(home):
    return json.loads((home / "status.json").read_bytes())["doing"]


async def test_a_welcomed_agent_outlives_every_odd_answer_and_shows_each(farm, start_agent, home):
    """The farm's address leads through what answers oddly for a while, and then to the farm again."""
    async with start_agent() as life:
        peer = await joined(farm)
        for code in (404, 403, 301, 200, 204, 418, 503):
            farm.refuse_status = code
            await peer.close(1012)
            await until(lambda code=code: f"status {code}" in doing(home))
            farm.refuse_status = None
            peer = await joined(farm)
        assert not life.done()


async def test_a_restarted_agent_is_as_patient_as_before(farm, start_agent, home):
    async with start_agent():
        await joined(farm)
    farm.refuse_status = 404
    async with start_agent() as life:
        await until(lambda: "status 404" in doing(home))
        farm.refuse_status = None
        await joined(farm)
        assert not life.done()


async def test_a_refused_token_ends_even_a_welcomed_agent(farm, start_agent):
    async with start_agent() as life:
        peer = await joined(farm)
        farm.refuse_status = 401
        await peer.close(1012)
        with pytest.raises(Unauthorized):
            await life


async def test_every_kind_of_answer_is_waited_out_one_after_the_other(farm, start_agent):
    async with odd_server(RELAY, farm.port) as odd:
        farm.port = odd.port
        async with start_agent() as life:
            await joined(farm)
            for answer in ODD:
                odd.answer, before = answer, odd.dials
                odd.cut()
                await until(lambda before=before: odd.dials >= before + 2)
            odd.answer = RELAY
            await joined(farm)
            assert not life.done()


async def test_an_address_is_remembered_through_damage_and_without_a_disk(tmp_path):
    known = KnownFarms(tmp_path / "missing" / "welcomed-by.json")
    known.add("ws://farm.example")
    assert "ws://farm.example" in known
    path = tmp_path / "welcomed-by.json"
    for number in range(100):
        KnownFarms(path).add(f"ws://farm{number}.example")
    again = KnownFarms(path)
    assert "ws://farm99.example" in again
    assert "ws://farm0.example" not in again
    for damage in (b"", b"[", b"{}", b"\xff\xfe", b"[" * 100_000, b'[1, null, "ws://farm.example"]'):
        path.write_bytes(damage)
        assert "ws://other.example" not in KnownFarms(path)


async def test_a_farm_that_asks_for_time_gets_it(farm, start_agent):
    farm.refuse_status, farm.refuse_headers = 503, {"Retry-After": "1"}
    async with start_agent():
        began = asyncio.get_running_loop().time()
        await until(lambda: farm.refused)
        farm.refuse_status = None
        peer = await farm.next_client()
        await peer.expect(Hello)
        assert asyncio.get_running_loop().time() - began >= 1.0


async def test_another_machine_with_this_identity_is_said_with_the_way_out(farm, start_agent, home, capsys):
    async with start_agent() as life:
        peer = await joined(farm)
        first = peer.log[0]
        await peer.send(Bye(reason="replaced", replaced=True))
        await until(lambda: "--new-identity" in doing(home))
        peer = await farm.next_client()
        again = await peer.expect(Hello)
        assert (again.client_id, again.run_id) == (first.client_id, first.run_id) != (first.client_id, "")
        await peer.send(Error(code="identity_in_use", message="two machines", fatal=True))
        await joined(farm)  # the other one has left
        assert not life.done()
    assert "another machine uses this machine's identity" in capsys.readouterr().err


async def test_each_run_of_an_agent_has_a_name_of_its_own_and_a_new_identity_is_kept(farm, start_agent):
    hellos = []
    for new in (False, False, True, False):
        async with start_agent(new_identity=new):
            hellos.append(await (await farm.next_client()).expect(Hello))
    assert len({hello.run_id for hello in hellos}) == 4
    ids = [(hello.client_id, hello.client_secret) for hello in hellos]
    assert ids[0] == ids[1] != ids[2] == ids[3]

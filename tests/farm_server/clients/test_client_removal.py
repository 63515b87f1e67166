"""DELETE /v1/clients/{id}: the server forgets a client, also over a restart."""

from __future__ import annotations

from urllib.parse import quote

from coordinator.records import RemovedClient
from farm_server.clients.registry import Registry
from protocol.messages import Bye
from storage.ledger import SqlLedger
from tests.farm_server import model
from tests.farm_server.clients.test_gateway import happened
from tests.storage import records as a


async def names(server) -> set[str]:
    return {client["client_id"] for client in (await server.http.get("/v1/clients")).json()}


async def test_a_client_that_is_gone_is_forgotten_for_good_and_its_id_is_free(start):
    odd = "a/../b?"
    async with start() as server:
        async with server.volunteer("c1"), server.volunteer(odd):
            refused = await server.http.delete("/v1/clients/c1")
            assert refused.status_code == 409
            assert "--force" in refused.json()["message"]
        await happened(server, "client_lost", after=(await happened(server, "client_lost"))["seq"])
        for client_id in ("c1", odd):
            answer = await server.http.delete(f"/v1/clients/{quote(client_id, safe='').replace('.', '%2E')}")
            assert (answer.status_code, answer.json()) == (200, {"client_id": client_id, "removed": True})
        assert (await server.http.delete("/v1/clients/c1")).status_code == 404
        assert await names(server) == set()
        assert (await happened(server, "client_removed"))["client_id"] == "c1"
        async with server.volunteer("c1", client_secret="another secret of that length") as newcomer:
            assert newcomer.welcome.incarnation == 2
            assert await names(server) == {"c1"}
        await happened(server, "client_lost", after=(await happened(server, "client_removed"))["seq"])
        assert (await server.http.delete("/v1/clients/c1")).status_code == 200
    async with start() as server:
        assert await names(server) == set()


async def test_by_force_its_connection_ends_and_others_get_what_it_held(server):
    async with server.volunteer("c1") as gone:
        await gone.ready()
        await model.submit(server.http)
        held = await gone.accept()
        assert (await server.http.delete("/v1/clients/c1", params={"force": True})).status_code == 200
        assert "removed" in (await gone.next(Bye)).reason
        async with server.volunteer("c2") as other:
            await other.ready()
            assert (await other.accept()).slices == held.slices
    assert await names(server) == {"c2"}


async def test_only_a_researcher_may(server):
    async with server.client(headers={"Authorization": f"Bearer {server.farm.tokens.join}"}) as volunteer:
        refused = await volunteer.delete("/v1/clients/c1")
    assert refused.status_code == 401
    assert "farm token" in refused.json()["message"]


def test_a_later_connection_keeps_its_secret():
    registry = Registry([a.client("c1", incarnation=3)], max_clients=1)
    registry.forget("c1", 2)
    assert registry._identities["c1"].secret_hash is not None
    registry.forget("c1", 3)
    assert registry._identities["c1"].secret_hash is None


async def test_the_row_goes_with_the_event_and_what_is_saved_later_stays(tmp_path):
    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    earlier = ledger.submit([a.client("c1"), a.client("c2")])
    removal = ledger.submit([RemovedClient("c1")], [a.event("removed")])
    again = ledger.submit([a.client("c1", name="anew")])
    for saved in (earlier, removal, again):
        await saved
    assert {c.client_id: c.name for c in (await ledger.load()).clients} == {"c1": "anew", "c2": "box"}
    await ledger.save([RemovedClient("c1")])
    await ledger.close()
    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    assert [c.client_id for c in (await ledger.load()).clients] == ["c2"]
    await ledger.close()

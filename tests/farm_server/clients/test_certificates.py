"""Certificates of a farm: what they say, who gets them, and the key that they are signed with."""

from __future__ import annotations

import stat

import pytest

from farm_server.clients import certificates
from protocol.certificate import from_file, public_key_of, verify
from tests.storage import records


async def given_work(server) -> None:
    await server.farm.ledger.save(
        [],
        [
            records.credit("c1", "red", "t1", day=3, measured_samples=60, flops=6000),
            records.credit("c1", "red", "t2", day=9, samples=5),
            records.credit("c2", "red", "t1", day=4),
        ],
    )


async def test_a_certificate_has_the_sums_and_the_farms_signature(server):
    await given_work(server)
    async with server.volunteer("c1", name="ada's box"):
        answer = await server.http.get("/v1/certificates/clients/c1")
    signed = from_file(answer.content)
    about = signed.certificate
    assert (about.kind, about.subject, about.name, about.farm) == (
        "client",
        "c1",
        "ada's box",
        server.farm.settings.name,
    )
    assert (about.samples, about.measured_samples, about.flops, about.assignments) == (65, 60, 6000, 2)
    assert (about.first_day, about.last_day) == ("1970-01-04", "1970-01-10")
    assert [(task.task_id, task.flops) for task in about.tasks] == [("t1", 6000), ("t2", 0)]
    async with server.client() as nobody:
        key = (await nobody.get("/v1/keys/certificate")).json()["public_key"]
    verify(signed, key)


async def test_a_teams_certificate_is_of_all_its_clients(server):
    await given_work(server)
    about = from_file((await server.http.get("/v1/certificates/teams/red")).content).certificate
    assert (about.kind, about.subject, about.samples) == ("team", "red", 125)


async def test_of_very_many_tasks_the_first_are_named(server, monkeypatch):
    monkeypatch.setattr(certificates, "MAX_TASKS", 1)
    await given_work(server)
    about = from_file((await server.http.get("/v1/certificates/clients/c1")).content).certificate
    assert ([task.task_id for task in about.tasks], about.more_tasks) == (["t1"], 1)


@pytest.mark.parametrize("path", ["clients/nobody", "teams/blue", "teams/", "clients/"])
async def test_without_work_there_is_none(server, path):
    await given_work(server)
    await server.farm.ledger.save([], [records.credit("c9", "")])
    answer = await server.http.get(f"/v1/certificates/{path}")
    assert answer.status_code == 404
    assert "counts here" in answer.json()["message"]


async def test_a_volunteer_may_ask_and_nobody_else_without_a_token(server):
    await given_work(server)
    async with server.client() as http:
        assert (await http.get("/v1/certificates/clients/c1")).status_code == 401
        volunteer = {"Authorization": f"Bearer {server.farm.tokens.join}"}
        assert (await http.get("/v1/certificates/clients/c1", headers=volunteer)).status_code == 200


async def test_the_key_is_the_owners_alone_and_stays(server):
    path = server.farm.settings.data_dir / "certificate.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = (await server.http.get("/v1/keys/certificate")).json()["public_key"]
    assert key == public_key_of(bytes.fromhex(path.read_text()))
    path.write_text("damaged")
    answer = await server.http.get("/v1/keys/certificate")
    assert answer.status_code >= 500
    assert "backup" in answer.json()["message"]

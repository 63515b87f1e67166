"""The leaderboard: what it adds up, page by page, and who may see it."""

from __future__ import annotations

import pytest

from coordinator.credit import DAY_SECONDS
from farm_server.clients.leaderboard import day_text
from protocol.assignments import Ack
from protocol.credit import CREDIT
from protocol.rest_credit import LeaderboardView
from tests.farm_server import model
from tests.farm_server.test_training import ended
from tests.farm_server.volunteer import Volunteer
from tests.storage import records


async def leaderboard(server, **query: object) -> LeaderboardView:
    answer = await server.http.get("/v1/leaderboard", params=query)
    assert answer.status_code == 200, answer.text
    return LeaderboardView.model_validate_json(answer.content)


async def train(volunteer: Volunteer, rounds: int, flops_per_sample: int) -> list[Ack]:
    """Deliver so many assignments that say so many FLOPs, and return what is acknowledged."""
    acks = []
    for _ in range(rounds):
        await volunteer.ready()
        assign = await volunteer.accept()
        await volunteer.deliver(assign, model.update(), flops_per_sample=flops_per_sample)
        acks.append(await volunteer.next(Ack))
    return acks


async def test_counted_work_is_on_the_leaderboard_and_told_to_its_client(server):
    task_id = await model.submit(server.http, model.spec(name="digits"))
    async with server.volunteer("c1", name="ada's box", team=" red\n team ", features=(CREDIT,)) as ada:
        told = [ack.credit for ack in await train(ada, 3, 1000)]
        await ended(server.http, task_id)
    board = await leaderboard(server)
    [leader] = board.leaders
    assert (leader.rank, leader.key, leader.name, leader.assignments, leader.share) == (1, "c1", "ada's box", 3, 1.0)
    assert leader.flops == 1000 * leader.samples == board.flops > 0
    assert [credit and credit.samples for credit in told][-1] == leader.samples
    assert [(one.key, one.name) for one in (await leaderboard(server, by="team")).leaders] == [("red team", "red team")]
    assert [(one.key, one.name) for one in (await leaderboard(server, by="task")).leaders] == [(task_id, "digits")]
    assert (await leaderboard(server, task="another")).count == 0
    page = (await server.http.get("/")).text
    assert "whose work counts most" in page
    assert "ada&#39;s box" in page
    await server.http.delete(f"/v1/tasks/{task_id}")
    await server.http.delete("/v1/clients/c1")
    [leader] = (await leaderboard(server)).leaders
    assert (leader.key, leader.name, leader.flops) == ("c1", "", board.flops)
    assert [one.name for one in (await leaderboard(server, by="task")).leaders] == [""]


async def test_pages_go_on_where_the_link_says(server):
    await server.farm.ledger.save([], [records.credit(f"c{n}", samples=10 - n) for n in range(5)])
    answer = await server.http.get("/v1/leaderboard", params={"by": "client", "limit": 2})
    keys, ranks = [], []
    while True:
        view = LeaderboardView.model_validate_json(answer.content)
        assert (view.count, view.samples, view.assignments) == (5, 40, 5)
        keys += [leader.key for leader in view.leaders]
        ranks += [leader.rank for leader in view.leaders]
        if "next" not in answer.links:
            break
        answer = await server.http.get(answer.links["next"]["url"])
    assert keys == ["c0", "c1", "c2", "c3", "c4"]
    assert ranks == [1, 2, 3, 4, 5]
    assert [round(one.share, 3) for one in (await leaderboard(server)).leaders][:2] == [0.25, 0.225]
    assert (await leaderboard(server, offset=7)).leaders == ()


async def test_days_begin_at_midnight_utc(server):
    today = int(server.farm.clock.now() // DAY_SECONDS)
    await server.farm.ledger.save([], [records.credit("new", day=today), records.credit("old", day=today - 3)])
    assert {one.key for one in (await leaderboard(server, since_days=3)).leaders} == {"new", "old"}
    assert {one.key for one in (await leaderboard(server, since_days=2)).leaders} == {"new"}
    assert (await leaderboard(server, since_days=36_500)).count == 2
    assert day_text(0) == "1970-01-01"
    assert (await leaderboard(server)).leaders[0].last_day == day_text(today)


@pytest.mark.parametrize(
    "query", ["by=nobody", "limit=0", "limit=1001", "offset=-1", "since_days=-1", "since_days=99999"]
)
async def test_what_makes_no_page_is_refused(server, query):
    assert (await server.http.get(f"/v1/leaderboard?{query}")).status_code == 422


async def test_it_needs_the_farm_token(server):
    async with server.client() as nobody:
        assert (await nobody.get("/v1/leaderboard")).status_code == 401

"""`farm leaderboard`: what is asked, and what is shown of the answer."""

from __future__ import annotations

import pytest

from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.leaderboard import days_of
from protocol.rest_credit import LeaderboardView, LeaderView
from tests.farm_client.cli.fake_farm import answer


def leader(rank: int, key: str, **changes: object) -> LeaderView:
    view = LeaderView(
        rank=rank,
        key=key,
        name=f"box {key}",
        assignments=3,
        samples=2000,
        measured_samples=2000,
        flops=1_234_000_000_000_000,
        share=0.75,
        first_day="2026-11-01",
        last_day="2026-11-27",
    )
    return view.model_copy(update=changes)


def board(*leaders: LeaderView, **changes: object) -> LeaderboardView:
    view = LeaderboardView(
        by="client",
        since_days=None,
        task_id=None,
        count=len(leaders),
        assignments=6,
        samples=4000,
        flops=2 * 10**15,
        leaders=leaders,
    )
    return view.model_copy(update=changes)


@pytest.fixture
def shows(fake):
    def show(view: LeaderboardView) -> None:
        fake.overrides["GET", "/v1/leaderboard"] = lambda: answer(view)

    return show


def test_it_shows_flops_samples_and_share(farm, shows):
    shows(
        board(
            leader(1, "a"), leader(2, "b", measured_samples=500), leader(3, "c", measured_samples=0, flops=0, name="")
        )
    )
    text = farm("leaderboard").stdout
    for part in ("box a", "1.2 PFLOP", "2,000", "75.0%", "1.2 PFLOP (of 25%)", "c ", "all 3 clients", "2.0 PFLOP"):
        assert part in text, part


def test_teams_and_tasks_are_called_by_their_names(farm, shows):
    shows(board(leader(1, "red", name="red"), leader(2, "", name=""), by="team"))
    text = farm("leaderboard", "--by", "team").stdout
    assert "red" in text
    assert "(no team)" in text
    shows(board(leader(1, "t1", name="digits"), leader(2, "t2gone", name=""), by="task"))
    text = farm("leaderboard", "--by", "task").stdout
    assert "digits" in text
    assert "t2gone" in text


def test_the_question_has_what_was_given(farm, fake, shows):
    shows(board(leader(1, "a")))
    farm("leaderboard", "--by", "team", "--since", "2w", "--top", "5")
    assert dict(fake.requests[-1].url.params) == {"by": "team", "since_days": "14", "limit": "5"}
    farm("leaderboard", "--task", "digits")
    assert dict(fake.requests[-1].url.params) == {"by": "client", "task": "abcd2345", "limit": "20"}
    shows(board(leader(1, "t2gone"), by="task"))
    farm("leaderboard", "--task", "t2gone")
    assert fake.requests[-1].url.params["task"] == "t2gone"


def test_what_is_not_shown_is_said(farm, shows):
    shows(board(leader(1, "a"), count=31))
    assert "1 of 31 are shown" in farm("leaderboard").stdout + farm("leaderboard").stderr
    shows(board())
    assert "No work counts yet" in farm("leaderboard").stdout


def test_it_is_one_envelope(farm, shows):
    shows(board(leader(1, "a", flops=10**25)))
    assert farm("leaderboard", "--json").envelope("leaderboard")["leaders"][0]["flops"] == 10**25


@pytest.mark.parametrize(("text", "days"), [("7d", 7), ("2w", 14), ("0d", 0)])
def test_days_and_weeks(text, days):
    assert days_of(text) == days


@pytest.mark.parametrize("text", ["7", "d", "1h", "-1d", "12345d", ""])
def test_other_spans_are_refused(text):
    with pytest.raises(BadUsage):
        days_of(text)

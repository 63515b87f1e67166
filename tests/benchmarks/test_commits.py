"""How many samples were done at a moment between two commits."""

from __future__ import annotations

import pytest

from benchmarks.commits import Commits
from protocol.rest import RoundView


def committed(number: int, at: float | None, samples: int = 10) -> RoundView:
    state = "open" if at is None else "committed"
    return RoundView(
        number=number, state=state, epoch=0, samples=samples, clients=1, seconds=None, loss=None, committed_at=at
    )


@pytest.fixture
def commits() -> Commits:
    commits = Commits()
    commits.note([committed(3, None), committed(2, 12.0, 30), committed(1, 11.0)])
    commits.note([committed(2, 12.0, 30), committed(0, 10.0)])
    return commits


def test_each_committed_round_is_known_once(commits: Commits) -> None:
    assert (len(commits), commits.newest) == (3, 12.0)


def test_between_commits_counts_exactly(commits: Commits) -> None:
    assert commits.samples(10.0, 11.0) == 10
    assert commits.samples(10.0, 12.0) == 40


def test_a_part_of_a_round_counts_in_part(commits: Commits) -> None:
    assert commits.samples(10.5, 11.5) == pytest.approx(5 + 15)


@pytest.mark.parametrize(("began", "ended"), [(9.9, 11.0), (11.0, 12.1)])
def test_what_is_not_known_is_not_guessed(commits: Commits, began: float, ended: float) -> None:
    with pytest.raises(ValueError, match="no rounds are known"):
        commits.samples(began, ended)


def test_nothing_is_known_at_first() -> None:
    assert (len(Commits()), Commits().newest) == (0, 0.0)
    with pytest.raises(ValueError, match="no rounds are known"):
        Commits().samples(0.0, 1.0)

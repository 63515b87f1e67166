"""A crowd's comeback: its rounds count as kept only as they were, and a real server is killed."""

from __future__ import annotations

import json

import pytest

from benchmarks import comeback
from benchmarks.farm import BenchmarkError
from protocol.rest import RoundView, TaskDetail
from tests.benchmarks.test_rounds import VIEW


def detail(*states: str, state: str = "running", clients: int = comeback.HOLDERS, retries: int = 0) -> TaskDetail:
    views = tuple(
        RoundView(number=0, state=s, epoch=0, samples=1, clients=5, seconds=None, loss=None, committed_at=None)
        for s in states
    )
    task = VIEW.model_copy(update={"state": state, "clients": clients, "retries": retries})
    return TaskDetail.model_construct(task=task, spec=None, rounds=views)


def test_a_round_is_kept_if_it_is_the_only_one_and_all_hold_it_again():
    assert comeback._is_held(detail("open"))
    assert not comeback._is_held(detail("open", "abandoned"))
    assert not comeback._is_held(detail("open", clients=comeback.HOLDERS - 1))
    assert not comeback._is_held(detail("open", state="pending"))
    assert not comeback._is_held(detail())


def test_a_round_that_is_opened_anew_and_a_retry_are_attempts():
    assert comeback._attempts_spent(detail("open")) == 0
    assert comeback._attempts_spent(detail()) == 0
    assert comeback._attempts_spent(detail("open", "abandoned", retries=2)) == 3


def test_more_tasks_than_the_crowd_has_clients_for_are_refused():
    with pytest.raises(BenchmarkError, match="need 20 clients"):
        comeback.measure(clients=19, open_tasks=2, waiting_tasks=2, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_crowd_comes_back_with_what_it_holds():
    found = json.loads(comeback.measure(clients=30, open_tasks=2, waiting_tasks=2, kills=1).to_json())
    assert (found["benchmark"], found["clients"], found["kills"]) == ("comeback", 30, 1)
    assert (found["open_rounds"], found["attempts_spent"]) == (2, 0)
    assert 0 < found["back_s"][0] == found["back_s"][1] < 60
    assert 0 < found["serving_s"][0] < 60
    assert found["timed_out"] == [0, 0]

"""When two machines share an identity, and when it is one that comes back."""

from hypothesis import given
from hypothesis import strategies as st

from farm_server.clients.copied_homes import SUSPECTED_SECONDS, SUSPECTED_TIMES, CopiedHomes

RUNS = st.lists(st.sampled_from(["", *(f"run{number}" for number in range(6))]), max_size=30)


def test_a_run_that_comes_back_after_another_proves_two():
    copied_homes = CopiedHomes()
    for run in ("a", "a", "b"):
        assert not copied_homes.returns("c1", run)
        copied_homes.joined("c1", run)
    assert copied_homes.returns("c1", "a")
    assert not copied_homes.returns("c2", "a")


@given(st.lists(st.integers(1, 5), max_size=10))
def test_a_machine_that_reconnects_and_restarts_is_never_two(reconnects):
    """Each run joins as often as it likes, and never again after the next one."""
    copied_homes = CopiedHomes()
    for run, times in enumerate(reconnects):
        for _ in range(times):
            assert not copied_homes.returns("c1", f"run{run}")
            copied_homes.joined("c1", f"run{run}")


@given(RUNS)
def test_only_a_run_that_was_replaced_by_another_returns(runs):
    copied_homes, seen = CopiedHomes(), []
    for run in runs:
        assert copied_homes.returns("c1", run) == (run != "" and run in seen and seen[-1] != run)
        copied_homes.joined("c1", run)
        seen.append(run)


def test_clients_that_say_nothing_of_their_runs_are_suspected_by_their_manners_alone():
    copied_homes = CopiedHomes()
    for _ in range(5):
        copied_homes.joined("c1", "")
        assert not copied_homes.returns("c1", "")
    told = [copied_homes.replaced("c1", now=float(number)) for number in range(SUSPECTED_TIMES)]
    assert told == [False] * (SUSPECTED_TIMES - 1) + [True]


def test_a_line_that_breaks_now_and_then_is_not_suspected():
    copied_homes = CopiedHomes()
    assert not any(copied_homes.replaced("c1", now=number * SUSPECTED_SECONDS) for number in range(20))


def test_it_is_news_once():
    copied_homes = CopiedHomes()
    assert [copied_homes.is_news("c1") for _ in range(3)] == [True, False, False]
    assert copied_homes.is_news("c2")


def test_what_is_remembered_of_a_client_is_bounded():
    copied_homes = CopiedHomes()
    for number in range(1000):
        copied_homes.joined("c1", f"run{number}")
        copied_homes.replaced("c1", float(number))
    assert len(copied_homes._clients["c1"].former) < 10
    assert len(copied_homes._clients["c1"].replaced_at) < 10

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_server.clients.report_interval import (
    BACKLOG,
    BEATS_PER_SECOND,
    CALM_SECONDS,
    LAG_SECONDS,
    MAX_SLOWDOWN,
    Pacer,
    ReportIntervals,
    ServerLoad,
    SilenceLimit,
    slowdown,
)
from protocol.limits import HEARTBEAT_SECONDS, LOST_AFTER_SECONDS, MAX_PACE_SECONDS, PROGRESS_SECONDS

USUAL = ReportIntervals(HEARTBEAT_SECONDS, PROGRESS_SECONDS, LOST_AFTER_SECONDS, HEARTBEAT_SECONDS)
QUIET = ServerLoad(clients=20, working=20, lag_seconds=0.001, backlog=3)
CROWD = ServerLoad(0, working=int(3 * BEATS_PER_SECOND * HEARTBEAT_SECONDS), lag_seconds=0.0, backlog=0)


def pacer(load: ServerLoad = QUIET, now: float = 1000.0) -> Pacer:
    made = Pacer(USUAL)
    made.look(load, now)
    return made


def test_a_quiet_server_keeps_the_usual_pace() -> None:
    kept = pacer()
    assert not any(kept.look(QUIET, 1000.0 + second) for second in range(1, 100))
    assert kept.intervals == USUAL
    assert kept.reason == "nothing is too much"


@pytest.mark.parametrize(
    ("load", "factor", "says"),
    [
        (CROWD, 3.0, "clients beat"),
        (ServerLoad(1, 1, 2 * LAG_SECONDS, 0), 2.0, "400 ms late"),
        (ServerLoad(1, 1, 0.0, 4 * BACKLOG), 4.0, f"{4 * BACKLOG} commands wait for the ledger"),
        (ServerLoad(10**12, 10**12, 10.0, 10**9), MAX_SLOWDOWN, "clients beat"),
        (ServerLoad(10**12, 0, 0.0, 0), 1.0, "nothing"),
    ],
)
def test_each_kind_of_load_slows_down_in_proportion(load: ServerLoad, factor: float, says: str) -> None:
    decision = slowdown(load, HEARTBEAT_SECONDS)
    assert decision.value == pytest.approx(factor)
    assert says in decision.reason


def test_it_slows_down_at_once_and_says_why() -> None:
    busy = pacer(CROWD)
    assert busy.intervals == ReportIntervals(6.0, 1.5, LOST_AFTER_SECONDS + 8.0, 6.0)
    assert "6000 clients" in busy.reason


def test_it_quickens_by_halves_after_a_calm() -> None:
    busy = pacer(CROWD)
    changes = [second for second in range(1, 200) if busy.look(QUIET, 1000.0 + second)]
    assert changes[0] >= CALM_SECONDS
    assert len(changes) == 2
    assert busy.intervals == USUAL


def test_load_that_comes_back_within_the_calm_keeps_the_pace() -> None:
    busy = pacer(CROWD)
    for second in range(1, 200):
        assert not busy.look(CROWD if second % 20 == 0 else QUIET, 1000.0 + second)
    assert busy.intervals.heartbeat_seconds == 6.0


def test_one_late_tick_is_no_load() -> None:
    kept = pacer()
    assert not kept.look(ServerLoad(20, 20, 1.0, 0), 1000.2)
    assert not any(kept.look(QUIET, 1000.0 + second) for second in range(1, 20))


def test_a_loop_that_stays_late_is() -> None:
    kept = pacer()
    assert any(kept.look(ServerLoad(20, 20, 0.8, 0), 1000.0 + second / 4) for second in range(1, 80))


_loads = st.builds(
    ServerLoad,
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.floats(0, 10, allow_nan=False),
    st.integers(0, 1_000_000),
)


@settings(max_examples=60)
@given(
    st.builds(
        lambda beat, *rest: ReportIntervals(beat, *rest, beat), st.floats(0.1, 30), st.floats(0.1, 2), st.floats(1, 60)
    ),
    st.lists(st.tuples(_loads, st.floats(0.01, 100)), max_size=30),
)
def test_the_pace_stays_within_its_bounds(usual: ReportIntervals, history: list[tuple[ServerLoad, float]]) -> None:
    kept, now = Pacer(usual), 0.0
    for load, passed in history:
        now += passed
        before = kept.intervals
        changed = kept.look(load, now)
        assert changed == (kept.intervals != before)
        assert usual.heartbeat_seconds <= kept.intervals.heartbeat_seconds <= MAX_SLOWDOWN * usual.heartbeat_seconds
        assert kept.intervals.heartbeat_seconds <= MAX_PACE_SECONDS
        assert kept.intervals.heartbeat_seconds <= kept.intervals.idle_heartbeat_seconds <= MAX_PACE_SECONDS
        missed = kept.intervals.lost_after_seconds - 2 * kept.intervals.heartbeat_seconds
        idly_missed = kept.intervals.idle_lost_after_seconds - 2 * kept.intervals.idle_heartbeat_seconds
        assert idly_missed == pytest.approx(missed)
        assert missed == pytest.approx(usual.lost_after_seconds - 2 * usual.heartbeat_seconds)


@pytest.mark.parametrize(("clients", "beat", "idle_beat"), [(20, 2.0, 2.0), (750, 2.0, 5.0), (100_000, 2.0, 60.0)])
def test_who_waits_for_work_in_a_crowd_beats_less_often_and_who_works_does_not(
    clients: int, beat: float, idle_beat: float
) -> None:
    waiting = pacer(ServerLoad(clients, working=3, lag_seconds=0.0, backlog=0))
    assert (waiting.intervals.heartbeat_seconds, waiting.intervals.idle_heartbeat_seconds) == (beat, idle_beat)
    assert waiting.intervals.lost_after_seconds == LOST_AFTER_SECONDS


def test_a_crowd_that_comes_is_told_few_times_and_one_that_leaves_after_a_calm() -> None:
    waiting, now, changes = Pacer(USUAL), 0.0, 0
    for clients in range(1, 10_001, 10):
        now += 0.01
        changes += waiting.look(ServerLoad(clients, 0, 0.0, 0), now)
    assert 10 <= changes <= 15
    assert not waiting.look(ServerLoad(0, 0, 0.0, 0), now + 1.0)
    assert waiting.look(ServerLoad(0, 0, 0.0, 0), now + CALM_SECONDS + 1.0)


def test_a_slower_client_is_borne_with_at_once() -> None:
    silence_limit = SilenceLimit(8.0)
    silence_limit.change(24.0, now=100.0)
    assert [silence_limit.at(now) for now in (100.0, 107.0, 109.0)] == [24.0, 24.0, 24.0]


def test_a_quicker_client_has_time_to_hear_of_it() -> None:
    silence_limit = SilenceLimit(24.0)
    silence_limit.change(8.0, now=100.0)
    assert [silence_limit.at(now) for now in (100.0, 123.9, 124.1)] == [24.0, 24.0, 8.0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 200)), min_size=1, max_size=8))
def test_nobody_is_lost_by_a_pace_not_heard_of(changes: list[tuple[float, float]]) -> None:
    """Whatever the changes: right after one, a client may still live by the former pace."""
    now, silence_limit = 0.0, SilenceLimit(8.0)
    for seconds, passed in changes:
        now += passed
        before = silence_limit.at(now)
        silence_limit.change(seconds, now)
        assert silence_limit.at(now) >= max(before, seconds)
        assert silence_limit.at(now + before + 1000) == seconds

"""Budgets: whoever stays below them never notices, whoever does not gets no more than they let through."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from coordinator import allowance
from coordinator.allowance import Bucket, ConnectionAllowance, OutputBudgets, Penalties

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "limits.md").read_text(encoding="utf-8")


@given(
    st.floats(0.1, 1e4),
    st.floats(1, 1e4),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=50),
)
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate(rate: float, burst: float, asked: list) -> None:
    bucket, now, given_away = Bucket(rate, burst), 0.0, 0.0
    for cost, pause in asked:
        now += pause
        if bucket.try_take(cost, now):
            given_away += cost
        assert given_away <= burst + rate * now + 1e-6 * (1 + given_away)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), min_size=1, max_size=50))
def test_who_waits_as_told_pays_off_every_debt(asked: list) -> None:
    bucket, now = Bucket(10, 20), 0.0
    for cost, pause in asked:
        now += pause
        now += bucket.take(cost, now)
        assert bucket.level(now) >= -1e-6


def flooded(seconds: float, messages: int, size_bytes: int = 100, **grants: int) -> tuple[int, int]:
    """Send as fast as one is read; return how many messages got through, and how many violations that was."""
    own, now, sent, violations = ConnectionAllowance(), 0.0, 0, 0
    while now < seconds:
        verdict = own.take(messages, size_bytes, now)
        sent += messages
        violations += verdict.is_violation
        now += verdict.wait_seconds or 1e-3
        for _ in range(grants.get("assignments", 0)):
            own.earn()
    return sent, violations


def test_a_flood_is_read_at_the_rate_and_gets_its_strikes() -> None:
    sent, violations = flooded(60, 64)
    assert sent <= allowance.MESSAGES_BURST + 60 * allowance.MESSAGES_PER_SECOND + 64
    assert violations >= 3


def test_large_frames_cost_by_their_bytes() -> None:
    sent, violations = flooded(60, 1, 4 * 1024 * 1024)
    assert sent * 4 * 1024 * 1024 <= 16 * 1024 * (allowance.MESSAGES_BURST + 61 * allowance.MESSAGES_PER_SECOND) * 1.1
    assert violations >= 3


def test_a_client_that_works_may_say_as_much_as_its_work_needs() -> None:
    _, violations = flooded(60, 5, assignments=1)
    assert violations == 0


def test_an_honest_idle_client_never_waits() -> None:
    own = ConnectionAllowance()
    for beat in range(100_000):  # a beat and a ready in one frame, twenty times a second
        assert own.take(2, 300, beat * 0.05).wait_seconds == 0


def test_a_burst_now_and_then_is_no_violation() -> None:
    own, now = ConnectionAllowance(), 0.0
    for _ in range(20):
        for _ in range(40):
            verdict = own.take(64, 5000, now)
            assert not verdict.is_violation
            now += verdict.wait_seconds
        now += 30


@given(st.integers(1, 40))
def test_penalties_grow_up_to_a_bound_and_are_forgiven(offences: int) -> None:
    penalties, now = Penalties(), 0.0
    waits = []
    for _ in range(offences):
        penalties.punish("c", now)
        waits.append(penalties.wait_seconds("c", now))
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] == allowance.FIRST_PENALTY_SECONDS
    assert waits[-1] <= allowance.LONGEST_PENALTY_SECONDS
    assert penalties.wait_seconds("c", now) == penalties.wait_seconds("another", now) == 0
    penalties.punish("c", now + allowance.FORGIVEN_AFTER_SECONDS + 1)
    assert penalties.wait_seconds("c", now + allowance.FORGIVEN_AFTER_SECONDS + 1) == waits[0]


def test_penalties_of_many_names_take_bounded_memory() -> None:
    penalties = Penalties(most=10)
    for number in range(1000):
        penalties.punish(f"c{number}", 0.0)
    assert sum(penalties.wait_seconds(f"c{n}", 0.0) > 0 for n in range(1000)) == 10


def test_a_print_loop_is_cut_and_said_once_in_a_while() -> None:
    budgets, kept, notes = OutputBudgets(), 0, []
    for tick in range(240):  # a minute
        now = tick * 0.25
        kept += sum(budgets.takes_line("c", "t", 2000, now) for _ in range(200))
        notes += budgets.notes(now)
    assert kept * 2000 <= allowance.LOG_BYTES_BURST + 60 * allowance.LOG_BYTES_PER_SECOND
    assert 5 <= len(notes) <= 7
    said = sum(int(re.match(r"(\d+) log lines", line)[1]) for _, _, line in notes)
    assert kept + said <= 240 * 200
    notes += budgets.notes(60 + allowance.SAY_EVERY_SECONDS)
    assert kept + sum(int(re.match(r"(\d+) log lines", line)[1]) for _, _, line in notes) == 240 * 200
    assert budgets.notes(1e6) == []


def test_many_clients_share_what_may_be_said_of_a_task() -> None:
    budgets = OutputBudgets()
    kept = sum(budgets.takes_line(f"c{n % 100}", "t", 2000, 0.0) for n in range(100_000))
    assert kept * 2000 <= allowance.TASK_FACTOR * allowance.LOG_BYTES_BURST
    assert budgets.takes_line("c0", "another task", 2000, 0.0)


def test_an_ordinary_task_loses_nothing() -> None:
    budgets = OutputBudgets()
    for tick in range(2000):
        now = tick * 0.5
        for client in ("a", "b", "c"):
            assert all(budgets.takes_line(client, "t", 120, now) for _ in range(20))
            assert all(budgets.takes_point(client, "t", name, now) for name in ("loss", "accuracy", "lr"))
    assert budgets.notes(1e6) == []


def test_a_task_has_so_many_metric_names_and_no_more() -> None:
    budgets = OutputBudgets()
    kept = {n for n in range(5000) if budgets.takes_point(f"c{n % 7}", "t", f"m{n}", n * 0.01)}
    assert kept == set(range(allowance.MAX_METRIC_NAMES))
    assert budgets.takes_point("c0", "t", "m0", 100.0)
    assert budgets.takes_point("c0", "another task", "m4999", 100.0)


def test_the_page_has_the_limits() -> None:
    numbers = {
        f"{allowance.MESSAGES_PER_SECOND:.0f} a second, {allowance.MESSAGES_BURST:,.0f} at once",
        f"{allowance.MESSAGES_PER_ASSIGNMENT:.0f} more",
        f"each {allowance.BYTES_PER_MESSAGE // 1024} KiB",
        f"longer than | {allowance.TOLERATED_SECONDS:.0f} s",
        f"log lines | {allowance.LINES_PER_SECOND:.0f} | {allowance.LINES_BURST:,.0f}",
        f"lines | {allowance.LOG_BYTES_PER_SECOND / 1024:.0f} KiB | {allowance.LOG_BYTES_BURST / 1024**2:.0f} MiB",
        f"points | {allowance.POINTS_PER_SECOND:.0f} | {allowance.POINTS_BURST:,.0f}",
        f"{allowance.TASK_FACTOR:.0f} times",
        f"{allowance.MAX_METRIC_NAMES:,} metric names",
        f"once in {allowance.SAY_EVERY_SECONDS:.0f} s",
        f"after {allowance.FIRST_PENALTY_SECONDS:.0f} s",
        f"up to {allowance.LONGEST_PENALTY_SECONDS:.0f} s",
    }
    assert {number for number in numbers if number not in PAGE} == set()

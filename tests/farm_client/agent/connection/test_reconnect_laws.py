"""Laws of coming back: whatever happened before, the wait lies within what the worst of it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.connection import reconnect_policy
from farm_client.agent.connection.reconnect_policy import (
    COSTLY,
    DISPLACED,
    RECONNECT,
    STEADY_SECONDS,
    STRANGERS_SECONDS,
    Reconnecting,
    ReconnectPolicy,
)
from farm_client.agent.errors import BadAddress, Displaced, NotAFarm, OutOfReach
from farm_client.agent.home.known_farms import KnownFarms

ADDRESS = "wss://farm.example.org"
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("failed"), st.booleans(), st.sampled_from((0.0, 5.0))),
        st.tuples(st.just("ended"), st.floats(0, 2 * DISPLACED.longest_seconds), st.none()),
        st.tuples(st.just("displaced"), st.none(), st.none()),
    ),
    max_size=30,
)


class Model:
    """What a person would remember of it."""

    def __init__(self) -> None:
        self.tries = self.slow = self.brief = self.displaced = 0
        self.asked = 0.0

    def live(self, reconnecting: Reconnecting, what: str, value: float, asked: float) -> None:
        if what == "failed":
            reconnecting.failed(was_slow=bool(value), retry_after_seconds=asked)
            self.tries, self.slow, self.asked = self.tries + 1, self.slow + bool(value), asked
        elif what == "ended":
            reconnecting.ended(value)
            self.tries = self.slow = 0
            self.asked = 0.0
            self.brief = self.brief + 1 if value < STEADY_SECONDS else 0
            self.displaced = 0 if value >= DISPLACED.longest_seconds else self.displaced
        else:
            reconnecting.displaced()
            self.displaced += 1

    def bounds(self) -> tuple[float, float]:
        """Return the least and the longest wait that may follow."""
        longest = max(
            RECONNECT.bound_seconds(self.tries),
            *(COSTLY.bound_seconds(count) if count else 0.0 for count in (self.slow, self.brief)),
            1.25 * DISPLACED.bound_seconds(self.displaced) / 2 if self.displaced else 0.0,
        )
        least = DISPLACED.bound_seconds(self.displaced) / 2 if self.displaced else 0.0
        return least + self.asked, longest + 1.25 * self.asked


@given(history=happenings, draw=st.floats(0, 1, exclude_max=True))
def test_a_wait_lies_between_what_is_owed_and_what_is_bearable(
    history: list[tuple[str, float, float]], draw: float
) -> None:
    reconnecting, model = Reconnecting(lambda: draw), Model()
    for what, value, asked in history:
        model.live(reconnecting, what, value, asked)
        least, longest = model.bounds()
        assert least <= reconnecting.delay_seconds() <= longest * (1 + 1e-9)


@settings(max_examples=30)
@given(history=happenings)
def test_the_longest_draw_is_the_worst_of_all_that_is_owed(history: list[tuple[str, float, float]]) -> None:
    reconnecting, model = Reconnecting(lambda: 1.0), Model()
    for what, value, asked in history:
        model.live(reconnecting, what, value, asked)
        assert reconnecting.delay_seconds() == pytest.approx(model.bounds()[1])


@settings(max_examples=30)
@given(history=happenings)
def test_a_steady_connection_excuses_all_but_a_second_machine(history: list[tuple[str, float, float]]) -> None:
    reconnecting = Reconnecting(lambda: 0.999)
    for what, value, asked in history:
        Model().live(reconnecting, what, value, asked)
    reconnecting.ended(DISPLACED.longest_seconds)
    assert reconnecting.delay_seconds() <= RECONNECT.first_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(reconnect_policy.time, "monotonic", lambda: now[0])
    return now


def policy(tmp_path: Path, give_up_seconds: float | None = None) -> ReconnectPolicy:
    return ReconnectPolicy(ADDRESS, KnownFarms(tmp_path / "known.json"), give_up_seconds)


def test_the_owners_limit_is_of_one_outage_and_a_connection_begins_anew(tmp_path: Path, clock: list[float]) -> None:
    limited = policy(tmp_path, give_up_seconds=60)
    clock[0] += 60
    limited.failed(OutOfReach("nobody there"))
    limited.welcomed()
    clock[0] += 3600
    limited.ended(OutOfReach("cut"))
    clock[0] += 60
    limited.failed(OutOfReach("nobody there"))
    clock[0] += 1
    with pytest.raises(OutOfReach, match="nobody there; gave up after 61 s; check the address"):
        limited.failed(OutOfReach("nobody there"))


def test_an_address_that_was_never_a_farm_is_given_up_after_a_while_of_nothing_else(
    tmp_path: Path, clock: list[float]
) -> None:
    strange = policy(tmp_path)
    strange.failed(NotAFarm("a web page"))
    clock[0] += STRANGERS_SECONDS - 0.1
    strange.failed(NotAFarm("a web page"))
    strange.failed(OutOfReach("nobody there"))  # the farm may be starting behind its proxy
    clock[0] += STRANGERS_SECONDS
    strange.failed(NotAFarm("a web page"))
    clock[0] += STRANGERS_SECONDS
    with pytest.raises(BadAddress, match="a web page; check the address: paste the one"):
        strange.failed(NotAFarm("a web page"))


def test_an_address_that_once_welcomed_this_machine_is_waited_for_however_strange(
    tmp_path: Path, clock: list[float]
) -> None:
    policy(tmp_path).welcomed()
    known = policy(tmp_path)  # the next run of the agent
    for _ in range(100):
        clock[0] += STRANGERS_SECONDS
        assert known.failed(NotAFarm("a hotel's sign-in page")) <= RECONNECT.longest_seconds


def test_a_displaced_client_comes_back_never_at_once_and_more_and_more_seldom(
    tmp_path: Path, clock: list[float]
) -> None:
    shared = policy(tmp_path)
    waits = [shared.failed(Displaced()) for _ in range(12)]
    for count, wait in enumerate(waits, start=1):
        assert DISPLACED.bound_seconds(count) / 2 <= wait
    assert waits[-1] >= DISPLACED.longest_seconds / 2
    shared.welcomed()
    clock[0] += DISPLACED.longest_seconds
    assert shared.ended(OutOfReach("cut")) <= RECONNECT.first_seconds, "the other machine has left it alone"

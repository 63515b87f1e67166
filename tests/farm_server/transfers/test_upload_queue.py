"""Whose turn it is to upload: in the order of coming, fair between clients, and no credit is lost for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_server.transfers.upload_queue import UploadDesk

IDLE, FORGET = 10.0, 15.0


@pytest.fixture
def desk() -> UploadDesk:
    return UploadDesk(2, IDLE, FORGET)


def granted(desk: UploadDesk, upload: str, client: str = "c", now: float = 0.0) -> bool:
    return desk.ask(upload, client, now).value.granted


def queue(desk: UploadDesk) -> list[str]:
    return [waiting.upload for waiting in desk.waiting()]


def test_the_third_waits_is_told_why_and_gets_its_turn(desk: UploadDesk) -> None:
    assert granted(desk, "a", "one")
    assert granted(desk, "b", "two")
    answer = desk.ask("c", "three", 1.0)
    assert not answer.value.granted
    assert answer.value.ahead == 2
    assert answer.reason == "2 uploads are before this one; the server folds 2 at a time"
    assert 0 < answer.value.retry_seconds <= 1
    desk.release("a")
    assert granted(desk, "c", "three", 2.0)
    assert desk.held() == ("b", "c")


def test_one_before_is_said_in_the_singular() -> None:
    desk = UploadDesk(1, IDLE)
    desk.ask("a", "one", 0.0)
    assert desk.ask("b", "two", 0.0).reason == "1 upload is before this one; the server folds 1 at a time"


def test_who_holds_a_credit_keeps_it_and_a_repeat_takes_no_second(desk: UploadDesk) -> None:
    assert all(granted(desk, "a", now=float(n)) for n in range(5))
    assert desk.held() == ("a",)


def test_nobody_overtakes_who_waits_longer(desk: UploadDesk) -> None:
    for upload in "abcd":
        desk.ask(upload, upload, 0.0)
    desk.release("a")
    assert not granted(desk, "d", "d", 1.0), "c came before"
    assert granted(desk, "c", "c", 1.0)
    desk.release("b")
    assert granted(desk, "d", "d", 1.0)


def test_many_uploads_of_one_client_do_not_hold_up_another(desk: UploadDesk) -> None:
    for upload in ("g1", "g2", "g3", "g4"):
        desk.ask(upload, "greedy", 0.0)
    desk.ask("m1", "modest", 1.0)
    desk.ask("m2", "modest", 1.0)
    assert queue(desk) == ["m1", "m2", "g3", "g4"]
    desk.release("g1")
    assert granted(desk, "m1", "modest", 2.0)
    assert queue(desk) == ["g3", "m2", "g4"], "each has one under way: in turns, as they came"


def test_a_dead_holders_credit_comes_back(desk: UploadDesk) -> None:
    desk.ask("a", "one", 0.0)
    desk.ask("b", "two", 0.0)
    assert desk.progress("b", 8.0)
    assert not granted(desk, "c", "three", 9.9)
    assert granted(desk, "c", "three", 10.1), "a brought no byte for ten seconds"
    assert desk.held() == ("b", "c")
    assert not desk.progress("a", 10.2), "it must ask again"


def test_progress_in_time_keeps_it_however_long_it_takes(desk: UploadDesk) -> None:
    desk.ask("a", "one", 0.0)
    for second in range(1, 100):
        assert desk.progress("a", float(second * 9))
        desk.expire(float(second * 9))


LEAST = 64 * 1024


def trickle(desk: UploadDesk, uploads: str, size_bytes: int, until: int) -> float | None:
    """Send so many bytes a second of each, while x asks each second; return when x gets its turn."""
    for second in range(1, until):
        for upload in uploads:
            desk.progress(upload, float(second), size_bytes)
        if granted(desk, "x", "honest", float(second)):
            return second
    return None


def test_who_trickles_gives_its_turn_to_who_waits() -> None:
    desk = UploadDesk(4, IDLE, FORGET, least_bytes_per_second=LEAST)
    for upload in "abcd":
        desk.ask(upload, upload, 0.0)
    assert trickle(desk, "abcd", 1, 60) == 11
    assert "x" in desk.held()


def test_a_steady_upload_keeps_its_turn_however_many_wait() -> None:
    desk = UploadDesk(4, IDLE, FORGET, least_bytes_per_second=LEAST)
    for upload in "abcd":
        desk.ask(upload, upload, 0.0)
    assert trickle(desk, "abcd", LEAST + 8192, 300) is None


def test_while_nobody_waits_a_slow_line_keeps_its_turn() -> None:
    desk = UploadDesk(1, IDLE, FORGET, least_bytes_per_second=LEAST)
    desk.ask("a", "slow", 0.0)
    for second in range(1, 300):
        assert desk.progress("a", float(second), 100)
        desk.expire(float(second))


def test_a_ticket_that_nobody_asks_for_is_forgotten(desk: UploadDesk) -> None:
    for upload in "abcd":
        desk.ask(upload, upload, 0.0)
    for second in range(0, 16, 5):
        desk.progress("a", float(second))
        desk.progress("b", float(second))
        desk.ask("d", "d", float(second))
    desk.release("a")
    assert queue(desk) == ["c", "d"]
    assert granted(desk, "d", "d", 15.1), "c has left the queue"


def test_others_with_the_same_blob_share_its_credit_and_its_ticket(desk: UploadDesk) -> None:
    assert granted(desk, "a", "one")
    assert granted(desk, "a", "two")
    assert desk.clients_of("a") == ("one", "two")
    desk.ask("b", "two", 0.0)
    desk.ask("c", "three", 0.0)
    desk.ask("c", "four", 0.0)
    assert [(w.upload, w.clients, w.ahead) for w in desk.waiting()] == [("c", ("three", "four"), 2)]
    assert desk.clients_of("c") == ()


def test_the_first_ask_again_soon_and_the_last_not_too_late() -> None:
    desk = UploadDesk(1, IDLE)
    waits = [desk.ask(str(n), str(n), 0.0).value.retry_seconds for n in range(100)][1:]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.2, 5.0)
    assert waits[-1] * 3 <= FORGET, "who asks in time is not forgotten"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "release", "progress", "pause"]),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["one", "two", "three"]),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(actions=ACTIONS, capacity=st.integers(1, 3))
def test_never_too_many_never_idle_and_everybody_comes_to_their_turn(
    actions: list[tuple[str, str, str]], capacity: int
) -> None:
    desk, now = UploadDesk(capacity, IDLE, FORGET), 0.0
    for action, upload, client in actions:
        now += 3.0 if action == "pause" else 0.1
        if action == "ask":
            answer = desk.ask(upload, client, now).value
            assert answer.granted == (upload in desk.held())
            assert answer.granted or answer.ahead >= capacity or len(desk.held()) < capacity
        elif action == "release":
            desk.release(upload)
        elif action == "progress":
            assert desk.progress(upload, now) == (upload in desk.held())
        assert len(desk.held()) <= capacity
        assert not set(desk.held()) & set(queue(desk))
    while waiting := queue(desk):  # all holders finish, again and again; everybody asks as told
        for upload in desk.held():
            desk.release(upload)
        for upload in waiting:
            desk.ask(upload, "any", now)
        assert len(queue(desk)) == max(len(waiting) - capacity, 0)


def test_while_the_server_stands_still_no_turn_is_lost(desk: UploadDesk) -> None:
    assert granted(desk, "a", "one")
    assert granted(desk, "b", "two")
    assert not granted(desk, "c", "three")
    desk.forgive(100.0, 100.5)
    desk.expire(100.5)
    assert (desk.held(), queue(desk)) == (("a", "b"), ["c"])
    desk.expire(100.5 + IDLE)
    assert desk.held() == ()

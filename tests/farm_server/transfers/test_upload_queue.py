"""Whose turn it is to upload: in the order of coming, fair between clients, and no credit is lost for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_server.transfers.upload_queue import UploadQueue

IDLE, FORGET = 10.0, 15.0


@pytest.fixture
def queue() -> UploadQueue:
    return UploadQueue(2, IDLE, FORGET)


def granted(queue: UploadQueue, upload: str, client: str = "c", now: float = 0.0) -> bool:
    return queue.ask(upload, client, now).value.granted


def waiting_uploads(queue: UploadQueue) -> list[str]:
    return [waiting.upload for waiting in queue.waiting()]


def test_the_third_waits_is_told_why_and_gets_its_turn(queue: UploadQueue) -> None:
    assert granted(queue, "a", "one")
    assert granted(queue, "b", "two")
    answer = queue.ask("c", "three", 1.0)
    assert not answer.value.granted
    assert answer.value.ahead == 2
    assert answer.reason == "2 uploads are before this one; the server folds 2 at a time"
    assert 0 < answer.value.retry_seconds <= 1
    queue.release("a")
    assert granted(queue, "c", "three", 2.0)
    assert queue.held() == ("b", "c")


def test_one_before_is_said_in_the_singular() -> None:
    queue = UploadQueue(1, IDLE)
    queue.ask("a", "one", 0.0)
    assert queue.ask("b", "two", 0.0).reason == "1 upload is before this one; the server folds 1 at a time"


def test_who_holds_a_credit_keeps_it_and_a_repeat_takes_no_second(queue: UploadQueue) -> None:
    assert all(granted(queue, "a", now=float(n)) for n in range(5))
    assert queue.held() == ("a",)


def test_nobody_overtakes_who_waits_longer(queue: UploadQueue) -> None:
    for upload in "abcd":
        queue.ask(upload, upload, 0.0)
    queue.release("a")
    assert not granted(queue, "d", "d", 1.0), "c came before"
    assert granted(queue, "c", "c", 1.0)
    queue.release("b")
    assert granted(queue, "d", "d", 1.0)


def test_many_uploads_of_one_client_do_not_hold_up_another(queue: UploadQueue) -> None:
    for upload in ("g1", "g2", "g3", "g4"):
        queue.ask(upload, "greedy", 0.0)
    queue.ask("m1", "modest", 1.0)
    queue.ask("m2", "modest", 1.0)
    assert waiting_uploads(queue) == ["m1", "m2", "g3", "g4"]
    queue.release("g1")
    assert granted(queue, "m1", "modest", 2.0)
    assert waiting_uploads(queue) == ["m2", "g3", "g4"], "each has one under way, and one of them had a turn more"


def test_a_dead_holders_credit_comes_back(queue: UploadQueue) -> None:
    queue.ask("a", "one", 0.0)
    queue.ask("b", "two", 0.0)
    assert queue.progress("b", 8.0)
    assert not granted(queue, "c", "three", 9.9)
    assert granted(queue, "c", "three", 10.1), "a brought no byte for ten seconds"
    assert queue.held() == ("b", "c")
    assert not queue.progress("a", 10.2), "it must ask again"


def test_progress_in_time_keeps_it_however_long_it_takes(queue: UploadQueue) -> None:
    queue.ask("a", "one", 0.0)
    for second in range(1, 100):
        assert queue.progress("a", float(second * 9))
        queue.expire(float(second * 9))


LEAST = 64 * 1024


def trickle(queue: UploadQueue, uploads: str, size_bytes: int, until: int) -> float | None:
    """Send so many bytes a second of each, while x asks each second; return when x gets its turn."""
    for second in range(1, until):
        for upload in uploads:
            queue.progress(upload, float(second), size_bytes)
        if granted(queue, "x", "honest", float(second)):
            return second
    return None


def test_who_trickles_gives_its_turn_to_who_waits() -> None:
    queue = UploadQueue(4, IDLE, FORGET, least_bytes_per_second=LEAST)
    for upload in "abcd":
        queue.ask(upload, upload, 0.0)
    assert trickle(queue, "abcd", 1, 60) == 11
    assert "x" in queue.held()


def test_a_steady_upload_keeps_its_turn_however_many_wait() -> None:
    queue = UploadQueue(4, IDLE, FORGET, least_bytes_per_second=LEAST)
    for upload in "abcd":
        queue.ask(upload, upload, 0.0)
    assert trickle(queue, "abcd", LEAST + 8192, 300) is None


def test_while_nobody_waits_a_slow_line_keeps_its_turn() -> None:
    queue = UploadQueue(1, IDLE, FORGET, least_bytes_per_second=LEAST)
    queue.ask("a", "slow", 0.0)
    for second in range(1, 300):
        assert queue.progress("a", float(second), 100)
        queue.expire(float(second))


def test_a_ticket_that_nobody_asks_for_is_forgotten(queue: UploadQueue) -> None:
    for upload in "abcd":
        queue.ask(upload, upload, 0.0)
    for second in range(0, 16, 5):
        queue.progress("a", float(second))
        queue.progress("b", float(second))
        queue.ask("d", "d", float(second))
    queue.release("a")
    assert waiting_uploads(queue) == ["c", "d"]
    assert granted(queue, "d", "d", 15.1), "c has left the queue"


def test_others_with_the_same_blob_share_its_credit_and_its_ticket(queue: UploadQueue) -> None:
    assert granted(queue, "a", "one")
    assert granted(queue, "a", "two")
    assert queue.clients_of("a") == ("one", "two")
    queue.ask("b", "two", 0.0)
    queue.ask("c", "three", 0.0)
    queue.ask("c", "four", 0.0)
    assert [(w.upload, w.clients, w.ahead) for w in queue.waiting()] == [("c", ("three", "four"), 2)]
    assert queue.clients_of("c") == ()


def test_the_first_ask_again_soon_and_the_last_not_too_late() -> None:
    queue = UploadQueue(1, IDLE)
    waits = [queue.ask(str(n), str(n), 0.0).value.retry_seconds for n in range(100)][1:]
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
    queue, now = UploadQueue(capacity, IDLE, FORGET), 0.0
    for action, upload, client in actions:
        now += 3.0 if action == "pause" else 0.1
        if action == "ask":
            answer = queue.ask(upload, client, now).value
            assert answer.granted == (upload in queue.held())
            assert answer.granted or answer.ahead >= capacity or len(queue.held()) < capacity
        elif action == "release":
            queue.release(upload)
        elif action == "progress":
            assert queue.progress(upload, now) == (upload in queue.held())
        assert len(queue.held()) <= capacity
        assert not set(queue.held()) & set(waiting_uploads(queue))
    while waiting := waiting_uploads(queue):  # all holders finish, again and again; everybody asks as told
        for upload in queue.held():
            queue.release(upload)
        for upload in waiting:
            queue.ask(upload, "any", now)
        assert len(waiting_uploads(queue)) == max(len(waiting) - capacity, 0)


def test_while_the_server_stands_still_no_turn_is_lost(queue: UploadQueue) -> None:
    assert granted(queue, "a", "one")
    assert granted(queue, "b", "two")
    assert not granted(queue, "c", "three")
    queue.forgive(100.0, 100.5)
    queue.expire(100.5)
    assert (queue.held(), waiting_uploads(queue)) == (("a", "b"), ["c"])
    queue.expire(100.5 + IDLE)
    assert queue.held() == ()

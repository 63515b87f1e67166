from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.assignments import Ack, Assign, Cancel
from protocol.codec import decode, decode_entry, encode, join, split
from protocol.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES
from protocol.messages import Bye, Drain, Error, Message, Pause, Ready
from protocol.sendqueue import URGENT, SendQueue
from protocol.tasks import BlobRef
from tests.protocol.samples import BY_TYPE, SAMPLES

ASSIGN = BY_TYPE["assign"]
assert isinstance(ASSIGN, Assign)


def assign(assignment_id: str, task_id: str = "t", inline_bytes: int = 0) -> Assign:
    weights = BlobRef(digest="0" * 64, size_bytes=inline_bytes, inline=bytes(inline_bytes))
    task = ASSIGN.task.model_copy(update={"task_id": task_id})
    return ASSIGN.model_copy(update={"assignment_id": assignment_id, "task": task, "weights": weights})


def queue_of(*messages: Message) -> SendQueue:
    queue = SendQueue()
    for message in messages:
        queue.put(message, encode(message))
    return queue


def frames(queue: SendQueue, batch_bytes: int = MAX_BATCH_BYTES) -> list[list[Message]]:
    """Return the messages of each frame, in the order in which they are written."""
    found = []
    while packed := queue.next_frame(batch_bytes):
        entries = split(packed.frame)
        assert len(entries) == packed.messages
        found.append([decode_entry(entry) for entry in entries])
    assert queue.waiting_bytes == len(queue) == 0
    return found


def test_small_messages_that_wait_together_share_a_frame() -> None:
    messages = [BY_TYPE[name] for name in ("progress", "accept", "ready")]
    assert frames(queue_of(*messages)) == [messages]


def test_a_single_message_is_sent_as_it_is() -> None:
    packed = queue_of(Ready(slots=1)).next_frame(MAX_BATCH_BYTES)
    assert packed
    assert packed.frame == encode(Ready(slots=1))


def test_an_older_peer_gets_each_message_in_a_frame_of_its_own() -> None:
    messages = [Ready(slots=n) for n in range(5)]
    assert frames(queue_of(*messages), batch_bytes=0) == [[m] for m in messages]


def test_a_long_message_has_its_frame_alone_and_keeps_its_place() -> None:
    long = assign("a1", inline_bytes=MAX_BATCH_BYTES)
    before, after = Ready(slots=1), Ready(slots=2)
    assert frames(queue_of(before, before, long, after, after)) == [[before, before], [long], [after, after]]


def test_a_welcome_has_its_frame_alone() -> None:
    cancel = Cancel(assignment_id="a1", fence=1)
    assert frames(queue_of(BY_TYPE["welcome"], cancel, Drain())) == [[BY_TYPE["welcome"]], [cancel, Drain()]]
    assert frames(queue_of(cancel, BY_TYPE["welcome"])) == [[cancel], [BY_TYPE["welcome"]]]


def test_a_batch_is_bounded_in_messages_and_bytes() -> None:
    many = [Ready(slots=1)] * (2 * MAX_BATCH_MESSAGES + 1)
    assert [len(f) for f in frames(queue_of(*many))] == [MAX_BATCH_MESSAGES, MAX_BATCH_MESSAGES, 1]
    wide = queue_of(*[Error(code="x", message="y" * 4000)] * 50)
    while packed := wide.next_frame(10_000):
        assert len(packed.frame) <= 10_000


@pytest.mark.parametrize("name", sorted(URGENT - {"bye", "cancel", "pause"}))
def test_an_urgent_message_overtakes_what_waits(name: str) -> None:
    bulk = [assign(f"a{n}", inline_bytes=MAX_BATCH_BYTES) for n in range(3)]
    assert frames(queue_of(*bulk, BY_TYPE[name])) == [[BY_TYPE[name]], *([b] for b in bulk)]


def test_what_is_not_urgent_keeps_its_order() -> None:
    ordered = [m for m in SAMPLES if m.type not in URGENT]
    assert [m for frame in frames(queue_of(*ordered)) for m in frame] == ordered


def test_a_cancel_takes_the_offer_back_that_still_waits() -> None:
    cancel = Cancel(assignment_id="a1", fence=1)
    queue = queue_of(assign("a1", inline_bytes=100), assign("a2"), Ready(slots=1), cancel)
    assert frames(queue) == [[cancel, assign("a2"), Ready(slots=1)]]


@pytest.mark.parametrize(("task_id", "left"), [("t", ["a3"]), (None, [])])
def test_a_pause_takes_back_the_offers_of_its_task(task_id: str | None, left: list[str]) -> None:
    queue = queue_of(assign("a1"), assign("a2"), assign("a3", "other"), Pause(task_id=task_id))
    (frame,) = frames(queue)
    assert [m.assignment_id for m in frame if isinstance(m, Assign)] == left


def test_an_offer_after_the_pause_is_sent() -> None:
    queue = queue_of(Pause(task_id="t"), assign("a1"))
    assert frames(queue) == [[Pause(task_id="t"), assign("a1")]]


def test_nothing_follows_a_bye() -> None:
    queue = queue_of(assign("a1", inline_bytes=10**6), Ack(assignment_id="a0", fence=1, counted=True), Bye())
    assert frames(queue) == [[Ack(assignment_id="a0", fence=1, counted=True), Bye()]]


def test_the_sessions_last_word_drops_the_rest() -> None:
    complaint, fatal = Error(code="x", message="no"), Error(code="x", message="no", fatal=True)
    queue = queue_of(assign("a1"))
    queue.answer(encode(complaint), last=False)
    queue.answer(encode(fatal), last=True)
    assert frames(queue) == [[complaint, fatal]]


def test_control_waits_for_one_frame_of_twenty_megabytes_at_most() -> None:
    queue = queue_of(*(assign(f"a{n}", inline_bytes=10**6) for n in range(20)))
    assert queue.next_frame(MAX_BATCH_BYTES)  # under way
    orders = [Cancel(assignment_id="a7", fence=1), Pause(task_id="other"), Drain()]
    for order in orders:
        queue.put(order, encode(order))
    first, *rest = frames(queue)
    assert first == orders
    assert [m.assignment_id for f in rest for m in f if isinstance(m, Assign)] == [
        f"a{n}" for n in range(1, 20) if n != 7
    ]


_messages = st.sampled_from(SAMPLES) | st.builds(
    assign, st.sampled_from("abc"), st.sampled_from("tu"), st.sampled_from([0, 10, 70_000])
)


@settings(max_examples=60)
@given(st.lists(_messages, max_size=40), st.sampled_from([0, 200, MAX_BATCH_BYTES]))
def test_whatever_waits_is_sent_once_within_the_bounds(messages: list[Message], batch_bytes: int) -> None:
    queue = queue_of(*messages)
    assert queue.waiting_bytes >= 0
    sent = []
    while packed := queue.next_frame(batch_bytes):
        assert packed.messages == 1 or len(packed.frame) <= batch_bytes
        assert packed.messages <= MAX_BATCH_MESSAGES
        sent += [decode_entry(entry) for entry in split(packed.frame)]
    assert queue.waiting_bytes == len(queue) == 0
    kept = [m for m in messages if m in sent]
    assert len(sent) <= len(kept)
    for lane in (lambda m: m.type in URGENT, lambda m: m.type not in URGENT):
        wanted = iter(filter(lane, messages))
        assert all(message in wanted for message in filter(lane, sent)), "in order, and none twice"
    assert {m.type for m in messages} & URGENT <= {m.type for m in sent}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=8))
def test_a_batch_says_what_its_messages_say(messages: list[Message]) -> None:
    bodies = [encode(m) for m in messages]
    frame = join(bodies)
    assert [decode_entry(e) for e in split(frame)] == messages
    if len(messages) == 1:
        assert decode(frame) == messages[0]
    else:
        assert msgpack.unpackb(frame) == [msgpack.unpackb(b) for b in bodies]

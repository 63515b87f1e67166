"""Two sessions on one wire, in any order of events: neither ever does what the table of the other forbids.

The model keeps what a person would: which moves were made and heard, how many faults each side was blamed for.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.codec import decode, encode, join, split
from protocol.errors import MalformedFrame, OutOfOrder, OversizedFrame, ProtocolError, Unauthorized
from protocol.limits import MAX_BATCH_BYTES, MAX_CLIENT_DEPTH, MAX_CLIENT_VALUES, MAX_STRIKES
from protocol.messages import Bye, Error, Hello, Message, Ready, Welcome
from protocol.packing import pack_map
from protocol.session import SENDS, Session, SessionState, Side
from protocol.versions import SUPPORTED
from tests.protocol.samples import BY_TYPE

sides = st.sampled_from(Side)
BAD_FRAMES = (b"\xc1", b"", pack_map({"type": "ready", "slots": -1}), pack_map({"slots": 1}), pack_map({}))


class Conversation(RuleBasedStateMachine):
    """Each side says what it may and what it may not; frames cross, come in batches, or are damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {side: Session(side) for side in Side}
        self.wires: dict[Side, deque[bytes]] = {side: deque() for side in Side}
        """What is on its way to each side."""
        self.faults = dict.fromkeys(Side, 0)
        """How often each side was sent what it had to complain of."""

    @rule(side=sides, name=st.sampled_from(sorted(BY_TYPE)))
    def say(self, side: Side, name: str) -> None:
        end = self.ends[side]
        before = end.state
        if name in SENDS[before][side]:
            self.wires[side.other].append(end.send(BY_TYPE[name]))
            ends = isinstance(BY_TYPE[name], Bye)
            assert (end.state is SessionState.CLOSED) is ends
        else:
            with pytest.raises(OutOfOrder):
                end.send(BY_TYPE[name])
            assert end.state is before

    @rule(side=sides)
    def hear(self, side: Side) -> None:
        if not self.wires[side]:
            return
        end, frame = self.ends[side], self.wires[side].popleft()
        was_closed = end.closed
        heard = end.receive(frame)
        assert not (was_closed and heard), "after the end nothing is heard"
        self._answer(side)

    @rule(side=sides, frame=st.sampled_from(BAD_FRAMES))
    def damage(self, side: Side, frame: bytes) -> None:
        end = self.ends[side]
        if not end.closed:
            self.faults[side] += 1
        assert end.receive(frame) == []
        self._answer(side)

    @rule(side=sides)
    def unknown(self, side: Side) -> None:
        strikes = self.ends[side].strikes
        assert self.ends[side].receive(pack_map({"type": "from_the_future"})) == []
        assert self.ends[side].strikes == strikes, "a newer peer is not thrown out"
        self._answer(side)

    @precondition(lambda self: self.ends[Side.SERVER].batch_bytes)
    @rule(count=st.integers(2, 5))
    def batch(self, count: int) -> None:
        """The server hears several at once."""
        heard = self.ends[Side.SERVER].receive(join([encode(Ready(slots=n)) for n in range(count)]))
        open_ = self.ends[Side.SERVER].state is SessionState.OPEN
        assert heard == ([Ready(slots=n) for n in range(count)] if open_ else [])
        self._answer(Side.SERVER)

    @rule(side=sides)
    def blame(self, side: Side) -> None:
        """The shell saw a violation that the session could not."""
        if not self.ends[side].closed:
            self.faults[side] += 1
        self.ends[side].strike(MalformedFrame("the shell is not content"))
        self._answer(side)

    def _answer(self, side: Side) -> None:
        """Whatever a session answers is an error, goes over the wire, and a fatal one is its last word."""
        end = self.ends[side]
        answers = [decode(frame) for frame in end.outgoing()]
        assert all(isinstance(one, Error) for one in answers)
        assert not any(one.fatal for one in answers[:-1] if isinstance(one, Error))
        if answers and isinstance(last := answers[-1], Error) and last.fatal:
            assert end.closed
            assert end.error is not None
            assert end.close_code != 1000
        self.wires[side.other].extend(map(encode, answers))

    @invariant()
    def strikes_are_the_faults(self) -> None:
        for side, end in self.ends.items():
            assert end.strikes >= self.faults[side]
            assert end.strikes < MAX_STRIKES or end.closed

    @invariant()
    def both_agree_on_the_version(self) -> None:
        client, server = (self.ends[side] for side in (Side.CLIENT, Side.SERVER))
        if client.version is not None:
            assert client.version == server.version
            assert client.version in SUPPORTED
        for end in self.ends.values():
            assert bool(end.batch_bytes) is ((end.version or 0) >= 2)


Conversation.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_any_conversation_keeps_the_rules = Conversation.TestCase


def greeted(side: Side = Side.SERVER, **welcome: int) -> Session:
    """Return a session of that side with an open conversation."""
    ends = {one: Session(one) for one in Side}
    ends[Side.SERVER].receive(ends[Side.CLIENT].send(BY_TYPE["hello"]))
    ends[Side.CLIENT].receive(ends[Side.SERVER].send(Welcome(**{"version": 2, "incarnation": 1} | welcome)))
    return ends[side]


def code_of(session: Session) -> str | None:
    answers = [decode(frame) for frame in session.outgoing()]
    assert len(answers) <= 1
    return answers[0].code if answers and isinstance(answers[0], Error) else None


def test_a_strike_of_the_shell_counts_like_a_bad_frame() -> None:
    server = greeted()
    server.strike(MalformedFrame("too many"))
    assert code_of(server) == "malformed_frame"
    for _ in range(MAX_STRIKES - 1):
        server.receive(b"\xc1")
    assert (server.closed, server.close_code) == (True, 1002)


def nested_in_ready(depth: int) -> bytes:
    value: object = 1
    for _ in range(depth - 1):  # the map itself is the first level
        value = [value]
    return pack_map({"type": "ready", "slots": 1, "extra": value, "pad": bytes(5000)})  # a small frame is harmless


def test_a_server_bounds_how_deep_and_how_full_a_clients_frame_may_be() -> None:
    server = greeted()
    assert server.receive(nested_in_ready(MAX_CLIENT_DEPTH)) == [Ready(slots=1)]
    assert server.receive(nested_in_ready(MAX_CLIENT_DEPTH + 1)) == []
    assert code_of(server) == "malformed_frame"
    full = pack_map({"type": "ready", "slots": 1, "extra": [0] * MAX_CLIENT_VALUES})
    assert server.receive(full) == []
    assert code_of(server) == "malformed_frame"


def test_a_client_takes_from_its_server_what_a_server_would_not_take() -> None:
    """A task's configuration may be deep and an assignment long; the client has one server, the server thousands."""
    client = greeted(Side.CLIENT)
    deep: object = 1
    for _ in range(MAX_CLIENT_DEPTH + 5):
        deep = [deep]
    assert client.receive(pack_map({"type": "ack", "assignment_id": "a", "fence": 1, "counted": True, "extra": deep}))


def test_a_frame_of_exactly_the_agreed_limit_passes_and_one_byte_more_does_not() -> None:
    text = "x" * 150
    limit = len(encode(Bye(reason=text)))
    client, server = greeted(Side.CLIENT, max_frame_bytes=limit), greeted(max_frame_bytes=limit)
    with pytest.raises(OversizedFrame, match=str(limit)):
        client.send(Bye(reason=text + "x"))
    assert server.receive(encode(Bye(reason=text + "x"))) == []
    assert code_of(server) == "oversized_frame"
    assert server.receive(client.send(Bye(reason=text))) == [Bye(reason=text)]


def test_unknown_messages_are_free_up_to_the_size_of_a_batch() -> None:
    server = greeted()
    base = len(pack_map({"type": "from_the_future", "pad": bytes(60_000)})) - 60_000
    largest = pack_map({"type": "from_the_future", "pad": bytes(MAX_BATCH_BYTES - base)})
    assert len(largest) == MAX_BATCH_BYTES
    server.receive(largest)
    assert server.strikes == 0
    server.receive(pack_map({"type": "from_the_future", "pad": bytes(MAX_BATCH_BYTES - base + 1)}))
    assert server.strikes == 1


def test_a_version_that_was_offered_and_that_this_side_does_not_speak_is_not_agreed_on() -> None:
    client = Session(Side.CLIENT)
    client.send(BY_TYPE["hello"].model_copy(update={"versions": (*SUPPORTED, 77)}))
    assert client.receive(encode(Welcome(version=77, incarnation=1))) == []
    assert (code_of(client), client.closed, client.version) == ("version_mismatch", True, None)


def test_a_welcome_that_is_longer_than_the_limit_it_sets_is_not_sent() -> None:
    server = Session(Side.SERVER)
    server.receive(encode(BY_TYPE["hello"]))
    with pytest.raises(OversizedFrame):
        server.send(Welcome(version=2, incarnation=1, server="s" * 100, max_frame_bytes=128))
    assert server.state is SessionState.GREETING
    assert server.version == 2


@pytest.mark.parametrize("error", [Unauthorized("who are you?"), MalformedFrame("no")])
def test_the_shells_refusal_ends_it_once_and_says_why(error: ProtocolError | Unauthorized) -> None:
    server = greeted()
    server.fail(error)
    assert code_of(server) == error.code
    assert server.close_code == (1002 if isinstance(error, ProtocolError) else 1008)
    server.fail(Unauthorized("again"))
    server.strike(MalformedFrame("again"))
    assert code_of(server) is None
    assert server.error is error


def test_a_batch_tells_how_many_messages_came_good_or_bad() -> None:
    server = greeted()
    said = [encode(Ready(slots=1)), b"\x01", pack_map({"type": "from_the_future"})]
    server.receive(join(said))
    assert server.entries == len(split(join(said))) == 3
    server.receive(encode(Ready(slots=1)))
    assert server.entries == 1
    server.receive(b"\xc1")
    assert server.entries == 1


@pytest.mark.parametrize("offered", [(), (3, 4), (0,)])
def test_a_hello_without_a_common_version_is_answered_with_both_sides_versions(offered: tuple[int, ...]) -> None:
    server = Session(Side.SERVER)
    hello: Message = BY_TYPE["hello"].model_copy(update={"versions": offered})
    assert isinstance(hello, Hello)
    assert server.receive(encode(hello)) == []
    (answer,) = [decode(frame) for frame in server.outgoing()]
    assert isinstance(answer, Error)
    assert str(list(offered) or "none") in answer.message
    assert str(list(SUPPORTED)) in answer.message

from __future__ import annotations

import itertools

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import decode, encode, join, split
from protocol.errors import OutOfOrder, OversizedFrame, ProtocolError, Unauthorized, VersionMismatch
from protocol.limits import MAX_BATCH_MESSAGES, MAX_FRAME_BYTES, MAX_STRIKES
from protocol.messages import Bye, Error, Message, Ready, Welcome
from protocol.packing import pack_map
from protocol.session import SENDS, Session, SessionState, Side
from tests.protocol.samples import BY_TYPE, MESSAGE_TYPES, SAMPLES

HELLO, WELCOME = BY_TYPE["hello"], BY_TYPE["welcome"]
MOVES = list(itertools.product(SessionState, Side, BY_TYPE))


def session(side: Side, state: SessionState, **options: int) -> Session:
    """Return a session of that side which has lived its way into that state."""
    made = Session(side, **options)
    peer = Session(side.other)
    for message, sender in ((HELLO, Side.CLIENT), (WELCOME, Side.SERVER)):
        if made.state is state:
            return made
        speaker, hearer = (made, peer) if sender is side else (peer, made)
        hearer.receive(speaker.send(message))
    if state is SessionState.CLOSED:
        made.send(Bye())
    assert made.state is state
    return made


def errors(of: Session) -> list[Error]:
    """Return the error answers that the session queued."""
    answers = [decode(frame) for frame in of.outgoing()]
    assert all(isinstance(a, Error) for a in answers)
    return answers  # type: ignore[return-value]  # asserted above


def test_a_whole_conversation() -> None:
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    assert server.receive(client.send(HELLO)) == [HELLO]
    assert client.receive(server.send(WELCOME)) == [WELCOME]
    assert (client.version, server.version) == (2, 2)
    for name in ("ready", "accept", "progress", "heartbeat", "result", "error", "pause", "resume", "drain"):
        assert server.receive(client.send(BY_TYPE[name])) == [BY_TYPE[name]]
    for name in ("assign", "ack", "cancel", "pace", "error", "pause", "resume", "drain"):
        assert client.receive(server.send(BY_TYPE[name])) == [BY_TYPE[name]]
    assert server.receive(client.send(BY_TYPE["bye"])) == [BY_TYPE["bye"]]
    assert client.closed
    assert server.closed
    assert (server.close_code, server.close_reason) == (1000, "")
    assert client.outgoing() == server.outgoing() == []


@pytest.mark.parametrize(("state", "side", "name"), MOVES)
def test_sending_obeys_the_table(state: SessionState, side: Side, name: str) -> None:
    speaker = session(side, state)
    if name in SENDS[state][side]:
        assert speaker.may_send(name)
        assert decode(speaker.send(BY_TYPE[name])) == BY_TYPE[name]
    else:
        with pytest.raises(OutOfOrder, match=f"{name} is not legal from the {side} while {state}"):
            speaker.send(BY_TYPE[name])
        assert speaker.state is state


@pytest.mark.parametrize(("state", "side", "name"), MOVES)
def test_receiving_obeys_the_table(state: SessionState, side: Side, name: str) -> None:
    hearer = session(side, state)
    got = hearer.receive(encode(BY_TYPE[name]))
    if name in SENDS[state][side.other]:
        assert got == [BY_TYPE[name]]
        assert hearer.outgoing() == []
        return
    assert got == []
    assert hearer.state is state
    assert [e.code for e in errors(hearer)] == ([] if state is SessionState.CLOSED else ["out_of_order"])


@pytest.mark.parametrize("message", MESSAGE_TYPES)
def test_the_table_agrees_with_the_messages_own_docstrings(message: type[Message]) -> None:
    letters = (message.__doc__ or "").split(":")[0].split(".")[0]
    name = message.model_fields["type"].default
    senders = {side for row in SENDS.values() for side, legal in row.items() if name in legal}
    assert senders == {"C": {Side.CLIENT}, "S": {Side.SERVER}, "CS": set(Side)}[letters]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xc1", "malformed_frame"),
        ("hello", "malformed_frame"),
        (pack_map({"type": "ready", "slots": -1}), "malformed_frame"),
        (pack_map({"type": "teleport"}), "unknown_message"),
        (bytes(MAX_FRAME_BYTES + 1), "oversized_frame"),
        (encode(HELLO), "out_of_order"),
    ],
)
def test_each_bad_frame_gets_its_typed_answer_and_the_session_goes_on(frame: bytes | str, code: str) -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    assert server.receive(frame) == []
    assert [(e.code, e.fatal, e.assignment_id) for e in errors(server)] == [(code, False, None)]
    assert server.receive(encode(Ready(slots=1))) == [Ready(slots=1)]


def test_repeated_bad_frames_close_the_session() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    for _ in range(MAX_STRIKES):
        server.receive(b"\xc1")
    assert [e.fatal for e in errors(server)] == [False] * (MAX_STRIKES - 1) + [True]
    assert server.closed
    assert (server.close_code, server.close_reason) == (1002, "malformed_frame")
    assert server.receive(encode(Ready(slots=1))) == []
    assert not server.may_send("bye")


def test_unknown_messages_never_close_the_session() -> None:
    client = session(Side.CLIENT, SessionState.OPEN)
    for _ in range(3 * MAX_STRIKES):
        client.receive(pack_map({"type": "from_the_future"}))
    assert {e.code for e in errors(client)} == {"unknown_message"}
    assert not client.closed


def test_no_common_version_is_fatal_at_once() -> None:
    server = Session(Side.SERVER)
    assert server.receive(encode(HELLO.model_copy(update={"versions": (98, 99)}))) == []
    assert [(e.code, e.fatal) for e in errors(server)] == [("version_mismatch", True)]
    assert isinstance(server.error, VersionMismatch)
    assert server.closed


def test_the_best_of_several_versions_is_taken() -> None:
    server = Session(Side.SERVER)
    server.receive(encode(HELLO.model_copy(update={"versions": (1, 99)})))
    assert server.version == 1


@pytest.fixture
def old_pair() -> tuple[Session, Session]:
    """A client and a server of which one speaks version 1 only."""
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    server.receive(client.send(HELLO.model_copy(update={"versions": (1,)})))
    client.receive(server.send(Welcome(version=1, incarnation=1)))
    return client, server


def test_an_older_peer_gets_no_batch_and_no_pace(old_pair: tuple[Session, Session]) -> None:
    client, server = old_pair
    assert client.batch_bytes == server.batch_bytes == 0
    assert not server.may_send("pace")
    with pytest.raises(OutOfOrder, match="pace"):
        server.send(BY_TYPE["pace"])
    assert client.receive(server.send(BY_TYPE["ack"])) == [BY_TYPE["ack"]]


def test_an_older_peer_may_send_no_batch(old_pair: tuple[Session, Session]) -> None:
    _, server = old_pair
    assert server.receive(join([encode(Ready(slots=1))] * 2)) == []
    (answer,) = errors(server)
    assert answer.code == "malformed_frame"
    assert "list" in answer.message


def test_no_batch_before_the_versions_are_agreed() -> None:
    server = Session(Side.SERVER)
    assert server.receive(join([encode(HELLO), encode(Ready(slots=1))])) == []
    assert [e.code for e in errors(server)] == ["malformed_frame"]
    assert server.state is SessionState.CONNECTING


def test_a_batch_is_its_messages_one_after_the_other() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    said = [Ready(slots=1), BY_TYPE["heartbeat"], BY_TYPE["progress"]]
    assert server.receive(join([encode(m) for m in said])) == said
    assert server.outgoing() == []


def test_each_bad_message_of_a_batch_is_answered_and_the_others_count() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    good, other = Ready(slots=1), Ready(slots=2)
    bad = [pack_map({"type": "teleport"}), pack_map({"type": "ready"}), encode(BY_TYPE["ack"])]
    assert server.receive(join([encode(good), *bad, encode(other)])) == [good, other]
    assert [e.code for e in errors(server)] == ["unknown_message", "malformed_frame", "out_of_order"]
    assert server.strikes == 2


def test_nothing_counts_after_the_last_strike_of_a_batch() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    frame = join([*[pack_map({"type": "ready"})] * MAX_STRIKES, encode(Ready(slots=1))])
    assert server.receive(frame) == []
    assert [e.fatal for e in errors(server)] == [False] * (MAX_STRIKES - 1) + [True]


def test_nothing_counts_after_a_bye_in_a_batch() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    assert server.receive(join([encode(Bye()), encode(Ready(slots=1))])) == [Bye()]
    assert server.closed
    assert server.outgoing() == []


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (msgpack.packb([]), "has 0 messages"),
        (join([encode(Ready(slots=1))] * (MAX_BATCH_MESSAGES + 1)), f"at most {MAX_BATCH_MESSAGES}"),
        (msgpack.packb([7]), "is a int and must be a map"),
        (msgpack.packb([[{"type": "ready", "slots": 1}]]), "is a list and must be a map"),
    ],
)
def test_what_is_no_batch_is_one_strike(frame: bytes, says: str) -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    assert server.receive(frame) == []
    (answer,) = errors(server)
    assert answer.code == "malformed_frame"
    assert says in answer.message
    assert server.strikes == 1


def test_a_welcome_to_a_version_that_was_not_offered_is_fatal() -> None:
    client = session(Side.CLIENT, SessionState.GREETING)
    assert client.receive(encode(Welcome(version=99, incarnation=1))) == []
    assert [(e.code, e.fatal) for e in errors(client)] == [("version_mismatch", True)]


def test_the_welcome_lowers_the_frame_limit_on_both_sides() -> None:
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    server.receive(client.send(HELLO))
    client.receive(server.send(Welcome(version=1, incarnation=1, max_frame_bytes=200)))
    assert client.max_frame_bytes == server.max_frame_bytes == 200
    long = Bye(reason="x" * 300)
    with pytest.raises(OversizedFrame, match="200"):
        client.send(long)
    assert client.state is SessionState.OPEN
    server.receive(encode(long))
    assert [e.code for e in errors(server)] == ["oversized_frame"]


def test_the_welcome_cannot_raise_the_frame_limit() -> None:
    client = Session(Side.CLIENT, max_frame_bytes=1000)
    client.send(HELLO)
    client.receive(encode(Welcome(version=1, incarnation=1, max_frame_bytes=1 << 30)))
    assert client.max_frame_bytes == 1000


def test_a_refusal_of_the_shell_is_a_fatal_error() -> None:
    server = session(Side.SERVER, SessionState.GREETING)
    server.fail(Unauthorized("this client id belongs to another secret"))
    (answer,) = errors(server)
    assert (answer.code, answer.fatal) == ("unauthorized", True)
    assert server.closed
    assert (server.close_code, server.close_reason) == (1008, "unauthorized")
    server.fail(Unauthorized())
    assert server.outgoing() == []


def test_a_fatal_error_from_the_peer_is_delivered_and_closes() -> None:
    client = session(Side.CLIENT, SessionState.GREETING)
    last = Error(code="unauthorized", message="no", fatal=True)
    assert client.receive(encode(last)) == [last]
    assert client.closed
    assert client.error is None


def test_an_error_is_never_answered_with_an_error() -> None:
    client, server = session(Side.CLIENT, SessionState.OPEN), session(Side.SERVER, SessionState.OPEN)
    server.receive(b"\xc1")
    for frame in server.outgoing():
        client.receive(frame)
    assert client.outgoing() == []


def test_an_error_answer_stays_small() -> None:
    server = session(Side.SERVER, SessionState.OPEN)
    server.receive(pack_map({"type": "x" * 100_000}))
    server.receive(pack_map({"type": "ready", "slots": "9" * 100_000}))
    assert all(len(frame) < 2000 for frame in server.outgoing())


_entries = st.sampled_from(
    [*map(encode, SAMPLES), b"\x01", pack_map({"type": "teleport"}), pack_map({"type": "ready"})]
)
_batches = st.lists(_entries, min_size=2, max_size=6).map(join)
_frames = st.binary(max_size=60) | st.sampled_from(SAMPLES).map(encode) | st.text(max_size=5) | _batches


def _messages_in(frame: bytes | str) -> int:
    """Count what a frame may be answered with: once for each of a batch, else once."""
    try:
        return len(split(frame)) if isinstance(frame, bytes) else 1
    except ProtocolError:
        return 1


_damaged = st.tuples(
    st.sampled_from(SAMPLES).map(encode), st.integers(0, 10**6), st.binary(min_size=1, max_size=3)
).map(lambda t: t[0][: t[1] % len(t[0])] + t[2] + t[0][t[1] % len(t[0]) + len(t[2]) :])


@given(st.sampled_from(Side), st.sampled_from(SessionState), st.lists(_frames | _damaged, max_size=8))
def test_whatever_arrives_the_session_answers_or_closes(
    side: Side, state: SessionState, frames: list[bytes | str]
) -> None:
    hearer = session(side, state)
    for frame in frames:
        got = hearer.receive(frame)
        answers = hearer.outgoing()
        assert len(got) + len(answers) <= _messages_in(frame)
        assert hearer.strikes <= MAX_STRIKES
        if not got and not answers:
            assert hearer.closed
    if hearer.state is SessionState.OPEN:
        probe = Ready(slots=0) if side is Side.SERVER else BY_TYPE["ack"]
        assert hearer.receive(encode(probe)) == [probe]


@given(st.lists(st.tuples(st.sampled_from(Side), st.sampled_from(SAMPLES)), max_size=30), st.data())
def test_two_honest_sides_never_get_an_error_however_their_messages_cross(
    wishes: list[tuple[Side, Message]], data: st.DataObject
) -> None:
    ends = {side: Session(side) for side in Side}
    wires: dict[Side, list[bytes]] = {side: [] for side in Side}
    for sender, message in wishes:
        hearer = data.draw(st.sampled_from(Side))
        if wires[hearer]:
            ends[hearer].receive(wires[hearer].pop(0))
        if ends[sender].may_send(message.type):
            wires[sender.other].append(ends[sender].send(message))
    for side, frames in wires.items():
        for frame in frames:
            ends[side].receive(frame)
    assert all(end.outgoing() == [] for end in ends.values())

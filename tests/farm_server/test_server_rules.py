"""The server's small rules: messages as events, lists that survive an odd record, submissions read in pieces."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from coordinator import events
from coordinator.records import Entry, LogRecord, MetricRecord
from farm_server.clients.entry_buffer import EntryBuffer
from farm_server.clients.registry import Peer
from farm_server.clients.translate import event_of, failure_of, unusable
from farm_server.http import spec_json
from farm_server.http.listing import listing, written
from farm_server.http.spec_json import parse_spec
from farm_server.tensors.intake import NonFiniteUpdate
from protocol.assignments import LogLine, MetricPoint, Progress, Result
from protocol.errors import DigestMismatch, InvalidTask, Unavailable
from protocol.messages import Error, Message, Scope
from protocol.secure_messages import Revealed
from protocol.tasks import Dataset, Shard, TaskSpec
from storage.errors import BadRecord
from tests.protocol.samples import BY_TYPE, SAMPLES
from tests.storage import records as a

PEER = cast("Peer", SimpleNamespace(client_id="c1", incarnation=4, name="lab"))
EVENTS: dict[str, events.Event | None] = {
    "heartbeat": events.ClientBeat("c1", 4, BY_TYPE["heartbeat"].load, BY_TYPE["heartbeat"].assignments),  # type: ignore[union-attr]
    "progress": events.ClientBeat("c1", 4, None, (BY_TYPE["progress"].progress,)),  # type: ignore[union-attr]
    "ready": events.ClientReady("c1", 4, 1),
    "accept": events.AssignmentAccepted("c1", 4, "a1", 3, BY_TYPE["accept"].keys),  # type: ignore[union-attr]
    "sealed_shares": events.SharesSealed("c1", 4, "a1", 3, BY_TYPE["sealed_shares"].shares),  # type: ignore[union-attr]
    "revealed": events.SharesRevealed("c1", 4, "a1", 3, cast("Revealed", BY_TYPE["revealed"])),
    "reject": events.AssignmentRejected("c1", 4, "a1", 3, "busy", "one at a time"),
    "pause": events.ClientPaused("c1", 4, paused=True, reason="paused by its submitter"),
    "resume": events.ClientPaused("c1", 4, paused=False),
    "drain": events.ClientDraining("c1", 4, "Ctrl-C"),
}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.type)
def test_each_message_is_its_event_and_whose_it_is(message: Message) -> None:
    assert event_of(PEER, message) == EVENTS.get(message.type)


def test_an_error_of_no_assignment_is_no_failure() -> None:
    error = cast("Error", BY_TYPE["error"])
    said = failure_of(PEER, error)
    assert said == events.AssignmentFailed("c1", 4, "a1", 3, "task_code", "boom", Scope.NOBODY, "Traceback")
    for without in ("assignment_id", "fence"):
        assert failure_of(PEER, error.model_copy(update={without: None})) is None


@pytest.mark.parametrize(
    ("error", "scope", "servers_fault"),
    [
        (NonFiniteUpdate("NaN"), Scope.NOBODY, False),
        (DigestMismatch("damaged"), Scope.ELSEWHERE, False),
        (Unavailable("disk full"), Scope.ELSEWHERE, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whose_fault_a_result_is_that_cannot_be_used(error: Any, scope: Scope, servers_fault: bool) -> None:
    failed = unusable(PEER, cast("Result", BY_TYPE["result"]), error)
    assert (failed.assignment_id, failed.fence, failed.code) == ("a1", 3, error.code)
    assert (failed.scope, failed.servers_fault) == (scope, servers_fault)


class Note(BaseModel):
    """A record that may hold anything."""

    text: str = ""
    value: Any = None


LONE = "\udc80"
"""What is in a text that was decoded carelessly, and in no JSON."""


def parsed(body: bytes | memoryview) -> Any:
    return json.loads(bytes(body))


class TestListing:
    """A record that cannot be written costs no other one its place."""

    def test_what_can_be_written_is_written_as_it_is(self) -> None:
        assert parsed(listing([Note(text="a", value=[1, None]), Note(text="b")]).body) == [
            {"text": "a", "value": [1, None]},
            {"text": "b", "value": None},
        ]
        assert parsed(listing([]).body) == []

    def test_an_odd_one_is_said_otherwise_and_the_rest_stays(self) -> None:
        found = parsed(
            listing([Note(text="before"), Note(text=f"odd{LONE}", value={LONE: 1}), Note(text="after")]).body
        )
        assert [one["text"] for one in found][::2] == ["before", "after"]
        assert found[1]["text"].startswith("odd")
        assert json.dumps(found).encode()

    @pytest.mark.parametrize(("number", "word"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
    def test_a_number_that_json_lacks_is_a_word(self, number: float, word: str) -> None:
        assert parsed(written(Note(text=LONE, value=[number, {"x": number}])).body)["value"] == [word, {"x": word}]

    @pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"in": inner}], ids=["lists", "maps"])
    def test_what_lies_too_deep_is_left_out(self, wrap: Callable[[Any], Any]) -> None:
        deep: Any = "bottom"
        for _ in range(5000):
            deep = wrap(deep)
        found = parsed(written(Note(text=LONE, value=deep)).body)
        assert "bottom" not in json.dumps(found)
        assert "\\u2026" in json.dumps(found)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(st.characters()),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
            max_leaves=8,
        )
    )
    def test_whatever_a_record_holds_the_list_is_json(self, value: Any) -> None:
        found = parsed(listing([Note(text=LONE, value=value), Note(text="after")]).body)
        assert len(found) == 2
        assert found[1]["text"] == "after"


def spec_of(shards: int) -> TaskSpec:
    made = tuple(Shard(index=n, samples=5, start=5 * n, blob=a.ref(f"s{n}")) for n in range(shards))
    return a.spec(dataset=Dataset(kind="files", shards=made))


class TestSpecJson:
    """A submission is read in pieces, and refused in the words of its first mistake."""

    @pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 1203])
    def test_it_is_the_spec_whatever_the_pieces(self, count: int) -> None:
        spec = spec_of(count)
        assert parse_spec(spec.model_dump_json().encode()) == spec

    @pytest.mark.parametrize("place", [0, 499, 500, 777])
    def test_a_mistake_in_a_shard_names_that_shard(self, place: int) -> None:
        document = spec_of(1000).model_dump(mode="json")
        document["dataset"]["shards"][place]["samples"] = -1
        with pytest.raises(InvalidTask, match=rf"^dataset\.shards\.{place}\.samples: "):
            parse_spec(json.dumps(document).encode())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": 7}, "name: "),
            ({"dataset": 7}, "dataset"),
            ({"dataset": {"kind": "files", "shards": 7}}, "dataset.shards"),
            ({"dataset": {"kind": "files", "shards": {"0": 1}}}, "dataset.shards"),
            ({"recipe": {"rounds": 0}}, "recipe.rounds"),
        ],
    )
    def test_a_mistake_elsewhere_is_told_by_its_field(self, change: dict[str, Any], words: str) -> None:
        document = spec_of(1).model_dump(mode="json") | change
        with pytest.raises(InvalidTask) as refused:
            parse_spec(json.dumps(document).encode())
        assert refused.value.message.startswith(words)

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"NaN", b'{"a": Infinity}', b"[" * 100_000], ids=range(6))
    def test_what_is_no_json_is_told_so(self, body: bytes) -> None:
        with pytest.raises(InvalidTask, match="the submission is no JSON: "):
            parse_spec(body)

    @pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"text"'])
    def test_json_of_something_else_is_told_too(self, body: bytes) -> None:
        with pytest.raises(InvalidTask):
            parse_spec(body)

    def test_what_would_be_large_in_memory_is_refused_by_its_commas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A document of empty lists takes a hundred times its size: it is refused before it is read."""
        monkeypatch.setattr(spec_json, "MAX_VALUES", 1000)
        monkeypatch.setattr(spec_json, "_document", lambda _: pytest.fail("it was read"))
        for mark in (b"[", b"{", b","):
            with pytest.raises(InvalidTask, match="use fewer shards"):
                parse_spec(mark * 1001)


class StandInLedger:
    """Keeps what it is given, and answers when the test says so."""

    def __init__(self) -> None:
        self.saves: list[tuple[list[Entry], Any]] = []

    def submit(self, _records: Sequence[Any], entries: Sequence[Entry]) -> Any:
        done = asyncio.get_running_loop().create_future()
        self.saves.append((list(entries), done))
        return done


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class TestEntryBuffer:
    """What clients report goes to the ledger in few writes, and nothing waits for it."""

    @pytest.fixture
    def ledger(self) -> StandInLedger:
        return StandInLedger()

    @pytest.fixture
    def told(self) -> list[Entry]:
        return []

    @pytest.fixture
    def lacks(self) -> list[str]:
        return []

    @pytest.fixture
    def buffer(self, ledger: StandInLedger, told: list[Entry], lacks: list[str]) -> EntryBuffer:
        return EntryBuffer(cast("Any", ledger), told.extend, lambda: lacks[-1] if lacks else None)

    def add(self, buffer: EntryBuffer, text: str, now: float = 1.0) -> None:
        progress = cast("Progress", BY_TYPE["progress"]).model_copy(
            update={"logs": (LogLine(text=text),), "metrics": (MetricPoint(name=f"m{text}", value=0.5, step=2),)}
        )
        held = a.assignment("a1", "t1", round=5)
        buffer.add(PEER, held, progress, now)

    async def test_lines_and_metrics_say_whose_they_are(self, buffer: EntryBuffer, ledger: StandInLedger) -> None:
        self.add(buffer, "hello")
        buffer.flush(2.0)
        ((entries, _),) = ledger.saves
        assert entries == [
            MetricRecord(1.0, "t1", 5, 2, "mhello", 0.5, "client", "c1"),
            LogRecord(1.0, "t1", "c1", "lab", 5, "stdout", "hello"),
        ]

    async def test_nothing_is_no_write(self, buffer: EntryBuffer, ledger: StandInLedger) -> None:
        buffer.flush(1.0)
        assert ledger.saves == []

    async def test_one_write_at_a_time_and_the_next_takes_all_that_came(
        self, buffer: EntryBuffer, ledger: StandInLedger, told: list[Entry]
    ) -> None:
        self.add(buffer, "1")
        buffer.flush(1.0)
        for text in ("2", "3"):
            self.add(buffer, text)
            buffer.flush(1.0)
        assert len(ledger.saves) == 1
        ledger.saves[0][1].set_result(None)
        await settled()
        assert len(told) == 2
        buffer.flush(1.0)
        assert len(ledger.saves[1][0]) == 4

    async def test_on_a_full_disk_they_wait(self, buffer: EntryBuffer, ledger: StandInLedger, lacks: list[str]) -> None:
        lacks.append("no space")
        self.add(buffer, "1")
        buffer.flush(1.0)
        assert ledger.saves == []
        lacks.clear()
        buffer.flush(2.0)
        assert len(ledger.saves) == 1

    async def test_what_one_is_refused_for_does_not_cost_the_others(
        self, buffer: EntryBuffer, ledger: StandInLedger, told: list[Entry]
    ) -> None:
        self.add(buffer, "good")
        self.add(buffer, "bad")
        buffer.flush(1.0)
        ledger.saves[0][1].set_exception(BadRecord("one of them is odd"))
        await settled()
        assert [len(entries) for entries, _ in ledger.saves[1:]] == [1, 1, 1, 1]
        for entries, done in ledger.saves[1:]:
            odd = isinstance(entries[0], LogRecord) and entries[0].text == "bad"
            done.set_exception(BadRecord("odd")) if odd else done.set_result(None)
        await settled()
        assert len(told) == 3
        assert len(ledger.saves) == 5  # the odd one is not tried again

    async def test_what_the_disk_refuses_is_dropped_and_not_tried_one_by_one(
        self, buffer: EntryBuffer, ledger: StandInLedger, told: list[Entry]
    ) -> None:
        self.add(buffer, "1")
        buffer.flush(1.0)
        ledger.saves[0][1].set_exception(Unavailable("no space"))
        await settled()
        assert (len(ledger.saves), told) == (1, [])

    async def test_a_cancelled_write_is_nobodys_error(
        self, buffer: EntryBuffer, ledger: StandInLedger, told: list[Entry]
    ) -> None:
        self.add(buffer, "1")
        buffer.flush(1.0)
        ledger.saves[0][1].cancel()
        await settled()
        assert told == []
        self.add(buffer, "2")
        buffer.flush(1.0)
        assert len(ledger.saves) == 2

"""What is said of an assignment: how far it is, how it ended, and whose fault that was."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.errors import (
    BadBundle,
    CacheFull,
    DiskFull,
    ExecutorDied,
    ExecutorFailed,
    HomeGone,
    NoEnvironment,
)
from farm_client.agent.work.held_assignment import (
    MAX_METRICS_PER_FLUSH,
    Held,
    PendingOutput,
    filled_disk,
    ran_out_of_memory,
)
from farm_client.executor.messages import DISK_FULL, OUT_OF_MEMORY, Done, Failed
from farm_client.executor.output import LineSplitter
from farm_client.executor.postmortem import ProcessDeath
from protocol.assignments import Assign, AssignmentProgress, MetricPoint, Phase, Reject, RejectCode, Slice
from protocol.codec import encode
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError, NotFound, Unauthorized, Unavailable
from protocol.limits import MAX_LOG_LINE_CHARS, MAX_LOG_LINES_PER_MESSAGE
from protocol.messages import Error, Scope
from protocol.tasks import BlobRef, Shard
from tests.protocol.samples import BLOB, BY_TYPE

ASSIGN = cast("Assign", BY_TYPE["assign"])


@pytest.fixture
def held() -> Held:
    return Held(ASSIGN)


def failed(code: str, message: str = "it broke", scope: Scope = Scope.NOBODY) -> ExecutorFailed:
    return ExecutorFailed(Failed(assignment_id="a1", code=code, message=message, scope=scope, traceback="Traceback"))


def died(code: str) -> ExecutorDied:
    return ExecutorDied(ProcessDeath(code, "it ended"), "computing", ("one line", "the last line"))


@pytest.mark.parametrize("carried", [None, b"state"])
def test_an_inner_state_is_fetched_unless_it_came_along(carried: bytes | None, tmp_path: Path) -> None:
    ref = BlobRef(digest=digest_bytes(b"state"), size_bytes=5, inline=carried)
    with_state, without = Held(ASSIGN.model_copy(update={"inner_state": ref})), Held(ASSIGN)
    cache = BlobCache(tmp_path, max_bytes=1000)
    order = with_state.run_order(cache, b"weights", None)
    assert (order.inner_state, order.inner_state_path) == (carried, None if carried else str(cache.path(ref.digest)))
    assert with_state.files() == [*without.files(), *([] if carried else [ref])]
    assert ref in with_state.blobs()
    order = without.run_order(cache, b"weights", None)
    assert (order.inner_state, order.inner_state_path) == (None, None)


class TestFailure:
    """Any error has an answer, which says who could do better."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (NotFound("gone"), RejectCode.BLOB_UNAVAILABLE),
            (Unavailable("away"), RejectCode.BLOB_UNAVAILABLE),
            (DigestMismatch("damaged"), RejectCode.BLOB_UNAVAILABLE),
            (DiskFull("full"), RejectCode.BLOB_UNAVAILABLE),
            (NoEnvironment("gone"), RejectCode.ENVIRONMENT),
            (HomeGone("gone"), RejectCode.BLOB_UNAVAILABLE),
            (CacheFull("small"), RejectCode.DOES_NOT_FIT),
            (OSError(errno.ENOSPC, "No space left on device"), RejectCode.BLOB_UNAVAILABLE),
            (failed(DISK_FULL), RejectCode.BLOB_UNAVAILABLE),
        ],
        ids=repr,
    )
    def test_what_says_nothing_against_the_assignment_hands_it_back(
        self, held: Held, error: Exception, code: RejectCode
    ) -> None:
        said = held.failure(error)
        assert isinstance(said, Reject)
        assert (said.code, said.assignment_id, said.fence) == (code, "a1", 3)
        assert said.message == str(error)[:2000]

    @pytest.mark.parametrize("scope", Scope)
    def test_an_executors_report_is_passed_on_as_it_is(self, held: Held, scope: Scope) -> None:
        said = held.failure(failed("task_code", "boom", scope))
        assert said == Error(
            code="task_code", message="boom", assignment_id="a1", fence=3, scope=scope, traceback="Traceback"
        )

    def test_a_death_tells_the_last_lines_and_lets_another_machine_try(self, held: Held) -> None:
        said = held.failure(died("killed"))
        assert isinstance(said, Error)
        assert (said.code, said.scope, said.message) == ("killed", Scope.ELSEWHERE, "it ended while it was computing")
        assert said.traceback == "one line\nthe last line"

    def test_a_bad_bundle_is_bad_everywhere(self, held: Held) -> None:
        said = held.failure(BadBundle("it holds a link"))
        assert isinstance(said, Error)
        assert (said.code, said.scope) == (BadBundle.code, Scope.NOBODY)

    def test_another_refusal_of_the_farms_may_be_this_machines_own(self, held: Held) -> None:
        said = held.failure(Unauthorized())
        assert isinstance(said, Error)
        assert (said.code, said.scope) == (Unauthorized.code, Scope.ELSEWHERE)

    def test_a_result_against_the_contract_is_the_codes_fault(self, held: Held) -> None:
        with pytest.raises(ValidationError) as raised:
            TypeAdapter(int).validate_python("no number")
        said = held.failure(raised.value)
        assert isinstance(said, Error)
        assert (said.code, said.scope) == ("bad_report", Scope.NOBODY)
        assert "breaks the contract" in said.message

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (OSError(errno.EIO, "Input/output error"), "machine", "this machine could not do it"),
            (RuntimeError("odd"), "agent_error", "RuntimeError('odd')"),
            (ExceptionGroup("", [ExceptionGroup("", [KeyError("x"), OSError()])]), "agent_error", "KeyError('x')"),
        ],
        ids=["disk", "defect", "group"],
    )
    def test_all_else_is_this_machines(self, held: Held, error: Exception, code: str, words: str) -> None:
        said = held.failure(error)
        assert isinstance(said, Error)
        assert (said.code, said.scope) == (code, Scope.ELSEWHERE)
        assert words in said.message

    @given(st.text(), st.text(max_size=100), st.text(max_size=100))
    def test_whatever_is_said_a_message_can_carry_it(self, message: str, path: str, code: str) -> None:
        """Paths may hold bytes that are no text; tasks may name their errors as they like."""
        odd = f"{message}\udc80{path}"
        for error in (OSError(5, odd), RuntimeError(odd), NotFound(odd), FarmError(odd)):
            encode(Held(ASSIGN).failure(error))

    @pytest.mark.parametrize("size", [1999, 2000, 2001, 10**6])
    def test_no_sentence_is_longer_than_a_message_may_be(self, held: Held, size: int) -> None:
        assert len(held.failure(NotFound("n" * size)).message) == min(size, 2000)
        assert len(held.failure(Unauthorized("u" * size)).message) == min(size, 2000)

    def test_of_a_long_traceback_the_end_is_told(self, held: Held) -> None:
        lines = tuple(f"line {number}" for number in range(10_000))
        said = held.failure(ExecutorDied(ProcessDeath("exited", "code 1"), "computing", lines))
        assert isinstance(said, Error)
        assert said.traceback is not None
        assert said.traceback.endswith("line 9999")
        assert len(said.traceback) == 20_000


@pytest.mark.parametrize(
    ("error", "memory", "disk"),
    [
        (failed(OUT_OF_MEMORY), True, False),
        (died(OUT_OF_MEMORY), True, False),
        (died("killed"), False, False),
        (failed(DISK_FULL), False, True),
        (OSError(errno.EDQUOT, "quota"), False, True),
        (MemoryError(), False, False),
    ],
    ids=repr,
)
def test_what_ran_out_is_told_apart(error: BaseException, memory: bool, disk: bool) -> None:
    assert (ran_out_of_memory(error), filled_disk(error)) == (memory, disk)


class TestProgress:
    """How far it is, for the heartbeat that renews its lease."""

    @pytest.mark.parametrize("phase", Phase)
    def test_bytes_are_those_that_come_until_those_that_leave_count(self, held: Held, phase: Phase) -> None:
        held.phase = phase
        held.sent(70)
        told = held.progress(arrived_bytes=40)
        assert told.fetched_bytes == (70 if phase is Phase.UPLOADING else 40)
        assert (told.assignment_id, told.fence, told.phase) == ("a1", 3, phase)

    def test_waiting_as_told_is_counted_and_its_end_is_not(self, held: Held) -> None:
        for reason in ("behind 3", "behind 2", None, "behind 1"):
            held.waited(reason)
        assert held.progress().waits == 3


def with_slices(*slices: Slice) -> Held:
    return Held(ASSIGN.model_copy(update={"slices": slices}))


def part(index: int, blob: BlobRef | None, start: int = 0) -> Slice:
    return Slice(shard=Shard(index=index, samples=100, blob=blob), start=start, stop=start + 10)


class TestOrder:
    """What its executor is told."""

    def test_a_shard_that_two_parts_are_of_is_needed_once(self) -> None:
        other = BlobRef(digest=digest_bytes(b"other"), size_bytes=5)
        held = with_slices(part(0, BLOB), part(0, BLOB, start=50), part(1, other), part(2, None))
        assert held.shards() == [BLOB, other]

    def test_it_refers_to_its_code_its_weights_and_its_shards(self) -> None:
        assert Held(ASSIGN).blobs() == (ASSIGN.task.code, ASSIGN.weights, BLOB)
        assert with_slices(part(0, None)).blobs() == (ASSIGN.task.code, ASSIGN.weights)

    def test_each_part_is_named_with_its_file_or_none(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        order = with_slices(part(0, BLOB, start=30), part(7, None)).run_order(cache, b"w", None)
        first, second = order.pieces
        assert (first.shard, first.start, first.stop, first.path) == (0, 30, 40, str(cache.path(BLOB.digest)))
        assert (second.shard, second.path) == (7, None)
        assert (order.weights, order.weights_path, order.weights_digest) == (b"w", None, BLOB.digest)
        assert with_slices(part(0, BLOB)).run_order(cache, None, tmp_path / "w").weights_path == str(tmp_path / "w")


def done(**changes: object) -> Done:
    values: dict[str, object] = {
        "assignment_id": "a1",
        "samples": 64,
        "metrics": {"loss": 0.5},
        "compute_seconds": 0.25,
    }
    return Done.model_validate(values | changes)


def test_a_result_says_what_was_done(held: Held) -> None:
    result = held.result(done(), BLOB)
    assert (result.assignment_id, result.fence, result.samples) == ("a1", 3, 64)
    assert (result.metrics, result.update, result.compute_seconds) == ({"loss": 0.5}, BLOB, 0.25)


def progress():
    return AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)


@given(st.text(), st.lists(st.integers(1, 7)))
def test_lines_do_not_depend_on_the_pieces_they_come_in(text, cuts):
    data, splitter, lines = text.encode(), LineSplitter(), []
    whole = LineSplitter()
    expected = whole.feed(data) + whole.finish()
    for size in [*cuts, len(data)]:
        piece, data = data[:size], data[size:]
        lines += splitter.feed(piece)
    assert lines + splitter.finish() == expected


def test_an_endless_line_is_cut_and_does_not_fill_memory():
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 65536) == []
    (line,) = splitter.feed(b"\n")
    assert len(line) == MAX_LOG_LINE_CHARS
    assert line.endswith("(line cut)")


def test_bytes_that_are_no_text_and_progress_bars_become_lines():
    splitter = LineSplitter()
    assert splitter.feed(b"10%\r20%\r\n\xff\n") == ["10%", "20%", "\ufffd"]


def test_nothing_pending_is_no_message():
    assert PendingOutput().take(progress) is None


def test_what_is_over_the_limits_is_dropped_and_counted():
    pending = PendingOutput()
    for number in range(500):
        pending.add_line("stdout", str(number))
    pending.add_metrics((MetricPoint(name="m", value=0.0),) * 300)
    message = pending.take(progress)
    assert len(message.logs) <= MAX_LOG_LINES_PER_MESSAGE
    assert len(message.metrics) == MAX_METRICS_PER_FLUSH
    dropped = 500 - (len(message.logs) - 1) + 100
    assert message.logs[-1].text.startswith(f"{dropped} lines or metrics dropped")
    assert pending.take(progress) is None


def test_a_note_of_the_agent_is_not_crowded_out():
    pending = PendingOutput()
    for number in range(500):
        pending.add_line("stdout", str(number))
    pending.add_note("the executor was killed by SIGSEGV")
    notes = [line.text for line in pending.take(progress).logs if line.stream == "agent"]
    assert notes[0] == "the executor was killed by SIGSEGV"
    assert len(notes) == 2


def test_notes_are_bounded_too():
    pending = PendingOutput()
    for number in range(500):
        pending.add_note(str(number))
        pending.add_line("stdout", "line")
    assert len(pending.take(progress).logs) <= MAX_LOG_LINES_PER_MESSAGE

"""What a volunteer is told: what their machine does, why it does nothing, and each thing once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.errors import HomeGone
from farm_client.agent.owner_commands import _describe
from farm_client.agent.reporting import console as console_module
from farm_client.agent.reporting import display
from farm_client.agent.reporting import status as status_module
from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.display import Display
from farm_client.agent.reporting.status import Speeds, Status, StatusBoard, WorkView, read_status
from farm_client.agent.work.disk_shortage import DiskShortage
from farm_client.agent.work.pauses import Pauses
from farm_client.transfer.tally import Tally
from protocol.assignments import Assign, Phase
from protocol.credit import Credit
from protocol.messages import Message, Pause, Resume
from tests.protocol.samples import BY_TYPE

ASSIGN = cast("Assign", BY_TYPE["assign"])


WORK = WorkView(task_id="t1", name="digits", phase=Phase.UPLOADING, samples=64, samples_done=64)


class StillClock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (console_module, display, status_module):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    return StillClock(monkeypatch)


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(shown: io.StringIO, clock: StillClock) -> Console:
    return Console("lines", shown)


def lines(shown: io.StringIO) -> list[str]:
    return shown.getvalue().splitlines()


class TestConsole:
    """Lines for people, or JSON for programs."""

    def test_the_same_is_not_said_twice_in_a_row(self, console: Console, shown: io.StringIO) -> None:
        for text in ("a", "a", "b", "a"):
            console.tell(text)
        assert lines(shown) == ["a", "b", "a"]

    def test_what_goes_on_is_said_again_now_and_then(
        self, console: Console, shown: io.StringIO, clock: StillClock
    ) -> None:
        for number in range(40):
            console.keep_telling("working", f"working, round {number}")
            clock.now += 1
        assert lines(shown) == ["working, round 0", "working, round 16", "working, round 32"]

    def test_another_subject_is_said_at_once(self, console: Console, shown: io.StringIO) -> None:
        console.keep_telling("a", "a, 1")
        console.keep_telling("b", "b, 1")
        console.keep_telling("b", "b, 2")
        assert lines(shown) == ["a, 1", "b, 1"]

    def test_a_stranger_s_name_does_nothing_on_the_terminal(self, console: Console, shown: io.StringIO) -> None:
        console.tell("working on \x1b[2Jdigits\nyour machine was harmed")
        assert lines(shown) == ["working on digits your machine was harmed"]

    def test_a_traceback_stands_under_its_line(self, console: Console, shown: io.StringIO) -> None:
        try:
            raise RuntimeError("odd \x1b[31m\udc80")
        except RuntimeError as error:
            console.trace("a mistake", error)
        assert lines(shown)[0] == "a mistake"
        assert lines(shown)[1].startswith("Traceback")
        assert "RuntimeError: odd" in shown.getvalue()
        assert "\x1b" not in shown.getvalue()

    def test_in_json_each_line_carries_its_ids(self, shown: io.StringIO, clock: StillClock) -> None:
        console = Console("json", shown)
        console.tell("working\non it", task="t1", round=3)
        (line,) = map(json.loads, lines(shown))
        assert (line["event"], line["task"], line["round"]) == ("working\non it", "t1", 3)
        assert "timestamp" in line

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
    def test_a_terminal_that_is_gone_costs_the_lines_and_not_the_agent(self, error: Exception) -> None:
        class Gone(io.StringIO):
            def write(self, _text: str) -> int:
                raise error

        console = Console("lines", Gone())
        console.tell("nobody reads this")
        console.trace("nor this", RuntimeError())


@pytest.fixture
def board(tmp_path: Path) -> StatusBoard:
    return StatusBoard(tmp_path / "status.json")


class TestStatusBoard:
    """The status file, for `farm-client status` in another terminal."""

    def test_what_was_shown_is_read(self, board: StatusBoard) -> None:
        board.delivered = 7
        board.look = lambda: (CacheStats(entries=3), Tally(sent_bytes=5))
        board.show(doing="working", task="t1", round=2)
        read = read_status(board.path)
        assert (read.doing, read.task, read.round, read.delivered) == ("working", "t1", 2, 7)
        assert (read.cache.entries, read.moved.sent_bytes) == (3, 5)
        assert read.updated_at > 1e9

    def test_what_is_not_changed_stays(self, board: StatusBoard) -> None:
        board.show(farm="ws://farm", name="lab")
        board.show(doing="waiting")
        assert (read_status(board.path).farm, read_status(board.path).name) == ("ws://farm", "lab")

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"delivered": "many"}', "\x00" * 40])
    def test_of_a_file_that_says_nothing_nothing_is_known(self, board: StatusBoard, text: str | None) -> None:
        if text is not None:
            board.path.write_text(text)
        assert read_status(board.path).doing == "nothing is known of it yet"

    def test_a_reader_never_sees_half_a_file(self, board: StatusBoard, monkeypatch: pytest.MonkeyPatch) -> None:
        board.show(doing="first")
        write = Path.write_text

        def torn(path: Path, text: str) -> int:
            write(path, text[:10])
            assert read_status(board.path).doing == "first"
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", torn)
        board.show(doing="second")
        assert read_status(board.path).doing == "first"
        assert board.status.doing == "second"

    def test_what_was_done_between_two_looks_is_counted_and_shown_for_a_moment(
        self, board: StatusBoard, clock: StillClock
    ) -> None:
        assert board.snapshot().work == ()
        clock.now += 1
        board.computed(WORK)
        seen = board.snapshot()
        assert (seen.work, seen.speeds.samples) == ((WORK,), 64)
        clock.now += 2
        assert board.snapshot().work == (WORK,)
        clock.now += 1
        assert board.snapshot().work == ()

    def test_what_is_being_done_counts_until_it_is_done_and_then_once(
        self, board: StatusBoard, clock: StillClock
    ) -> None:
        half = WORK.model_copy(update={"phase": Phase.COMPUTING, "samples_done": 32})
        board.snapshot()
        clock.now += 1
        board.work = lambda: (half,)
        assert board.snapshot().speeds.samples == 32
        clock.now += 1
        board.computed(WORK)
        board.work = lambda: (WORK,)
        assert (board.snapshot().speeds.samples, board.snapshot().work) == (32, (WORK,))

    def test_what_moves_is_measured(self, board: StatusBoard, clock: StillClock) -> None:
        moved = Tally()
        board.look = lambda: (CacheStats(), moved)
        board.snapshot()
        moved.sent_bytes, moved.received_bytes = 300, 600
        clock.now += 2
        assert board.snapshot().speeds == Speeds(sent_bytes=150, received_bytes=300)

    def test_events_are_kept_with_their_numbers_and_what_is_said_again_once(
        self, console: Console, clock: StillClock
    ) -> None:
        for number in range(40):
            console.keep_telling("working", f"round {number}")
            clock.now += 1
        console.tell("two\nlines")
        assert [(event.number, event.text) for event in console.events()] == [(1, "round 0"), (2, "two lines")]
        for number in range(30):
            console.tell(f"thing {number}")
        assert [event.number for event in console.events()] == list(range(13, 33))

    def test_a_new_one_is_starting(self) -> None:
        assert Status().doing == "starting"


class TestDisplay:
    """The current task while there is one, and why not while there is none."""

    @pytest.fixture
    def view(self, board: StatusBoard, console: Console) -> Display:
        return Display(board, console)

    def test_work_is_named_with_its_round_and_what_was_delivered(
        self, view: Display, board: StatusBoard, shown: io.StringIO
    ) -> None:
        view.delivered()
        view.show(ASSIGN, leaving=False)
        assert lines(shown) == ["working on digits, round 0 (1 result delivered so far)"]
        assert (board.status.doing, board.status.task, board.status.round) == ("working on digits", "abcdefgh", 0)

    def test_a_moment_without_work_is_no_news(
        self, view: Display, board: StatusBoard, shown: io.StringIO, clock: StillClock
    ) -> None:
        view.show(ASSIGN, leaving=False)
        for _ in range(2):
            clock.now += 1
            view.show(None, leaving=False)
        assert len(lines(shown)) == 1
        assert board.status.doing == "working on digits"
        clock.now += 1
        view.show(None, leaving=False)
        assert lines(shown)[1:] == ["waiting: the farm has no work for this machine now"]
        assert (board.status.task, board.status.round) == ("", None)

    def test_a_result_that_counts_is_shown_even_then(
        self, view: Display, board: StatusBoard, clock: StillClock
    ) -> None:
        view.show(ASSIGN, leaving=False)
        view.delivered()
        clock.now += 1
        view.show(None, leaving=False)
        assert read_status(board.path).delivered == 1

    def test_what_the_farm_credits_is_kept_until_it_says_more(
        self, view: Display, board: StatusBoard, clock: StillClock
    ) -> None:
        view.delivered(Credit(samples=64, flops=1e6))
        view.delivered()
        view.show(ASSIGN, leaving=False)
        known = read_status(board.path)
        assert (known.delivered, known.credit) == (2, Credit(samples=64, flops=1e6))
        assert "credit: 64 samples, 1.0 MFLOP" in _describe(Path(), running=True, known=known)

    @pytest.mark.parametrize(
        ("lack", "leaving", "words"),
        [
            (None, False, "waiting: the farm has no work for this machine now"),
            ("the disk is full", False, "waiting: the disk is full"),
            ("the disk is full", True, "leaving"),
        ],
    )
    def test_why_there_is_nothing(
        self, view: Display, board: StatusBoard, clock: StillClock, lack: str | None, leaving: bool, words: str
    ) -> None:
        view.lacks(lack)
        clock.now += 10
        view.show(None, leaving)
        assert board.status.doing == words

    def test_what_waits_beside_is_told_with_its_reason_until_it_does_not(
        self, view: Display, board: StatusBoard
    ) -> None:
        view.upload_waits("behind 3")
        view.slot_waits("2 results on the way")
        view.show(ASSIGN, leaving=False)
        assert board.status.doing == (
            "working on digits; an update waits: behind 3; a slot waits: 2 results on the way"
        )
        view.upload_waits(None)
        view.slot_waits(None)
        view.show(ASSIGN, leaving=False)
        assert board.status.doing == "working on digits"

    def test_a_mistake_of_the_agent_names_the_task_and_shows_where(self, view: Display, shown: io.StringIO) -> None:
        view.fault_on(ASSIGN, KeyError("x"))
        assert lines(shown)[0] == "digits: a mistake in farm-client ended this assignment"
        assert "KeyError" in shown.getvalue()

    def test_notes_are_said_as_they_are(self, view: Display, shown: io.StringIO) -> None:
        view.note("of nothing in particular")
        view.note_on(ASSIGN, "of an assignment")
        assert lines(shown) == ["of nothing in particular", "of an assignment"]


@dataclass
class Surroundings:
    """A home, a cache, a connection and a person, all stand-ins."""

    home_lacks: str | None = None
    cache_lacks: str | HomeGone | None = None
    posted: list[Message] = field(default_factory=list)
    told: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        stand_in: Callable[..., Any] = SimpleNamespace
        self.pauses = Pauses(stand_in(post=self.posted.append))

    def disk_shortage(self) -> DiskShortage:
        def of_cache() -> str | None:
            if isinstance(self.cache_lacks, HomeGone):
                raise self.cache_lacks
            return self.cache_lacks

        stand_in: Callable[..., Any] = SimpleNamespace
        return DiskShortage(
            stand_in(lack=lambda: self.home_lacks),
            stand_in(cache=stand_in(lack=of_cache)),
            self.pauses,
            stand_in(lacks=self.told.append),
        )


class TestShortage:
    """While the disk takes nothing the farm is asked to offer nothing, and everybody hears why, once."""

    def test_without_one_nothing_is_said(self) -> None:
        around = Surroundings()
        disk_shortage = around.disk_shortage()
        assert not disk_shortage.look()
        around.pauses.say_again()
        assert (around.posted, around.told, disk_shortage.reason) == ([], [], None)

    @pytest.mark.parametrize(
        ("home", "cache", "reason"),
        [
            ("the folder is gone", None, "the folder is gone"),
            (None, "the disk is full", "the disk is full"),
            (None, HomeGone("the home is gone"), "the home is gone"),
            ("the folder is gone", "the disk is full", "the folder is gone"),
        ],
    )
    def test_its_beginning_and_its_end_are_said_once_each(
        self, home: str | None, cache: str | HomeGone | None, reason: str
    ) -> None:
        around = Surroundings()
        disk_shortage = around.disk_shortage()
        around.home_lacks, around.cache_lacks = home, cache
        assert not disk_shortage.look()
        assert not disk_shortage.look()
        assert (around.posted, around.told) == ([Pause(reason=reason)], [reason])
        around.home_lacks = around.cache_lacks = None
        assert disk_shortage.look()
        assert not disk_shortage.look()
        assert (around.posted[1:], around.told[1:]) == ([Resume()], [None])

    def test_a_new_connection_hears_of_it_too(self) -> None:
        around = Surroundings(home_lacks="the folder is gone")
        disk_shortage = around.disk_shortage()
        disk_shortage.look()
        around.pauses.say_again()
        assert around.posted == [Pause(reason="the folder is gone")] * 2


def test_behind_a_panel_the_last_tracebacks_are_kept_and_of_each_the_end(console: Console, shown: io.StringIO) -> None:
    with console.muted():
        for number in range(30):
            console.trace(f"mistake {number}", ValueError("x" * 100_000 + f"end {number}"))
    told = shown.getvalue()
    assert len(told) < 20 * 21_000
    assert [number for number in range(30) if f"end {number}\n" in told] == list(range(10, 30))

"""When versions are written: at once, after a rest, or as soon as somebody waits for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_server.tensors.checkpoint_writer import CheckpointWriter
from protocol.errors import Unavailable
from protocol.retry import RetryPolicy
from storage.checkpoints import CheckpointStore, NewCheckpoint, WrittenCheckpoint
from tests.farm_server.control.test_runtime import StillClock

SOON = 10.0
LONG_REST = 3600.0


class Store(CheckpointStore):
    """Says which versions it wrote, in order; while ``gate`` is closed a write takes its time."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def write(self, new: NewCheckpoint) -> WrittenCheckpoint:
        self.begun.release()
        assert self.gate.wait(SOON)
        self.written.append((new.task_id, new.round))
        return WrittenCheckpoint(None, None)


class Bench:
    def __init__(self, rest_seconds: float) -> None:
        self.store = Store()
        self.writer = CheckpointWriter(self.store, StillClock(), lambda _size: None, rest_seconds=rest_seconds)
        self.durable = threading.Semaphore(0)

    def give(self, number: int, task: str = "t") -> None:
        self.writer.write_behind(NewCheckpoint(task, number, 0, 0, 0.0, [b"weights"]), lambda _: self.durable.release())

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.durable.acquire(timeout=SOON)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the block runs a write that has begun does not end."""
        self.store.gate.clear()
        yield
        self.store.gate.set()


@pytest.fixture
def made() -> Iterator[Callable[[float], Bench]]:
    benches = []

    def make(rest_seconds: float) -> Bench:
        benches.append(Bench(rest_seconds))
        return benches[-1]

    yield make
    for bench in benches:
        bench.writer.close()


def test_the_first_version_is_written_at_once_and_the_newest_one_after_a_rest(made):
    bench = made(0.05)
    bench.give(1)
    bench.wait_for()
    for number in (2, 3, 4):
        bench.give(number)
    bench.wait_for()
    assert bench.store.written == [("t", 1), ("t", 4)]


def test_a_version_that_somebody_waits_for_ends_the_rest(made):
    bench = made(LONG_REST)
    bench.give(1)
    bench.wait_for()
    bench.give(2)
    bench.writer.flush("t")
    bench.wait_for()
    assert bench.store.written == [("t", 1), ("t", 2)]


def test_a_version_that_somebody_waits_for_while_another_is_written_needs_no_rest(made):
    bench = made(LONG_REST)
    with bench.busy():
        bench.give(1)
        assert bench.store.begun.acquire(timeout=SOON)
        bench.give(2)
        bench.writer.flush("t")
    bench.wait_for(2)
    bench.give(3)
    bench.writer.flush("another task")
    assert bench.store.written == [("t", 1), ("t", 2)], "the next one rests again"


def test_what_rests_is_written_before_the_end(made):
    bench = made(LONG_REST)
    bench.give(1)
    bench.wait_for()
    bench.give(2)
    bench.writer.close()
    assert bench.store.written == [("t", 1), ("t", 2)]


def test_what_waits_behind_a_write_is_written_before_the_end(made):
    bench = made(LONG_REST)
    with bench.busy():
        bench.give(1)
        assert bench.store.begun.acquire(timeout=SOON)
        bench.give(2)
        ending = threading.Thread(target=bench.writer.close)
        ending.start()
    ending.join(SOON)
    assert bench.store.written[-1] == ("t", 2)


def test_a_task_that_nobody_needs_has_nothing_written_after_its_rest(made):
    bench = made(0.05)
    bench.give(1)
    bench.wait_for()
    bench.give(2)
    bench.writer.drop("t")
    bench.give(1, task="another")
    bench.wait_for()
    bench.writer.close()
    assert ("t", 2) not in bench.store.written


def test_tasks_without_a_rest_take_turns(made):
    """More fast tasks than threads: whoever comes last is written though the others always have something."""
    bench = made(0.0)
    with bench.busy():
        for task in range(4):
            bench.give(1, f"fast-{task}")
            assert bench.store.begun.acquire(timeout=SOON)
        bench.give(1, "last")
        for task in range(4):
            bench.give(2, f"fast-{task}")
    bench.wait_for(9)
    assert bench.store.written.index(("last", 1)) < max(bench.store.written.index((f"fast-{t}", 2)) for t in range(4))


class Recorder(CheckpointStore):
    """Notes what is written, and complains if two versions of a task are written at once."""

    def __init__(self) -> None:
        self.written: dict[str, list[int]] = {}
        self.overlaps: list[str] = []
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def write(self, new: NewCheckpoint) -> WrittenCheckpoint:
        with self._lock:
            if new.task_id in self._busy:
                self.overlaps.append(new.task_id)
            self._busy.add(new.task_id)
        with self._lock:
            self.written.setdefault(new.task_id, []).append(new.round)
            self._busy.discard(new.task_id)
        return WrittenCheckpoint(None, None)


_OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("give", "give", "give", "flush", "drop")), st.sampled_from("abcdef")), max_size=60
)


@settings(max_examples=40, deadline=None)
@given(operations=_OPERATIONS, rest_seconds=st.sampled_from((0.0, 0.001, LONG_REST)))
def test_whatever_comes_the_newest_version_that_is_wanted_is_written_last(operations, rest_seconds):
    """Of each task: in order, one at a time, the newest at the end; what was dropped need not be there."""
    store = Recorder()
    writer = CheckpointWriter(store, StillClock(), lambda _size: None, rest_seconds=rest_seconds)
    newest: dict[str, int] = {}
    dropped: set[str] = set()
    for number, (operation, task) in enumerate(operations, start=1):
        match operation:
            case "give":
                writer.write_behind(NewCheckpoint(task, number, 0, 0, 0.0, [b"weights"]), lambda _: None)
                newest[task] = number
                dropped.discard(task)
            case "flush":
                writer.flush(task)
            case "drop":
                writer.drop(task)
                dropped.add(task)
    writer.close()
    assert not store.overlaps
    for task, number in newest.items():
        written = store.written.get(task, [])
        assert written == sorted(set(written)), "in order, and none twice"
        assert task in dropped or written[-1] == number


def test_a_version_that_nobody_needs_while_it_waits_for_the_disk_is_given_up(made):
    bench = made(0.0)
    refuses = threading.Event()

    def claim(_size: int) -> None:
        refuses.set()
        raise Unavailable("no space is left")

    bench.writer = CheckpointWriter(bench.store, StillClock(), claim, retry=RetryPolicy(0.01, 0.01), rest_seconds=0.0)
    bench.give(1)
    assert refuses.wait(SOON)
    bench.writer.drop("t")
    bench.writer.close()
    assert not bench.store.written
    assert bench.writer.stalled is None

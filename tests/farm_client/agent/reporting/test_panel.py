"""The panel as text, at each width: what a volunteer reads there, and that it fits."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from farm_client.agent.environments.stats import EnvironmentStats
from farm_client.agent.reporting.console import Event
from farm_client.agent.reporting.meters import GpuView, MachineView
from farm_client.agent.reporting.panel import StatusPanel
from farm_client.agent.reporting.status import Speeds, Status, WorkView
from farm_client.transfer.tally import Tally
from protocol.assignments import Kind, Phase
from protocol.credit import Credit

GIB = 2**30
WORK = WorkView(
    task_id="t1", name="digits", submitter="alice", round=12, phase=Phase.COMPUTING, samples=1024, samples_done=512
)
BUSY = Status(
    doing="working on digits",
    connection="connected",
    connected_at=1000.0,
    updated_at=1000.0 + 3 * 3600 + 120,
    farm="farm.example.org:8470",
    name="lab-7",
    sandbox="strict",
    work=(WORK,),
    delivered=17,
    credit=Credit(samples=12_345, flops=1.234e15),
    moved=Tally(sent_bytes=5 * 2**20),
    speeds=Speeds(samples=1234.4, sent_bytes=2**20, received_bytes=2**19),
    machine=MachineView(
        cpu=0.5,
        cpu_celsius=61.2,
        memory_used_bytes=16 * GIB,
        memory_bytes=64 * GIB,
        gpus=(GpuView(index=0, name="H100", busy=1, memory_used_bytes=20 * GIB, memory_bytes=80 * GIB, celsius=71),),
    ),
    events=tuple(Event(number=n, at=0.0, text=f"thing {n}") for n in range(1, 10)),
)


def drawn(status: Status, width: int = 80, height: int = 50, **full: float) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(StatusPanel(status, **full))  # type: ignore[arg-type]
    return out.getvalue().splitlines()


def row(lines: list[str], label: str) -> str:
    return next(line for line in lines if line.startswith(label))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_all_of_it_is_there_at_each_width(width: int) -> None:
    lines = drawn(BUSY, width)
    assert max(map(cell_len, lines)) <= width
    assert lines[0].startswith("AI Farm  lab-7 at farm.example.org:8470  connected")
    assert row(lines, "sandbox").endswith("strict")
    assert "digits by alice, round 12: training" in row(lines, "task")
    assert " 50% of 1,024  1,234 samples/s" in row(lines, "progress")
    assert row(lines, "CPU").endswith(" 50%  61 °C")
    assert row(lines, "RAM").endswith("16.0 GiB of 64.0 GiB")
    assert row(lines, "GPU 0").endswith("100%  71 °C  H100")
    assert row(lines, "  VRAM").endswith("20.0 GiB of 80.0 GiB")
    assert "512.0 KiB/s" in row(lines, "down")
    assert row(lines, "up").endswith("1.0 MiB/s  5.0 MiB")
    assert row(lines, "done").endswith("17 results counted, 12,345 samples, 1.2 PFLOP")
    assert [line.split()[-1] for line in lines if "thing" in line] == ["4", "5", "6", "7", "8", "9"]
    assert lines[-1].startswith("Ctrl-C")


def test_how_long_it_is_connected() -> None:
    assert "connected for 3 h 02 min" in drawn(BUSY)[0]
    assert "for" not in drawn(BUSY.model_copy(update={"connected_at": 0.0, "farm": "f"}))[0]


@pytest.mark.parametrize(
    ("label", "share"), [("progress", 0.5), ("CPU", 0.5), ("RAM", 0.25), ("GPU 0", 1.0), ("down", 0.25), ("up", 1.0)]
)
def test_bars_are_as_long_as_what_they_measure(label: str, share: float) -> None:
    line = row(drawn(BUSY, 80, most_sent=2**20, most_received=2**21), label)
    full, empty = line.count("━"), line.count("─")
    assert full == round(share * (full + empty))
    assert full + empty == 80 - 10 - 34


def test_bars_grow_with_the_terminal_up_to_a_length() -> None:
    lengths = [row(drawn(BUSY, width), "CPU").count("━") * 2 for width in (40, 60, 80, 120, 200)]
    assert lengths == [8, 16, 36, 48, 48]


@pytest.mark.parametrize(
    ("phase", "kind", "words"),
    [
        (Phase.FETCHING, Kind.TRAIN, "fetching files"),
        (Phase.STARTING, Kind.TRAIN, "loading the code"),
        (Phase.COMPUTING, Kind.EVALUATE, "evaluating"),
        (Phase.COMPUTING, Kind.EPOCH_END, "running on_epoch_end"),
        (Phase.UPLOADING, Kind.TRAIN, "sending the result"),
    ],
)
def test_what_is_being_done(phase: Phase, kind: Kind, words: str) -> None:
    work = WORK.model_copy(update={"phase": phase, "kind": kind})
    assert row(drawn(BUSY.model_copy(update={"work": (work,)})), "task").endswith(words)


def test_without_work_the_reason_stands_there() -> None:
    lines = drawn(Status(doing="waiting: the farm has no work for this machine now", name="lab", connection="away"))
    assert row(lines, "does").endswith("no work for this machine now")
    assert not [line for line in lines if line.startswith(("task", "progress", "GPU"))]
    assert "no farm yet  away" in lines[0]


def test_two_assignments_are_shown_with_one_speed_of_all() -> None:
    lines = drawn(BUSY.model_copy(update={"work": (WORK, WORK)}))
    assert [("samples/s" in line) for line in lines if line.startswith("progress")] == [True, False]


def test_packages_of_tasks_are_shown_where_there_are_some_or_may_be() -> None:
    assert not any(line.startswith("packages") for line in drawn(BUSY))
    kept = EnvironmentStats(environments=2, size_bytes=GIB, installing=("installs 3 packages for digits",))
    shown = BUSY.model_copy(update={"environments": kept})
    assert row(drawn(shown), "packages").split(maxsplit=1)[1] == (
        "2 environments, 1.0 GiB; installs 3 packages for digits"
    )
    allowed = BUSY.model_copy(update={"environments": EnvironmentStats(installs=True)})
    assert row(drawn(allowed), "packages").endswith("0 environments, 0 B")


def test_of_many_gpus_the_first_are_shown_and_the_rest_counted() -> None:
    gpus = tuple(GpuView(index=n, name="A100") for n in range(10))
    lines = drawn(BUSY.model_copy(update={"machine": MachineView(gpus=gpus)}))
    assert sum(line.startswith("GPU") for line in lines) == 8
    assert any(line.endswith("and 2 GPUs more") for line in lines)


def test_a_low_terminal_shows_fewer_events() -> None:
    assert sum("thing" in line for line in drawn(BUSY, height=18)) == 3
    assert sum("thing" in line for line in drawn(BUSY, height=5)) == 1


def test_strangers_names_do_nothing_on_the_terminal() -> None:
    nasty = WORK.model_copy(update={"name": "a\x1b[2Jb\nc", "submitter": "\x1b]0;title\x07d"})
    text = "\n".join(drawn(BUSY.model_copy(update={"work": (nasty,), "farm": "\x1b[31mf"})))
    assert "\x1b" not in text
    assert "ab c by d" in text


def test_what_does_not_fit_is_cut_where_it_can_be_seen() -> None:
    lines = drawn(BUSY.model_copy(update={"doing": "waiting: " + "long " * 40, "name": "n" * 90}), 60)
    assert lines[0].endswith("…")
    assert row(lines, "does").endswith("…")
    assert cell_len(row(lines, "does")) == 60


@given(
    width=st.integers(20, 250),
    height=st.integers(1, 80),
    name=st.text(max_size=60),
    done=st.integers(0, 10**12),
    events=st.lists(st.text(max_size=300), max_size=20),
)
def test_whatever_comes_no_line_is_too_long(width: int, height: int, name: str, done: int, events: list[str]) -> None:
    work = WORK.model_copy(update={"name": name, "samples_done": done})
    told = tuple(Event(number=n, at=0.0, text=text.replace("\n", " ")) for n, text in enumerate(events))
    status = BUSY.model_copy(update={"work": (work,), "events": told, "name": name, "sandbox": name})
    assert all(cell_len(line) <= width for line in drawn(status, width, height))

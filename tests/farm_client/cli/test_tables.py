"""Tables at every width: what matters stays, no word is cut, and a pipe gets a line for each record."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from farm_client.sdk.watching.pictures import clients_table, hardware, tasks_table
from farm_client.sdk.watching.tables import FittingTable
from protocol.resources import Gpu, LinkFigures, Resources
from protocol.sandbox import Rung, Sandbox
from tests.farm_client.cli.fake_farm import make_client, make_task

NOW = 1_700_000_100.0


def drawn(picture: RenderableType, columns: int) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, force_terminal=False)
    console.print(picture)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def make_table() -> FittingTable:
    table = FittingTable("id", "name", "extra", "empty", "why", spare=("extra",))
    table.add_row("a1", "digits", "1,234 samples/s", "", "waits for one more client with 8 GiB of memory")
    return table


def test_a_wide_table_has_every_column_that_has_content():
    header, row = drawn(make_table(), 200)
    assert header.split() == ["id", "name", "extra", "why"]
    assert row == "a1  digits  1,234 samples/s  waits for one more client with 8 GiB of memory"


def test_a_narrow_table_leaves_the_spare_column_out_and_wraps_the_last_between_words():
    header, *rows = drawn(make_table(), 32)
    assert header.split() == ["id", "name", "why"]
    assert " ".join(" ".join(rows).split()) == "a1 digits waits for one more client with 8 GiB of memory"
    assert all(len(row) <= 32 for row in rows)


def test_a_long_name_is_shortened_before_the_others_are():
    table = FittingTable("id", "name", "state")
    table.add_row("abcd2345", "n" * 100, "completed")
    _, row = drawn(table, 60)
    assert row.startswith("abcd2345  nnn")
    assert "…" in row
    assert row.endswith("completed")


def test_markup_in_a_cell_is_text():
    table = FittingTable("name", "why")
    table.add_row("[red]x[/red]", "[bold]")
    assert drawn(table, 80)[1] == "[red]x[/red]  [bold]"


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_tasks_and_clients_fit(columns):
    tasks = [make_task(why="waits for 2 more clients"), make_task("bcde3456", name="a-rather-long-name", why="")]
    clients = [make_client(), make_client("a-workstation", state="offline", last_seen=NOW - 90)]
    for table in (tasks_table(tasks, NOW), clients_table(clients, {}, NOW)):
        lines = drawn(table, columns)
        assert all(len(line) <= columns for line in lines)
    assert drawn(tasks_table(tasks, NOW), columns)[0].split()[:4] == ["id", "name", "state", "round"]
    assert "seen 1 min ago" in "\n".join(drawn(clients_table(clients, {}, NOW), 200))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (LinkFigures(), "50%  -  "),
        (LinkFigures(round_trip_seconds=0.0304), "30 ms"),
        (
            LinkFigures(download_bytes_per_second=3 * 2**20, upload_bytes_per_second=2**19),
            "3.0 MiB/s down, 512.0 KiB/s up",
        ),
        (LinkFigures(round_trip_seconds=0.2, upload_bytes_per_second=2**20), "200 ms, 1.0 MiB/s up"),
    ],
)
def test_a_client_s_link_is_told_as_far_as_it_was_measured(figures, said):
    client = make_client(link=figures, samples_per_second={}, assignments=1)
    assert said in drawn(clients_table([client], {}, NOW), 200)[1]


@pytest.mark.parametrize(
    ("sandbox", "said"),
    [
        (None, "GiB  -  "),
        (Sandbox(rung=Rung.LANDLOCK, probes=1), "GiB  landlock  "),
        (Sandbox(rung=Rung.STRICT), "strict (untried)"),
    ],
)
def test_a_client_s_sandbox_is_told_with_what_is_known_of_it(sandbox, said):
    header, row = drawn(clients_table([make_client(sandbox=sandbox)], {}, NOW), 200)
    assert "sandbox" in header
    assert said in row


def test_a_pipe_gets_one_line_a_task_however_long(farm, fake, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    fake.tasks = [make_task(why="waits for " + "a very long reason " * 20)]
    header, row = farm("ls").stdout.splitlines()
    assert "clients" in header
    assert row.endswith("a very long reason")


def test_an_open_breaker_is_shown_with_its_reason(farm, fake):
    fake.clients = [make_client(breaker="open", reason="failed 5 times; again at 14:05")]
    assert "breaker open; failed 5 times; again at 14:05" in farm("clients").stdout


@pytest.mark.parametrize(
    ("arguments", "shown", "cut"),
    [([], 50, True), (["--newest", "2"], 2, True), (["-n", "60"], 60, False), (["--all"], 60, False)],
)
def test_the_newest_tasks_are_listed_with_a_word_on_the_others(farm, fake, arguments, shown, cut):
    fake.tasks = [make_task(f"t{number:07}", submitted_at=NOW + number) for number in range(60)]
    result = farm("ls", *arguments)
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [f"t{59 - number:07}" for number in range(shown)]
    assert ("`farm ls --all` lists all" in result.stderr) == cut
    assert len(farm("ls", *arguments, "--json").envelope("tasks")) == (60 if not arguments else shown)


@pytest.mark.parametrize(
    ("gpus", "device_class", "shown"),
    [
        ((), "cpu", "4 cores, 1.0 GiB, cpu"),
        ((Gpu(index=0, name="Radeon", memory_bytes=9, memory_free_bytes=9),), "rocm", "4 cores, 1.0 GiB, Radeon, rocm"),
        ((), "", "4 cores, 1.0 GiB"),
    ],
)
def test_hardware_says_the_class_of_what_computes(gpus: tuple[Gpu, ...], device_class: str, shown: str) -> None:
    assert hardware(Resources(cpu_cores=4, ram_bytes=2**30, gpus=gpus, device_class=device_class)) == shown

"""Measurements of the farm's own speed, where nothing is trained and nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.backups import measure as measure_backups
from benchmarks.beats import measure as measure_beats
from benchmarks.blob import measure as measure_blob
from benchmarks.fold import PARTED, measure_parts, measure_robust
from benchmarks.fold import measure as measure_fold
from benchmarks.idle import measure as measure_idle
from benchmarks.lag import measure as measure_lag
from benchmarks.maps import measure as measure_maps
from benchmarks.measurement import Measurement
from benchmarks.memory import ROUNDS as MEMORY_ROUNDS
from benchmarks.memory import measure as measure_memory
from benchmarks.report import report, report_each, say, whole_numbers
from benchmarks.resting import measure as measure_resting
from benchmarks.robust import measure as measure_robust_memory
from benchmarks.rounds import Case
from benchmarks.rounds import measure as measure_rounds
from benchmarks.scheduling import measure as measure_scheduling
from benchmarks.spare import measure as measure_spare
from benchmarks.starts import measure as measure_starts
from benchmarks.transitions import measure as measure_transitions
from protocol.aggregates import AggregateName
from protocol.compression import OF_UPDATES, CodecName
from protocol.recipe import Mode

app = typer.Typer()


@app.command()
def rounds(
    clients: Annotated[str, typer.Option(help="Numbers of clients, such as 2,8.")] = "2,8",
    params: Annotated[str, typer.Option(help="Numbers of model parameters, such as 1e5,1e7.")] = "1e5,1e7",
    mode: Annotated[Mode, typer.Option(help="What clients return.")] = Mode.GRADIENTS,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measured window.")] = 10.0,
    pipeline: Annotated[bool, typer.Option(help="Clients compute on while an update is sent.")] = False,
) -> None:
    """Rounds per second of a task that trains nothing, for each pair of clients and parameters."""

    def measured(case: Case) -> Callable[[], Measurement]:
        def tell_and_measure() -> Measurement:
            say(f"{case.clients} clients, {case.params:.0e} parameters, {mode} …")
            return measure_rounds(case)

        return tell_and_measure

    sizes = product(whole_numbers(params), whole_numbers(clients))
    report([measured(Case(count, size, mode.value, seconds, pipeline)) for size, count in sizes])


@app.command()
def memory(
    clients: Annotated[str, typer.Option(help="Numbers of clients, such as 2,8,32.")] = "2,8,32",
    params: Annotated[str, typer.Option(help="Numbers of model parameters, such as 1e7.")] = "1e7",
    mode: Annotated[Mode, typer.Option(help="What clients return.")] = Mode.GRADIENTS,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds with each number of clients.")] = MEMORY_ROUNDS,
) -> None:
    """The server's peak memory with more and more clients, each of which uploads an update of the model's size."""
    counts = whole_numbers(clients)
    report([partial(measure_memory, size, counts, mode.value, rounds) for size in whole_numbers(params)])


@app.command()
def fold(
    codec: Annotated[list[CodecName] | None, typer.Option(help="A codec of updates; each when not given.")] = None,
    params: Annotated[str, typer.Option(help="Numbers of model parameters, such as 1e8.")] = "1e8",
    rows: Annotated[str, typer.Option(help="Numbers of updates for median and trimmed mean.")] = "16",
    row_params: Annotated[str, typer.Option(help="Numbers of parameters of such an update.")] = "1e7",
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is done; the best one counts.")] = 5,
    mapped: Annotated[bool, typer.Option(help="Read updates from memory-maps instead of as the server does.")] = False,
) -> None:
    """Parameters per second of decoding and adding an update, for each codec, beside a plain addition in memory."""
    chosen = codec or list(OF_UPDATES)
    codecs = product(whole_numbers(params), chosen)
    robust = product(whole_numbers(row_params), whole_numbers(rows))
    report(
        [partial(measure_fold, name, size, repeats, mapped=mapped) for size, name in codecs]
        + [partial(measure_parts, name, max(whole_numbers(params)), repeats) for name in chosen if name in PARTED]
        + [
            partial(measure_robust, count, size, trim, repeats)
            for size, count in robust
            for trim in sorted({(count - 1) // 2, count // 8})
        ]
    )


@app.command()
def robust(
    aggregate: Annotated[
        list[AggregateName] | None, typer.Option(help="An aggregate; each one when not given.")
    ] = None,
    rows: Annotated[int, typer.Option(min=3, help="Updates of a round.")] = 64,
    params: Annotated[float, typer.Option(min=10, help="Parameters of each, in float32.")] = 1e7,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to use.")] = None,
) -> None:
    """Seconds and peak memory of each robust aggregate, read from files as the server does."""
    report_each(measure_robust_memory(aggregate or (), rows, int(params), folder))


@app.command()
def blob(
    size: Annotated[float, typer.Option(min=1, help="Bytes of the blob.")] = 1e9,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each way is taken; the median counts.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to measure.")] = None,
) -> None:
    """Gigabytes per second of a blob up and down, beside a raw copy; bytes that move twice where it is cut."""
    report_each(measure_blob(int(size), repeats, folder))


@app.command()
def lag(
    params: Annotated[str, typer.Option(help="Numbers of model parameters, such as 1e8.")] = "1e8",
    updates: Annotated[int, typer.Option(min=1, help="Updates that are folded.")] = 40,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to use.")] = None,
) -> None:
    """Milliseconds that an event loop is late while a thread beside it folds and commits, against an idle one."""
    report([partial(measure_lag, size, updates, folder) for size in whole_numbers(params)])


@app.command()
def transitions(
    writers: Annotated[str, typer.Option(help="Numbers of concurrent writers.")] = "1,64,1000",
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each window.")] = 5.0,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to measure.")] = None,
) -> None:
    """Durable task-state transitions per second, beside plain sqlite3 with one transaction for each."""
    report([partial(measure_transitions, count, seconds, folder) for count in whole_numbers(writers)])


@app.command()
def scheduling(
    clients: Annotated[str, typer.Option(help="Numbers of idle clients.")] = "10,1000,10000",
    ended_tasks: Annotated[str, typer.Option(help="Numbers of tasks that have ended.")] = "10,10000",
    waiting_tasks: Annotated[str, typer.Option(help="Numbers of tasks that nobody can work on.")] = "1,200",
) -> None:
    """What an event costs the coordinator, beside more and more clients and tasks that it does not concern."""
    grid = product(whole_numbers(clients), whole_numbers(ended_tasks), whole_numbers(waiting_tasks))
    report([partial(measure_scheduling, *sizes) for sizes in grid])


@app.command()
def starts(
    ended_tasks: Annotated[str, typer.Option(help="Numbers of tasks that have ended.")] = "10,10000",
) -> None:
    """What a start of the server costs in time and memory, by the number of tasks that have ended."""
    report([partial(measure_starts, count) for count in whole_numbers(ended_tasks)])


@app.command()
def idle(
    clients: Annotated[int, typer.Option(min=1, help="Number of clients without work.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measured window.")] = 20.0,
    repeats: Annotated[int, typer.Option(min=1, help="Windows beside the crowd, each between two without it.")] = 3,
    resting: Annotated[bool, typer.Option("--resting", help="Measure what waits for work, and no crowd.")] = False,
) -> None:
    """Memory and CPU of what waits for work; and the rounds/s that three clients keep beside a crowd that waits."""
    report_each(measure_resting(seconds))
    if not resting:
        report([partial(measure_idle, clients, seconds, repeats)])


@app.command()
def beats(
    clients: Annotated[int, typer.Option(min=1, help="Number of clients without work.")] = 2000,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measured window.")] = 15.0,
    repeats: Annotated[int, typer.Option(min=1, help="Windows of each kind.")] = 3,
) -> None:
    """Rounds per second and the server's CPU beside clients that beat as the farm asks, and as often as few would."""
    report([partial(measure_beats, clients, seconds, repeats)])


@app.command()
def backups(
    clients: Annotated[int, typer.Option(min=2, help="Number of clients.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of simulated time.")] = 100,
) -> None:
    """Simulated seconds for a round whose stragglers' parts are given to a second client, and without that."""
    report([partial(measure_backups, clients, rounds)])


@app.command()
def spare(
    repeats: Annotated[int, typer.Option(min=1, help="How often each way.")] = 5,
) -> None:
    """Seconds from a new task's assignment to its first step, with a spare executor and without."""
    report([partial(measure_spare, repeats)])


@app.command("map")
def map_speed(
    clients: Annotated[list[int] | None, typer.Option(min=1, help="Number of clients; 1 and 2 when not given.")] = None,
    items: Annotated[int, typer.Option(min=1, help="Items of the farm's map.")] = 100_000,
    peer_items: Annotated[int, typer.Option(min=1, help="Items for Dask and Ray, a task each.")] = 5_000,
) -> None:
    """Items per second of a function that does nothing, durable and in order; beside Dask and Ray, if installed."""
    for count in clients or (1, 2):
        report_each(measure_maps(count, items, peer_items))

"""A task's whole way on a local farm: start, submit, watch, pull. `farm run` and `farm demo` share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from farm_client.cli.localfarm import LocalFarm, launched_farm
from farm_client.cli.output import Output
from farm_client.cli.pull import fetch
from farm_client.cli.submit import prepare_here, send
from farm_client.cli.submit_options import SubmitOptions
from farm_client.cli.watch import watch_task
from farm_client.sdk.api import FarmApi
from farm_client.sdk.checkpoints import best_round
from farm_client.sdk.default_mode import LOOPBACK
from farm_client.sdk.download import check_output
from farm_client.sdk.farm import Farm, Task
from farm_client.sdk.outcome import TaskOutcome, outcome_of
from farm_client.sdk.retrying import RETRY_SECONDS, RetryWhileAway
from farm_client.sdk.submission import Prepared
from protocol.errors import FarmError
from protocol.rest import TaskView
from protocol.wording import counted


class TrainingInterrupted(FarmError):
    """Interrupted: the local farm has ended, and the task with it."""

    code = "interrupted"


@dataclass(frozen=True, slots=True)
class LocallyTrained:
    """A task that is over, on a farm that still runs."""

    farm: LocalFarm
    api: FarmApi
    task: TaskView
    prepared: Prepared
    round: int | None = None
    """The rounds behind the model that was fetched, if one was."""


@contextmanager
def train_locally(
    out: Output, options: SubmitOptions, folder: Path, volunteers: int, output: Path
) -> Iterator[LocallyTrained]:
    """Train on a farm under ``folder``; a completed task's model is in ``output`` when the block begins.

    The farm ends with the block. Raises: DaemonFailed if a process does not start or ends before its time; InvalidTask;
    Interrupted for a Ctrl-C.
    """
    check_output(output)
    out.say(f"[dim]starting a farm with {counted(volunteers, 'volunteer')} on this machine[/]")
    with _ending_on_interrupt(), launched_farm(folder / "farm") as complete:
        # The server starts while the task is tried and packed.
        prepared = prepare_here(options, folder / "task", out, LOOPBACK)
        farm = complete(volunteers)
        out.say(f"[dim]the farm is at {farm.address.url}/ in a browser; its volunteers test their machine and join[/]")
        with FarmApi(farm.address, tidy=not out.as_json, retry=RetryWhileAway(RETRY_SECONDS)) as api:
            task_id = send(Farm.over(api), prepared, out).task.task_id
            task = watch_task(api, task_id, out, guard=farm.check)
            model = None
            if outcome_of(task) is TaskOutcome.COMPLETED:
                model = api.model(task_id, wanted_round(api, prepared.spec.recipe.keep_best, task_id, out))
                fetch(Task(api, task), model, output, out)
                if prepared.spec.epoch_end:
                    _fetch_artefacts(Task(api, task), output, out)
            yield LocallyTrained(farm, api, task, prepared, None if model is None else model.round)


def _fetch_artefacts(task: Task, output: Path, out: Output) -> None:
    """Write what the ends of epochs left beside the model: the farm ends with us."""
    folder = output.with_name(f"{output.stem}-artefacts")
    if found := task.artefacts():
        task.pull_artefacts(folder)
        out.say(f"{counted(len(found), 'artefact')} of on_epoch_end in {escape(str(folder))}")


def wanted_round(api: FarmApi, keep_best: str | None, task_id: str, out: Output) -> int | None:
    """Return the best round where the recipe keeps it, else None: the farm ends with us, and other models with it."""
    if keep_best is None:
        return None
    best = best_round(api.checkpoints(task_id), keep_best)
    if best is None:
        out.say(f"[bold yellow]note:[/] {escape(keep_best)} was never measured: this is the newest model, not the best")
    else:
        out.say(f"the best by {escape(keep_best)} is the model after {counted(best, 'round')}")
    return best


@contextmanager
def _ending_on_interrupt() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise TrainingInterrupted from interrupt

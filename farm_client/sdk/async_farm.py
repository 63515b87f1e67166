"""`Farm` for an event loop: the same calls, awaited; each runs on a thread, and the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from farm_client.sdk.api import Action
from farm_client.sdk.farm import Farm, Fields, Paths, Task
from farm_client.sdk.map_task import MapResults
from farm_client.sdk.model_formats import MODEL_FILE, ModelFormat
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.submission import OnProgress
from farm_client.sdk.sweeping.plan import SweepPlan
from farm_client.sdk.sweeping.sweep import SweepView
from farm_client.sdk.watching.scene import Scene
from protocol.artefacts import ArtefactView
from protocol.recipe import Recipe, Requirements
from protocol.rest import CheckpointView, ClientView, LogView, MetricView, TaskView

if TYPE_CHECKING:
    import pandas as pd
    import torch

P = ParamSpec("P")
T = TypeVar("T")


class AsyncTask:
    """A task on a farm; see `Task` for what each call gives and raises.

    Cancelling an ``await`` leaves the thread to its end: a call that reads ends by itself, at the latest after the ten
    seconds for which one question may wait.
    """

    def __init__(self, task: Task) -> None:
        self.sync = task
        self.id = task.id
        self.name = task.name
        self.notes = task.notes

    def __repr__(self) -> str:
        return f"<AsyncTask {self.name} ({self.id})>"

    async def view(self) -> TaskView:
        """Return the task as it is now."""
        return await asyncio.to_thread(self.sync.view)

    async def why(self) -> str:
        """Return in one line what the task waits for, or why it failed."""
        return await asyncio.to_thread(self.sync.why)

    def scenes(self) -> AsyncIterator[Scene]:
        """Yield a moment of the task now and after each change, the last one when it is over."""
        return _each(self.sync.scenes)

    async def watch(self) -> TaskView:
        """Show the task until it is over; return its last view."""
        return await asyncio.to_thread(self.sync.watch)

    async def wait(self, timeout_seconds: float | None = None) -> TaskView:
        """Return the task's view once it is completed. Raises: TaskEnded; TimeoutError."""
        return await asyncio.to_thread(self.sync.wait, timeout_seconds)

    async def metric_values(self) -> list[MetricView]:
        """Return every measured value so far, oldest first."""
        return await asyncio.to_thread(self.sync.metric_values)

    async def metrics(self) -> pd.DataFrame:
        """Return every measured value so far as a data frame. Raises: ImportError without pandas."""
        return await asyncio.to_thread(self.sync.metrics)

    def logs(self, *, follow_on: bool = False) -> AsyncIterator[LogView]:
        """Yield what the task's code printed on its clients."""
        return _each(self.sync.logs, follow_on=follow_on)

    async def checkpoints(self) -> list[CheckpointView]:
        """Return the checkpoints that are kept, oldest first."""
        return await asyncio.to_thread(self.sync.checkpoints)

    async def pull(
        self,
        output: str | Path = MODEL_FILE,
        round_number: int | None = None,
        *,
        best: bool = False,
        format: str = ModelFormat.SAFETENSORS,  # noqa: A002 - as the option is called
        merged: bool = False,
    ) -> Path:
        """Write a model and return its path: see `Task.pull`."""
        return await asyncio.to_thread(self.sync.pull, output, round_number, best=best, format=format, merged=merged)

    async def pull_failed(self, folder: str | Path) -> list[Path]:
        """Write the steps in which the task's code failed to folders in a new ``folder``: see `Task.pull_failed`."""
        return await asyncio.to_thread(self.sync.pull_failed, folder)

    async def artefacts(self, epoch: int | None = None) -> list[ArtefactView]:
        """Return what the task's ``on_epoch_end`` left: see `Task.artefacts`."""
        return await asyncio.to_thread(self.sync.artefacts, epoch)

    async def pull_artefacts(self, folder: str | Path, epoch: int | None = None) -> list[Path]:
        """Write the artefacts to ``folder/EPOCH/NAME``: see `Task.pull_artefacts`."""
        return await asyncio.to_thread(self.sync.pull_artefacts, folder, epoch)

    async def model(self, round_number: int | None = None, *, best: bool = False) -> dict[str, torch.Tensor]:
        """Return a model's tensors by name, on the CPU."""
        return await asyncio.to_thread(self.sync.model, round_number, best=best)

    async def continue_(
        self,
        rounds: str | int | None = None,
        *,
        round_number: int | None = None,
        best: bool = False,
        recipe: Recipe | Fields | None = None,
        config: Mapping[str, Any] | None = None,
        name: str = "",
        submit_token: str | None = None,
    ) -> AsyncTask:
        """Return a new task that goes on from a checkpoint of this one: see `Task.continue_`."""
        new = await asyncio.to_thread(
            self.sync.continue_,
            rounds,
            round_number=round_number,
            best=best,
            recipe=recipe,
            config=config,
            name=name,
            submit_token=submit_token,
        )
        return AsyncTask(new)

    async def act(self, action: Action) -> TaskView:
        """``pause``, ``resume``, ``cancel`` or ``retry`` it. Raises: Conflict."""
        return await asyncio.to_thread(self.sync.act, action)

    async def remove(self, *, force: bool = False) -> None:
        """Remove the task and all that is recorded of it. Raises: Conflict."""
        await asyncio.to_thread(self.sync.remove, force=force)


class AsyncMapResults:
    """The outputs of a map; ``async for`` gives them in order, each as soon as it and all before it are there.

    See `MapResults`. Cancelling an ``await`` leaves the thread to its end, as of `AsyncTask`.
    """

    def __init__(self, results: MapResults) -> None:
        self.sync = results
        self.task = AsyncTask(results.task)

    def __repr__(self) -> str:
        return f"<AsyncMapResults of {self.task.name} ({self.task.id})>"

    def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the outputs from the first item on. Raises: TaskEnded, as `MapResults` does."""
        return _each(self.sync.__iter__)

    def from_item(self, start: int, *, follow_on: bool = True) -> AsyncIterator[Any]:
        """Yield the outputs from an item on; without ``follow_on`` only what is there now without a gap."""
        return _each(self.sync.from_item, start, follow_on=follow_on)

    async def save(self, path: str | Path) -> Path:
        """Write all outputs to a ``.jsonl``, ``.npz`` or ``.parquet`` file. Raises: BadOutput; TaskEnded."""
        return await asyncio.to_thread(self.sync.save, path)


class AsyncFarm:
    """A farm. Use as an async context manager, or call ``close``; see `Farm`."""

    def __init__(self, url: str | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.sync = Farm(url, retry_seconds=retry_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.sync.close()

    async def submit(
        self,
        code: str | Path,
        *,
        data: Paths = (),
        settings: str | Path | None = None,
        recipe: Recipe | Fields | str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        requirements: Requirements | Fields | None = None,
        start: str | None = None,
        check: bool = True,
        submit_token: str | None = None,
        on_progress: OnProgress | None = None,
        **task: object,
    ) -> AsyncTask:
        """Check the code and one batch here, send code and data to the farm, and queue the task: see `Farm.submit`.

        ``on_progress`` is called on another thread.
        """
        submitted = await asyncio.to_thread(
            self.sync.submit,
            code,
            data=data,
            settings=settings,
            recipe=recipe,
            config=config,
            requirements=requirements,
            start=start,
            check=check,
            submit_token=submit_token,
            on_progress=on_progress,
            **task,
        )
        return AsyncTask(submitted)

    async def map(
        self,
        code: str | Path,
        *,
        data: Paths = (),
        items: int | None = None,
        weights: str | None = None,
        requirements: Requirements | Fields | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncMapResults:
        """Submit a function to be run on each row, or number; iterate over what it returns: see `Farm.map`.

        ``on_progress`` is called on another thread.
        """
        found = await asyncio.to_thread(
            self.sync.map,
            code,
            data=data,
            items=items,
            weights=weights,
            requirements=requirements,
            on_progress=on_progress,
            **options,
        )
        return AsyncMapResults(found)

    async def outputs(self, reference: str) -> AsyncMapResults:
        """Return the outputs of a map that was submitted before, on whichever machine. Raises: NotFound."""
        return AsyncMapResults(await asyncio.to_thread(self.sync.outputs, reference))

    async def sweep(
        self,
        plan: SweepPlan | str | Path,
        code: str | Path,
        *,
        study: str | Path,
        data: Paths = (),
        settings: str | Path | None = None,
        recipe: Recipe | Fields | str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        on_change: Callable[[SweepView], None] = lambda _: None,
        **task: object,
    ) -> SweepView:
        """Train many tasks that differ in a few settings, and return how they did: see `Farm.sweep`.

        ``on_change`` is called on another thread. Cancelling the ``await`` leaves the sweep to its end.
        """
        return await asyncio.to_thread(
            self.sync.sweep,
            plan,
            code,
            study=study,
            data=data,
            settings=settings,
            recipe=recipe,
            config=config,
            on_change=on_change,
            **task,
        )

    async def task(self, reference: str) -> AsyncTask:
        """Return the task that is meant: by its id, a beginning of it, or its name. Raises: NotFound."""
        return AsyncTask(await asyncio.to_thread(self.sync.task, reference))

    async def tasks(self) -> list[AsyncTask]:
        """Return all tasks, the newest first."""
        return [AsyncTask(task) for task in await asyncio.to_thread(self.sync.tasks)]

    async def clients(self) -> list[ClientView]:
        """Return the volunteer machines that the farm knows."""
        return await asyncio.to_thread(self.sync.clients)


async def _each(read: Callable[P, Iterator[T]], *arguments: P.args, **named: P.kwargs) -> AsyncIterator[T]:
    """Yield what a blocking iterator gives; each item is waited for on a thread."""
    items = iter(await asyncio.to_thread(read, *arguments, **named))
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]  # it is no end, so it is an item

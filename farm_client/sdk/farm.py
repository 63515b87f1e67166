"""A farm from Python: ``with Farm(url) as farm: model = farm.submit("train.py", data="rows.npz").model()``.

What the ``farm`` command does in a terminal, for scripts and notebooks. `AsyncFarm` is the same for an event loop.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from farm_client.sdk.api import Action, FarmApi
from farm_client.sdk.artefacts import list_artefacts, pull_artefacts
from farm_client.sdk.checkpoints import find_best
from farm_client.sdk.config import resolve_address
from farm_client.sdk.continuing import Continuation, continued, refuse_older_farm
from farm_client.sdk.default_mode import HOUSEHOLD, LOOPBACK, LinkEstimate, estimate
from farm_client.sdk.failed_folder import pull_failed_steps
from farm_client.sdk.feeds import follow, read_all, wait_until_over
from farm_client.sdk.map_submission import MapSubmission, prepare_map
from farm_client.sdk.map_task import MapResults
from farm_client.sdk.model_formats import MODEL_FILE, ModelFormat, WrittenAs
from farm_client.sdk.outcome import TaskEnded, TaskOutcome, is_over, outcome_of
from farm_client.sdk.references import find_round, find_task
from farm_client.sdk.retrying import RETRY_SECONDS, RetryWhileAway
from farm_client.sdk.submission import OnProgress, Prepared, prepare
from farm_client.sdk.submitter import submitter_here
from farm_client.sdk.sweeping.plan import SweepPlan, read_plan
from farm_client.sdk.sweeping.running import describing, run_sweep
from farm_client.sdk.sweeping.sweep import SweepView
from farm_client.sdk.task_file import Given, merge_settings, usual_settings
from farm_client.sdk.upload import Advance, Uploaded, upload
from farm_client.sdk.warm_start import WarmStart, find_warm_start
from farm_client.sdk.watching.scene import Scene, scenes
from farm_client.sdk.watching.show import showing
from protocol.artefacts import ArtefactView
from protocol.recipe import Recipe, Requirements
from protocol.rest import CheckpointView, ClientView, LogView, MetricView, ModelView, SubmitReply, TaskView

if TYPE_CHECKING:
    import pandas as pd
    import torch

Paths = str | Path | Sequence[str | Path]
Fields = Mapping[str, object]


class Task:
    """A task on a farm. Every call asks the farm; all of them raise what ``FarmApi`` does."""

    def __init__(self, api: FarmApi, view: TaskView, notes: Sequence[str] = ()) -> None:
        self._api = api
        self.id = view.task_id
        self.name = view.name
        self.notes = tuple(notes)
        """What was said at submission: which mode was chosen, if none was named, and what the check found."""

    def __repr__(self) -> str:
        return f"<Task {self.name} ({self.id})>"

    def view(self) -> TaskView:
        """Return the task as it is now: state, rounds, loss, metrics, why it waits."""
        return self._api.task(self.id).task

    def why(self) -> str:
        """Return in one line what the task waits for, or why it failed."""
        return self._api.why(self.id)

    def scenes(self) -> Iterator[Scene]:
        """Yield a moment of the task now and after each change, the last one when it is over."""
        return scenes(self._api, self.id)

    def watch(self) -> TaskView:
        """Show the task until it is over: a picture that changes in a notebook and on a terminal, else lines.

        Returns its last view. Ctrl-C stops the watching, not the task.
        """
        with showing() as show:
            for scene in self.scenes():
                show(scene)
        return scene.detail.task

    def wait(self, timeout_seconds: float | None = None) -> TaskView:
        """Return the task's view once it is completed.

        Raises: TaskEnded if it failed or was cancelled; TimeoutError if it is not over in time.
        """
        last = wait_until_over(self._api, self.id, math.inf if timeout_seconds is None else timeout_seconds)
        if not is_over(last):
            raise TimeoutError(f"{self.id} is {last.state} after {timeout_seconds:g} s: {last.why}")
        if outcome_of(last) is not TaskOutcome.COMPLETED:
            raise TaskEnded(last)
        return last

    def metric_values(self) -> list[MetricView]:
        """Return every measured value so far, oldest first."""
        return list(read_all(self._api.metrics, self.id))

    def metrics(self) -> pd.DataFrame:
        """Return every measured value so far as a data frame, whose columns are the fields of ``MetricView``.

        ``df[df.source == "eval"].pivot(index="round", columns="name", values="value")`` has one column a metric.
        Raises: ImportError if pandas is not installed (``pip install aifarm[notebook]``).
        """
        from farm_client.sdk.frames import frame_of  # noqa: PLC0415 - pandas is optional, and large

        return frame_of(self.metric_values())

    def logs(self, *, follow_on: bool = False) -> Iterator[LogView]:
        """Yield what the task's code printed on its clients; with ``follow_on`` also what comes, until it is over."""
        return follow(self._api, self._api.logs, self.id) if follow_on else read_all(self._api.logs, self.id)

    def checkpoints(self) -> list[CheckpointView]:
        """Return the checkpoints that are kept, oldest first."""
        return self._api.checkpoints(self.id)

    def pull(
        self,
        output: str | Path = MODEL_FILE,
        round_number: int | None = None,
        *,
        best: bool = False,
        format: str = ModelFormat.SAFETENSORS,  # noqa: A002 - as the option is called
        merged: bool = False,
    ) -> Path:
        """Write a model, whole or not at all, and return its path.

        ``round_number``: the model after so many rounds; ``best``: by the recipe's ``keep_best``; else the newest.
        ``format``: "safetensors"; "torch", for ``torch.load``; "hf", a folder for ``from_pretrained`` of `transformers`
        or `peft`, with ``merged`` of an adapter that was added to its base; "onnx", for which the task's code runs
        here. Without ``output`` the name has the format's suffix. Raises: NotFound if that is not kept, or the model
        has no such form; DigestMismatch; BadOutput; BadFormat; MissingLibrary; CheckFailed.
        """
        form = WrittenAs.named(format, merged=merged)
        path = form.place(Path(output))
        self.fetch(self.found(round_number, best=best), path, form=form)
        return path

    def found(self, round_number: int | None = None, *, best: bool = False) -> ModelView:
        """Return which model ``pull`` would fetch."""
        return self._api.model(self.id, find_best(self._api, self.id, round_number) if best else round_number)

    def fetch(
        self, model: ModelView, output: Path, advance: Advance = lambda _: None, form: WrittenAs | None = None
    ) -> None:
        """Download a model that was ``found``; ``advance`` is called with how many more bytes came."""
        (form or WrittenAs()).pull(self._api, model, output, advance)

    def pull_failed(self, folder: str | Path) -> list[Path]:
        """Write the steps in which the task's code failed to folders in a new ``folder``, and return those.

        The farm keeps one for each line at which the code failed, at most three: ``load_failed`` loads a folder.
        Raises: NotFound if it keeps none; BadOutput if ``folder`` is there; DigestMismatch, MalformedTensors.
        """
        return pull_failed_steps(self._api, self.id, Path(folder))

    def artefacts(self, epoch: int | None = None) -> list[ArtefactView]:
        """Return what the task's ``on_epoch_end`` left, by epoch (from 0) and name; of one epoch or of all."""
        return list(list_artefacts(self._api, self.id, epoch).artefacts)

    def pull_artefacts(self, folder: str | Path, epoch: int | None = None) -> list[Path]:
        """Write the artefacts to ``folder/EPOCH/NAME`` and return the paths; what is there already is left alone.

        Raises: BadOutput where a file of the same name has other bytes; DigestMismatch.
        """
        return pull_artefacts(self._api, self.artefacts(epoch), Path(folder))

    def model(self, round_number: int | None = None, *, best: bool = False) -> dict[str, torch.Tensor]:
        """Return a model's tensors by name, on the CPU: for ``build_model(config).load_state_dict(task.model())``."""
        from safetensors.torch import load_file  # noqa: PLC0415 - torch takes a second, and few calls need it

        with tempfile.TemporaryDirectory(prefix="aifarm-model-") as folder:
            return load_file(self.pull(Path(folder) / "model.safetensors", round_number, best=best))

    def continue_(
        self,
        rounds: str | int | None = None,
        *,
        round_number: int | None = None,
        best: bool = False,
        recipe: Recipe | Fields | None = None,
        config: Mapping[str, Any] | None = None,
        name: str = "",
        submit_token: str | None = None,
    ) -> Task:
        """Return a new task that goes on from a checkpoint of this one, on the farm's copy of its code and data.

        ``rounds="+20"``: so many more; ``60``: so many in all; without it the task goes on to the end that it had.
        ``round_number`` and ``best`` as for ``pull``; ``recipe``: the fields that change; ``config``: the values that
        the code gets instead of those that it had. What can't be carried on is in the new task's ``notes``. Raises:
        NotFound if that is not kept; InvalidTask, also where the model would change; CheckFailed.
        """
        how = Continuation(
            rounds,
            round_number,
            best,
            recipe=_fields(recipe),
            config=config or {},
            name=name,
            submit_token=submit_token,
        )
        return self.continued(how)

    def continued(self, how: Continuation) -> Task:
        """Return a new task that goes on from a checkpoint of this one, as ``how`` says: see ``continue_``."""
        spec = continued(self._api, self.id, how)
        refuse_older_farm(self._api, spec)
        return Task(self._api, self._api.submit(spec).task, spec.notes)

    def act(self, action: Action) -> TaskView:
        """``pause``, ``resume``, ``cancel`` or ``retry`` it. Raises: Conflict where its state forbids that."""
        return self._api.act(self.id, action)

    def remove(self, *, force: bool = False) -> None:
        """Remove the task, its checkpoints and all that is recorded of it. Raises: Conflict if it is not over."""
        self._api.remove(self.id, force=force)


class Farm:
    """A farm. Use as a context manager, or call ``close``; safe to share between threads.

    ``url`` is what `farm-server up` prints; without it ``FARM_URL`` or what `farm login` wrote counts. What only reads
    bears a farm that is away for ``retry_seconds``. Raises: NoFarmAddress, BadFarmAddress, BadProxy; every call: the
    FarmError that the farm answered, FarmUnreachable, Unauthorized.
    """

    def __init__(self, url: str | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.api = FarmApi(resolve_address(url), tidy=True, retry=RetryWhileAway(retry_seconds))
        """The farm's HTTP API, for what has no word of its own here."""

    @classmethod
    def over(cls, api: FarmApi) -> Self:
        """Return the farm behind an API that is open."""
        farm = cls.__new__(cls)
        farm.api = api
        return farm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.api.close()

    @property
    def link(self) -> LinkEstimate:
        """Return what the farm's links to its clients are like: as they measured them, else as is usual."""
        return estimate(self.api.links(), LOOPBACK if self.api.address.is_loopback else HOUSEHOLD)

    def submit(
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
    ) -> Task:
        """Check the code and one batch here, send code and data to the farm, and queue the task.

        ``settings`` is a TOML file; without it a ``task.toml`` beside the code counts, and what is given here wins over
        it: ``recipe`` (a name that `farm recipes` lists, a file, a Recipe, or fields, as of ``read_recipe``),
        ``requirements`` (fields, or that record), ``config`` for the code, and ``task``, the fields of its table
        [task]: name, entry, holdout, batch, row_bytes, samples, priority, topics, base (a folder that the model is
        built from), environment (the lock file of the packages to import).
        ``start``: begin with the weights of ``TASK`` or ``TASK@N``. ``submit_token``: who submits twice with one token
        gets the same task. Raises: InvalidTask, CheckFailed, DataError: each with one sentence that says what to do.
        """
        given = Given(
            task={**task, "data": _paths(data)} if _paths(data) else task,
            recipe={} if isinstance(recipe, str | Path) else _fields(recipe),
            requirements=_fields(requirements),
            config=config or {},
            recipe_source=recipe if isinstance(recipe, str | Path) else None,
        )
        path = Path(code)
        described = merge_settings(Path(settings) if settings is not None else usual_settings(path), given)
        warm_start = self.warm_start(start) if start else None
        asked = described.submission(path)
        submission = replace(asked, check=check, submit_token=submit_token, warm_start=warm_start, chosen_for=self.link)
        with tempfile.TemporaryDirectory(prefix="aifarm-submit-") as folder:
            prepared = prepare(submission, Path(folder), on_progress)
            self.send(prepared)
            return Task(self.api, self.queue(prepared).task, prepared.spec.notes)

    def map(
        self,
        code: str | Path,
        *,
        data: Paths = (),
        items: int | None = None,
        weights: str | None = None,
        requirements: Requirements | Fields | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> MapResults:
        """Run a function of the code on each row of ``data``, or on the numbers below ``items``; iterate for outputs.

        The code has ``map_item(item, config)`` or ``map_batch(batch, config)``, and ``setup(config)`` if need be.
        ``weights``: those of ``TASK`` or ``TASK@N``. ``options`` are further fields of ``MapSubmission``, such as
        config, batch_items, part_items, on_error, seed. Raises: InvalidTask, CheckFailed, DataError.
        """
        asked = MapSubmission(
            code=Path(code),
            data=_paths(data),
            items=items,
            weights=self.warm_start(weights) if weights else None,
            requirements=Requirements.model_validate(dict(_fields(requirements))),
            **{"submitter": submitter_here(), **options},
        )
        with tempfile.TemporaryDirectory(prefix="aifarm-map-") as folder:
            prepared = prepare_map(asked, Path(folder), on_progress)
            self.send(prepared)
            return MapResults(self.api, Task(self.api, self.queue(prepared).task))

    def outputs(self, reference: str) -> MapResults:
        """Return the outputs of a map that was submitted before, on whichever machine. Raises: NotFound."""
        return MapResults(self.api, self.task(reference))

    def sweep(
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
        """Train many tasks that differ in a few settings, and return how they did: ``best`` is the best of them.

        ``plan``: a SweepPlan, or its file (docs/sweeps.md). ``study``: its folder, from which the same call goes on.
        The rest is as for ``submit``. Raises: MissingLibrary without Optuna; Conflict; as ``submit``.
        """
        fields, named = ({}, recipe) if isinstance(recipe, str | Path) else (_fields(recipe), None)
        given = Given({**task, "data": _paths(data)} if _paths(data) else task, fields, {}, config or {}, (), named)
        described = describing(Path(code), settings, given)
        return run_sweep(self, read_plan(plan), described, Path(study), on_change)

    def send(
        self,
        prepared: Prepared,
        advance: Advance = lambda _: None,
        waits: Callable[[str | None], None] = lambda _: None,
    ) -> Uploaded:
        """Bring the farm what it lacks of a prepared task's files. See ``sdk.upload``.

        Raises: InvalidTask if its server is too old for the task.
        """
        refuse_older_farm(self.api, prepared.spec)
        return upload(self.api, prepared.blobs, advance, waits)

    def queue(self, prepared: Prepared) -> SubmitReply:
        """Submit a task whose files the farm has."""
        return self.api.submit(prepared.spec)

    def warm_start(self, reference: str) -> WarmStart:
        """Return the weights that ``TASK`` or ``TASK@N`` means. Raises: NotFound."""
        task, round_number = find_round(self.api.each_task(), reference)
        found = find_warm_start(self.api, task.task_id, round_number)
        return replace(found, label=f"{task.name}, {found.label}")

    def task(self, reference: str) -> Task:
        """Return the task that is meant: by its id, a beginning of it, or its name. Raises: NotFound."""
        return Task(self.api, find_task(self.api.each_task(), reference))

    def tasks(self) -> list[Task]:
        """Return all tasks, the newest first."""
        return [Task(self.api, view) for view in self.api.each_task()]

    def clients(self) -> list[ClientView]:
        """Return the volunteer machines that the farm knows."""
        return self.api.clients()


def _paths(data: Paths) -> tuple[Path, ...]:
    return (Path(data),) if isinstance(data, str | Path) else tuple(Path(path) for path in data)


def _fields(record: Recipe | Requirements | Fields | None) -> Fields:
    if record is None:
        return {}
    return record.model_dump(exclude_unset=True) if isinstance(record, Recipe | Requirements) else record

"""The settings of a submission: a TOML file, overridden by the command line, or by what a program gives.

The file has up to four tables: ``[task]`` (the fields of ``TaskTable``), ``[recipe]`` and ``[requirements]`` (the
fields of ``protocol.recipe``), and ``[config]``, which is handed to the researcher's code as it is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError

from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.sdk.errors import first_problem
from farm_client.sdk.recipe_files import read_recipe
from farm_client.sdk.submission import MAX_NAME_CHARS, Submission
from farm_client.sdk.submitter import submitter_here
from farm_client.sdk.toml_file import toml_text
from protocol.bounds import FilePath
from protocol.contradictions import contradiction
from protocol.errors import InvalidTask
from protocol.recipe import Recipe, Requirements
from protocol.topics import Topics

DEFAULT_ROUNDS: Final = 20
"""Of a task of which nobody says how long to train."""
USUAL_FILE: Final = "task.toml"
"""Read by itself from a submitted folder, or from beside a submitted file, unless --config names another."""
_NAMED: Final = ("schedule", "update_codec", "weights_codec")
"""Tables of a recipe that may be only named."""
_SIZE: Final = TypeAdapter(ByteSize)
_OF_RECIPE: Final = "recipe."
_ENDS: Final = ("rounds", "epochs")
LASTING: Final = frozenset(
    {"rounds", "epochs", "batch_samples", "seed", "order", "evaluate_every", "min_clients", "init_min_clients"}
    | {"max_clients", "keep_checkpoints", "keep_every", "keep_best", "patience", "target", "max_seconds", "max_retries"}
    | {"schedule", "clip_norm", "clip_value", "precision", "compile", "snapshot_seconds", "tuple_columns", "ignore"}
)
"""A recipe's fields that are of the task and its code, however clients' work is put together: they stay where another
recipe is named."""
_GONE: Final = dict.fromkeys(
    ("durable_every", "durable_seconds"),
    "no round waits for the disk now",
)
"""Fields that recipes once had, and why they need them no more."""
_FORMER: Final = frozenset({"keep_inner_optimizer"})
"""Fields that the recipe still reads, by what they are called now."""


def _without_typos(model: type[BaseModel]) -> BeforeValidator:
    """Refuse fields that the record does not have: over the wire they are ignored, in a file they are typing errors."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            _refuse_unknown(value, model)
        return value

    return BeforeValidator(check)


def _refuse_unknown(table: dict[str, Any], model: type[BaseModel], where: str = "") -> None:
    fields = model.model_fields
    if gone := sorted(table.keys() & _GONE.keys()):
        raise ValueError(f"there is no {gone[0]!r} any more: {_GONE[gone[0]]}; remove the line")
    if unknown := sorted(table.keys() - fields.keys() - (_FORMER if model is Recipe else set())):
        raise ValueError(f"there is no {where + unknown[0]!r}; known are {', '.join(fields)}")
    for name, value in table.items():
        said = fields[name].annotation if name in fields else None
        for kind in get_args(said) or (said,):
            if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
                _refuse_unknown(value, kind, f"{where}{name}.")


class TaskTable(BaseModel):
    """The ``[task]`` table: what ``farm_client.sdk.submission`` calls by the same names.

    ``batch`` is "dict", "tuple" or a list of columns. ``holdout`` is a share of the rows; ``row_bytes`` a text
    file's row; ``samples`` the size of a data set that only ``load_shard`` knows; ``base`` a
    folder that the model is built from; ``environment`` the lock file of the packages that the code imports;
    ``topics`` are words for what the task is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", max_length=MAX_NAME_CHARS)
    entry: FilePath | None = None
    data: tuple[Path, ...] = ()
    holdout: float = Field(default=0.0, ge=0, le=0.9)
    batch: str | tuple[str, ...] = "dict"
    row_bytes: int = Field(default=DEFAULT_ROW_BYTES, ge=1)
    samples: int | None = Field(default=None, ge=1)
    priority: int = Field(default=5, ge=0, le=9)
    topics: Topics = ()
    base: Path | None = None
    environment: Path | None = None


class TaskFile(BaseModel):
    """All of a submission beside its code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: TaskTable = TaskTable()
    recipe: Annotated[Recipe, _without_typos(Recipe)]
    requirements: Annotated[Requirements, _without_typos(Requirements)] = Requirements()
    config: dict[str, Any] = Field(default_factory=dict)

    def submission(self, code: Path) -> Submission:
        """Return what is submitted: this code with these settings, by whoever runs this process."""
        table = self.task
        return Submission(
            code=code,
            recipe=self.recipe,
            data=table.data,
            config=self.config,
            name=table.name,
            entry=table.entry,
            holdout=table.holdout,
            row_bytes=table.row_bytes,
            batch=table.batch,
            samples=table.samples,
            priority=table.priority,
            topics=table.topics,
            base=table.base,
            environment=table.environment,
            submitter=submitter_here(),
            requirements=self.requirements,
        )


@dataclass(frozen=True, slots=True)
class Given:
    """What is said beside the file, and wins over it: fields of its tables, by their names.

    ``assignments`` set single values of the config, as in ``model.width=64``, or of the recipe, as in
    ``recipe.outer.options.lr=0.5``. ``recipe_source`` is a recipe's name or file: of the settings file's recipe only
    the fields in ``LASTING`` stay then.
    """

    task: Mapping[str, object] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    requirements: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    assignments: Sequence[str] = ()
    recipe_source: str | Path | None = None


def merge_settings(path: Path | None, given: Given) -> TaskFile:
    """Merge a settings file, if there is one, with what is given, which wins.

    Paths in the file are relative to it. Raises: InvalidTask naming the first wrong value.
    """
    tables = _read(path) if path else {}
    recipe = _recipe_of(tables.get("recipe", {}), given)
    config = changed_config(
        tables.get("config", {}), given.config, [one for one in given.assignments if not one.startswith(_OF_RECIPE)]
    )
    requirements = {**tables.get("requirements", {}), **given.requirements}
    if "ram_bytes" in requirements:
        requirements["ram_bytes"] = _size_bytes(requirements["ram_bytes"])
    merged = {
        **tables,
        "task": {**tables.get("task", {}), **given.task},
        "recipe": recipe,
        "requirements": requirements,
        "config": config,
    }
    try:
        described = TaskFile.model_validate(merged)
    except ValidationError as error:
        raise InvalidTask(first_problem(error, path)) from error
    if why := contradiction(described.recipe):
        raise InvalidTask(f"the recipe contradicts itself: {why}")
    return described


def read_changes(path: Path) -> Given:
    """Return what a file changes of a task that goes on: fields of its recipe, values of its config.

    Raises: InvalidTask, for any other table too.
    """
    tables = _read(path)
    if others := sorted(tables.keys() - {"recipe", "config"}):
        raise InvalidTask(
            f"{path}: [{others[0]}] stays as it was submitted: a task goes on with another [recipe] or [config]"
        )
    return Given(recipe=tables.get("recipe", {}), config=tables.get("config", {}))


def changed_config(
    config: Mapping[str, object], given: Mapping[str, object], assignments: Sequence[str]
) -> dict[str, Any]:
    """Return a config with given values in the place of its own, and then single ones, as in ``model.width=64``.

    Raises: InvalidTask.
    """
    changed = {**deepcopy(dict(config)), **deepcopy(dict(given))}
    for assignment in assignments:
        _assign(changed, assignment)
    return changed


def _recipe_of(settings: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """Let a named recipe take the place of the settings file's way of training; what is given field by field wins."""
    named, recipe = {}, dict(settings)
    if given.recipe_source is not None:
        named = read_recipe(given.recipe_source)
        recipe = {name: value for name, value in settings.items() if name in LASTING}
    ends = [assignment.partition("=")[0] for assignment in given.assignments]
    for layer in (named, given.recipe):
        if any(layer.get(field) is not None for field in _ENDS):
            # When to stop is one decision: who says it replaces what was said before whole.
            recipe = {**recipe, **dict.fromkeys(_ENDS)}
        recipe = laid_over(recipe, layer)
    if any(f"{_OF_RECIPE}{field}" in ends for field in _ENDS):
        recipe.update(dict.fromkeys(_ENDS))
    elif all(recipe.get(field) is None for field in _ENDS):
        recipe["rounds"] = DEFAULT_ROUNDS
    recipe = deepcopy(recipe)
    for assignment in given.assignments:
        if assignment.startswith(_OF_RECIPE):
            _assign(recipe, assignment.removeprefix(_OF_RECIPE))
    return recipe


def laid_over(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay given fields over a recipe's; a schedule that is given without a name changes the recipe's own."""
    before, after = _with_tables(recipe), _with_tables(given)
    own, changed = before.get("schedule"), after.get("schedule")
    if isinstance(own, dict) and isinstance(changed, dict) and "name" not in changed:
        after["schedule"] = {**own, **changed}
    return {**before, **after}


def _with_tables(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is only named as a table: ``update_codec = "int8"`` is ``{ name = "int8" }``."""
    named = {key: value for key in _NAMED if isinstance(value := recipe.get(key), str)}
    return {**recipe, **{key: {"name": name} for key, name in named.items()}}


def usual_settings(code: Path) -> Path | None:
    """Return the file that says the rest where none is named: the code folder's, or the one beside the code file.

    One beside a file counts unless it is about another file of the folder. Raises: InvalidTask if it cannot be read.
    """
    if code.is_dir():
        path = code / USUAL_FILE
        return path if path.is_file() else None
    path = code.parent / USUAL_FILE
    if not code.is_file() or not path.is_file():
        return None
    entry = _read(path).get("task", {}).get("entry")
    return path if entry in {None, code.name} else None


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"{path} is not TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InvalidTask(f"{path}: put {name!r} into a table: [task], [recipe], [requirements] or [config]")
    if "data" in (task := tables.get("task", {})):
        task["data"] = tuple(path.parent / file for file in _data_files(path, task["data"]))
    for name in ("base", "environment"):
        if isinstance(beside := task.get(name), str):
            task[name] = path.parent / beside
    return tables


def _text_of(path: Path) -> str:
    try:
        return toml_text(path)
    except FileNotFoundError as error:
        raise InvalidTask(f"there is no {path}: give --config an existing TOML file") from error


def _data_files(path: Path, data: object) -> list[str]:
    files = [data] if isinstance(data, str) else data
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InvalidTask(f'{path}: task.data is {data!r}: write data = "FILE", or a list of files')
    return files


def _assign(config: dict[str, Any], assignment: str) -> None:
    """Set one value, such as ``lr=0.1`` or ``model.width=64``; the value is TOML, or else a string."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise InvalidTask(f"--set {assignment}: write it as KEY=VALUE, such as --set lr=0.1")
    *tables, last = key.strip().split(".")
    for name in tables:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise InvalidTask(f"--set {assignment}: {name!r} is a value, not a table")
    try:
        config[last] = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        config[last] = text


def _size_bytes(size: object) -> int:
    try:
        return _SIZE.validate_python(size)
    except ValidationError as error:
        raise InvalidTask(f"{size!r} is no size: write it as 8GB or 512MiB") from error

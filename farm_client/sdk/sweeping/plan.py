"""What a sweep looks for, and where: a TOML file with the tables ``[sweep]`` and ``[space]``."""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from farm_client.sdk.errors import first_problem
from farm_client.sdk.toml_file import toml_text
from protocol.errors import InvalidTask

Value = bool | int | float | str


class SamplerName(StrEnum):
    """How the next trial's settings are chosen."""

    TPE = "tpe"
    """By what went well so far: the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""
    RANDOM = "random"
    """At random."""
    GRID = "grid"
    """All combinations, one after the other; each range is a list of values then."""


class PrunerName(StrEnum):
    """When a trial that does badly is ended before its end, by its own evaluations."""

    NONE = "none"
    """Never."""
    MEDIAN = "median"
    """Where it is worse than the median of the trials before it at the same evaluation, after ``startup`` trials."""
    HALVING = "halving"
    """Asynchronous successive halving (Li et al., arXiv:1810.05934): of those that come to evaluation 1, ``reduction``,
    ``reduction`` squared and so on, the best in ``reduction`` go on."""


class Range(BaseModel):
    """Numbers from ``low`` to ``high``, whole ones where both are; ``log``: evenly in the logarithm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log takes a low over 0, and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SweepPlan(BaseModel):
    """What is looked for (``metric``, which ``direction`` is better), how, and in which space.

    ``space``: by key as of ``--set`` (``lr``, ``model.width``, ``recipe.round_samples``), a range or a list of values.
    ``max_seconds``: no trial begins later than so long after the sweep first began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="sweep", min_length=1, max_length=60, pattern=r"^[\w.-]+$")
    metric: str = Field(default="loss", min_length=1, max_length=90)
    direction: str = Field(default="min", pattern="^(min|max)$")
    sampler: SamplerName = SamplerName.TPE
    pruner: PrunerName = PrunerName.MEDIAN
    startup: int = Field(default=4, ge=1)
    reduction: int = Field(default=3, ge=2)
    trials: int | None = Field(default=None, ge=1, le=100_000)
    at_once: int = Field(default=2, ge=1, le=1000)
    max_seconds: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    space: dict[str, Range | tuple[Value, ...]] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        for key, values in self.space.items():
            if isinstance(values, tuple) and not values:
                raise ValueError(f"{key} has no value to try")
            if isinstance(values, Range) and self.sampler is SamplerName.GRID:
                raise ValueError(f'sampler = "grid" takes lists of values, and {key} is a range: list its values')
        return self

    @property
    def most_trials(self) -> int:
        """How many trials there are: ``trials``, at most the whole grid; 20 where neither says."""
        if self.sampler is not SamplerName.GRID:
            return self.trials or 20
        size = math.prod(len(values) for values in self.space.values() if isinstance(values, tuple))
        return min(self.trials or size, size)

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Yield the trials of a grid, the last key's values first."""
        lists = [values for values in self.space.values() if isinstance(values, tuple)]
        for values in itertools.product(*lists):
            yield dict(zip(self.space, values, strict=True))


def read_plan(source: SweepPlan | str | Path, changes: Mapping[str, object] | None = None) -> SweepPlan:
    """Read a sweep's file; ``changes`` are fields that win over it. Raises: InvalidTask naming what is wrong."""
    if isinstance(source, SweepPlan):
        return source
    path = Path(source)
    try:
        tables = tomllib.loads(toml_text(path))
    except FileNotFoundError as error:
        raise InvalidTask(f"{path} cannot be read: there is no such file") from error
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"{path} is not TOML: {error}") from error
    if other := sorted(tables.keys() - {"sweep", "space"}):
        raise InvalidTask(f"{path}: a sweep's file has the tables [sweep] and [space], not {other[0]!r}")
    sweep, space = tables.get("sweep", {}), tables.get("space", {})
    if not isinstance(sweep, dict) or not isinstance(space, dict):
        raise InvalidTask(f"{path}: write [sweep] and [space] as tables")
    try:
        return SweepPlan.model_validate({"name": path.stem, **sweep, "space": _flat(space), **(changes or {})})
    except ValidationError as error:
        raise InvalidTask(first_problem(error, path)) from error


def _flat(space: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Write tables within ``[space]`` as dotted keys; a table with ``low`` or ``high`` is a range."""
    found: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and not value.keys() & {"low", "high"}:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


def assignment(key: str, value: Value) -> str:
    """Return a setting as ``--set`` takes it. JSON's numbers, booleans and plain strings are TOML's too."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"

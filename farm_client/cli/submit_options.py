"""The options of `farm submit` and `farm run`, one record for both. None means: not said on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Final

import typer

from farm_client.cli.recipe_options import RecipeOptions, changed_recipe, said
from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.sdk.submission import GRADIENT_BATCHES, MAX_ROUND_SAMPLES
from farm_client.sdk.task_file import DEFAULT_ROUNDS, Given, TaskFile, merge_settings, usual_settings
from protocol.data_split import SplitName
from protocol.recipe import Recipe
from protocol.sandbox import Rung

_PLAIN_DEFAULTS: Final = (
    "batch_samples",
    "seed",
    "min_clients",
    "over_provision",
    "max_staleness",
    "grace",
    "aggregate",
    "keep_checkpoints",
    "keep_every",
)
_TASK, _RECIPE, _NEEDS = "Task", "Recipe", "What a client must have"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions(RecipeOptions):
    """A task's options on the command line; ``--config`` may say the rest (see ``task_file``)."""

    SHOWN_DEFAULTS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **{name: str(Recipe.model_fields[name].default) for name in _PLAIN_DEFAULTS},
            "mode": "chosen to give your own loop's model, and said at submit",
            "rounds": f"{DEFAULT_ROUNDS}, where neither is given",
            "epochs": "no limit",
            "name": "the file's",
            "holdout": "0",
            "priority": "5",
            "row_bytes": str(DEFAULT_ROW_BYTES),
            "round_samples": f"all, up to {MAX_ROUND_SAMPLES:,}; in gradients mode {GRADIENT_BATCHES} batches",
            "evaluate_every": "once an epoch",
            "init_min_clients": "as --min-clients",
            "max_clients": "no limit",
            "update_codec": "none",
            "weights_codec": "none",
            "pipeline": "no-pipeline",
            "buffer": "rounds",
            "quorum_clients": "rounds",
            "trim_share": "none",
            "byzantine": "0",
            "norm_bound": "the round's median norm",
            "keep_best": "none",
            "patience": "none",
            "target": "none",
            "max_seconds": "none",
            "clip_norm": "none",
            "clip_value": "none",
            "schedule": "none, or that of the code",
            "warmup": "none",
            "order": "shuffled",
            "recipe": "none",
            "split": "none",
            "split_parts": "none",
            "split_alpha": "none",
            "split_by": "none, or the data files",
            "compile": "no-compile",
        }
    )
    """What holds where neither command line nor file says it."""

    file: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="Your train.py, or the folder that holds it.")]
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Files: .npz, .safetensors, Parquet, JSONL or text.", rich_help_panel=_TASK),
    ] = None
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="The folder that build_model starts from: config['base'].",
            rich_help_panel=_TASK,
        ),
    ] = None
    requirements: Annotated[
        Path | None,
        typer.Option(
            "--requirements",
            metavar="FILE",
            help="The packages to import: uv.lock, pylock.toml or requirements with hashes.",
            rich_help_panel=_TASK,
        ),
    ] = None
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file that says all of this.", rich_help_panel=_TASK)
    ] = None
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a value of config, or of the recipe (recipe.seed=1).",
            rich_help_panel=_TASK,
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="How to train: a recipe that `farm recipes` lists, or a file with one; options win over its lines.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    entry: Annotated[
        str | None,
        typer.Option(
            "--entry", help="The file in the folder that holds build_model; else train.py.", rich_help_panel=_TASK
        ),
    ] = None
    name: Annotated[str | None, typer.Option("--name", help="What to call it.", rich_help_panel=_TASK)] = None
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", min=0, max=0.9, help="Share of rows kept for evaluation.", rich_help_panel=_TASK),
    ] = None
    row_bytes: Annotated[
        int | None,
        typer.Option("--row-bytes", min=1, metavar="N", help="Text data: bytes of one row.", rich_help_panel=_TASK),
    ] = None
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="tuple|X,Y",
            help="Batches as tuples: of all columns, or of those named, in that order.",
            rich_help_panel=_TASK,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, metavar="N", help="How many samples load_shard has, in all.", rich_help_panel=_TASK
        ),
    ] = None
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=9, help="9 is served first.", rich_help_panel=_TASK)
    ] = None
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", help="What it is about, in a word; volunteers choose by it.", rich_help_panel=_TASK),
    ] = None
    submit_token: Annotated[
        str | None,
        typer.Option(
            "--submit-token", help="A repeat with the same token makes no second task.", rich_help_panel=_TASK
        ),
    ] = None
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Skip trying one batch here first.", rich_help_panel=_TASK)
    ] = False
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Stop after so many rounds.", rich_help_panel=_RECIPE)
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", min=0, help="Stop after so many passes over the data.", rich_help_panel=_RECIPE),
    ] = None
    split: Annotated[
        SplitName | None,
        typer.Option(
            "--split",
            help="For research: deal rows to virtual clients; a round has a part of each.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    split_parts: Annotated[
        int | None,
        typer.Option("--split-parts", min=1, metavar="N", help="To so many, as many to each.", rich_help_panel=_RECIPE),
    ] = None
    split_alpha: Annotated[
        float | None,
        typer.Option(
            "--split-alpha",
            min=0,
            metavar="A",
            help="With dirichlet: 100 is nearly IID, 0.1 a label or two for each.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by", metavar="COLUMN", help="The labels of dirichlet, or the sources.", rich_help_panel=_RECIPE
        ),
    ] = None
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Only clients with this tag.", rich_help_panel=_NEEDS)
    ] = None
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="Only clients with this Python module.", rich_help_panel=_NEEDS),
    ] = None
    gpu: Annotated[bool | None, typer.Option("--gpu", help="A GPU.", rich_help_panel=_NEEDS)] = None
    ram: Annotated[
        str | None, typer.Option("--ram", metavar="SIZE", help="Memory, such as 8GB.", rich_help_panel=_NEEDS)
    ] = None
    cpu_cores: Annotated[int | None, typer.Option("--cpu-cores", min=1, help="Cores.", rich_help_panel=_NEEDS)] = None
    sandbox: Annotated[
        Rung | None,
        typer.Option("--sandbox", help="A sandbox that holds, of this rung or above.", rich_help_panel=_NEEDS),
    ] = None


def settings_file(options: SubmitOptions) -> Path | None:
    """Return the file that says the rest: of ``--config``, else the usual one. Raises: InvalidTask."""
    return usual_settings(options.file) if options.config is None else options.config


def describe_task(options: SubmitOptions) -> TaskFile:
    """Merge the settings file with the command line, which wins. Raises: InvalidTask naming the first wrong value."""
    given = Given(
        task_of(options), recipe_of(options), requirements_of(options), {}, options.set_values or (), options.recipe
    )
    return merge_settings(settings_file(options), given)


def recipe_of(options: SubmitOptions) -> dict[str, object]:
    """Return the recipe's fields that the command line gives."""
    own: dict[str, object] = {
        "rounds": options.rounds,
        "epochs": options.epochs,
        "split": options.split,
        "split_parts": options.split_parts,
        "split_alpha": options.split_alpha,
        "split_by": options.split_by,
    }
    return said(own) | changed_recipe(options)


def requirements_of(options: SubmitOptions) -> dict[str, object]:
    """Return the requirements' fields that the command line gives; ``ram_bytes`` as it was typed."""
    return said(
        {
            "tags": tuple(options.tags) if options.tags else None,
            "modules": tuple(options.modules) if options.modules else None,
            "gpu": options.gpu,
            "ram_bytes": options.ram,
            "cpu_cores": options.cpu_cores,
            "sandbox": options.sandbox,
        }
    )


def task_of(options: SubmitOptions) -> dict[str, object]:
    """Return the other facts of the task that the command line gives."""
    return said(
        {
            "name": options.name,
            "entry": options.entry,
            "data": tuple(options.data) if options.data else None,
            "holdout": options.holdout,
            "row_bytes": options.row_bytes,
            "batch": options.batch,
            "samples": options.samples,
            "priority": options.priority,
            "topics": tuple(options.topics) if options.topics else None,
            "base": options.base,
            "environment": options.requirements,
        }
    )

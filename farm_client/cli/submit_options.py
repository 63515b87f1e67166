"""The options of `farm submit` and `farm run`, one record for both. None means: not said on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Final

import typer

from farm_client.data.text import DEFAULT_ROW_BYTES
from farm_client.sdk.submission import GRADIENT_BATCHES, MAX_ROUND_SAMPLES
from farm_client.sdk.task_file import DEFAULT_ROUNDS, Given, TaskFile, merge_settings, usual_settings
from protocol.compression import CodecName
from protocol.recipe import AggregateName, Mode, PartSizes, Precision, Recipe

_PLAIN_DEFAULTS: Final = (
    "batch_samples",
    "seed",
    "min_clients",
    "over_provision",
    "max_staleness",
    "aggregate",
    "keep_checkpoints",
    "keep_every",
)
_TASK, _RECIPE, _NEEDS = "Task", "Recipe", "What a client must have"


@dataclass(frozen=True, slots=True)
class SubmitOptions:
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
            "trim_share": "none",
            "keep_best": "none",
            "patience": "none",
            "target": "none",
            "max_seconds": "none",
            "clip_norm": "none",
            "clip_value": "none",
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
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file that says all of this.", rich_help_panel=_TASK)
    ] = None
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one value of config.", rich_help_panel=_TASK),
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
    mode: Annotated[
        Mode | None,
        typer.Option("--mode", help="What clients return: trained weights, or gradients.", rich_help_panel=_RECIPE),
    ] = None
    round_samples: Annotated[
        int | None, typer.Option("--round-samples", min=1, help="Samples of one round.", rich_help_panel=_RECIPE)
    ] = None
    batch_samples: Annotated[
        int | None, typer.Option("--batch-samples", min=1, help="Samples of one local step.", rich_help_panel=_RECIPE)
    ] = None
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            "--evaluate-every", min=0, help="Evaluate after every Nth round; 0: never.", rich_help_panel=_RECIPE
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Same seed, same order of the data.", rich_help_panel=_RECIPE)
    ] = None
    min_clients: Annotated[
        int | None, typer.Option("--min-clients", min=1, help="A round needs so many.", rich_help_panel=_RECIPE)
    ] = None
    init_min_clients: Annotated[
        int | None, typer.Option("--init-min-clients", min=1, help="The first round does.", rich_help_panel=_RECIPE)
    ] = None
    max_clients: Annotated[
        int | None, typer.Option("--max-clients", min=1, help="No round uses more.", rich_help_panel=_RECIPE)
    ] = None
    over_provision: Annotated[
        float | None,
        typer.Option(
            "--over-provision",
            min=0,
            max=4,
            help="Hand out this share more than a round needs; it ends with enough.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    max_staleness: Annotated[
        int | None,
        typer.Option(
            "--max-staleness",
            min=0,
            max=16,
            help="Late work still counts so many rounds later, for less.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    aggregate: Annotated[
        AggregateName | None,
        typer.Option(
            "--aggregate",
            help="What updates become; a few wrong ones can't move median and trimmed_mean far.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    trim_share: Annotated[
        float | None,
        typer.Option(
            "--trim-share",
            min=0,
            max=0.49,
            help="With trimmed_mean: leave out this share of the updates at either end.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    update_codec: Annotated[
        CodecName | None,
        typer.Option("--update-codec", help="How clients make their updates small.", rich_help_panel=_RECIPE),
    ] = None
    weights_codec: Annotated[
        CodecName | None,
        typer.Option(
            "--weights-codec", help="Send new weights as differences, made small by this.", rich_help_panel=_RECIPE
        ),
    ] = None
    pipeline: Annotated[
        bool | None,
        typer.Option(
            "--pipeline", help="Compute on while an update is sent; needs --max-staleness.", rich_help_panel=_RECIPE
        ),
    ] = None
    parts: Annotated[
        PartSizes | None,
        typer.Option(
            "--parts",
            help="Part rounds by the clients' speed, or in fixed parts: the same seed then gives the same weights.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    part_samples: Annotated[
        int | None,
        typer.Option("--part-samples", min=1, help="With fixed parts: samples of each.", rich_help_panel=_RECIPE),
    ] = None
    keep_checkpoints: Annotated[
        int | None,
        typer.Option("--keep-checkpoints", min=1, help="Keep the newest so many.", rich_help_panel=_RECIPE),
    ] = None
    keep_every: Annotated[
        int | None,
        typer.Option("--keep-every", min=0, help="Also keep every Nth round's; 0: none.", rich_help_panel=_RECIPE),
    ] = None
    keep_best: Annotated[
        str | None,
        typer.Option(
            "--keep-best",
            metavar="max:METRIC",
            help="Also keep the best, as in max:accuracy or min:loss.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    clip_norm: Annotated[
        float | None,
        typer.Option(
            "--clip-norm", min=0, metavar="NORM", help="Scale gradients down to this norm.", rich_help_panel=_RECIPE
        ),
    ] = None
    clip_value: Annotated[
        float | None,
        typer.Option(
            "--clip-value",
            min=0,
            metavar="VALUE",
            help="Cut each element of a gradient off at this value.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            min=1,
            metavar="N",
            help="Stop after N evaluations in which the metric of --keep-best got no better.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="METRIC>=X",
            help="Stop when an evaluation reaches it, as in accuracy>=0.95 or loss<=0.1.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds",
            min=0.001,
            metavar="S",
            help="Stop with the first round that ends so long after the start.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="The number format of forward and backward passes.", rich_help_panel=_RECIPE),
    ] = None
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the model (torch.compile).", rich_help_panel=_RECIPE)
    ] = None
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="NAME",
            help="Train without a part of the code that the farm does not run, such as schedule.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Only clients with this tag.", rich_help_panel=_NEEDS)
    ] = None
    gpu: Annotated[bool | None, typer.Option("--gpu", help="A GPU.", rich_help_panel=_NEEDS)] = None
    ram: Annotated[
        str | None, typer.Option("--ram", metavar="SIZE", help="Memory, such as 8GB.", rich_help_panel=_NEEDS)
    ] = None
    cpu_cores: Annotated[int | None, typer.Option("--cpu-cores", min=1, help="Cores.", rich_help_panel=_NEEDS)] = None


def settings_file(options: SubmitOptions) -> Path | None:
    """Return the file that says the rest: of ``--config``, else the usual one. Raises: InvalidTask."""
    return usual_settings(options.file) if options.config is None else options.config


def describe_task(options: SubmitOptions) -> TaskFile:
    """Merge the settings file with the command line, which wins. Raises: InvalidTask naming the first wrong value."""
    given = Given(task_of(options), recipe_of(options), requirements_of(options), {}, options.set_values or ())
    return merge_settings(settings_file(options), given)


def recipe_of(options: SubmitOptions) -> dict[str, object]:
    """Return the recipe's fields that the command line gives."""
    return _said(
        {
            "rounds": options.rounds,
            "epochs": options.epochs,
            "mode": options.mode,
            "round_samples": options.round_samples,
            "batch_samples": options.batch_samples,
            "evaluate_every": options.evaluate_every,
            "seed": options.seed,
            "min_clients": options.min_clients,
            "init_min_clients": options.init_min_clients,
            "max_clients": options.max_clients,
            "over_provision": options.over_provision,
            "max_staleness": options.max_staleness,
            "aggregate": options.aggregate,
            "trim_share": options.trim_share,
            "update_codec": options.update_codec,
            "weights_codec": options.weights_codec,
            "pipeline": options.pipeline,
            "parts": options.parts,
            "part_samples": options.part_samples,
            "keep_checkpoints": options.keep_checkpoints,
            "keep_every": options.keep_every,
            "keep_best": options.keep_best,
            "patience": options.patience,
            "target": options.target,
            "max_seconds": options.max_seconds,
            "clip_norm": options.clip_norm,
            "clip_value": options.clip_value,
            "precision": options.precision,
            "compile": options.compile,
            "ignore": tuple(options.ignore) if options.ignore else None,
        }
    )


def requirements_of(options: SubmitOptions) -> dict[str, object]:
    """Return the requirements' fields that the command line gives; ``ram_bytes`` as it was typed."""
    return _said(
        {
            "tags": tuple(options.tags) if options.tags else None,
            "gpu": options.gpu,
            "ram_bytes": options.ram,
            "cpu_cores": options.cpu_cores,
        }
    )


def task_of(options: SubmitOptions) -> dict[str, object]:
    """Return the other facts of the task that the command line gives."""
    return _said(
        {
            "name": options.name,
            "entry": options.entry,
            "data": tuple(options.data) if options.data else None,
            "holdout": options.holdout,
            "row_bytes": options.row_bytes,
            "batch": options.batch,
            "samples": options.samples,
            "priority": options.priority,
            "base": options.base,
        }
    )


def _said(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}

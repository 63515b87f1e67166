"""The options of a recipe on the command line, for `farm submit` and `farm continue`. None means: not said there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from protocol.aggregates import AggregateName
from protocol.compression import CodecName
from protocol.named_schedule import ScheduleName
from protocol.recipe import DataOrder, Mode, PartSizes, Precision

_RECIPE: Final = "Recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """All of a recipe but how long it trains."""

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
    buffer: Annotated[
        int | None,
        typer.Option(
            "--buffer",
            min=1,
            help="Asynchronous: a version is of so many results, and nobody waits for anybody.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    quorum_clients: Annotated[
        int | None,
        typer.Option(
            "--quorum-clients",
            min=1,
            help="Asynchronous: a version is of what is here once so many clients have delivered.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace",
            min=0,
            max=10,
            help="With it: the others are waited for so many times as long as a part takes.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    aggregate: Annotated[
        AggregateName | None,
        typer.Option(
            "--aggregate",
            help="What updates become; a few wrong ones can move the mean alone far.",
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
    byzantine: Annotated[
        int | None,
        typer.Option(
            "--byzantine",
            min=0,
            help="With krum, multi_krum and bulyan: so many clients of a round may be wrong.",
            rich_help_panel=_RECIPE,
        ),
    ] = None
    norm_bound: Annotated[
        float | None,
        typer.Option(
            "--norm-bound",
            help="With norm_bounding and centered_clipping: cut updates down to this norm.",
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
    order: Annotated[
        DataOrder | None,
        typer.Option(
            "--order",
            help="Read the rows in a new order each epoch, or as they are: one stream for each sample of a batch.",
            rich_help_panel=_RECIPE,
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
    schedule: Annotated[
        ScheduleName | None,
        typer.Option("--schedule", help="How the learning rate goes over the whole task.", rich_help_panel=_RECIPE),
    ] = None
    warmup: Annotated[
        float | None,
        typer.Option(
            "--warmup",
            min=0,
            metavar="STEPS",
            help="It rises first, for so many steps; below 1, for a share of the task.",
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


def changed_recipe(options: RecipeOptions) -> dict[str, object]:
    """Return the recipe's fields that the command line gives, but for its end."""
    return said(
        {
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
            "buffer": options.buffer,
            "quorum_clients": options.quorum_clients,
            "grace": options.grace,
            "aggregate": options.aggregate,
            "trim_share": options.trim_share,
            "byzantine": options.byzantine,
            "norm_bound": options.norm_bound,
            "update_codec": options.update_codec,
            "weights_codec": options.weights_codec,
            "pipeline": options.pipeline,
            "order": options.order,
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
            "schedule": said({"name": options.schedule, "warmup": options.warmup}) or None,
            "precision": options.precision,
            "compile": options.compile,
            "ignore": tuple(options.ignore) if options.ignore else None,
        }
    )


def said(values: dict[str, object]) -> dict[str, object]:
    """Return the values that are given."""
    return {name: value for name, value in values.items() if value is not None}

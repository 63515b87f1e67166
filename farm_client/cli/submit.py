"""Sending a task to the farm: `farm submit`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from farm_client.cli.arguments import RetryOption
from farm_client.cli.ending import finish
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.cli.pull import transfer_bar
from farm_client.cli.submit_options import SubmitOptions, describe_task, settings_file
from farm_client.cli.watch import watch_task
from farm_client.sdk.default_mode import LinkEstimate
from farm_client.sdk.farm import Farm
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.warm_start import WarmStart
from farm_client.sdk.watching.formatting import format_value
from farm_client.transfer.source import size_of
from protocol.rest import SubmitReply
from protocol.tasks import Split
from protocol.wording import counted, sized

MAX_TOKEN_CHARS: Final = 200
_SENDING: Final = "sending code and data"
_STEPS: Final = {"checking": "trying the code on one batch", "sharding": "cutting the data into shards"}


def submit(
    invocation: Invocation,
    options: SubmitOptions,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="TASK[@N]", help="Begin with that task's weights (after N rounds)."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on watching until it is over.")] = False,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Check the code and one batch here, send code and data to the farm, and queue the task."""
    with invocation.api(retry_seconds) as api:
        api.farm()  # An unreachable farm is better told before the check than after it.
        farm = Farm.over(api)
        warm_start = _find_warm_start(farm, source, invocation.out) if source else None
        with tempfile.TemporaryDirectory(prefix="aifarm-submit-") as folder:
            prepared = prepare_here(options, Path(folder), invocation.out, farm.link, warm_start)
            reply = send(farm, prepared, invocation.out)
        told = {**reply.model_dump(mode="json"), "notes": list(prepared.notes), **chosen_mode(prepared)}
        invocation.out.emit(OutputKind.SUBMITTED, told, lambda: Text(reply.task.task_id))
        _tell_next(reply, invocation.out)
        if watch:
            finish(api, watch_task(api, reply.task.task_id, invocation.out), invocation.out)


def prepare_here(
    options: SubmitOptions, folder: Path, out: Output, link: LinkEstimate, warm_start: WarmStart | None = None
) -> Prepared:
    """Check and pack the task on this machine; what is to be uploaded stays in ``folder``, which is made.

    ``link`` is the farm's to its clients, for a recipe that leaves the mode open.
    Raises: InvalidTask and its kin, saying what is wrong with the code, the data or the settings.
    """
    if options.config is None and (settings := settings_file(options)) is not None:
        out.say(f"[dim]settings: {escape(str(settings))}; the command line wins over it[/]")
    submission = replace(describe_submission(options), warm_start=warm_start, chosen_for=link)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = _prepare(submission, folder, out)
    for note in prepared.notes:
        out.say(f"[bold yellow]note:[/] {escape(note)}")
    out.say(f"[dim]{_describe(prepared)}[/]")
    if prepared.choice is not None:
        out.say(escape(prepared.choice.sentence))
    return prepared


def chosen_mode(prepared: Prepared) -> dict[str, str | None]:
    """Return what programs are told of the mode: which it is, and why, where it was chosen here."""
    choice = prepared.choice
    return {"mode": prepared.spec.recipe.mode, "mode_chosen": None if choice is None else choice.sentence}


def send(farm: Farm, prepared: Prepared, out: Output) -> SubmitReply:
    """Upload what the farm does not hold yet, and submit the task."""
    _upload(farm, prepared, out)
    return farm.queue(prepared)


def _find_warm_start(farm: Farm, source: str, out: Output) -> WarmStart:
    found = farm.warm_start(source)
    out.say(f"[dim]it begins with the weights of {escape(found.label)}[/]")
    return found


def describe_submission(options: SubmitOptions) -> Submission:
    """Return what the command line and its settings file ask for. Raises: InvalidTask."""
    submission = describe_task(options).submission(options.file)
    return replace(submission, check=not options.no_check, submit_token=_token(options.submit_token))


def _token(token: str | None) -> str | None:
    if token is not None and len(token) > MAX_TOKEN_CHARS:
        raise BadUsage(f"--submit-token has {len(token):,} characters: give at most {MAX_TOKEN_CHARS}")
    return token


def _prepare(submission: Submission, folder: Path, out: Output) -> Prepared:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=out.chatter, transient=True, disable=not out.chatter.is_terminal) as bar:
        step = bar.add_task("reading the data", total=None)
        return prepare(
            submission,
            folder,
            lambda what, done, total: bar.update(step, description=_STEPS.get(what, what), completed=done, total=total),
        )


def _describe(prepared: Prepared) -> str:
    loss = prepared.report.loss
    tried = "the code works here" if prepared.report.tried else "the code is not tried"
    tried += "" if loss is None else f": loss {format_value(loss)} on a batch"
    dataset = prepared.spec.dataset
    train, held_out = (counted(dataset.samples(split), "sample") for split in (Split.TRAIN, Split.HOLDOUT))
    return f"{tried}; {train} to train on, {held_out} held out, in {counted(len(dataset.shards), 'shard')}"


def _upload(farm: Farm, prepared: Prepared, out: Output) -> None:
    total_bytes = sum(size_of(content) for content in prepared.blobs.values())
    with transfer_bar(out) as bar:
        task = bar.add_task(_SENDING, total=total_bytes)

        def show_wait(reason: str | None) -> None:
            bar.update(task, description=f"{_SENDING}: waiting, {escape(reason)}" if reason else _SENDING)

        try:
            uploaded = farm.send(prepared, lambda done: bar.advance(task, done), show_wait)
        except KeyboardInterrupt:
            out.say("[dim]the farm keeps what it got: the same command goes on from there[/]")
            raise
    rest = "" if uploaded.sent_blobs == uploaded.blobs else f" of {sized(total_bytes)}; the farm had the rest"
    out.say(f"[dim]sent {sized(uploaded.sent_bytes)}{rest}[/]")


def _tell_next(reply: SubmitReply, out: Output) -> None:
    task = reply.task
    known = "" if reply.created else " (this submit token was used before: it is the same task)"
    out.say(f"[bold]{escape(task.name)}[/] is task [bold]{task.task_id}[/]{known}: {escape(task.why or task.state)}")
    out.say(f"  farm watch {task.task_id}                            see it train")
    out.say(f"  farm why {task.task_id}                              what it waits for")
    out.say(f"  farm pull {task.task_id} -o model.safetensors        fetch the model")

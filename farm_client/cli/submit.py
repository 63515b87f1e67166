"""Sending a task to the farm: `farm submit`."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from farm_client.cli.ending import finish
from farm_client.cli.formatting import format_bytes
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Kind, Output
from farm_client.cli.pull import transfer_bar
from farm_client.cli.submit_options import SubmitOptions
from farm_client.cli.task_file import describe_task
from farm_client.cli.watch import watch_task
from farm_client.sdk.api import FarmApi
from farm_client.sdk.upload import size_of, upload
from protocol.rest import SubmitReply

if TYPE_CHECKING:
    from farm_client.sdk.submission import Submission


def submit(
    invocation: Invocation,
    options: SubmitOptions,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on watching until it is over.")] = False,
) -> None:
    """Check the code and one batch here, send code and data to the farm, and queue the task."""
    with invocation.api() as api:
        api.farm()  # An unreachable farm is better told before the check than after it.
        reply = send(api, prepare_submission(options, invocation.out), invocation.out)
        invocation.out.emit(Kind.SUBMITTED, reply)
        _tell_next(reply, invocation.out)
        if watch:
            finish(api, watch_task(api, reply.task.task_id, invocation.out), invocation.out)


def prepare_submission(options: SubmitOptions, out: Output) -> Submission:
    """Check the task and pack it, on this machine. Raises: InvalidTask saying what is wrong with it."""
    # It imports torch, which takes a second or two that no other verb should pay.
    from farm_client.sdk.submission import prepare  # noqa: PLC0415

    description = describe_task(options)
    with out.chatter.status("packing the data" if options.no_check else "packing the data, trying one batch"):
        return prepare(
            options.file,
            description,
        )


def send(api: FarmApi, submission: Submission, out: Output) -> SubmitReply:
    """Upload what the farm does not hold yet, and submit."""
    total_bytes = sum(size_of(content) for content in submission.blobs.values())
    with transfer_bar(out) as bar:
        task = bar.add_task("upload", total=total_bytes)
        uploaded = upload(api, submission.blobs, lambda done: bar.advance(task, done))
    out.say(f"[dim]uploaded {format_bytes(uploaded.sent_bytes)} of {format_bytes(total_bytes)}[/]")
    return api.submit(submission.spec)


def submitter() -> str:
    """Return who submits, for the farm's fair sharing: user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _tell_next(reply: SubmitReply, out: Output) -> None:
    task = reply.task
    if not out.as_json:
        out.results.print(task.task_id, markup=False)
    known = "" if reply.created else " (this submit token was used before: it is the same task)"
    out.say(f"[bold]{escape(task.name)}[/] is task [bold]{task.task_id}[/]{known}: {escape(task.why or task.state)}")
    out.say(f"  farm watch {task.task_id}                            see it train")
    out.say(f"  farm why {task.task_id}                              what it waits for")
    out.say(f"  farm pull {task.task_id} -o model.safetensors        fetch the model")

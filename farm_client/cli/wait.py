"""Waiting for a task's end: `farm wait`, for scripts."""

from __future__ import annotations

import math

import typer

from farm_client.cli.arguments import RetryOption, TaskArgument, TimeoutOption
from farm_client.cli.ending import finish
from farm_client.cli.exit_codes import ExitCode
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.feeds import wait_until_over
from farm_client.sdk.outcome import is_over
from farm_client.sdk.retrying import RETRY_SECONDS


def wait(
    invocation: Invocation,
    task: TaskArgument,
    timeout: TimeoutOption = None,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Wait until a task is over; the exit code tells how it ended (0 completed, 3 failed, 4 cancelled, 5 time-out)."""
    with invocation.api(retry_seconds if timeout is None else min(retry_seconds, timeout), from_start=True) as api:
        last = wait_until_over(api, invocation.task(api, task).task_id, math.inf if timeout is None else timeout)
        invocation.out.emit(OutputKind.TASK, last)
        if not is_over(last):
            invocation.out.complain(f"{last.task_id} is {last.state} after {timeout:g} s: {last.why}")
            raise typer.Exit(ExitCode.TIMED_OUT)
        finish(api, last, invocation.out)

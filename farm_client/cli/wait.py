"""Waiting for a task's end: `farm wait`, for scripts."""

from __future__ import annotations

import math
import time
from typing import Final

import typer

from farm_client.cli.arguments import RetryOption, TaskArgument, TimeoutOption
from farm_client.cli.ending import finish
from farm_client.cli.exit_codes import ExitCode
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.api import FarmApi
from farm_client.sdk.outcome import is_over
from farm_client.sdk.retrying import RETRY_SECONDS
from protocol.rest import TaskView

LONG_POLL_SECONDS: Final = 10.0


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


def wait_until_over(api: FarmApi, task_id: str, timeout_seconds: float) -> TaskView:
    """Return the task's view once it is over, or when the time is up."""
    deadline = time.monotonic() + timeout_seconds
    after = 0
    while True:
        task = api.task(task_id).task
        left_seconds = deadline - time.monotonic()
        if is_over(task) or left_seconds <= 0:
            return task
        # An event comes with every change of state, so waiting for events wakes us in time.
        events = api.events(task_id, after=after, wait_seconds=min(LONG_POLL_SECONDS, left_seconds))
        after = events[-1].seq if events else after

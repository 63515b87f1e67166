"""The exit codes of `farm`. ``docs/reference/exit-codes.md`` lists the same, and a test compares the two."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from farm_client.proxies import BadProxy
from farm_client.sdk.errors import BadFarmAddress, BadFormat, FarmUnreachable, NoFarmAddress
from farm_client.sdk.outcome import TaskOutcome
from protocol.errors import FarmError, Unauthorized


class BadUsage(FarmError):
    """The command line is wrong; `farm --help` lists the verbs."""

    code = "usage"


class ExitCode(IntEnum):
    """The exit codes of every verb."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    TASK_FAILED = 3
    TASK_CANCELLED = 4
    TIMED_OUT = 5
    NO_FARM = 6
    INTERRUPTED = 130


MEANING: Final = {
    ExitCode.OK: "it worked; for verbs that wait for a task: the task completed",
    ExitCode.FAILURE: "it did not work; the line on stderr says what to do",
    ExitCode.USAGE: "the command line is wrong, or no farm's address was given",
    ExitCode.TASK_FAILED: "the task failed; `farm logs` has the traceback",
    ExitCode.TASK_CANCELLED: "the task was cancelled",
    ExitCode.TIMED_OUT: "the task was not over within --timeout; it goes on",
    ExitCode.NO_FARM: "the farm cannot be reached, or refuses the token",
    ExitCode.INTERRUPTED: "Ctrl-C; what runs on the farm goes on",
}

_OF_OUTCOME: Final = {
    TaskOutcome.COMPLETED: ExitCode.OK,
    TaskOutcome.FAILED: ExitCode.TASK_FAILED,
    TaskOutcome.CANCELLED: ExitCode.TASK_CANCELLED,
}


def code_of_outcome(outcome: TaskOutcome) -> ExitCode:
    """Return the exit code for how a task ended."""
    return _OF_OUTCOME[outcome]


def code_of_error(error: FarmError) -> ExitCode:
    """Return the exit code for an error that ends the command."""
    if error.code == "interrupted":
        return ExitCode.INTERRUPTED
    if isinstance(error, FarmUnreachable | Unauthorized):
        return ExitCode.NO_FARM
    if isinstance(error, NoFarmAddress | BadFarmAddress | BadProxy | BadUsage | BadFormat):
        return ExitCode.USAGE
    return ExitCode.FAILURE

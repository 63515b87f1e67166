"""What is wrong with a command line, in one line; and what values no option takes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from farm_client.cli.exit_codes import BadUsage, ExitCode
from farm_client.cli.output import Output, OutputKind
from farm_client.streams import discard

COMMAND_LINE_ERROR: Final[type[Exception]] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)
"""What the parser of the command line raises; typer has it from click, and tells no name of it."""
_FLAGS: Final = frozenset({"--json", "--debug"})
_LONGEST_VALUE_CHARS: Final = 100_000


def verb_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the common options that stand before the verb moved behind it."""
    rest, common = list(arguments), []
    while count := _common_at(rest):
        common += rest[:count]
        del rest[:count]
    return rest[:1] + common + rest[1:]


def _common_at(rest: Sequence[str]) -> int:
    """Return how many of the leading arguments are one common option."""
    if rest[:1] == ["--farm"]:
        return 2
    return int(bool(rest) and (rest[0] in _FLAGS or rest[0].startswith("--farm=")))


def tell_wrong_usage(error: Exception, out: Output) -> ExitCode:
    """Print what the parser of the command line refused, and return the exit code."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "farm"
    reason = str(getattr(error, "format_message", lambda: error)()).strip().rstrip(".")
    tell_error(out, BadUsage.code, f"{reason}: `{command} --help` shows what there is", ExitCode.USAGE)
    return ExitCode.USAGE


def tell_error(out: Output, code: str, message: str, exit_code: ExitCode) -> None:
    """Print an error's line, and its envelope with --json."""
    out.complain(message)
    try:
        out.emit(OutputKind.ERROR, {"code": code, "message": message, "exit_code": int(exit_code)})
    except OSError:
        # Nobody reads stdout, or its disk is full: the line on stderr has told all.
        discard(out.results.file)


def check_values(arguments: Mapping[str, Any]) -> None:
    """Refuse what no option takes: text that is not UTF-8, or without an end. Raises: BadUsage."""
    for name, value in arguments.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if problem := _problem(item):
                raise BadUsage(f"{_shown_name(name)} {problem}")


def _problem(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if len(value) > _LONGEST_VALUE_CHARS:
        return f"has {len(value):,} characters, over {_LONGEST_VALUE_CHARS:,}"
    with contextlib.suppress(UnicodeEncodeError):
        value.encode()
        return "has a NUL character" if "\0" in value else None
    return "is not UTF-8: type it in a terminal that is, or rename what it names"


def _shown_name(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"

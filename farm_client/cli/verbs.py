"""How a function becomes a verb of `farm`: common options, option records, and errors as one line.

A verb takes an ``Invocation`` first. A parameter annotated with an option record (a dataclass whose fields are
``Annotated[..., typer.Option(...)]``) stands for all of the record's options, so that verbs share them.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, Final, NoReturn, get_type_hints

import typer

from farm_client.cli.exit_codes import ExitCode, code_of_error
from farm_client.cli.invocation import Invocation, Surroundings
from farm_client.cli.localfarm import DaemonFailed
from farm_client.cli.output import Output
from farm_client.cli.usage import check_values, tell_error
from farm_client.sdk.check import CheckFailed
from farm_client.streams import discard
from protocol.errors import FarmError

FarmOption = Annotated[
    str | None, typer.Option("--farm", metavar="URL", help="The farm's address: http://TOKEN@host:8470.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON envelopes on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_COMMON = (
    Parameter("farm", Parameter.KEYWORD_ONLY, default=None, annotation=FarmOption),
    Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption),
    Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption),
)

Verb = Callable[..., None]
_LEAVING: Final = (typer.Exit, typer.Abort)


def name_of(function: Verb) -> str:
    """Return what the verb is called: as its function, without the underscore that keeps it from being a keyword."""
    return function.__name__.rstrip("_")


def verb(app: typer.Typer, function: Verb, panel: str) -> None:
    """Register a function as a verb of ``app``; its docstring is the help text."""
    app.command(name_of(function), rich_help_panel=panel)(_as_command(function))


def _as_command(function: Verb) -> Verb:
    records = {parameter.name: parameter.annotation for parameter in _parameters(function) if _is_record(parameter)}

    @functools.wraps(function)
    def command(ctx: typer.Context, *, farm: str | None, as_json: bool, debug: bool, **arguments: Any) -> None:
        surroundings = ctx.obj if isinstance(ctx.obj, Surroundings) else Surroundings()
        invocation = Invocation(Output(as_json=as_json), farm, debug, surroundings)
        given = {**arguments, "farm": farm}
        for parameter, record in records.items():
            arguments[parameter] = record(**{field.name: arguments.pop(field.name) for field in fields(record)})

        def run() -> None:
            check_values(given)
            function(invocation, **arguments)

        _run(invocation, run)

    context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shown = [context, *(flat for parameter in _parameters(function) for flat in _flatten(parameter)), *_COMMON]
    # Typer reads the signature and the annotations.
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return command


def _is_record(parameter: Parameter) -> bool:
    return is_dataclass(parameter.annotation)


def _parameters(function: Verb) -> list[Parameter]:
    """Return the verb's own parameters: all but the invocation, which comes first."""
    return list(inspect.signature(function, eval_str=True).parameters.values())[1:]


def _flatten(parameter: Parameter) -> list[Parameter]:
    if not _is_record(parameter):
        return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    record = parameter.annotation
    hints = get_type_hints(record, include_extras=True)
    for name, default in getattr(record, "SHOWN_DEFAULTS", {}).items():
        # Of options that are None where they are not given: what holds then is decided elsewhere.
        hints[name].__metadata__[0].show_default = default
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(record)
    ]


def _run(invocation: Invocation, function: Callable[[], None]) -> None:
    try:
        function()
        # What a pipe's reader or a full disk has to say comes here at the latest.
        sys.stdout.flush()
    except FarmError as error:
        _give_up(invocation, error, error.code, error.message, code_of_error(error))
    except KeyboardInterrupt as error:
        message = "interrupted; what was submitted goes on running on the farm (`farm ls` shows it)"
        _give_up(invocation, error, "interrupted", message, ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (`farm logs | head`): the interpreter must not complain at its exit.
        discard(sys.stdout)
        raise typer.Exit(ExitCode.FAILURE) from None
    except OSError as error:
        _give_up(invocation, error, "os_error", _sentence(error), ExitCode.FAILURE)
    except _LEAVING:
        raise
    except Exception as error:
        message = (
            f"this is a mistake in farm ({type(error).__name__}: {error}); the same command with --debug shows where"
        )
        _give_up(invocation, error, "internal_error", message, ExitCode.FAILURE)


def _sentence(error: OSError) -> str:
    """Return ``No space left on device: FILE`` rather than Python's ``[Errno 28] No space ...``."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{what}: {error.filename}" if error.filename is not None else what


def _give_up(invocation: Invocation, error: BaseException, code: str, message: str, exit_code: ExitCode) -> NoReturn:
    details = _details_of(error, debug=invocation.debug)
    if details:
        invocation.out.chatter.print(details, markup=False, style="dim")
    elif invocation.debug:
        invocation.out.chatter.print_exception()
    tell_error(invocation.out, code, message, exit_code)
    raise typer.Exit(exit_code) from error


def _details_of(error: BaseException, *, debug: bool) -> str:
    """Return the lines that help with this error: a dead process's log, or (``debug``) the researcher's traceback."""
    if isinstance(error, DaemonFailed):
        return error.last_words
    if isinstance(error, CheckFailed) and debug:
        return "\n".join(part for part in (error.output.rstrip(), (error.trace or "").rstrip()) if part)
    return ""

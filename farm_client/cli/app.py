"""The `farm` command, assembled: every verb lives in the module of its topic."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Final

import typer

from farm_client.cli.actions import cancel, pause, priority, resume, retry, rm
from farm_client.cli.artefacts import artefacts
from farm_client.cli.certificate import certificate
from farm_client.cli.clients import clients, explain
from farm_client.cli.continuing import continue_
from farm_client.cli.demo import demo
from farm_client.cli.exit_codes import ExitCode
from farm_client.cli.invocation import Surroundings
from farm_client.cli.leaderboard import leaderboard
from farm_client.cli.login import login
from farm_client.cli.logs import logs
from farm_client.cli.map import map_
from farm_client.cli.metrics import metrics
from farm_client.cli.output import Output
from farm_client.cli.pull import pull
from farm_client.cli.recipes import recipes
from farm_client.cli.results import results
from farm_client.cli.run import run
from farm_client.cli.scaffold import init
from farm_client.cli.submit import submit
from farm_client.cli.sweep import sweep
from farm_client.cli.tasks import checkpoints, ls, show, why
from farm_client.cli.usage import COMMAND_LINE_ERROR, tell_wrong_usage, verb_first
from farm_client.cli.verbs import verb
from farm_client.cli.wait import wait
from farm_client.cli.watch import watch
from farm_client.signals import heeded
from farm_client.streams import flush_streams, prepare_streams
from protocol.versions import SUPPORTED

VERBS: Final = {
    "Begin": (demo, init, login, recipes, run, submit, sweep, map_),
    "Look": (
        ls,
        show,
        why,
        watch,
        wait,
        logs,
        metrics,
        checkpoints,
        artefacts,
        results,
        clients,
        leaderboard,
        certificate,
        explain,
    ),
    "Act": (pull, continue_, pause, resume, cancel, retry, priority, rm),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farm {metadata.version('aifarm')} (protocol {max(SUPPORTED)})")
        raise typer.Exit


def _about(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Train models on machines that volunteers lend.

    The farm's address comes from --farm, FARM_URL or `farm login`; `farm demo` needs none.
    """


def _build_app() -> typer.Typer:
    command = typer.Typer(name="farm", no_args_is_help=True, pretty_exceptions_enable=False)
    command.callback()(_about)
    for panel, functions in VERBS.items():
        for function in functions:
            verb(command, function, panel)
    return command


app: Final = _build_app()


def run_command(arguments: Sequence[str], surroundings: Surroundings) -> int:
    """Run `farm` with these arguments and return its exit code. Wrong usage is told in a line, as every error is."""
    if not arguments:
        run_command(["--help"], surroundings)
        return ExitCode.USAGE
    try:
        left_with = app(verb_first(arguments), prog_name="farm", obj=surroundings, standalone_mode=False)
    except COMMAND_LINE_ERROR as error:
        return tell_wrong_usage(error, Output(as_json="--json" in arguments))
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else ExitCode.FAILURE
    return left_with if isinstance(left_with, int) else ExitCode.OK


def main() -> None:
    """Be the `farm` command. A request to end the process is treated as Ctrl-C, so that children are ended too."""
    prepare_streams()
    for number in heeded(signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    exit_code = run_command(sys.argv[1:], Surroundings())
    if not flush_streams():
        exit_code = exit_code or ExitCode.FAILURE
    sys.exit(exit_code)


if __name__ == "__main__":
    main()

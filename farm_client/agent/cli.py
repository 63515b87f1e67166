"""`farm-client`: lend this machine to a farm.

Exit codes: 0 left politely, 1 could not serve (the reason is the last line on stderr), 2 wrong usage, or a damaged
identity: what only a person can mend.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from farm_client.agent.attaching import asked_farm, show_running
from farm_client.agent.blotting import blot_out
from farm_client.agent.cache_commands import cache_app
from farm_client.agent.certificate import certificate
from farm_client.agent.cli_parts import FAILED, OK, USAGE, HomeOption, JsonOption, print_envelope
from farm_client.agent.connection.farm_choice import SECRET_VARIABLES, choose_farm
from farm_client.agent.daemon import Agent
from farm_client.agent.environment_commands import environments_app
from farm_client.agent.errors import BadAddress, BadSettings, DamagedIdentity, DamagedPolicy
from farm_client.agent.executors.confining import require_runnable
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.machine.probe import Lending, Probe
from farm_client.agent.owner_commands import add_owner_commands
from farm_client.agent.reporting.screens import StatusView, chosen_view
from farm_client.agent.service_commands import service_app
from farm_client.agent.settings import load_settings
from farm_client.agent.updating import check_for_update
from farm_client.event_loop import run
from farm_client.proxies import BadProxy, proxy_for
from farm_client.streams import prepare_streams
from protocol.errors import FarmError
from protocol.sandbox import Rung
from protocol.terminal_text import one_line, plain_text
from protocol.wording import sized

if TYPE_CHECKING:
    from farm_client.sandbox.escape_run import EscapeResult

_NEEDS_A_PERSON: Final = (BadAddress, BadSettings, BadProxy, DamagedIdentity, DamagedPolicy)
"""What no restart mends: a supervisor should leave it."""

app = typer.Typer(name="farm-client", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cache_app, name="cache")
app.add_typer(environments_app, name="environments")
add_owner_commands(app)
app.command()(certificate)
app.add_typer(service_app, name="service")

CoresOption = Annotated[int | None, typer.Option(help="CPU cores to lend.", show_default="all")]
RamOption = Annotated[str | None, typer.Option(help="Memory to lend, like 8GB.", show_default="all")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farm-client {version('aifarm')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Lend this machine to a farm: `farm-client join ADDRESS`.

    Further settings are environment variables: docs/reference/client-settings.md.
    """


@app.command()
def join(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS",
            help="What `farm-server up` printed: ws://TOKEN@HOST:PORT",
            show_default="FARM_JOIN_URL, or the farm of the last join",
        ),
    ] = None,
    *,
    home: HomeOption = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token, for an address without one.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="How people see this machine.", show_default="its host name")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A label that tasks may ask for; repeatable.")] = None,
    team: Annotated[
        str | None, typer.Option(help="A team that its work is credited to as well.", show_default=False)
    ] = None,
    cpu_cores: CoresOption = None,
    max_ram: RamOption = None,
    cache_bytes: Annotated[str | None, typer.Option(help="Largest cache, like 5GiB.", show_default="20GiB")] = None,
    upload_rate: Annotated[
        str | None, typer.Option(help="Most bytes to send in a second, like 2MB.", show_default="no limit")
    ] = None,
    download_rate: Annotated[
        str | None, typer.Option(help="Most bytes to fetch in a second, like 10MB.", show_default="no limit")
    ] = None,
    sandbox: Annotated[
        Rung | None, typer.Option(help="The least sandbox to run tasks in.", show_default="container")
    ] = None,
    allow_unsandboxed: Annotated[
        bool, typer.Option("--allow-unsandboxed", help="Where no sandbox holds, run tasks of those named with --for.")
    ] = False,
    work_for: Annotated[
        list[str] | None, typer.Option("--for", metavar="NAME", help="A submitter to work for; repeatable.")
    ] = None,
    allow_installs: Annotated[
        bool | None,
        typer.Option(
            "--allow-installs/--no-installs", help="Install the packages that tasks name.", show_default="as it was set"
        ),
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option(help="Processes that share out each assignment: a number, or gpus.", show_default="1"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Have these processes hold models in parts: auto, always or never.", show_default="auto"),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Assignments at the same time.", show_default="1")] = None,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="Neither link blobs of this machine's other agents nor lend them any.")
    ] = False,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="Join as a new client: for a home folder that was copied.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON objects on stdout, one a line, as things change.")
    ] = False,
) -> None:
    """Join a farm and work for it until Ctrl-C; a second Ctrl-C stops at once. A terminal shows a live panel.

    Where an agent of this home runs already, that one is shown.
    """
    settings = load_settings(
        home=home,
        token_file=token_file,
        name=name,
        tags=tuple(tag or ()),
        team=team,
        cpu_cores=cpu_cores,
        max_ram=max_ram,
        cache_bytes=cache_bytes,
        upload_rate=upload_rate,
        download_rate=download_rate,
        processes=processes,
        shard=shard,
        slots=slots,
        share=False if no_share else None,
        sandbox=sandbox,
        allow_unsandboxed=allow_unsandboxed or None,
        work_for=tuple(work_for or ()),
        allow_installs=allow_installs,
    )
    require_runnable()
    where = HomeFolder(settings.home.absolute())
    view = chosen_view(as_json=as_json, log_format=settings.log_format, stream=sys.stderr)
    if view is not StatusView.LINES and not new_identity and where.in_use():
        farm = asked_farm(url)
        blot_out((url,) if url else (), SECRET_VARIABLES, os.environ)
        raise typer.Exit(OK if show_running(where, farm, view) else FAILED)
    address = choose_farm(url, settings.token_file, where.farm_file)
    blot_out((url,) if url else (), SECRET_VARIABLES, os.environ)
    proxy_for(address.websocket_url)  # an unusable one is told now, and not after the devices' tests
    run(Agent(address, settings, new_identity=new_identity, view=view).run())


@app.command()
def probe(cpu_cores: CoresOption = None, max_ram: RamOption = None, as_json: JsonOption = False) -> None:
    """Show what this machine would report to a farm."""
    settings = load_settings(cpu_cores=cpu_cores, max_ram=max_ram)
    prober = Probe(Path.home(), Lending(settings.cpu_cores, settings.max_ram))
    resources, load = prober.resources(), prober.load()
    prober.close()
    if as_json:
        print_envelope("probe", {"resources": resources.model_dump(), "load": load.model_dump()})
        return
    typer.echo(f"{resources.hostname}: {resources.platform}, {resources.cpu_cores} cores, {sized(resources.ram_bytes)}")
    typer.echo(f"free now: {sized(load.ram_free_bytes)} of memory, {sized(load.disk_free_bytes)} of disk")
    for gpu in resources.gpus:
        free = f"{sized(gpu.memory_free_bytes)} of {sized(gpu.memory_bytes)} free"
        typer.echo(f"GPU {gpu.index}: {one_line(gpu.name)}, {free}")
    if not resources.gpus:
        typer.echo("no NVIDIA GPU found; others are found when the client joins")


@app.command()
def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Try to get out of each sandbox that this machine has, and say which one tasks would run in; 1 if in none."""
    from farm_client.agent.doctor import examine, in_lines  # noqa: PLC0415 - an agent at rest holds none of it

    found = examine(load_settings(home=home))
    if as_json:
        print_envelope("client_doctor", found)
    else:
        typer.echo(plain_text("\n".join(in_lines(found))))
    raise typer.Exit(FAILED if found["uses"] == Rung.NONE else OK)


@app.command(name="escape-test")
def escape_test(
    home: HomeOption = None,
    rung: Annotated[Rung | None, typer.Option(help="Only this sandbox.", show_default="each that holds")] = None,
    case: Annotated[str | None, typer.Option(help="Only this case.", show_default="all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a case, and a last one.")] = False,
) -> None:
    """Run hostile code in each sandbox that this machine has, and show what it got; 1 if anything, or if none holds."""
    from farm_client.agent.escape_test import as_envelope, run_escape_test  # noqa: PLC0415 - see doctor

    def tell(result: EscapeResult) -> None:
        if as_json:
            print_envelope("escape_case", as_envelope(result))
        else:
            said = {True: "contained", False: "ESCAPED", None: "not run"}[result.contained]
            typer.echo(plain_text(f"{result.rung} {result.case}: {said} ({one_line(result.detail)})"), err=True)

    report = run_escape_test(load_settings(home=home), rung, case, tell)
    if as_json:
        print_envelope("escape_test", report.counts())
    else:
        typer.echo(plain_text("\n".join(report.in_lines())))
    raise typer.Exit(OK if report.is_contained else FAILED)


@app.command()
def update(
    check: Annotated[bool, typer.Option("--check", help="Ask the package index for the newest version.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether there is a newer version; nothing is installed. Exit code 1 if that could not be found out."""
    if not check:
        raise BadSettings("farm-client installs nothing by itself: `farm-client update --check` says what is new")
    found = check_for_update()
    if as_json:
        print_envelope("client_update", asdict(found))
    else:
        typer.echo(plain_text(found.in_words()))
    raise typer.Exit(FAILED if found.newest is None else OK)


def main() -> NoReturn:
    """Run the command line; every error is one line on stderr."""
    prepare_streams()
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except asyncio.CancelledError:
        _fail("stopped at once", FAILED)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, FarmError):
            _fail(error.message, USAGE if isinstance(error, _NEEDS_A_PERSON) else FAILED)
        _fail(f"this is a mistake in farm-client ({error!r}); `farm-client --debug join ...` shows where", FAILED)
    sys.exit(OK)


def _fail(reason: str, exit_code: int) -> NoReturn:
    typer.echo(f"farm-client: {one_line(reason)}", err=True)
    sys.exit(exit_code)

"""`farm-client set | pause | resume | finish | status | logs`: the owner's word to the agent that runs in a home."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from farm_client.agent.cli_parts import FAILED, OK, HomeOption, JsonOption, print_envelope
from farm_client.agent.errors import BadSettings, NoAgent
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.owner.control import ask
from farm_client.agent.owner.desk import as_data
from farm_client.agent.owner.policy import OwnerPolicy, load_policy, save_policy
from farm_client.agent.owner_limit_options import (
    CacheOption,
    CelsiusOption,
    CpuOption,
    DownloadOption,
    DutyOption,
    GpusOption,
    MaxRamOption,
    PowerOption,
    QuotaOption,
    ScratchOption,
    UploadOption,
    VramOption,
    limits_given,
    option_of,
    refuse_unknown_gpus,
    share_of,
)
from farm_client.agent.owner_work_options import (
    ForOption,
    KindOption,
    NotTopicOption,
    TopicOption,
    names_given,
    work_given,
)
from farm_client.agent.reporting.status import Status, read_status
from farm_client.agent.settings import load_settings
from protocol.terminal_text import one_line, plain_text
from protocol.wording import counted

_FOLLOW_SECONDS: Final = 1.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)", re.IGNORECASE)
_UNIT_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_ALL: Final = "all"
"""What takes a restriction away, where an option may be repeated."""


def add_owner_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command("set")(set_policy)
    app.command()(pause)
    app.command()(resume)
    app.command()(finish)
    app.command()(status)
    app.command()(logs)


def set_policy(
    *,
    hours: Annotated[
        str | None,
        typer.Option(metavar="HOURS", help="When to work: `22:00-07:00`, `mon-fri 22:00-07:00, sat-sun all`, `all`."),
    ] = None,
    only_idle: Annotated[
        bool | None, typer.Option("--only-idle/--not-only-idle", help="Work only while nobody uses the machine.")
    ] = None,
    idle_after: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long without input is idle, like 5m.")
    ] = None,
    idle_load: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="What others may use of an idle processor, like 25%.")
    ] = None,
    on_battery: Annotated[
        bool | None, typer.Option("--on-battery/--not-on-battery", help="Work on while it runs on its battery.")
    ] = None,
    pause_while: Annotated[
        list[str] | None,
        typer.Option(metavar="PROGRAM", help="Do nothing while it runs; repeatable, `none` for no program."),
    ] = None,
    work_for: ForOption = None,
    kind: KindOption = None,
    topic: TopicOption = None,
    not_topic: NotTopicOption = None,
    cpu: CpuOption = None,
    duty: DutyOption = None,
    gpus: GpusOption = None,
    vram: VramOption = None,
    gpu_power: PowerOption = None,
    gpu_temperature: CelsiusOption = None,
    max_ram: MaxRamOption = None,
    cache_bytes: CacheOption = None,
    scratch_bytes: ScratchOption = None,
    upload_rate: UploadOption = None,
    download_rate: DownloadOption = None,
    daily_quota: QuotaOption = None,
    allow_installs: Annotated[
        bool | None,
        typer.Option("--allow-installs/--no-installs", help="Install the packages that tasks name, from wheels."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set what this machine may be used for; in force at once if an agent runs, else at its next start.

    What is not named stays as it is. Without any option, show what is set.
    """
    given = {
        "hours": None if hours is None else ("" if hours.strip().lower() == _ALL else hours),
        "only_idle": only_idle,
        "idle_seconds": None if idle_after is None else seconds_of(idle_after, "--idle-after"),
        "idle_load": None if idle_load is None else share_of(idle_load, "--idle-load"),
        "on_battery": on_battery,
        "pause_while": names_given(pause_while, "none"),
        "allow_installs": allow_installs,
    }
    limits = {
        "cpu_share": cpu,
        "duty": duty,
        "gpus": gpus,
        "vram_share": vram,
        "power_watts": gpu_power,
        "target_celsius": gpu_temperature,
        "max_ram_bytes": max_ram,
        "max_cache_bytes": cache_bytes,
        "max_scratch_bytes": scratch_bytes,
        "upload_rate": upload_rate,
        "download_rate": download_rate,
        "daily_quota_bytes": daily_quota,
    }
    changes = {name: value for name, value in given.items() if value is not None} | limits_given(limits)
    changes |= work_given(work_for, kind, topic, not_topic)
    where = HomeFolder(load_settings(home=home).home)
    policy, is_live = _change(where, changes)
    if as_json:
        print_envelope("client_policy", {"home": str(where.root), "running": is_live, "policy": as_data(policy)})
        return
    if changes:
        typer.echo("in force now" if is_live else "in force when an agent starts here", err=True)
    typer.echo(plain_text("\n".join(describe(policy))))


def pause(
    *,
    for_time: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="How long, like 2h or 30m.", show_default="until resume")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do nothing for a while, or until `resume`, and free all memory, the GPU's too; what was begun is kept."""
    seconds = None if for_time is None else seconds_of(for_time, "--for")
    _order(home, {"do": "pause", "seconds": seconds}, "client_policy", as_json)


def resume(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Go on after a pause, the owner's or the client's own after failures. Hours and other limits stay in force."""
    _order(home, {"do": "resume"}, "client_policy", as_json)


def finish(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let the agent end, with exit code 0, when what it works on is done and delivered; it takes nothing more."""
    _order(home, {"do": "finish"}, "client_finish", as_json)


def status(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say what the agent of a home is doing, or why it does nothing; exit code 1 if none runs."""
    where = HomeFolder(load_settings(home=home).home)
    running, known = where.in_use(), _known(where)
    if as_json:
        data = {"running": running, "home": str(where.root), **known.model_dump(mode="json")}
        print_envelope("client_status", data)
    else:
        typer.echo(plain_text("\n".join(_describe(where.root, running, known))))
    raise typer.Exit(OK if running else FAILED)


def logs(
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C, or the agent ends.")] = False,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what the running agent said last."""
    where = HomeFolder(load_settings(home=home).home)
    said = _ask(where, {"do": "logs"})["events"]
    last = said[-1]["number"] if said else 0
    for line in said[-lines:] if lines else ():
        _tell_line(line, as_json)
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        with suppress(NoAgent):
            for line in _ask(where, {"do": "logs", "after": last})["events"]:
                _tell_line(line, as_json)
                last = line["number"]
        follow = where.in_use()


def seconds_of(text: str, option: str) -> float:
    """Read a time such as ``90s``, ``30m``, ``2h`` or ``1d``. Raises: BadSettings naming the option."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not (seconds := float(found[1]) * _UNIT_SECONDS[found[2].lower()]):
        raise BadSettings(f"{option}: write a time as 90s, 30m, 2h or 1d, not {text!r}")
    return seconds


def describe(policy: OwnerPolicy) -> list[str]:
    """Return a policy in lines for a person."""
    idle = (
        f"only without input for {policy.idle_seconds:.0f} s, and others below {policy.idle_load:.0%} of the processor"
    )
    named = {
        "hours": policy.hours or "all",
        "when used": idle if policy.only_idle else "yes",
        "on battery": "yes" if policy.on_battery else "no",
        "not while": ", ".join(policy.pause_while) or "(any program may run)",
        "works for": ", ".join(policy.work_for) or "everybody",
        **policy.wanted.in_words(),
        "installs": "packages that tasks name" if policy.allow_installs else "nothing",
        "paused": _pause_in_words(policy),
        **policy.limits_in_words(),
    }
    return [f"{name + ':':<15}{value}" for name, value in named.items()]


def _pause_in_words(policy: OwnerPolicy) -> str:
    if not policy.paused:
        return "no"
    return "until `farm-client resume`" if policy.paused_until is None else f"until {time.ctime(policy.paused_until)}"


def _change(where: HomeFolder, changes: Mapping[str, Any]) -> tuple[OwnerPolicy, bool]:
    """Change the policy, through the agent if one runs; return it, and whether one does.

    Raises: BadSettings, DamagedPolicy, NoControlSocket, ControlRefused, OSError.
    """
    _check(changes)
    if where.in_use():
        return _change_live(where, changes), True
    policy = load_policy(where.policy_file).changed(changes)
    if changes:
        where.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_policy(where.policy_file, policy)
        if where.in_use():  # one has started meanwhile, perhaps before the file was written
            return _change_live(where, changes), True
    return policy, False


def _check(changes: Mapping[str, Any]) -> None:
    """See that each is possible. Raises: BadSettings by the option's name, where an agent only knows the field's."""
    try:
        OwnerPolicy().changed(changes)
    except BadSettings as error:
        field, _, why = error.message.partition(": ")
        raise BadSettings(f"{option_of(field.partition('.')[0])}: {why}") from None
    if changes.get("gpus"):
        refuse_unknown_gpus(changes["gpus"])


def _change_live(where: HomeFolder, changes: Mapping[str, Any]) -> OwnerPolicy:
    request = {"do": "set", "changes": dict(changes)} if changes else {"do": "policy"}
    return OwnerPolicy.model_validate(ask(where.control_socket, request))


def _order(home: Path | None, request: Mapping[str, Any], kind: str, as_json: bool) -> None:
    where = HomeFolder(load_settings(home=home).home)
    answer = _ask(where, request)
    known = _known(where)
    if as_json:
        key = "policy" if kind == "client_policy" else "finish"
        print_envelope(kind, {"home": str(where.root), "running": True, key: answer})
    else:
        typer.echo(plain_text("\n".join(_describe(where.root, True, known))))


def _ask(where: HomeFolder, request: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: NoAgent if none runs, or it does not answer; ControlRefused."""
    if not where.in_use():
        raise NoAgent(f"no agent runs in {where.root}; start one with `farm-client join ADDRESS`, or name its --home")
    return ask(where.control_socket, request)


def _known(where: HomeFolder) -> Status:
    """Return what the agent says now, else what it last wrote."""
    with suppress(NoAgent):
        return Status.model_validate(_ask(where, {"do": "status"}))
    return read_status(where.status_file)


def _describe(home: Path, running: bool, known: Status) -> list[str]:
    if not running:
        return [f"no agent runs in {home}; start one with `farm-client join ADDRESS`"]
    doing = f"{known.name} at {known.farm}: {known.doing}; {counted(known.delivered, 'result')} delivered"
    return [
        doing,
        *(f"not working ({rest.reason}): {rest.in_words()}" for rest in known.rests),
        *([f"sandbox: {known.sandbox}"] if known.sandbox else []),
        *([f"limits: {', '.join(f'{name} {words}' for name, words in known.limits.items())}"] if known.limits else []),
        *([f"credit: {known.credit.in_words()}"] if known.credit else []),
        known.cache.in_words(),
        known.environments.in_words(),
        known.moved.in_words(),
    ]


def _tell_line(line: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_envelope("client_event", dict(line))
    else:
        typer.echo(one_line(str(line["text"])))

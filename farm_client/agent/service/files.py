"""The files by which each system starts the agent at its owner's login. Pure: text from a plan.

systemd: systemd.service(5), systemd.exec(5). macOS: launchd.plist(5). Windows: the Task Scheduler's schema 1.4. What
writes XML is imported where it is used: the agent, which shares this command line, needs none of it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.agent.errors import BadSettings

DESCRIPTION: Final = "AI Farm volunteer agent"
LABEL: Final = "aifarm.client"
"""What launchd calls it."""
STOP_SECONDS: Final = 40
"""After this long the system ends an agent that was told to leave; it finishes its work in half of that."""
_RETRY_SECONDS: Final = 10
_TASKS_SCHEMA: Final = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_LOWEST_PRIORITY: Final = 9
"""Of the Task Scheduler's 0 to 10 the last that is not only for when nothing else runs."""
_ATTRIBUTES: Final[Mapping[str, dict[str, str]]] = {"Principal": {"id": "Author"}, "Actions": {"Context": "Author"}}
"""Who runs the actions, in the schema's words."""

_Parts = Mapping[str, "str | _Parts"]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What is to be started: a program with its arguments, and the agent's home."""

    command: tuple[str, ...]
    home: Path


def systemd_unit(plan: ServicePlan) -> str:
    """Return a user unit. Raises: BadSettings if an argument cannot stand in one."""
    return f"""\
# Written by `farm-client service install`. The farm and its token are in the home, not here.
[Unit]
Description={DESCRIPTION}

[Service]
Type=exec
ExecStart={" ".join(map(_systemd_quoted, plan.command))}
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={STOP_SECONDS}
Restart=on-failure
RestartSec={_RETRY_SECONDS}
# A wrong address or a damaged identity: only a person can mend that.
RestartPreventExitStatus=2

# The machine stays usable for its owner.
Nice=19
IOSchedulingClass=idle
CPUWeight=idle
OOMScoreAdjust=500
UMask=0077

[Install]
WantedBy=default.target
"""


def launchd_plist(plan: ServicePlan) -> bytes:
    """Return a launch agent's property list. launchd starts it again whatever its exit code, but after a pause."""
    import plistlib  # noqa: PLC0415 - see above

    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(plan.command),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 6 * _RETRY_SECONDS,
            "ExitTimeOut": STOP_SECONDS,
            "ProcessType": "Background",
            "Nice": 19,
            "LowPriorityIO": True,
            "Umask": 0o077,
            "StandardErrorPath": str(plan.home / "agent.log"),
        }
    )


def scheduled_task(plan: ServicePlan, user: str) -> bytes:
    r"""Return a task of the Task Scheduler, in UTF-16 as it wants. ``user`` is ``DOMAIN\NAME``."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 - see above

    program, *arguments = plan.command
    settings: _Parts = {
        "MultipleInstancesPolicy": "IgnoreNew",
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "StartWhenAvailable": "true",
        "ExecutionTimeLimit": "PT0S",
        "Priority": str(_LOWEST_PRIORITY),
        "RestartOnFailure": {"Interval": "PT1M", "Count": "999"},
    }
    action = {
        "Command": program,
        "Arguments": subprocess.list2cmdline(arguments),
        "WorkingDirectory": str(plan.home),
    }
    who = {"UserId": user, "LogonType": "InteractiveToken", "RunLevel": "LeastPrivilege"}
    parts: _Parts = {
        "RegistrationInfo": {"Description": DESCRIPTION},
        "Triggers": {"LogonTrigger": {"Enabled": "true", "UserId": user}},
        "Principals": {"Principal": who},
        "Settings": settings,
        "Actions": {"Exec": action},
    }

    def fill(element: ET.Element, values: _Parts) -> None:
        for name, value in values.items():
            part = ET.SubElement(element, name, _ATTRIBUTES.get(name, {}))
            if isinstance(value, str):
                part.text = value
            else:
                fill(part, value)

    root = ET.Element("Task", version="1.4", xmlns=_TASKS_SCHEMA)
    fill(root, parts)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-16", xml_declaration=True))


def _systemd_quoted(argument: str) -> str:
    """Return an argument as it stands on an ExecStart line, where ``%`` and ``$`` stand for something else."""
    if not argument.isprintable():
        raise BadSettings(f"{argument!r} cannot stand in a systemd unit: it has a character that does not print")
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'

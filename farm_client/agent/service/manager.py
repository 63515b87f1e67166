"""Hands the service's file to the system, takes it away again, and says how it stands."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.agent.errors import ServiceFailed
from farm_client.agent.service.files import LABEL, ServicePlan, launchd_plist, scheduled_task, systemd_unit

UNIT: Final = "aifarm-client.service"
_TASK: Final = "AI Farm client"
_COMMAND_SECONDS: Final = 60

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the system. Raises: ServiceFailed if it is not there, or takes too long."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceFailed(f"`{' '.join(command)}` could not be run ({error})") from error


@dataclass(frozen=True, slots=True)
class Service:
    """How one system keeps a service of its user: its file, and the commands around it.

    ``advice`` says what else its owner may want. ``asks`` exits with 0 if the service is there.
    """

    system: str
    path: Path
    render: Callable[[ServicePlan], bytes]
    installs: tuple[tuple[str, ...], ...]
    removes: tuple[tuple[str, ...], ...]
    asks: tuple[str, ...]
    advice: str

    @property
    def is_installed(self) -> bool:
        """Whether its file is there."""
        return self.path.exists()

    def check(self) -> None:
        """Raises: ServiceFailed if this machine lacks the program that keeps services."""
        program = self.installs[0][0]
        if shutil.which(program) is None:
            raise ServiceFailed(
                f"this machine keeps no services by {self.system}: there is no {program}; "
                "run `farm-client join` from what starts programs here (--dry-run shows what would be started)"
            )

    def install(self, plan: ServicePlan, run: Run = run_command) -> None:
        """Write the file and start the service.

        Raises: ServiceFailed with what the system said; no file is left then.
        """
        self.check()
        content = self.render(plan)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(content)
        except OSError as error:
            raise ServiceFailed(f"cannot write {self.path} ({error.strerror})") from error
        try:
            for command in self.installs:
                _insist(run, command)
        except ServiceFailed:
            self.path.unlink(missing_ok=True)
            raise

    def uninstall(self, run: Run = run_command) -> bool:
        """Stop the service and delete its file; return whether it was there. Raises: ServiceFailed."""
        if not self.is_installed:
            return False
        self.check()
        for command in self.removes[:-1]:
            run(command)  # one that was stopped by hand need not be stopped
        self.path.unlink(missing_ok=True)
        _insist(run, self.removes[-1])
        return True

    def is_running(self, run: Run = run_command) -> bool:
        """Whether the system says that it runs; no where it cannot be asked."""
        try:
            return self.is_installed and run(self.asks).returncode == 0
        except ServiceFailed:
            return False


def _insist(run: Run, command: Sequence[str]) -> None:
    done = run(command)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise ServiceFailed(f"`{' '.join(command)}` failed: {said}")


def service_of(platform: str = sys.platform, environ: Mapping[str, str] = os.environ) -> Service:
    """Return how this system keeps services: the Task Scheduler, launchd, or systemd where it is none of the two."""
    home = Path.home()
    if platform == "win32":
        return _windows(home, environ)
    if platform == "darwin":
        return _macos(home)
    return _systemd(Path(environ.get("XDG_CONFIG_HOME") or home / ".config"))


def _systemd(configuration: Path) -> Service:
    control = ("systemctl", "--user")
    return Service(
        system="systemd",
        path=configuration / "systemd" / "user" / UNIT,
        render=lambda plan: systemd_unit(plan).encode(),
        installs=((*control, "daemon-reload"), (*control, "enable", UNIT), (*control, "restart", UNIT)),
        removes=((*control, "disable", "--now", UNIT), (*control, "daemon-reload")),
        asks=(*control, "is-active", "--quiet", UNIT),
        advice=(
            "It starts when you log in, and ends with your last session. To have it from boot on, and while nobody is "
            f"logged in, let your services linger: loginctl enable-linger {getpass.getuser()}. "
            f"Its log: journalctl --user -u {UNIT}"
        ),
    )


def _macos(home: Path) -> Service:
    path = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    domain = f"gui/{os.getuid()}" if hasattr(os, "getuid") else "gui/0"
    return Service(
        system="launchd",
        path=path,
        render=launchd_plist,
        installs=(("launchctl", "bootstrap", domain, str(path)),),
        removes=(("launchctl", "bootout", f"{domain}/{LABEL}"), ("launchctl", "list")),
        asks=("launchctl", "print", f"{domain}/{LABEL}"),
        advice="It starts when you log in. Its log is agent.log in the agent's home",
    )


def _windows(home: Path, environ: Mapping[str, str]) -> Service:
    base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    path = base / "aifarm" / "service.xml"
    user = f"{environ.get('USERDOMAIN', '.')}\\{environ.get('USERNAME') or getpass.getuser()}"
    return Service(
        system="the Task Scheduler",
        path=path,
        render=lambda plan: scheduled_task(plan, user),
        installs=(
            ("schtasks", "/Create", "/F", "/TN", _TASK, "/XML", str(path)),
            ("schtasks", "/Run", "/TN", _TASK),
        ),
        removes=(("schtasks", "/End", "/TN", _TASK), ("schtasks", "/Delete", "/F", "/TN", _TASK)),
        asks=("schtasks", "/Query", "/TN", _TASK),
        advice="It starts when you log in",
    )

"""How a service comes and goes, on each system: the file and the commands, with what the system says in the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from farm_client.agent.errors import ServiceFailed
from farm_client.agent.service import manager
from farm_client.agent.service.files import ServicePlan
from farm_client.agent.service.manager import Service, run_command, service_of

PLAN = ServicePlan(("/bin/farm-client", "join"), Path("/home/u/aifarm"))


class System:
    """Stands for the system's own programs: it notes what they are told, and fails where it is to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = ""

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.told.append(" ".join(command))
        fails = bool(self.fails) and self.fails in self.told[-1]
        return subprocess.CompletedProcess(command, int(fails), "", "no bus\n" if fails else "")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    monkeypatch.setattr(manager.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(manager.Path, "home", lambda: tmp_path)
    return System()


def service(platform: str, tmp_path: Path) -> Service:
    environ = {"LOCALAPPDATA": str(tmp_path / "local"), "USERDOMAIN": "PC", "USERNAME": "bob"}
    return service_of(platform, environ)


@pytest.mark.parametrize(
    ("platform", "where", "installs", "removes"),
    [
        (
            "linux",
            ".config/systemd/user/aifarm-client.service",
            ["systemctl --user daemon-reload", "systemctl --user enable *", "systemctl --user restart *"],
            ["systemctl --user disable --now *", "systemctl --user daemon-reload"],
        ),
        ("darwin", "Library/LaunchAgents/aifarm.client.plist", ["launchctl bootstrap *"], ["launchctl bootout *", "*"]),
        (
            "win32",
            "local/aifarm/service.xml",
            ["schtasks /Create /F /TN AI Farm client /XML *", "schtasks /Run *"],
            ["schtasks /End *", "schtasks /Delete /F *"],
        ),
    ],
)
def test_it_comes_and_goes(
    system: System, tmp_path: Path, platform: str, where: str, installs: list[str], removes: list[str]
) -> None:
    one = service(platform, tmp_path)
    assert one.path == tmp_path / where
    assert not one.is_installed
    assert not one.uninstall(system)
    one.install(PLAN, system)
    assert one.is_installed
    assert one.is_running(system)
    assert all(told.startswith(said.rstrip("*")) for told, said in zip(system.told, installs, strict=False))
    system.told.clear()
    assert one.uninstall(system)
    assert not one.is_installed
    assert len(system.told) == len(removes)
    assert all(told.startswith(said.rstrip("*")) for told, said in zip(system.told, removes, strict=True))
    assert not one.is_running(system)


def test_the_unit_s_folder_is_the_owner_s_choice(system: System, tmp_path: Path) -> None:
    assert service_of("linux", {"XDG_CONFIG_HOME": "/conf"}).path.parts[:2] == ("/", "conf")


@pytest.mark.parametrize("step", ["daemon-reload", "enable", "restart"])
def test_what_the_system_refuses_is_told_and_leaves_no_file(system: System, tmp_path: Path, step: str) -> None:
    system.fails = step
    one = service("linux", tmp_path)
    with pytest.raises(ServiceFailed, match=f"{step}.*` failed: no bus"):
        one.install(PLAN, system)
    assert not one.is_installed


def test_one_that_was_stopped_by_hand_can_be_removed(system: System, tmp_path: Path) -> None:
    one = service("linux", tmp_path)
    one.install(PLAN, system)
    system.fails = "disable"
    assert one.uninstall(system)
    assert not one.is_installed


def test_a_folder_that_cannot_be_written_is_told(system: System, tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("")
    with pytest.raises(ServiceFailed, match="cannot write"):
        service("linux", tmp_path).install(PLAN, system)


def test_without_the_system_s_program_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager.shutil, "which", lambda _program: None)
    with pytest.raises(ServiceFailed, match="there is no schtasks"):
        service("win32", tmp_path).install(PLAN)
    assert not (tmp_path / "local").exists()


class TestRunCommand:
    """The system's own programs."""

    def test_what_it_says_comes_back(self) -> None:
        done = run_command((sys.executable, "-c", "import sys; print('out'); sys.exit('err')"))
        assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")

    def test_one_that_is_not_there_is_told(self) -> None:
        with pytest.raises(ServiceFailed, match="could not be run"):
            run_command(("/nonexistent/systemctl",))

    def test_a_service_that_cannot_be_asked_does_not_run(self, system: System, tmp_path: Path) -> None:
        one = service("linux", tmp_path)
        one.install(PLAN, system)

        def gone(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
            raise ServiceFailed("gone")

        assert not one.is_running(gone)

"""The file that each system gets: of the right form, with the right program, and without a secret."""

from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.errors import BadSettings
from farm_client.agent.service.files import ServicePlan, launchd_plist, scheduled_task, systemd_unit

ODD = ServicePlan(
    (sys.executable, "-m", "farm_client", "join", "--name", 'my "lab" 100% $HOME \\ é <&>'), Path("/o d d")
)
SPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def exec_start(unit: str) -> list[str]:
    """Read the command of a unit as systemd does: quotes and backslashes of a shell, then %% and $$."""
    (line,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert not set("%$") & set(line.replace("%%", "").replace("$$", ""))  # alone they stand for something else
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.removeprefix("ExecStart="))]


class TestSystemd:
    """A user unit."""

    def test_it_is_nice_and_starts_at_login(self) -> None:
        lines = systemd_unit(ODD).splitlines()
        assert {"Nice=19", "IOSchedulingClass=idle", "WantedBy=default.target", "UMask=0077"} <= set(lines)
        assert {"Restart=on-failure", "RestartPreventExitStatus=2", "KillMode=mixed"} <= set(lines)

    @given(st.lists(st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")) | st.just(" ")), min_size=1))
    def test_every_argument_arrives_as_it_is(self, command: list[str]) -> None:
        assert exec_start(systemd_unit(ServicePlan(tuple(command), Path("/")))) == command

    @pytest.mark.parametrize("argument", ["a\nExecStartPre=/bin/evil", "a\0b", "\x1b[2J"])
    def test_what_would_end_the_line_is_refused(self, argument: str) -> None:
        with pytest.raises(BadSettings, match="does not print"):
            systemd_unit(ServicePlan(("/bin/true", argument), Path("/")))

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
    def test_systemd_itself_finds_nothing_wrong(self, tmp_path: Path) -> None:
        unit = tmp_path / "aifarm-client.service"
        unit.write_text(systemd_unit(ODD))
        command = ["systemd-analyze", "verify", "--user", "--recursive-errors=no", str(unit)]
        environ = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
        assert (done.returncode, done.stderr) == (0, "")
        unit.write_text(systemd_unit(ODD).replace("Nice=19", "Nice=much"))
        assert (
            "nice priority" in subprocess.run(command, capture_output=True, text=True, check=False, env=environ).stderr
        )


class TestLaunchd:
    """A launch agent."""

    def test_it_is_a_property_list_with_the_command_and_the_lowest_priority(self) -> None:
        read = plistlib.loads(launchd_plist(ODD))
        assert read["ProgramArguments"] == list(ODD.command)
        assert (read["Label"], read["RunAtLoad"], read["Nice"], read["LowPriorityIO"]) == (
            "aifarm.client",
            True,
            19,
            True,
        )
        assert read["KeepAlive"] == {"SuccessfulExit": False}  # Ctrl-C's kind of end is no failure
        assert (read["ProcessType"], read["StandardErrorPath"]) == ("Background", "/o d d/agent.log")


class TestTaskScheduler:
    """A task of Windows."""

    def read(self, path: str) -> str | None:
        steps = "/".join(SPACE + step for step in path.split("/"))
        return ET.fromstring(scheduled_task(ODD, r"PC\bob")).findtext(steps)

    def test_its_elements_are_those_of_the_schema(self) -> None:
        root = ET.fromstring(scheduled_task(ODD, r"PC\bob"))
        assert (root.tag, root.get("version")) == (f"{SPACE}Task", "1.4")
        names = [part.tag.removeprefix(SPACE) for part in root]
        assert names == ["RegistrationInfo", "Triggers", "Principals", "Settings", "Actions"]
        principal, actions = root.find(f"{SPACE}Principals/{SPACE}Principal"), root.find(f"{SPACE}Actions")
        assert principal is not None
        assert actions is not None
        assert principal.get("id") == actions.get("Context") == "Author"

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("Triggers/LogonTrigger/UserId", r"PC\bob"),
            ("Triggers/LogonTrigger/Enabled", "true"),
            ("Principals/Principal/UserId", r"PC\bob"),
            ("Principals/Principal/LogonType", "InteractiveToken"),
            ("Principals/Principal/RunLevel", "LeastPrivilege"),
            ("Settings/MultipleInstancesPolicy", "IgnoreNew"),
            ("Settings/ExecutionTimeLimit", "PT0S"),
            ("Settings/Priority", "9"),
            ("Settings/RestartOnFailure/Interval", "PT1M"),
            ("Actions/Exec/Command", sys.executable),
            ("Actions/Exec/Arguments", subprocess.list2cmdline(ODD.command[1:])),
            ("Actions/Exec/WorkingDirectory", "/o d d"),
        ],
    )
    def test_it_starts_the_agent_at_login_without_rights_or_a_limit(self, path: str, text: str) -> None:
        assert self.read(path) == text

    def test_it_is_utf_16_with_a_mark_as_the_scheduler_reads(self) -> None:
        content = scheduled_task(ODD, r"PC\bob")
        assert content[:2] in (b"\xff\xfe", b"\xfe\xff")
        assert "<&>" not in content.decode("utf-16")

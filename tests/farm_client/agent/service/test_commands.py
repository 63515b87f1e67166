"""`farm-client service` as its owner types it, with a stand-in for the system's program."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from farm_client.agent.home.folder import HomeFolder

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$TOLD"
[ "$2" = is-active ] && exit ${ACTIVE:-0}
exit 0
"""


class Owner:
    """Runs `farm-client` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told, self.unit = folder / "told", folder / "conf" / "systemd" / "user" / "aifarm-client.service"
        programs = folder / "bin"
        programs.mkdir()
        (programs / "systemctl").write_text(SYSTEMCTL)
        (programs / "systemctl").chmod(0o755)
        self.environ = os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "TOLD": str(self.told), "HOME": str(folder)}
        self.environ |= {"XDG_CONFIG_HOME": str(folder / "conf"), "FARM_CLIENT_HOME": str(folder / "home")}
        self.environ.pop("FARM_JOIN_URL", None)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "farm_client", "service", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environ | environ, timeout=60, check=False
        )


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


def test_it_is_installed_shown_and_removed_and_its_unit_has_no_secret(owner: Owner) -> None:
    done = owner.run("install", "ws://s3cret@farm.example.org:8470", "--", "--cpu-cores", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "farm.example.org" in done.stdout
    assert "loginctl enable-linger" in done.stdout
    unit = owner.unit.read_text()
    assert f'"join" "--home" "{owner.folder / "home"}" "--cpu-cores" "2"' in unit
    assert "s3cret" not in unit + done.stdout + owner.told.read_text()
    (kept,) = [path for path in (owner.folder / "home").iterdir() if "s3cret" in path.read_text()]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    found = json.loads(owner.run("status", "--json").stdout)
    assert (found["kind"], found["data"]["installed"], found["data"]["running"]) == ("client_service", True, True)
    assert owner.run("status").stdout.startswith("the service runs (systemd, ")
    stopped = owner.run("status", ACTIVE="3")
    assert (stopped.returncode, stopped.stdout.split(" (")[0]) == (1, "the service does not run")
    assert owner.run("uninstall").stdout.startswith("the service is removed")
    assert not owner.unit.exists()
    assert kept.exists()
    assert owner.run("uninstall").stdout == "there is no service\n"
    assert "there is no service" in owner.run("status").stdout


def test_a_later_install_needs_no_address(owner: Owner) -> None:
    assert owner.run("install", "ws://s3cret@farm.example.org:8470").returncode == 0
    assert owner.run("install", "--", "--slots", "2").returncode == 0
    assert '"--slots" "2"' in owner.unit.read_text()


def test_a_dry_run_prints_the_file_and_changes_nothing(owner: Owner) -> None:
    done = owner.run("install", "ws://s3cret@farm.example.org:8470", "--dry-run")
    assert done.returncode == 0
    assert "ExecStart=" in done.stdout
    assert str(owner.unit) in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert not owner.unit.exists()
    assert not owner.told.exists()
    assert not (owner.folder / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no farm to join"),
        (("ws://t@h:1", "--", "--cpu-corse", "2"), "--cpu-corse"),
        (("ws://t@h:1", "--", "ws://t@h:2"), "the address is no option"),
        (("ws://t@h:1", "--", "--home", "/elsewhere"), "--home is no option"),
        (("ws://t@h:1", "--", "--json"), "--json is no option"),
        (("ws://t@h:1", "--", "--new-identity"), "--new-identity is no option"),
    ],
)
def test_what_join_would_refuse_is_refused_before_it_is_a_service(
    owner: Owner, arguments: tuple[str, ...], words: str
) -> None:
    done = owner.run("install", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not owner.unit.exists()


def test_beside_an_agent_that_is_no_service_none_is_installed(owner: Owner) -> None:
    with HomeFolder(owner.folder / "home").held():
        done = owner.run("install", "ws://t@h:1")
        assert (done.returncode, owner.unit.exists()) == (1, False)
        assert "stop it first" in done.stderr
        assert "an agent runs in" in owner.run("status").stdout

"""macOS and Windows, imitated: the program imports, looks and explains there, and where it cannot serve it says so.

`on_system.py` takes away what those systems lack. The real ones are not asked: what they answer is not tested.
"""

from __future__ import annotations

import json
import os
import plistlib
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

SYSTEMS = pytest.mark.parametrize("system", ["darwin", "win32"])
FARM = "ws://s3cret@127.0.0.1:1"


@pytest.fixture
def run(tmp_path: Path):
    def on(system: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tests.farm_client.agent.on_system", system, *arguments]
        environ = os.environ | {"FARM_CLIENT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
        environ |= {"LOCALAPPDATA": str(tmp_path), "USERDOMAIN": "PC", "USERNAME": "bob"} | more
        return subprocess.run(command, capture_output=True, env=environ, timeout=100, check=False)

    return on


@SYSTEMS
def test_it_is_imported_and_tells_its_version(run, system):
    done = run(system, "--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"farm-client 0.")


@SYSTEMS
def test_doctor_looks_at_the_machine_and_says_that_there_is_no_sandbox(run, system):
    done = run(system, "doctor", "--json")
    found = json.loads(done.stdout)["data"]
    assert (done.returncode, found["uses"], found["rungs"]) == (1, "none", [])
    assert found["resources"]["ram_bytes"] > 0
    lines = run(system, "doctor").stdout.decode().splitlines()
    assert f"sandbox: none is known for {system}; Linux has them" in lines
    assert any(line.startswith("tasks would not be taken: no sandbox holds") for line in lines)


def test_a_dry_run_of_the_service_is_that_system_s_file(run, tmp_path):
    mac = run("darwin", "service", "install", FARM, "--dry-run", "--", "--slots", "2")
    assert plistlib.loads(mac.stdout.strip())["ProgramArguments"][-2:] == ["--slots", "2"]
    assert f"{tmp_path}/Library/LaunchAgents/aifarm.client.plist".encode() in mac.stderr
    windows = run("win32", "service", "install", FARM, "--dry-run", "--", "--slots", "2")
    task = ET.fromstring(
        windows.stdout.decode().strip().replace('encoding="utf-16"', "").replace("encoding='utf-16'", "")
    )
    arguments = [part.text for part in task.iter() if part.tag.endswith("Arguments")]
    assert arguments[0].endswith("--slots 2")
    assert b"s3cret" not in mac.stdout + windows.stdout
    assert not (tmp_path / "home").exists()


@SYSTEMS
def test_a_service_is_refused_where_the_system_s_program_is_not(run, system):
    done = run(system, "service", "install", FARM)
    assert done.returncode == 1
    assert done.stderr.startswith(b"farm-client: this machine keeps no services by ")


@SYSTEMS
def test_what_asks_no_agent_works(run, system, tmp_path):
    assert run(system, "probe", "--json").returncode == 0
    assert run(system, "cache", "show").returncode == 0
    assert run(system, "set", "--hours", "22:00-07:00").returncode == 0
    assert "22:00" in (tmp_path / "home" / "policy.json").read_text()
    status = run(system, "status")
    assert (status.returncode, status.stdout[:17]) == (1, b"no agent runs in ")
    assert run(system, "service", "status").returncode == 1


def test_windows_says_at_once_that_tasks_need_linux(run):
    done = run("win32", "join", FARM)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "tasks do not run on Windows itself" in line
    assert "WSL 2" in line


def test_a_mac_runs_tasks_without_a_sandbox_by_consent_alone(run):
    refused = run("darwin", "join", FARM)
    assert refused.returncode == 1
    last = refused.stderr.decode().splitlines()[-1]
    assert "there is no sandbox for strangers' code on darwin yet" in last
    assert "--allow-unsandboxed --for NAME" in last
    assert "bubblewrap" not in last


def test_a_mac_s_agent_starts_executors_and_looks_for_its_farm_once_its_owner_consents(
    run, closed_port, passed_self_test
):
    variables = {"FARM_CLIENT_GIVE_UP_SECONDS": "0.01", "FARM_CLIENT_SELF_TEST_FILE": str(passed_self_test)}
    farm = f"ws://s3cret@127.0.0.1:{closed_port}"
    done = run("darwin", "join", farm, "--allow-unsandboxed", "--for", "alice", **variables)
    told = done.stderr.decode()
    assert (done.returncode, "NO SANDBOX" in told) == (1, True)
    assert "cannot be reached" in told.splitlines()[-1]
    assert "mistake" not in told

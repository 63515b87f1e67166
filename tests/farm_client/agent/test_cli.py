"""The command itself, as a volunteer meets it."""

import json
import os
import subprocess
import sys

import pytest

from farm_client.agent.doctor import environments_line, in_lines


def run(*arguments, **environment):
    command = [sys.executable, "-m", "farm_client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None, timeout=60, check=False)


def test_the_agent_never_imports_torch():
    code = "import sys, farm_client.agent.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("join", "farm.example.org"), "farm-server up"),
        (("join", "ws://host:1", "--slots", "0"), "--slots"),
        (("join", "ws://host:1", "--upload-rate", "0"), "--upload-rate"),
        (("join", "ws://host:1", "--download-rate", "fast"), "--download-rate"),
        (("join", "--home", "/nonexistent"), "FARM_JOIN_URL"),
        (("join", "ws://host:1", "--token-file", "/nonexistent"), "--token-file"),
        (("jion",), "jion"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("join", "ws://127.0.0.1:1", "--home", str(tmp_path / "file"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "--home" in done.stderr


def test_a_damaged_identity_is_one_line_and_left_to_a_person(tmp_path):
    (tmp_path / "identity.json").write_text("")
    done = run("join", "ws://127.0.0.1:1", "--home", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "delete it" in done.stderr


def test_status_without_an_agent_is_exit_code_1(tmp_path):
    done = run("status", "--home", str(tmp_path), "--json")
    envelope = json.loads(done.stdout)
    assert done.returncode == 1
    assert (envelope["schema"], envelope["kind"], envelope["data"]["running"]) == (1, "client_status", False)


def test_probe_tells_the_machine_in_one_envelope():
    envelope = json.loads(run("probe", "--json", "--cpu-cores", "1").stdout)
    assert envelope["kind"] == "probe"
    assert envelope["data"]["resources"]["cpu_cores"] == 1


def test_doctor_tries_every_rung_and_says_which_is_used(tmp_path):
    done = run("doctor", "--home", str(tmp_path / "home"), "--json")
    envelope = json.loads(done.stdout)
    found = envelope["data"]
    assert (done.returncode, envelope["kind"], found["uses"]) == (0, "client_doctor", "strict")
    tried = {rung["rung"]: rung for rung in found["rungs"]}
    container = tried.pop("container", None)  # where there is Podman
    assert set(tried) == {"strict", "landlock"}
    assert all(rung["holds"] and rung["seconds"] > 0 for rung in tried.values())
    if container is not None and os.geteuid() == 0:
        assert (container["holds"], "this agent is root's" in container["problem"]) == (False, True)
    assert not list((tmp_path / "home").iterdir())


def test_doctor_s_lines_are_for_people():
    lines = in_lines(
        {
            "rungs": [
                {"rung": "strict", "by": "/usr/bin/bwrap", "holds": False, "problem": "no uid map", "breaches": []},
                {
                    "rung": "landlock",
                    "by": "",
                    "holds": False,
                    "problem": "",
                    "breaches": [{"protection": "files", "what": "read /secret"}],
                },
            ],
            "uses": "none",
            "least": "landlock",
            "environments": {"built": 0, "size_bytes": 0, "max_bytes": 2**30, "installs": False, "uv": None},
            "resources": {"hostname": "pc", "platform": "Linux", "cpu_cores": 4, "ram_bytes": 2**30, "gpus": []},
            "load": {"disk_free_bytes": 2**30},
            "control_groups": ("memory", "pids"),
        }
    )
    assert lines == [
        "pc: Linux, 4 cores, 1.0 GiB of memory, 1.0 GiB of disk free",
        "no NVIDIA GPU found; others are found when the client joins",
        "sandbox strict (/usr/bin/bwrap): not available: no uid map",
        "sandbox landlock: REFUSED: files: could read /secret",
        "control groups: memory, pids",
        "tasks would not be taken: no sandbox holds that is landlock or better",
        "packages of tasks: 0 environments; installs are not allowed (farm-client set --allow-installs)",
    ]


@pytest.mark.parametrize(
    ("uv", "line"),
    [
        ("/usr/bin/uv", "packages of tasks: 2 environments, 1.0 KiB; installs are allowed, by /usr/bin/uv"),
        (
            None,
            "packages of tasks: 2 environments, 1.0 KiB; installs are allowed, but uv is not installed: pip install ",
        ),
    ],
)
def test_doctor_says_with_what_packages_are_installed(uv, line):
    found = {"built": 2, "size_bytes": 1024, "max_bytes": 2**30, "installs": True, "uv": uv, "download_rate": None}
    assert environments_line(found).startswith(line)
    assert "--download-rate" not in environments_line(found)
    assert ("does not hold" in environments_line({**found, "download_rate": 1000})) is (uv is not None)


def test_version():
    assert run("--version").stdout.startswith("farm-client 0.")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named_in_a_line(tmp_path, name):
    environment = {other: value for other, value in os.environ.items() if not other.lower().endswith("_proxy")}
    environment[name] = "gopher://user:secret@proxy:70"
    done = run("join", "ws://t@farm.example:1", "--home", str(tmp_path), **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert name.upper() in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1

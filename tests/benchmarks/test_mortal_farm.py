"""A farm whose processes are revived must count those that ended although nobody had asked them to."""

import subprocess

import pytest

from benchmarks import mortal_farm as module
from benchmarks.farm import BenchmarkError
from benchmarks.mortal_farm import MortalFarm
from farm_client.cli.localfarm import Daemon, DaemonFailed


@pytest.fixture
def farm(tmp_path, monkeypatch):
    """A farm of shells that end when they are told what with; nothing else of it is real."""

    def start(name):
        log = tmp_path / f"{name}.log"
        with log.open("ab") as output:
            script = 'read code; echo "the last words of $0" >&2; exit "$code"'
            process = subprocess.Popen(["sh", "-c", script, name], stdin=subprocess.PIPE, stderr=output, text=True)
        return Daemon(name, process, log)

    monkeypatch.setattr(module, "launch_server", lambda *_: start("server"))
    monkeypatch.setattr(
        module, "read_urls", lambda _: {"farm_url": "http://127.0.0.1:1", "join_url": "ws://127.0.0.1:1"}
    )
    monkeypatch.setattr(module, "start_volunteer", lambda name, *_: start(name))
    farm = MortalFarm(tmp_path)
    farm.start_server()
    farm.start_client("ada")
    farm.start_client("bob", {}, module="a.module.of.the.tests")
    yield farm
    for daemon in farm._started:
        daemon.process.kill()
        daemon.process.communicate()
    farm.api.close()


def leave(daemon, code):
    daemon.process.stdin.write(f"{code}\n")
    daemon.process.stdin.flush()
    daemon.process.wait()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_an_end_that_nobody_asked_for_is_kept_with_its_code_and_last_line(farm, code):
    leave(farm.clients["ada"], code)
    leave(farm.server, code)
    assert farm.revive() == ["server", "ada"]
    farm.check()
    assert [(end.name, end.exit_code, end.last_line) for end in farm.ends] == [
        ("server", code, "the last words of server"),
        ("ada", code, "the last words of ada"),
    ]
    with pytest.raises(BenchmarkError, match=f"ada ended by itself .exit code {code}.: the last words of ada"):
        farm.check_ends()


def test_what_was_killed_or_may_end_is_not_counted(farm):
    farm.kill(farm.server)
    farm.kill(farm.clients["ada"])
    leave(farm.clients["bob"], 9)
    assert farm.revive() == ["server", "ada", "bob"]
    farm.kill(farm.server)
    farm.start_server()
    farm.kill(farm.clients["ada"])
    farm.start_client("ada")
    farm.check_ends()


def test_an_end_is_seen_although_nobody_looked_before_the_next_start_or_the_end(farm):
    leave(farm.clients["ada"], 2)
    farm.start_client("ada")
    leave(farm.server, 3)
    assert [(end.name, end.exit_code) for end in farm.all_ends()] == [("ada", 2), ("server", 3)]
    assert len(farm.all_ends()) == 2
    leave(farm.clients["ada"], 4)
    farm.dismiss("ada")
    assert [end.exit_code for end in farm.ends] == [2, 3, 4]


def test_a_server_that_does_not_start_says_so_itself(farm, monkeypatch):
    farm.kill(farm.server)

    def fail(_):
        raise DaemonFailed("no room")

    monkeypatch.setattr(module, "read_urls", fail)
    with pytest.raises(DaemonFailed):
        farm.revive()
    farm.server.process.kill()
    farm.server.process.wait()
    farm.check_ends()

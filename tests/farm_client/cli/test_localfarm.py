"""Ending child processes, whatever they do; what is missing is said before anything starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from farm_client.cli import localfarm
from farm_client.cli.localfarm import Daemon, DaemonFailed, end, local_farm

POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SECOND_CALL = """
import os, signal
asked = []
def hear(*_):
    asked.append(1)
    if len(asked) == 2:
        os._exit(8)
signal.signal(signal.SIGTERM, hear)
"""
WITH_CHILD = STUBBORN + "\nimport subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localfarm, "POLITE_SECONDS", 0.3)


@pytest.fixture
def start(tmp_path: Path):
    """Start a Python process that sets itself up by ``code`` and then waits for signals."""
    started: list[Daemon] = []

    def run(code: str) -> Daemon:
        script = f"{code}\nprint('ready', flush=True)\nimport signal\nwhile True: signal.pause()"
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=False, start_new_session=True
        )
        started.append(Daemon("child", process, tmp_path / "child.log"))
        assert process.stdout.readline() == b"ready\n"
        return started[-1]

    yield run
    for daemon in started:
        daemon.process.kill()
        daemon.process.wait()
        daemon.process.stdout.close()


@pytest.mark.parametrize(
    ("code", "exit_code"), [(POLITE, 7), (SECOND_CALL, 8), (STUBBORN, -signal.SIGKILL)], ids=["polite", "busy", "stuck"]
)
def test_a_process_is_asked_twice_and_then_killed(start, code, exit_code):
    daemon = start(code)
    end([daemon])
    assert daemon.process.returncode == exit_code


def test_ending_is_harmless_for_what_has_ended(start):
    daemon = start(POLITE)
    end([daemon])
    end([daemon])
    end([])


def test_what_a_killed_process_started_is_killed_too(start):
    daemon = start(WITH_CHILD)
    (child,) = psutil.Process(daemon.pid).children()
    end([daemon])
    child.wait(30)
    assert not child.is_running()


def test_many_are_ended_side_by_side(start):
    daemons = [start(POLITE), start(STUBBORN), start(POLITE)]
    end(daemons)
    assert [daemon.process.returncode for daemon in daemons] == [7, -signal.SIGKILL, 7]


def test_without_the_server_the_install_command_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(localfarm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DaemonFailed, match=r"pip install 'aifarm\[all\]'"), local_farm(tmp_path, 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_useful_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(localfarm, "launch_server", partial(localfarm.launch_server, module="json.tool"))
    with pytest.raises(DaemonFailed) as caught, local_farm(tmp_path, 1):
        pass
    assert "usage" in caught.value.last_words


def test_last_words_are_the_end_of_the_log(start, tmp_path):
    daemon = start(POLITE)
    daemon.log.write_text("\n".join(f"line {n}" for n in range(100)))
    assert daemon.last_words().splitlines()[-1] == "line 99"
    assert len(daemon.last_words().splitlines()) == 8

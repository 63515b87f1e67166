"""A real farm of real processes on loopback, and `farm` run against it as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm_client.cli.localfarm import Daemon, LocalFarm, end, local_farm, start_volunteer
from farm_client.sdk.api import FarmApi

COMMAND_SECONDS = 90


@dataclass(frozen=True)
class Answer:
    """What a `farm` command printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    def envelopes(self, kind: str) -> list[Any]:
        """Return the data of the envelopes of one kind."""
        lines = [json.loads(line) for line in self.stdout.splitlines()]
        return [line["data"] for line in lines if line["kind"] == kind]

    def envelope(self, kind: str) -> Any:
        """Return the data of the only envelope of this kind."""
        found = self.envelopes(kind)
        assert len(found) == 1, f"{len(found)} envelopes of kind {kind}; stderr: {self.stderr}"
        return found[0]

    @property
    def only_line(self) -> str:
        """Return the only line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


@dataclass
class RealFarm:
    """A server and its volunteers, as processes. Everything it starts ends with the fixture."""

    processes: LocalFarm
    folder: Path
    api: FarmApi
    added: list[Daemon] = field(default_factory=list)

    @property
    def volunteers(self) -> list[Daemon]:
        """Return every volunteer, also those that were killed."""
        return [*self.processes.volunteers, *self.added]

    def run(self, *arguments: str, timeout_seconds: float = COMMAND_SECONDS, **environ: str) -> Answer:
        """Run `farm …` against this farm."""
        return run_farm(*arguments, timeout_seconds=timeout_seconds, **{"FARM_URL": self.processes.farm_url, **environ})

    def submit(self, *arguments: str) -> str:
        """Submit a task and return its id."""
        answer = self.run("submit", *arguments, "--json")
        assert answer.exit_code == 0, answer.stderr
        return str(answer.envelope("submitted")["task"]["task_id"])

    def add_volunteer(self, name: str, **environ: str) -> Daemon:
        """Start one more volunteer, with these variables beside its own."""
        self.added.append(start_volunteer(name, self.processes.join_url, self.folder, environ=environ))
        return self.added[-1]

    def kill(self, pid: int, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to one process by its id."""
        os.kill(pid, signal_number)

    def executors_of(self, volunteer: Daemon) -> list[int]:
        """Return the ids of the executor processes that a volunteer runs."""
        return [child.pid for child in psutil.Process(volunteer.pid).children(recursive=True)]

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_seconds: float = 60) -> Any:
        """Ask again and again until the condition holds, and return its value."""
        return wait_until(condition, what, timeout_seconds)


def run_farm(*arguments: str, timeout_seconds: float = COMMAND_SECONDS, **environ: str) -> Answer:
    """Run `farm …` as a process of its own; one that takes too long is interrupted, so that it ends its children."""
    command = subprocess.Popen(
        [sys.executable, "-m", "farm_client.cli.app", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FARM_CONFIG": os.devnull, "COLUMNS": "200", **environ},
    )
    try:
        stdout, stderr = command.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        command.terminate()
        stdout, stderr = command.communicate(timeout=30)
        pytest.fail(f"farm {' '.join(arguments)} took over {timeout_seconds} s:\n{stdout[-2000:]}\n{stderr[-2000:]}")
    return Answer(command.returncode, stdout, stderr)


def wait_until(condition: Callable[[], Any], what: str, timeout_seconds: float = 60) -> Any:
    """Return the condition's first true value. Fails, saying ``what`` did not happen, when the time is up."""
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        pause.wait(0.05)
    return value


@contextmanager
def real_farm(folder: Path, volunteers: int) -> Iterator[RealFarm]:
    """Run a farm for the length of the block."""
    with local_farm(folder, volunteers) as processes, FarmApi(processes.address) as api:
        farm = RealFarm(processes, folder, api)
        try:
            yield farm
        finally:
            end(farm.added)


@pytest.fixture
def start_farm(tmp_path: Path) -> Iterator[Callable[[int], RealFarm]]:
    """Give a function that starts a farm with so many volunteers."""
    with ExitStack() as stack:
        yield lambda volunteers: stack.enter_context(real_farm(tmp_path / "farm", volunteers))


@pytest.fixture
def farm(start_farm: Callable[[int], RealFarm]) -> RealFarm:
    """Give a farm with two volunteers."""
    return start_farm(2)


@pytest.fixture(scope="module")
def shared_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    """Give a farm with one volunteer, the same to all tests of a module."""
    with real_farm(tmp_path_factory.mktemp("farm"), 1) as farm:
        yield farm

"""A farm of this machine's own: a server and some volunteers as child processes, which end with the block.

Nothing of them is imported: they are started by their command lines, as anybody would.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sdk.child_process import child_command
from farm_client.sdk.config import FarmAddress, parse_address
from farm_client.sdk.submitter import ANONYMOUS, submitter_here
from protocol.errors import FarmError

START_SECONDS: Final = 30.0
POLITE_SECONDS: Final = 4.0
"""How long a process may take to end after it was asked to."""
SHOWN_LOG_LINES: Final = 8

SERVER_MODULE: Final = "farm_server"
CLIENT_MODULE: Final = "farm_client"


class DaemonFailed(FarmError):
    """A process of the local farm did not start, or ended. ``last_words`` are the last lines of its log."""

    code = "daemon_failed"

    def __init__(self, message: str, last_words: str = "") -> None:
        super().__init__(message)
        self.last_words = last_words


@dataclass(frozen=True, slots=True)
class Daemon:
    """A child process and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def last_words(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-SHOWN_LOG_LINES:])


@dataclass(frozen=True, slots=True)
class LocalFarm:
    """A running farm: its address for researchers, and its processes."""

    address: FarmAddress
    farm_url: str
    """The address with its token, for ``--farm``."""
    join_url: str
    server: Daemon
    volunteers: tuple[Daemon, ...]

    def check(self) -> None:
        """See that all processes live. Raises: DaemonFailed with the last log lines of one that ended."""
        for daemon in (self.server, *self.volunteers):
            if daemon.process.poll() is not None:
                raise DaemonFailed(
                    f"{daemon.name} ended (exit code {daemon.process.returncode}): {daemon.last_words()}"
                )


@contextmanager
def local_farm(folder: Path, volunteers: int, environ: Mapping[str, str] | None = None) -> Iterator[LocalFarm]:
    """Run a farm with ``volunteers`` clients of one core each, all of their files under ``folder``.

    ``environ`` is set on top of this process's own environment, for the volunteers only.
    Raises: DaemonFailed with the last log lines of a server that does not start. On leaving, for whatever reason,
    every process is ended and waited for; should this process be killed, the kernel ends them.
    """
    with launched_farm(folder, environ) as complete:
        yield complete(volunteers)


@contextmanager
def launched_farm(folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[Callable[[int], LocalFarm]]:
    """Do as ``local_farm``, in two steps: the block begins while the server starts, and gets what completes the farm.

    The function waits for the server, starts so many volunteers, and returns the farm.
    """
    require_server()
    folder.mkdir(parents=True, exist_ok=True)
    started: list[Daemon] = []

    def complete(volunteers: int) -> LocalFarm:
        urls = read_urls(started[0])
        names = (f"volunteer-{number}" for number in range(1, volunteers + 1))
        # One by one: should one fail to start, those before it are known and get ended.
        started.extend(start_volunteer(name, urls["join_url"], folder, environ) for name in names)
        address = parse_address(urls["farm_url"], "the local farm")
        return LocalFarm(address, urls["farm_url"], urls["join_url"], started[0], tuple(started[1:]))

    try:
        started.append(launch_server(folder))
        yield complete
    finally:
        # Volunteers first: they say goodbye to a server that still listens.
        with _undisturbed():
            end(started[1:])
            end(started[:1])


def launch_server(
    folder: Path, port: int = 0, environ: Mapping[str, str] | None = None, module: str = SERVER_MODULE
) -> Daemon:
    """Launch a server on ``folder/server``; ``read_urls`` waits until it serves. The caller ends it (see ``end``).

    Port 0 picks a free one; ``environ`` is set on top of this process's own environment. ``module`` is what is run.
    """
    place = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "server")]
    return _start("server", [module, "up", "--json", *place], folder, stdout=subprocess.PIPE, environ=environ)


def start_volunteer(
    name: str,
    join_url: str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    module: str = CLIENT_MODULE,
) -> Daemon:
    """Start a client that lends one core; its home is ``folder/name``. The caller ends it (see ``end``).

    The clients of one folder share their machine, so its self-test too. ``module`` is what is run. Where no sandbox
    holds they work all the same, for their user alone: it is this user's code on this user's machine.
    """
    arguments = [module, "join", "--home", str(folder / name), "--name", name, "--cpu-cores", "1"]
    # By a variable: a command line is read by every user of the machine.
    shared = {
        "FARM_CLIENT_SELF_TEST_FILE": str(folder / "self-test.json"),
        "FARM_JOIN_URL": join_url,
        "FARM_CLIENT_ALLOW_UNSANDBOXED": "true",
        "FARM_CLIENT_WORK_FOR": f"{submitter_here()},{ANONYMOUS}",
    }
    return _start(name, arguments, folder, environ={**shared, **(environ or {})})


def end(daemons: Sequence[Daemon]) -> None:
    """End processes and what they started: SIGTERM, once more (no waiting for work), then SIGKILL."""
    for _ in range(2):
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + POLITE_SECONDS
        for daemon in daemons:
            _wait(daemon, deadline - time.monotonic())
    for daemon in daemons:
        if daemon.process.poll() is None:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.process.wait()


def require_server() -> None:
    """Check that the server side is installed. Raises: DaemonFailed saying how to install it."""
    needed = ("farm_server", "fastapi", "uvicorn", "sqlmodel")
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise DaemonFailed("a local farm needs the server too: pip install 'aifarm[all]'")


def _start(
    name: str,
    module_arguments: Sequence[str],
    folder: Path,
    stdout: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Daemon:
    """Run ``python -m module arguments…`` as a child that ends with us, its output at the end of a log file."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            child_command(*module_arguments),
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            # A Ctrl-C on the terminal is for us: we end our children in order. The session is also their group.
            start_new_session=True,
            env={**os.environ, **(environ or {})},
        )
    return Daemon(name, process, log)


def read_urls(server: Daemon) -> dict[str, str]:
    """Wait until the server serves, and return its ``join_url`` and ``farm_url``.

    Raises: DaemonFailed with the last log lines of a server that does not start.
    """
    try:
        urls = json.loads(_first_line(server))
        return {name: str(urls[name]) for name in ("join_url", "farm_url")}
    except (ValueError, KeyError, TypeError) as error:
        raise DaemonFailed("the server did not start; see its log above", server.last_words()) from error


def _first_line(daemon: Daemon) -> bytes:
    """Return the first line that the process prints, b"" if it ends or stays silent for too long."""
    pipe = daemon.process.stdout
    assert pipe is not None  # noqa: S101 (started with a pipe)
    ready, _, _ = select.select([pipe], [], [], START_SECONDS)
    line = pipe.readline() if ready else b""
    # Whatever it prints later must not fill the pipe and block it.
    threading.Thread(target=pipe.read, name=f"drain-{daemon.name}", daemon=True).start()
    return line


def _wait(daemon: Daemon, seconds: float) -> None:
    try:
        daemon.process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C keep us from ending our children; it takes a few seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

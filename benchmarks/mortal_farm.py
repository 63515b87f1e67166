"""A farm of real processes, each of which may be killed, stopped or cut off, and started again in its place.

The measurements of recovery, the tests of named faults and the chaos test share it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import psutil

from benchmarks.farm import BenchmarkError
from farm_client.cli.localfarm import (
    CLIENT_MODULE,
    SERVER_MODULE,
    Daemon,
    DaemonFailed,
    end,
    launch_server,
    read_urls,
    start_volunteer,
)
from farm_client.sandbox import lifeline
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import FarmUnreachable
from protocol.errors import Unavailable

POLL_SECONDS: Final = 0.02
"""Short: what is measured here lasts fractions of a second."""
ONLINE_SECONDS: Final = 60.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class End:
    """A process that ended although nobody had asked it to: a supervisor would hide that, a volunteer has none."""

    name: str
    exit_code: int
    last_line: str

    def __str__(self) -> str:
        return f"{self.name} ended by itself (exit code {self.exit_code}): {self.last_line}"


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a process is started; one that runs another module than the shipped one may end by itself."""

    environ: Mapping[str, str]
    module: str
    join_url: str = ""


class MortalFarm:
    """A server on ``folder/server`` and clients by name. Whatever it started, ``close`` ends.

    Each end that nobody asked for is kept in ``ends``: who kills something says so by ``kill``, or starts it as another
    module than the shipped one: such a process may be meant to end. A server that is started again keeps its folder and
    port, and so the addresses that clients know. Start processes from one thread that lives as long as they shall: the
    system ends them with the thread that started them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: Daemon
        self.clients: dict[str, Daemon] = {}
        self.api: FarmApi
        self.join_url = ""
        self.farm_url = ""
        self._server_manner = _Manner({}, SERVER_MODULE)
        self._manners: dict[str, _Manner] = {}
        self._started: list[Daemon] = []
        self.ends: list[End] = []
        self._accounted: set[int] = set()
        """The processes, by id, whose ends were asked for, or are in ``ends``."""

    @property
    def data_dir(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    @property
    def port(self) -> int:
        """The server's port; 0 before its first start."""
        return int(self.farm_url.rpartition(":")[2]) if self.farm_url else 0

    def start_server(self, environ: Mapping[str, str] | None = None, module: str = SERVER_MODULE) -> float:
        """Start the server, for the first time or again, and return the seconds until it served.

        Without ``environ`` it is started as the last time. Raises: DaemonFailed with the last log lines if it
        does not start.
        """
        if self._started:
            self._account(self.server)
        if environ is not None:
            self._server_manner = _Manner(environ, module)
        manner = self._server_manner
        began = time.monotonic()
        self.server = launch_server(self.folder, self.port, manner.environ, manner.module)
        self._started.append(self.server)
        try:
            urls = read_urls(self.server)
        except DaemonFailed:
            self._accounted.add(self.server.pid)  # told by this error
            raise
        took = time.monotonic() - began
        if not self.farm_url:
            self.farm_url, self.join_url = urls["farm_url"], urls["join_url"]
            self.api = FarmApi(parse_address(self.farm_url, "the local farm"))
        return took

    def start_client(
        self, name: str, environ: Mapping[str, str] | None = None, join_url: str = "", module: str = CLIENT_MODULE
    ) -> Daemon:
        """Start a client, for the first time or again in its home; ``join_url`` may lead through a proxy.

        Without ``environ``, or ``join_url``, that is as the last time; ``module`` belongs to ``environ``.
        """
        if name in self.clients:
            self._account(self.clients[name])
        manner = self._manners.get(name, _Manner({}, CLIENT_MODULE, self.join_url))
        if environ is not None:
            manner = replace(manner, environ=environ, module=module)
        manner = self._manners[name] = replace(manner, join_url=join_url or manner.join_url)
        client = start_volunteer(name, manner.join_url, self.folder, manner.environ, manner.module)
        self._started.append(client)
        self.clients[name] = client
        return client

    def revive(self) -> list[str]:
        """Start every process again that ended, as a supervisor does, and return the names of those.

        Unlike one it keeps in ``ends`` what nobody had asked for.
        """
        ended = []
        if self.server.process.poll() is not None:
            ended.append(self.server.name)
            self.start_server()
        for name, client in tuple(self.clients.items()):
            if client.process.poll() is not None:
                ended.append(name)
                self.start_client(name)
        return ended

    def dismiss(self, name: str) -> None:
        """End a client for good."""
        client = self.clients.pop(name)
        self._account(client)
        self._accounted.add(client.pid)
        _let_run(client)
        end([client])

    def kill(self, daemon: Daemon) -> None:
        """SIGKILL a process of ours and wait until it is gone."""
        self._account(daemon)
        self._accounted.add(daemon.pid)
        daemon.process.kill()
        daemon.process.wait()

    def executors_of(self, name: str) -> list[psutil.Process]:
        """Return the executors of a client, oldest first; none if the client is gone."""
        try:
            children = psutil.Process(self.clients[name].pid).children()
            return sorted((_inside(c) for c in children if _is_executor(c)), key=psutil.Process.create_time)
        except psutil.NoSuchProcess:
            return []

    def busy_executors_of(self, name: str) -> list[psutil.Process]:
        """Return those of a client's executors that have a task: the code lies in their folders."""
        return [executor for executor in self.executors_of(name) if _has_code(executor)]

    def is_online(self, name: str) -> bool:
        """Tell whether the server holds a connection of this client."""
        return any(client.name == name and client.state == "online" for client in self.api.clients())

    def wait_online(self, *names: str) -> None:
        """Wait until these clients are connected. Raises: BenchmarkError; DaemonFailed if one ended."""
        for name in names:
            self.wait_for(lambda name=name: self.is_online(name), f"{name} comes online")  # type: ignore[misc]

    def check(self) -> None:
        """See that the server and every client live. Raises: DaemonFailed naming one that ended, with its log."""
        for daemon in (self.server, *self.clients.values()):
            if daemon.process.poll() is not None:
                raise DaemonFailed(
                    f"{daemon.name} ended (exit code {daemon.process.returncode}): {daemon.last_words()}"
                )

    def all_ends(self) -> list[End]:
        """Return all ends that nobody asked for, up to now."""
        if self._started:
            for daemon in (self.server, *self.clients.values()):
                self._account(daemon)
        return self.ends

    def check_ends(self) -> None:
        """See that nothing ended that nobody asked to. Raises: BenchmarkError naming what did, and its last line."""
        if ends := self.all_ends():
            raise BenchmarkError("; ".join(str(end) for end in ends))

    def _account(self, daemon: Daemon) -> None:
        """Keep the end of a process, if it has ended and nobody had asked for that."""
        exit_code = daemon.process.poll()
        if exit_code is None or daemon.pid in self._accounted:
            return
        self._accounted.add(daemon.pid)
        if not self._may_end(daemon):
            lines = daemon.last_words().splitlines()
            self.ends.append(End(daemon.name, exit_code, lines[-1] if lines else "it said nothing"))

    def _may_end(self, daemon: Daemon) -> bool:
        """Whether it is no shipped module, and so may be meant to end."""
        return self._manners.get(daemon.name, self._server_manner).module not in (SERVER_MODULE, CLIENT_MODULE)

    def ask(self, question: Callable[[], T]) -> T | None:
        """Return the server's answer, or None while it is dead, starting, or without space."""
        try:
            return question()
        except (FarmUnreachable, Unavailable):
            return None

    def wait_for(self, question: Callable[[], T], what: str, seconds: float = ONLINE_SECONDS) -> T:
        """Ask until the answer is true, through deaths of the server, and return it.

        Raises: BenchmarkError saying that ``what`` did not happen.
        """
        deadline = time.monotonic() + seconds
        while not (answer := self.ask(question)):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not within {seconds:g} s: {what}")
            time.sleep(POLL_SECONDS)
        return answer

    def close(self) -> None:
        """End all that was started, clients first, whatever state it is in."""
        for daemon in self._started:
            _let_run(daemon)
        end([daemon for daemon in self._started if daemon.name != "server"])
        end([daemon for daemon in self._started if daemon.name == "server"])
        if self.farm_url:
            self.api.close()


@contextmanager
def mortal_farm(folder: Path, clients: int, environ: Mapping[str, str] | None = None) -> Iterator[MortalFarm]:
    """Run a farm for the length of the block, its clients ``client-1`` and so on online at the beginning.

    ``environ`` is the server's. Raises: DaemonFailed; BenchmarkError, at the end also where something ended that nobody
    had asked to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    farm = MortalFarm(folder)
    try:
        farm.start_server(environ)
        names = [f"client-{number}" for number in range(1, clients + 1)]
        for name in names:
            farm.start_client(name)
        farm.wait_online(*names)
        yield farm
        farm.check_ends()
    finally:
        farm.close()


def _let_run(daemon: Daemon) -> None:
    """Wake a stopped process and what it started, so that it can end politely."""
    if daemon.process.poll() is not None:
        return
    for process in (daemon.pid, *_children(daemon.pid)):
        try:
            os.kill(process, signal.SIGCONT)
        except ProcessLookupError:
            continue


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _has_code(executor: psutil.Process) -> bool:
    try:
        folder = Path(executor.cwd())
        return folder.name == "code" or (folder / "code").is_dir()
    except psutil.NoSuchProcess:
        return False


def _inside(process: psutil.Process) -> psutil.Process:
    """Return the process in a sandbox, of the one that made it."""
    while process.name() == "bwrap" and (inner := process.children()):
        process = inner[0]
    return process


def _is_executor(process: psutil.Process) -> bool:
    try:
        return lifeline.__name__ in process.cmdline()
    except psutil.NoSuchProcess:
        return False

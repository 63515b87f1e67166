"""A real farm on loopback for a measurement: one `farm-server` and N `farm-client` processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.processes import BenchmarkError, Child
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address

JOIN_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.25
SCRIPTS: Final = Path(sys.executable).parent


@dataclass(frozen=True)
class RunningFarm:
    """A server that answers and clients that are online. ``farm_url`` carries the researcher's token."""

    server: Child
    clients: tuple[Child, ...]
    farm_url: str
    api: FarmApi


@contextmanager
def running_farm(clients: int, folder: Path) -> Iterator[RunningFarm]:
    """Start a farm in ``folder``, wait until every client is online, and stop it all at the end.

    Raises: BenchmarkError with the log of a process that ended early, or if clients do not come.
    """
    with ExitStack() as stack:
        server = _started(stack, "farm-server", folder / "server.log", _up(folder / "server"))
        info = json.loads(server.read_line())
        joined = tuple(
            _started(stack, "farm-client", folder / f"client{i}.log", _join(info["join_url"], i, folder))
            for i in range(clients)
        )
        api = stack.enter_context(FarmApi(parse_address(info["farm_url"], "the benchmark's server")))
        wait_until(
            lambda: sum(client.state == "online" for client in api.clients()) == clients,
            JOIN_SECONDS,
            lambda: f"only some of {clients} clients came online; a log says:\n{joined[-1].log_tail()}",
        )
        yield RunningFarm(server, joined, info["farm_url"], api)


def wait_until(condition: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Ask again and again until the condition holds.

    Raises: BenchmarkError with the complaint after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(complaint())
        time.sleep(POLL_SECONDS)


def _up(data_dir: Path) -> list[str]:
    return ["up", "--data-dir", str(data_dir), "--host", "127.0.0.1", "--port", "0", "--json"]


def _join(join_url: str, number: int, folder: Path) -> list[str]:
    return ["join", join_url, "--home", str(folder / f"client{number}"), "--name", f"client{number}"]


def _started(stack: ExitStack, script: str, log: Path, arguments: list[str]) -> Child:
    child = Child([str(SCRIPTS / script), *arguments], log)
    stack.callback(child.stop)
    return child

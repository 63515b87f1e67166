"""A real farm on loopback for a measurement, with all its clients online and one task submitted as people do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.cli.localfarm import LocalFarm, local_farm
from farm_client.sdk.api import FarmApi

JOIN_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.25


class BenchmarkError(Exception):
    """The measurement could not be taken; the message says what happened."""


@dataclass(frozen=True)
class RunningFarm:
    """The processes, and a connection to the server."""

    processes: LocalFarm
    api: FarmApi


@contextmanager
def running_farm(clients: int, folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[RunningFarm]:
    """Start a farm in ``folder``, wait until every client is online, and stop it all at the end.

    ``environ`` are settings of the clients.
    Raises: DaemonFailed with the log of a process that ended early, seen at the end too; BenchmarkError if clients do
    not come.
    """
    with local_farm(folder, clients, environ) as processes, FarmApi(processes.address) as api:

        def all_are_online() -> bool:
            processes.check()
            return sum(client.state == "online" for client in api.clients()) == clients

        wait_until(all_are_online, JOIN_SECONDS, lambda: f"not all of {clients} clients came online")
        yield RunningFarm(processes, api)
        processes.check()


def submit(farm: RunningFarm, arguments: Sequence[str]) -> str:
    """Run `farm submit` with these arguments, and return the task's id.

    Raises: BenchmarkError with what the command said.
    """
    command = [str(Path(sys.executable).parent / "farm"), "submit", "--json", "--farm", farm.processes.farm_url]
    answer = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
    if answer.returncode:
        raise BenchmarkError(f"farm submit failed: {answer.stderr.strip()}")
    return str(json.loads(answer.stdout)["data"]["task"]["task_id"])


def wait_until(condition: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Ask again and again until the condition holds.

    Raises: BenchmarkError with the complaint after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(complaint())
        time.sleep(POLL_SECONDS)

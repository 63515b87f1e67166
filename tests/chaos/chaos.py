"""Chaos on real processes: for a while everything breaks, and then every task must have the model it would have had."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.mortal_farm import End, MortalFarm
from tests.chaos.full_disk import SmallDisk, small_disk
from tests.chaos.monkey import Monkey
from tests.chaos.proxy import FaultProxy
from tests.chaos.researcher import Researcher, Verdict

CLIENTS: Final = 3
CALM_SECONDS: Final = 120.0
"""How long what is in flight may take once nothing breaks any more, on a loaded machine."""
MIN_FREE_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Outcome:
    """What was done, what became of the tasks, which processes ended by themselves, and which outlived the farm."""

    did: dict[str, int]
    verdict: Verdict
    ends: list[End]
    left_running: list[str]

    @property
    def complaints(self) -> list[str]:
        """All that is wrong."""
        return [
            *self.verdict.complaints,
            *map(str, self.ends),
            *(f"still running: {name}" for name in self.left_running),
        ]


def run_chaos(folder: Path, seconds: float, seed: int, say: Callable[[str], None]) -> Outcome:
    """Break a farm in ``folder`` for so long, calm down, and judge.

    Raises: BenchmarkError if tasks do not end; DaemonFailed if the server does not start on what it was left.
    """
    began = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s  {what}")

    with small_disk(folder / "server") as disk:
        if isinstance(disk, str):
            tell(f"no full disk this time: {disk}")
        with _farm(folder) as (farm, proxies):
            researcher = Researcher(farm, folder / "tasks", tell)
            monkey = Monkey(farm, proxies, disk if isinstance(disk, SmallDisk) else None, seed, tell)
            tell(f"{CLIENTS} clients are online; seed {seed}, {seconds:g} s")
            researcher.start()
            try:
                monkey.rage(seconds)
            finally:
                monkey.calm()
            tell("calm")
            verdict = researcher.finish(CALM_SECONDS)
            tell(f"{verdict.completed} tasks completed")
            ends = list(farm.all_ends())
    return Outcome(dict(sorted(monkey.did.items())), verdict, ends, _left_running(folder))


@contextmanager
def _farm(folder: Path) -> Iterator[tuple[MortalFarm, dict[str, FaultProxy]]]:
    """Run a farm whose clients each reach the server through a proxy of their own."""
    farm = MortalFarm(folder)
    with ExitStack() as stack:
        stack.callback(farm.close)
        farm.start_server({"FARM_SERVER_MIN_FREE_BYTES": str(MIN_FREE_BYTES)})
        proxies = {
            f"client-{number}": stack.enter_context(FaultProxy(("127.0.0.1", farm.port), seed=number))
            for number in range(1, CLIENTS + 1)
        }
        for name, proxy in proxies.items():
            farm.start_client(name, join_url=farm.join_url.replace(f":{farm.port}", f":{proxy.port}"))
        farm.wait_online(*proxies)
        yield farm, proxies


def _left_running(folder: Path) -> list[str]:
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or ())
    ]

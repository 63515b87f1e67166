"""What goes wrong, at random: kills, frozen processes, cut connections, a full disk, a damaged file."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from benchmarks.mortal_farm import MortalFarm
from farm_client.cli.localfarm import DaemonFailed
from tests.chaos.full_disk import SmallDisk
from tests.chaos.proxy import FaultProxy, Line

MEAN_PAUSE_SECONDS: Final = 1.5
STEP_SECONDS: Final = 0.05
HUNT_SECONDS: Final = 2.0
"""How long the monkey lies in wait for a spooled update: they live for a moment."""
LONGEST_SPELL_SECONDS: Final = 4.0
UPDATE_MARK: Final = b"aifarm-update-1"

Mischief = Callable[[], str | None]
"""Does something and says what; None if there was nothing to do it to."""


class Monkey:
    """Breaks the farm, one thing at a time, and mends after a while what does not mend itself."""

    def __init__(
        self,
        farm: MortalFarm,
        proxies: dict[str, FaultProxy],
        disk: SmallDisk | None,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.did: Counter[str] = Counter()
        self._farm = farm
        self._proxies = proxies
        self._disk = disk
        self._random = random.Random(seed)
        self._say = say
        self._repairs: list[tuple[float, Callable[[], object]]] = []
        self._revive_at = 0.0

    def rage(self, seconds: float) -> None:
        """Do one thing after the other for so long, then mend everything."""
        began = time.monotonic()
        next_at = began
        while (now := time.monotonic()) < began + seconds:
            self._mend(now)
            if now >= next_at:
                self._do(self._random.choice(self._mischiefs()))
                next_at = time.monotonic() + self._random.expovariate(1 / MEAN_PAUSE_SECONDS)
            time.sleep(STEP_SECONDS)
        self.calm()

    def calm(self) -> None:
        """Mend everything now. Raises: DaemonFailed if the server does not start on what it was left."""
        self._mend(float("inf"))
        self._farm.revive()

    def _mischiefs(self) -> list[Mischief]:
        everywhere = [
            self.kill_client,
            self.kill_executor,
            self.kill_server,
            self.freeze_client,
            self.freeze_executor,
            self.freeze_server,
            self.cut_connections,
            self.stall_connections,
            self.forget_connections,
            self.slow_connections,
            self.damage_update,
        ]
        return [*everywhere, self.fill_disk] if self._disk is not None else everywhere

    def _do(self, mischief: Mischief) -> None:
        what = mischief()
        if what is not None:
            self.did[mischief.__name__] += 1
            self._say(what)

    def kill_client(self) -> str | None:
        name = self._any_client()
        self._farm.kill(self._farm.clients[name])
        return f"killed {name}"

    def kill_server(self) -> str | None:
        self._farm.kill(self._farm.server)
        return "killed the server"

    def kill_executor(self) -> str | None:
        return self._to_executor("killed", psutil.Process.kill)

    def freeze_executor(self) -> str | None:
        return self._to_executor("froze", self._freeze)

    def freeze_client(self) -> str | None:
        name = self._any_client()
        return self._freeze_daemon(name, self._farm.clients[name].pid)

    def freeze_server(self) -> str | None:
        return self._freeze_daemon("the server", self._farm.server.pid)

    def cut_connections(self) -> str | None:
        name, proxy = self._any_proxy()
        proxy.reset()
        return f"reset the connections of {name}"

    def stall_connections(self) -> str | None:
        name, proxy = self._any_proxy()
        proxy.stall()
        self._later(proxy.flow)
        return f"stalled the connections of {name}"

    def forget_connections(self) -> str | None:
        name, proxy = self._any_proxy()
        proxy.half_open()
        return f"left the connections of {name} half open"

    def slow_connections(self) -> str | None:
        name, proxy = self._any_proxy()
        proxy.change(Line(delay_seconds=0.2, jitter_seconds=0.2, bytes_per_second=2e6))
        self._later(lambda: proxy.change(Line()))
        return f"slowed the connections of {name}"

    def fill_disk(self) -> str | None:
        assert self._disk is not None
        self._disk.fill()
        self._later(self._disk.free)
        return "filled the server's disk"

    def damage_update(self) -> str | None:
        """Flip a byte of an update that waits on a disk, on either side."""
        folders = [self._farm.data_dir / "blobs", *(self._farm.folder / name for name in self._farm.clients)]
        until = time.monotonic() + HUNT_SECONDS
        while time.monotonic() < until:
            found = [path for folder in folders for path in folder.rglob("*") if _is_update(path)]
            if found and _damage(victim := self._random.choice(found)):
                return f"damaged {victim.relative_to(self._farm.folder)}"
            time.sleep(STEP_SECONDS)
        return None

    def _any_client(self) -> str:
        return self._random.choice(sorted(self._farm.clients))

    def _any_proxy(self) -> tuple[str, FaultProxy]:
        return self._random.choice(sorted(self._proxies.items()))

    def _to_executor(self, verb: str, act: Callable[[psutil.Process], object]) -> str | None:
        name = self._any_client()
        executors = self._farm.executors_of(name)
        if not executors:
            return None
        with suppress(psutil.NoSuchProcess):
            act(self._random.choice(executors))
            return f"{verb} an executor of {name}"
        return None

    def _freeze_daemon(self, name: str, pid: int) -> str | None:
        with suppress(psutil.NoSuchProcess):
            self._freeze(psutil.Process(pid))
            return f"froze {name}"
        return None

    def _freeze(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        self._later(lambda: _wake(process))

    def _later(self, repair: Callable[[], object]) -> None:
        self._repairs.append((time.monotonic() + self._random.uniform(0.3, LONGEST_SPELL_SECONDS), repair))

    def _mend(self, now: float) -> None:
        """Do the repairs that are due, and start again what died, after a moment in which it is missing."""
        due = [repair for at, repair in self._repairs if at <= now]
        self._repairs = [(at, repair) for at, repair in self._repairs if at > now]
        for repair in due:
            repair()
        if now < self._revive_at:
            return
        self._revive_at = time.monotonic() + self._random.uniform(0.0, 1.0)
        told = len(self._farm.ends)
        try:
            self._farm.revive()
        except DaemonFailed as error:
            # A full disk may keep a server from starting, as long as it says so; the calm at the end insists.
            self._say(f"not started: {error.last_words.splitlines()[-1:] or error}")
        for end in self._farm.ends[told:]:
            self._say(str(end))


def _wake(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


def _is_update(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return UPDATE_MARK in file.read(256)
    return False


def _damage(path: Path) -> bool:
    with suppress(OSError), path.open("r+b") as file:
        size_bytes = file.seek(0, 2)
        file.seek(size_bytes // 2)
        byte = file.read(1)
        file.seek(size_bytes // 2)
        file.write(bytes([byte[0] ^ 0xFF]))
        return True
    return False

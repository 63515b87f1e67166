"""A machine's environments as its agent keeps them: installed once for all who ask, with the owner's consent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from farm_client.agent.environments import keeper as keeping
from farm_client.agent.environments.installer import InstallBounds
from farm_client.agent.environments.keeper import NO_CONSENT, EnvironmentKeeper, KeeperParts
from farm_client.agent.environments.store import EnvironmentStore
from protocol.tasks import BlobRef
from tests.farm_client.agent.environments.tiny_index import (
    HAS_UV,
    TinyIndex,
    make_wheel,
    names_in,
    pin_of,
    serving,
)

pytestmark = pytest.mark.skipif(not HAS_UV, reason="uv is not installed (the group dev has it)")


class Machine:
    """A keeper over a home, an index and a cache of locks."""

    def __init__(self, root: Path, index: TinyIndex) -> None:
        self.root = root
        self.index = index
        self.allows = True
        self.rests: str | None = None
        self.notes: list[str] = []
        self.changes = 0
        self.keeper = self.start()

    def start(self) -> EnvironmentKeeper:
        store = EnvironmentStore(self.root / "environments", 10**9)
        bounds = InstallBounds(60.0, 10**9)
        parts = KeeperParts(lambda: self.allows, bounds, self.index.url, self.notes.append, rests=lambda: self.rests)
        keeper = EnvironmentKeeper(store, parts)
        keeper.on_change = self.changed
        return keeper

    def changed(self) -> None:
        self.changes += 1

    def lock(self, *lines: str) -> BlobRef:
        ref = BlobRef.carrying("".join(f"{line}\n" for line in lines).encode())
        (self.root / ref.digest).write_bytes(ref.carried or b"")
        return ref.bare()

    async def fetch(self, ref: BlobRef) -> Path:
        await asyncio.sleep(0)
        return self.root / ref.digest

    def lack(self, ref: BlobRef | None) -> str | None:
        return self.keeper.lack(ref, self.fetch)


@pytest.fixture
def machine(tmp_path: Path):
    (tmp_path / "wheels").mkdir()
    with serving(tmp_path / "wheels") as index:
        yield Machine(tmp_path, index)


async def test_a_task_without_a_lock_lacks_nothing(machine: Machine) -> None:
    assert machine.lack(None) is None


async def test_an_environment_is_installed_once_and_then_there(machine: Machine) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    assert not machine.keeper.told().built
    assert machine.keeper.news() is None
    assert machine.lack(lock) == "it begins to install it"
    await machine.keeper.settled()
    assert machine.lack(lock) is None
    path = machine.keeper.store.packages(lock.digest)
    assert path is not None
    assert (path / "tinyone.py").exists()
    news = machine.keeper.news()
    assert news is not None
    assert (news.built, news.installs) == ((lock.digest,), True)
    assert machine.keeper.news() is None, "it is told once"
    assert machine.changes == 1
    assert machine.notes[0] == f"installing environment {lock.digest[:12]}: 1 package"
    assert machine.notes[1].startswith(f"environment {lock.digest[:12]} is installed: ")


async def test_all_who_ask_meanwhile_wait_for_one_installation(machine: Machine) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    machine.index.gate.clear()
    machine.lack(lock)
    await asyncio.to_thread(machine.index.asked.wait)
    told = machine.lack(lock)
    assert told is not None
    assert told.startswith("it installs 1 package, ")
    assert len(machine.keeper.installing) == 1
    machine.index.gate.set()
    await machine.keeper.settled()
    assert len([path for path in machine.index.paths if path.startswith("/files/") and ".whl" in path]) <= 2
    assert machine.changes == 1
    assert names_in(machine.keeper.store.root) == [lock.digest]


async def test_without_consent_nothing_is_installed_and_what_is_there_is_used(machine: Machine) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    machine.allows = False
    assert machine.lack(lock) == NO_CONSENT
    assert not machine.keeper.told().installs
    assert not machine.keeper.installing
    assert not machine.index.paths
    machine.allows = True
    news = machine.keeper.news()
    assert news is not None
    assert news.installs
    machine.lack(lock)
    await machine.keeper.settled()
    machine.allows = False
    assert machine.lack(lock) is None


@pytest.mark.parametrize("word", ["takes the consent back", "pauses"])
async def test_what_runs_is_stopped_when_the_owner(machine: Machine, word: str) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    machine.index.gate.clear()
    machine.lack(lock)
    await asyncio.to_thread(machine.index.asked.wait)
    if word == "pauses":
        machine.rests = "paused: by this machine's owner"
    else:
        machine.allows = False
    await machine.keeper.settled()
    assert names_in(machine.keeper.store.root) == []
    why = machine.rests or NO_CONSENT
    assert machine.notes[-1] == f"the installation of environment {lock.digest[:12]} was stopped: {why}"
    machine.allows, machine.rests = True, None
    machine.index.gate.set()
    assert machine.lack(lock) == "it begins to install it", "at once: it did not fail"
    await machine.keeper.settled()
    assert machine.lack(lock) is None


async def test_one_is_installed_at_a_time(machine: Machine) -> None:
    locks = [machine.lock(pin_of(make_wheel(machine.index.folder, name))) for name in ("tinyone", "tinytwo")]
    machine.index.gate.clear()
    for lock in locks:
        machine.lack(lock)
    await asyncio.to_thread(machine.index.asked.wait)
    assert len(names_in(machine.keeper.store.root)) == 1
    assert machine.lack(locks[1]) == "it begins to install it"
    machine.index.gate.set()
    await machine.keeper.settled()
    assert set(machine.keeper.store.digests()) == {lock.digest for lock in locks}


class Disk(NamedTuple):
    free: int


async def test_a_disk_that_is_nearly_full_is_not_filled(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda _: Disk(2))
    machine.lack(lock)
    await machine.keeper.settled()
    assert machine.lack(lock) == "it takes over 1 B, the most that this machine keeps"


async def test_a_failure_is_told_and_not_tried_again_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(machine.index.folder, "tinyone")
    lock = machine.lock(pin_of(wheel))
    wheel.unlink()
    machine.lack(lock)
    await machine.keeper.settled()
    told = machine.lack(lock)
    assert told is not None
    assert told.startswith("uv could not install it: ")
    assert machine.notes[-1] == f"environment {lock.digest[:12]} is not installed: {told}"
    assert machine.changes == 1
    assert not machine.keeper.installing
    assert names_in(machine.keeper.store.root) == []
    make_wheel(machine.index.folder, "tinyone")
    later = keeping.time.monotonic() + 61.0
    monkeypatch.setattr(keeping.time, "monotonic", lambda: later)
    assert machine.lack(lock) == "it begins to install it"
    await machine.keeper.settled()
    assert machine.lack(lock) is None


async def test_failures_in_a_row_wait_longer_each_time(machine: Machine) -> None:
    machine.keeper._fail("a" * 64, "no")
    first = machine.keeper._failures["a" * 64].retry_at
    machine.keeper._fail("a" * 64, "no")
    assert machine.keeper._failures["a" * 64].retry_at >= first + 59.0


async def test_a_mistake_is_a_failure_and_no_end(machine: Machine) -> None:
    async def fetch(_ref: BlobRef) -> Path:
        raise ZeroDivisionError

    lock = machine.lock("tinyone==1.0 --hash=sha256:" + "0" * 64)
    machine.keeper.lack(lock, fetch)
    await machine.keeper.settled()
    assert machine.lack(lock) == "ZeroDivisionError()"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("tinyone>=1", "line 1: tinyone is not pinned"),
        ("torch==0.1 --hash=sha256:" + "0" * 64, "the task's lock pins torch 0.1, and this machine runs torch"),
    ],
)
async def test_a_lock_that_can_not_be_is_refused_before_anything_is_asked(
    machine: Machine, line: str, why: str
) -> None:
    lock = machine.lock(line)
    machine.lack(lock)
    await machine.keeper.settled()
    told = machine.lack(lock)
    assert told is not None
    assert why in told
    assert not machine.index.paths


@pytest.mark.parametrize("name", ["torch.py", "numpy/__init__.py", "farm_client.py", "protocol/x.py"])
async def test_a_wheel_that_brings_what_is_the_farms_own_is_refused(machine: Machine, name: str) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone", files={name: ""})))
    machine.lack(lock)
    await machine.keeper.settled()
    told = machine.lack(lock)
    assert told is not None
    assert told == f"its packages would take the place of the farm's own {name.partition('/')[0].partition('.')[0]}"
    assert names_in(machine.keeper.store.root) == []


async def test_an_agent_that_closes_leaves_nothing_of_what_it_installs(machine: Machine) -> None:
    lock = machine.lock(pin_of(make_wheel(machine.index.folder, "tinyone")))
    machine.index.gate.clear()
    machine.lack(lock)
    await asyncio.to_thread(machine.index.asked.wait)
    await machine.keeper.close()
    assert names_in(machine.keeper.store.root) == []
    assert not machine.keeper.installing


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from farm_client.agent.environments.installer import InstallBounds
    from farm_client.agent.environments.keeper import EnvironmentKeeper, KeeperParts
    from farm_client.agent.environments.store import EnvironmentStore
    from protocol.tasks import BlobRef

    root, url = Path(sys.argv[1]), sys.argv[2]
    lock = BlobRef.carrying((root / "lock").read_bytes())

    async def fetch(_ref):
        return root / "lock"

    async def main():
        parts = KeeperParts(lambda: True, InstallBounds(60.0, 10**9), url)
        keeper = EnvironmentKeeper(EnvironmentStore(root / "environments", 10**9), parts)
        keeper.lack(lock, fetch)
        await keeper.settled()

    asyncio.run(main())
"""


def test_what_is_killed_in_mid_build_counts_for_nothing(machine: Machine, tmp_path: Path) -> None:
    line = pin_of(make_wheel(machine.index.folder, "tinyone"))
    lock = machine.lock(line)
    (tmp_path / "lock").write_text(f"{line}\n")
    machine.index.gate.clear()
    agent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), machine.index.url],
        cwd=Path(__file__).parents[4],
    )
    machine.index.asked.wait()
    uvs = psutil.Process(agent.pid).children(recursive=True)
    assert uvs
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    psutil.wait_procs(uvs, timeout=10)
    assert not [uv for uv in uvs if uv.is_running() and uv.status() != psutil.STATUS_ZOMBIE], "uv ended with the agent"
    store = EnvironmentStore(tmp_path / "environments", 10**9)
    assert [name[:9] for name in names_in(store.root)] == ["building-"]
    assert store.digests() == ()
    assert store.packages(lock.digest) is None
    store.clear_up()
    assert names_in(store.root) == []

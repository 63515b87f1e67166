"""The environments of this machine: which there are, and the installation of one that a task asks for.

An installation takes minutes, so no assignment waits for it: the work is handed back with the reason, and offered again
when the farm is told that the environment is there. Two tasks with one lock wait for one installation. After one that
failed the next try waits, longer each time.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from farm_client.agent.environments.installer import InstallBounds, find_uv, install
from farm_client.agent.environments.stats import EnvironmentStats
from farm_client.agent.environments.store import EnvironmentStore
from farm_client.agent.errors import NoEnvironment
from farm_client.executor.task_packages import shadowed
from protocol.environments import Environments
from protocol.errors import FarmError
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from protocol.wording import counted, sized

_RETRY: Final = RetryPolicy(first_seconds=60.0, longest_seconds=3600.0)
NO_CONSENT: Final = "this client's owner allows no installs (--allow-installs)"

Fetch = Callable[[BlobRef], Awaitable[Path]]


@dataclass(slots=True)
class Installation:
    """One that runs: what it installs, since when, and how much of it is here."""

    packages: int = 0
    size_bytes: int = 0
    began_at: float = field(default_factory=time.monotonic)

    def grew_to(self, size_bytes: int) -> None:
        """Note how much of it is here."""
        self.size_bytes = size_bytes

    @property
    def sentence(self) -> str:
        """Say how far it is."""
        if not self.packages:
            return "it begins to install it"
        seconds = time.monotonic() - self.began_at
        return f"it installs {counted(self.packages, 'package')}, {sized(self.size_bytes)} in {seconds:.0f} s so far"


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    count: int
    retry_at: float
    """On the monotonic clock."""


class _Stopped(NoEnvironment):
    """The owner wants it stopped; that is no failure."""


@dataclass(frozen=True, slots=True)
class KeeperParts:
    """What installations need: the consent of the owner, the index, bounds, and where notes go."""

    allows: Callable[[], bool]
    bounds: InstallBounds
    index: str | None = None
    note: Callable[[str], None] = lambda _: None
    rests: Callable[[], str | None] = lambda: None
    """Why nothing is to be done now, at the owner's word: an installation that runs is stopped."""


class EnvironmentKeeper:
    """This machine's environments. On the agent's loop; files are read and removed in threads."""

    def __init__(self, store: EnvironmentStore, parts: KeeperParts) -> None:
        self.store = store
        self._parts = parts
        self.on_change: Callable[[], None] = lambda: None
        """Called when an environment was built, or an installation ended otherwise."""
        self._running: dict[str, tuple[Installation, asyncio.Task[None]]] = {}
        self._failures: dict[str, _Failure] = {}
        self._turn = asyncio.Semaphore(1)
        """One installation at a time: strangers name them."""
        self._kept: tuple[int, int] | None = None
        """How many environments there are, and their bytes; None if that has changed since."""
        self._told_consent: bool | None = None
        """As the farm was told last; None if what is there has changed since."""

    def told(self) -> Environments:
        """Return what the farm is to know, for a hello."""
        self._told_consent = self._parts.allows()
        installs = self._told_consent and find_uv() is not None
        return Environments(built=self.store.digests(), installs=installs)

    def news(self) -> Environments | None:
        """Return the same if it may be other than what the farm was told last; else None."""
        return self.told() if self._told_consent is not self._parts.allows() else None

    def stats(self) -> EnvironmentStats:
        """Return what the owner sees of it."""
        if self._kept is None:
            kept = self.store.list()
            self._kept = len(kept), sum(about.size_bytes for about in kept)
        count, size_bytes = self._kept
        doing = tuple(installation.sentence for installation in self.installing)
        return EnvironmentStats(
            environments=count, size_bytes=size_bytes, installs=self._parts.allows(), installing=doing
        )

    @property
    def installing(self) -> tuple[Installation, ...]:
        """What is being installed now."""
        return tuple(installation for installation, _ in self._running.values())

    def lack(self, lock: BlobRef | None, fetch: Fetch) -> str | None:
        """Return why a task with this lock can't run now; None if it can. What may be installed is begun."""
        if lock is None or self.store.packages(lock.digest) is not None:
            return None
        if lock.digest in self._running:
            return self._running[lock.digest][0].sentence
        if not self._parts.allows():
            return NO_CONSENT
        failure = self._failures.get(lock.digest)
        if failure is not None and time.monotonic() < failure.retry_at:
            return failure.reason
        installation = Installation()
        doing = asyncio.get_running_loop().create_task(self._build(lock, fetch, installation))
        self._running[lock.digest] = (installation, doing)
        return installation.sentence

    def packages(self, lock: BlobRef) -> Path:
        """Return the folder of an environment that is there. Raises: NoEnvironment if it went meanwhile."""
        path = self.store.packages(lock.digest)
        if path is None:
            raise NoEnvironment("its environment was removed meanwhile")
        return path

    async def settled(self) -> None:
        """Wait until nothing is being installed."""
        while self._running:
            await asyncio.wait([doing for _, doing in self._running.values()])

    async def close(self) -> None:
        """End what runs; nothing of it is left."""
        for _, doing in list(self._running.values()):
            doing.cancel()
        await asyncio.gather(*(doing for _, doing in list(self._running.values())), return_exceptions=True)

    async def _build(self, lock: BlobRef, fetch: Fetch, installation: Installation) -> None:
        name = lock.digest[:12]
        try:
            await self._install(lock, fetch, installation)
        except _Stopped as error:
            self._parts.note(f"the installation of environment {name} was stopped: {error.message}")
        except Exception as error:  # whatever it is, the next try may succeed, and the agent goes on
            self._fail(lock.digest, error.message if isinstance(error, FarmError) else repr(error))
            self._parts.note(f"environment {name} is not installed: {self._failures[lock.digest].reason}")
        else:
            self._failures.pop(lock.digest, None)
            seconds = time.monotonic() - installation.began_at
            self._parts.note(f"environment {name} is installed: {sized(installation.size_bytes)} in {seconds:.0f} s")
        finally:
            self._running.pop(lock.digest, None)
            self._told_consent = self._kept = None
        self.on_change()

    async def _install(self, lock: BlobRef, fetch: Fetch, installation: Installation) -> None:
        async with self._turn:
            await self._install_now(lock, fetch, installation)

    async def _install_now(self, lock: BlobRef, fetch: Fetch, installation: Installation) -> None:
        # not above: they import what reads versions and markers, which an idle agent has no use for
        from farm_client.agent.environments.own_packages import own_packages, to_install  # noqa: PLC0415
        from protocol.locks import read_lock  # noqa: PLC0415

        self._check_wanted()
        path = await fetch(lock)
        pins = to_install(read_lock(await asyncio.to_thread(path.read_bytes)), await asyncio.to_thread(own_packages))
        installation.packages = len(pins)
        self._parts.note(f"installing environment {lock.digest[:12]}: {counted(len(pins), 'package')}")
        folder = await asyncio.to_thread(self.store.begin)
        try:
            free_bytes = shutil.disk_usage(folder).free
            bounds = replace(self._parts.bounds, max_bytes=min(self._parts.bounds.max_bytes, free_bytes // 2))
            await install(pins, folder, bounds, self._parts.index, partial(self._grew, installation))
            if (name := await asyncio.to_thread(shadowed, folder / "packages")) is not None:
                raise NoEnvironment(f"its packages would take the place of the farm's own {name}")
            packages = [f"{pin.name}=={pin.version}" for pin in pins]
            about = await asyncio.to_thread(self.store.finish, folder, lock.digest, packages)
        finally:
            await asyncio.shield(asyncio.to_thread(self.store.give_up, folder))
        installation.size_bytes = about.size_bytes

    def _grew(self, installation: Installation, size_bytes: int) -> None:
        installation.grew_to(size_bytes)
        self._check_wanted()

    def _check_wanted(self) -> None:
        """Raise _Stopped if the owner took the consent back, or wants nothing done now."""
        if (why := self._parts.rests() if self._parts.allows() else NO_CONSENT) is not None:
            raise _Stopped(why)

    def _fail(self, digest: str, reason: str) -> None:
        before = self._failures.get(digest)
        count = 1 if before is None else before.count + 1
        self._failures[digest] = _Failure(reason, count, time.monotonic() + _RETRY.bound_seconds(count))

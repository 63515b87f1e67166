"""Puts the owner's limits in force on a running agent, at once: on its transfers, its cache, its executors.

What the agent tells the farm of this machine is what is lent of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_view import find_task
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.executors.executor_pool import ExecutorPool
from farm_client.agent.executors.throttle import Throttle
from farm_client.agent.machine.duty import Thermostat, cpu_plan
from farm_client.agent.machine.power import PowerLimit
from farm_client.agent.machine.probe import Lending, Probe, usable_cores
from farm_client.agent.owner.limits import OwnerLimits
from farm_client.agent.reporting.owner_front import OwnerFront
from farm_client.agent.settings import AgentSettings
from protocol.wording import sized

_REGULATE_SECONDS: Final = 2.0


def lent(settings: AgentSettings, limits: OwnerLimits) -> Lending:
    """Return how much of this machine is lent: what the join said, narrowed by what the owner has set since."""
    cores = cpu_plan(limits.cpu_share or 1.0, usable_cores()).cores
    return Lending(settings.cpu_cores, settings.max_ram).narrowed(cores, limits.max_ram_bytes)


@dataclass(slots=True)
class Grants:
    """What is lent of one machine while it works. A rate that was set live goes before that of the join."""

    settings: AgentSettings
    probe: Probe
    pool: ExecutorPool
    transfers: Transfers
    cache: BlobCache
    owner: OwnerFront
    power_file: Path
    throttle: Throttle = field(init=False)
    thermostat: Thermostat = field(default_factory=Thermostat)
    power: PowerLimit = field(init=False)
    _limits: OwnerLimits = field(default_factory=OwnerLimits)

    def __post_init__(self) -> None:
        """Begin without limits."""
        self.throttle = Throttle(self.pool.processes)
        self.power = PowerLimit(self.probe.accelerators, self.power_file)

    @asynccontextmanager
    async def in_force(self) -> AsyncIterator[None]:
        """Hold the limits, as they change, for the length of a block."""
        keeper = self.owner.keeper
        keeper.on_policy, keeper.moved_today = self.apply, self.moved_today
        self.owner.verbs["clear_cache"] = self._clear_cache
        self.owner.show_limits(self.in_words)
        self.apply(keeper.policy)
        loop = asyncio.get_running_loop()
        chores = [loop.create_task(self.throttle.run()), loop.create_task(self._keep_cool())]
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.wait(chores)
            self.power.restore()
            self.owner.verbs.pop("clear_cache")
            self.moved_today()
            keeper.on_policy, keeper.moved_today = _nothing_to_limit, self.owner.moved.moved_today

    def apply(self, limits: OwnerLimits) -> None:
        """Put limits in force, in the place of former ones."""
        self._limits, settings, accelerators = limits, self.settings, self.probe.accelerators
        self.probe.lending = lent(settings, limits)
        self.pool.caps.memory_bytes, self.pool.caps.scratch_bytes = limits.max_ram_bytes, limits.max_scratch_bytes
        accelerators.grant(limits.gpus)
        self.pool.lend_gpus(accelerators.visible, accelerators.device_nodes, limits.vram_share)
        with suppress(OSError):  # a disk that takes no note of the former limits: they stay
            self.power.limit(limits.power_watts)
        if limits.target_celsius is None:
            self.thermostat.read(None, None)
        self._hold_back()
        self.transfers.limit(limits.upload_rate or settings.upload_rate, limits.download_rate or settings.download_rate)
        self.cache.resize(min(settings.cache_bytes, limits.max_cache_bytes or settings.cache_bytes))

    def in_words(self) -> dict[str, str]:
        """Return what is limited, as it is in force now."""
        limits, cooled = self._limits, self.thermostat.duty
        quota = limits.daily_quota_bytes
        slowed = {} if cooled == 1.0 else {"slowed down": f"to {cooled:.0%} for the temperature"}
        refused = {"GPU power": "not limited: only root may"} if limits.power_watts and self.power.refused else {}
        moved = {} if quota is None else {"moved today": f"{sized(self.moved_today())} of {sized(quota)}"}
        link = {} if self.transfers.rates() == (None, None) else {"link": self.transfers.link_in_words()}
        return {**limits.limits_in_words(), **refused, **slowed, **moved, **link}

    def regulate(self) -> None:
        """Take in the hottest GPU's temperature, where the owner wants one held."""
        if self._limits.target_celsius is not None:
            hottest = max(self.probe.accelerators.temperatures().values(), default=None)
            self.thermostat.read(hottest, self._limits.target_celsius)
            self._hold_back()

    def _hold_back(self) -> None:
        cores = usable_cores()
        plan = cpu_plan(self._limits.cpu_share or 1.0, cores)
        duty = self._limits.duty * self.thermostat.duty
        if self.pool.has_cgroups:  # the kernel holds the share, to the microsecond
            share = self._limits.cpu_share
            self.pool.caps.cpu_cores = None if share is None else share * cores
        else:
            duty *= plan.duty
        self.throttle.limit(duty, plan.cores if plan.cores < cores else None)

    async def _keep_cool(self) -> None:
        while True:
            await asyncio.sleep(_REGULATE_SECONDS)
            self.regulate()

    def moved_today(self) -> int:
        """Count what has moved, and return how many bytes that are today."""
        tally = self.transfers.tally
        self.owner.moved.count(tally.sent_bytes + tally.received_bytes)
        return self.owner.moved.moved_today()

    def _clear_cache(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remove what is kept of a task, or all; what something uses now stays. Raises: NoSuchTask."""
        self.cache.save_book()  # which names the tasks
        task = request.get("task")
        return self.cache.clear(None if task is None else find_task(self.cache.root, str(task)))._asdict()


def _nothing_to_limit(_limits: OwnerLimits) -> None:
    """Nothing runs any more."""

"""Puts the owner's limits in force on a running agent, at once: on its transfers, its cache, its executors.

What the agent tells the farm of this machine is what is lent of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_view import find_task
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.executors.executor_pool import ExecutorPool
from farm_client.agent.executors.throttle import Throttle
from farm_client.agent.machine.duty import cpu_plan
from farm_client.agent.machine.probe import Lending, Probe, usable_cores
from farm_client.agent.owner.limits import OwnerLimits
from farm_client.agent.reporting.owner_front import OwnerFront
from farm_client.agent.settings import AgentSettings
from protocol.wording import sized


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
    throttle: Throttle = field(init=False)

    def __post_init__(self) -> None:
        """Begin without limits."""
        self.throttle = Throttle(self.pool.processes)

    @asynccontextmanager
    async def in_force(self) -> AsyncIterator[None]:
        """Hold the limits, as they change, for the length of a block."""
        keeper = self.owner.keeper
        keeper.on_policy, keeper.moved_today = self.apply, self.moved_today
        self.owner.verbs["clear_cache"] = self._clear_cache
        self.apply(keeper.policy)
        throttling = asyncio.get_running_loop().create_task(self.throttle.run())
        try:
            yield
        finally:
            throttling.cancel()
            await asyncio.wait([throttling])
            self.owner.verbs.pop("clear_cache")
            self.moved_today()
            keeper.on_policy, keeper.moved_today = _nothing_to_limit, self.owner.moved.moved_today

    def apply(self, limits: OwnerLimits) -> None:
        """Put limits in force, in the place of former ones."""
        settings, cores = self.settings, usable_cores()
        plan = cpu_plan(limits.cpu_share or 1.0, cores)
        self.probe.lending = lent(settings, limits)
        self.pool.caps.memory_bytes, self.pool.caps.scratch_bytes = limits.max_ram_bytes, limits.max_scratch_bytes
        self.throttle.limit(plan.duty * limits.duty, plan.cores if plan.cores < cores else None)
        self.transfers.limit(limits.upload_rate or settings.upload_rate, limits.download_rate or settings.download_rate)
        self.cache.resize(min(settings.cache_bytes, limits.max_cache_bytes or settings.cache_bytes))
        self.owner.show_limits(self.in_words(limits))

    def in_words(self, limits: OwnerLimits) -> Mapping[str, str]:
        """Return what is limited, as it is in force now."""
        quota = limits.daily_quota_bytes
        moved = {} if quota is None else {"moved today": f"{sized(self.moved_today())} of {sized(quota)}"}
        return {**limits.limits_in_words(), **moved}

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

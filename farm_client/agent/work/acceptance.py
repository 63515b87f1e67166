"""Whether an assignment is taken: what this machine lacks for it, or why it is handed back, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from farm_client.agent.errors import LacksModule
from farm_client.agent.machine.probe import Probe
from farm_client.agent.owner.keeper import PolicyKeeper
from farm_client.agent.work.job import Tools
from farm_client.agent.work.preflight import Rejection, Standing, lacking, refusal
from protocol.assignments import Assign, RejectCode
from protocol.tasks import TaskBrief


@dataclass(frozen=True, slots=True)
class Moment:
    """How the worker stands now: its free slots, whether it leaves, and why the owner wants nothing done, if so."""

    free_slots: int
    draining: bool
    resting: str | None


class Acceptance:
    """Looks at the machine, the owner's policy and the task's packages."""

    def __init__(self, tools: Tools, probe: Probe, owner: PolicyKeeper) -> None:
        self._tools = tools
        self._probe = probe
        self._owner = owner

    def lack(self, task: TaskBrief) -> LacksModule | None:
        """Return what is not installed here that the task names; what its environment has need not be."""
        lock = task.environment
        packages = None if lock is None else self._tools.environments.store.packages(lock.digest)
        if lock is not None and packages is None:
            return None  # once it is there, the task comes again
        module = lacking(task.modules, packages)
        return None if module is None else LacksModule(f"No module named '{module}'")

    def refusal(self, assign: Assign, now: Moment) -> Rejection | None:
        """Return why the assignment is handed back, or None if it is taken.

        Memory is read only where it matters: a task that has its executor has its memory already. An environment that
        is not there, and may be, is begun to be installed.
        """
        task = assign.task
        must_start = task.needed_ram_bytes > 0 and self._tools.pool.find(task.task_id) is None
        standing = Standing(
            free_slots=now.free_slots,
            ram_free_bytes=self._probe.ram_free_bytes() if must_start else None,
            draining=now.draining,
            work_for=self._owner.policy.work_for,
            wanted=self._owner.policy.wanted,
            resting=now.resting,
        )
        if (refused := refusal(assign, standing)) is not None:
            return refused
        lack = self._tools.environments.lack(task.environment, self._tools.fetcher.fetch)
        return None if lack is None else Rejection(RejectCode.ENVIRONMENT, lack)

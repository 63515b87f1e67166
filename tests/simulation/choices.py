"""What a machine's owner chose of work and packages, and which environments are on its disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from protocol.assignments import Assign, Kind
from protocol.environments import Environments
from protocol.tasks import TaskSpec
from protocol.wanted_work import ANY_WORK, WantedWork
from tests.coordinator.farm_simulation import blob
from tests.simulation.violation import check

INSTALL_SECONDS: Final = 3.0
_TOPICS: Final = ("ads", "science")
_LOCKS: Final = (blob("lock a"), blob("lock b"))


@dataclass(slots=True)
class Choices:
    """What is chosen stays; what is built outlives the agent."""

    wanted: WantedWork = ANY_WORK
    installs: bool = True
    built: set[str] = field(default_factory=set)

    def told(self) -> Environments:
        """Return what the farm hears of environments."""
        return Environments(built=tuple(sorted(self.built)), installs=self.installs)

    def check_offer(self, assign: Assign, topics: tuple[str, ...]) -> None:
        """See that an offer is what the farm was told is wanted, and that its packages can be had."""
        unwanted = self.wanted.why_not(assign.kind, topics)
        check(unwanted is None, f"{assign.assignment_id} is offered, though {unwanted}")
        lock = assign.task.environment
        can_be_had = lock is None or self.installs or lock.digest in self.built
        check(can_be_had, f"{assign.assignment_id} needs packages that its client may not install")

    def lacks(self, assign: Assign) -> str | None:
        """Return the environment that is to be installed first; None if nothing is."""
        lock = assign.task.environment
        return None if lock is None or lock.digest in self.built else lock.digest


def draw_choices(rng: Random, number: int) -> Choices:
    """Draw an owner's choices. The first one does every task, so that each comes to its end."""
    if number == 0:
        return Choices()
    kinds = rng.choice(((), (), (Kind.TRAIN,), (Kind.EVALUATE,), (Kind.EVALUATE, Kind.EPOCH_END)))
    wanted = WantedWork(kinds=kinds, topics=_some(rng), not_topics=_some(rng))
    built = {lock.digest for lock in _LOCKS if rng.random() < 0.3}
    return Choices(wanted, installs=rng.random() < 0.5, built=built)


def with_choices(rng: Random, task: TaskSpec) -> TaskSpec:
    """Give a task topics, and packages of its own."""
    lock = rng.choice((None, *_LOCKS))
    return task.model_copy(update={"topics": _some(rng), "environment": lock, "epoch_end": rng.random() < 0.5})


def _some(rng: Random) -> tuple[str, ...]:
    return tuple(topic for topic in _TOPICS if rng.random() < 0.4)

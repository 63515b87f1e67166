"""What it brings to give a straggler's part to a second client: rounds of the real coordinator in simulated time.

Nothing sleeps and nothing is trained. A part takes a client a second for each sample; now and then, drawn by a seed, it
takes many times as long, as on a machine whose owner comes back to it. Source of the idea: see
``coordinator.stragglers``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Final

from benchmarks.measurement import Measurement
from benchmarks.scheduling import BareFarm, task_spec
from coordinator.commands import Command, CommitRound, Send
from coordinator.events import ClientReady, TaskSubmitted, Tick
from coordinator.settings import CoordinatorSettings
from protocol.assignments import Cancel
from protocol.recipe import Requirements

BEAT_SECONDS: Final = 2.0
SLOW_SHARE: Final = 0.05
"""Of the parts."""
SLOW_FACTOR: Final = 20.0
NEVER: Final = 1e9


@dataclass(frozen=True)
class Backups(Measurement):
    """Simulated seconds for a round, with backup tasks and without; ``gain`` is the second over the first.

    ``outrun_share`` is of all parts begun: those that were stopped because another client was faster.
    """

    clients: int
    rounds: int
    with_backups_s: float
    without_s: float
    gain: float
    outrun_share: float


def measure(clients: int, rounds: int, seed: int = 0) -> Backups:
    """Simulate so many rounds each way."""
    usual = CoordinatorSettings()
    backed = Volunteers(clients, usual, seed)
    alone = Volunteers(clients, replace(usual, deadline_factor=NEVER, stall_seconds=NEVER), seed)
    with_backups_s, without_s = backed.seconds_for(rounds) / rounds, alone.seconds_for(rounds) / rounds
    gain = without_s / with_backups_s
    return Backups("backups", clients, rounds, with_backups_s, without_s, gain, backed.outrun / backed.begun)


class Volunteers(BareFarm):
    """Clients that do what they are assigned, each part in the time that the seed gives it, and beat meanwhile."""

    def __init__(self, clients: int, settings: CoordinatorSettings, seed: int) -> None:
        super().__init__(settings)
        self.committed = 0
        self.begun = 0
        self.outrun = 0
        self._seed = seed
        self._begun_at: dict[str, float] = {}
        self._due: list[tuple[float, int, str]] = []
        """When something is heard of which assignment: progress, or its result."""
        for number in range(clients):
            self.join(f"client {number}")
        self.handle(TaskSubmitted("task", task_spec(clients, Requirements())))

    def seconds_for(self, rounds: int) -> float:
        """Return the simulated seconds until so many rounds are committed."""
        began_at = self.now
        while self.committed < rounds:
            self._take_up()
            self.now, _, name = heappop(self._due)
            if name in self.assigned:
                self._hear(name)
            self.handle(Tick())
        return self.now - began_at

    def _take_up(self) -> None:
        for name in [name for name in self.assigned if name not in self._begun_at]:
            self._begun_at[name] = self.now
            self.begun += 1
            self.beat(name, 0)
            self._expect(name)

    def _expect(self, name: str) -> None:
        end = self._begun_at[name] + self._seconds(name)
        heappush(self._due, (min(self.now + BEAT_SECONDS, end), len(self._due), name))

    def _hear(self, name: str) -> None:
        seconds, passed = self._seconds(name), self.now - self._begun_at[name]
        if passed >= seconds:
            self.result(name, seconds)
            return
        self.beat(name, int(self.assigned[name][1].samples * passed / seconds))
        self._expect(name)

    def _seconds(self, name: str) -> float:
        """Return how long a client computes on a part: the same whenever the same client has it in the same round."""
        client_id, assign = self.assigned[name]
        luck = random.Random(f"{self._seed}/{assign.round}/{client_id}").random()
        return assign.samples * (SLOW_FACTOR if luck < SLOW_SHARE else 1.0)

    def _carry_out(self, command: Command) -> None:
        self.committed += isinstance(command, CommitRound)
        super()._carry_out(command)
        if isinstance(command, Send) and isinstance(command.message, Cancel):
            self.outrun += self.assigned.pop(command.message.assignment_id, None) is not None
            self.handle(ClientReady(command.client_id, 1, 1))

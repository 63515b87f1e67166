"""More tasks than a client keeps executors for: each is served for a while, and all get as much in the long run."""

from __future__ import annotations

from collections import Counter

import pytest

from coordinator.settings import CoordinatorSettings
from protocol.assignments import Assign
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

ROUND_SECONDS = 0.25
QUICK = CoordinatorSettings(quantum_seconds=3.0, keep_seconds=0.5, ageing_seconds=6.0, usage_half_life_seconds=60.0)
"""The usual times, a tenth of them."""


class Crowd:
    """Tasks of one researcher beside each other, on clients that need some time for each sample."""

    def __init__(self, tasks: dict[str, int], clients: int, settings: CoordinatorSettings | None = None) -> None:
        self.farm = Simulation(settings=settings)
        self.samples = Counter[str]()
        self.seconds = Counter[str]()
        self.rounds = 0
        self.switches = 0
        self.last: dict[str, str] = {}
        for name, samples in tasks.items():
            self.farm.submit(
                spec(name=name, shards=(1000,) * 40, rounds=10**6, round_samples=samples, min_clients=1), name
            )
        for number in range(clients):
            self.farm.join(f"c{number}")

    def run(self, seconds: float, seconds_per_sample: float) -> None:
        """Let simulated time pass: a client is done with its part after so long, and then gets another."""
        done_at: dict[str, float] = {}
        end = self.farm.now + seconds
        next_tick = self.farm.now
        while self.farm.now < end:
            for volunteer in self.farm.volunteers.values():
                if volunteer.held and volunteer.name not in done_at:
                    cost = volunteer.held[0].samples * seconds_per_sample
                    done_at[volunteer.name] = self.farm.now + cost
            name = min(done_at, key=lambda n: done_at[n], default=None)
            if name is None or done_at[name] > next_tick:
                self.farm.now = next_tick
                self.farm.tick(0.0)
                next_tick += 0.25
                continue
            self.farm.now = max(done_at.pop(name), self.farm.now)
            volunteer = self.farm.volunteers[name]
            if volunteer.held:
                self.note(volunteer, volunteer.held[0], seconds_per_sample)
                self.farm.deliver(volunteer, seconds=volunteer.held[0].samples * seconds_per_sample)

    def note(self, volunteer: Volunteer, assign: Assign, seconds_per_sample: float) -> None:
        task = assign.task.task_id
        self.rounds += 1
        self.samples[task] += assign.samples
        self.seconds[task] += assign.samples * seconds_per_sample
        self.switches += self.last.get(volunteer.name, task) != task
        self.last[volunteer.name] = task


@pytest.mark.parametrize("tasks", [4, 8])
def test_equal_tasks_get_equal_time_with_few_changes_of_task(tasks: int) -> None:
    crowd = Crowd({f"t{n}": 20 for n in range(tasks)}, 2, QUICK)
    crowd.run(300.0, ROUND_SECONDS / 20)
    shares = [crowd.seconds[f"t{n}"] / crowd.seconds.total() for n in range(tasks)]
    assert max(shares) - min(shares) < 0.15 / tasks, shares
    assert crowd.switches / crowd.rounds < 0.1, "an executor's start is spread over ten rounds at least"
    assert crowd.seconds.total() > 0.9 * 2 * 300, "no client idles to be kept for a task"


def test_a_task_of_small_rounds_gets_as_much_as_its_neighbours() -> None:
    crowd = Crowd({"small": 16, "a": 256, "b": 256, "c": 256}, 2, QUICK)
    crowd.run(300.0, 0.005)
    assert crowd.samples["small"] > 0.8 * crowd.samples["a"]
    assert crowd.samples["small"] < 1.25 * crowd.samples["a"]


def test_without_a_quantum_each_round_is_another_tasks() -> None:
    """What the quantum is there for; and that it is what makes the difference."""
    settings = CoordinatorSettings(quantum_seconds=0.0, keep_seconds=0.0)
    crowd = Crowd({f"t{n}": 20 for n in range(4)}, 2, settings)
    crowd.run(60.0, ROUND_SECONDS / 20)
    assert crowd.switches / crowd.rounds > 0.3


def test_a_new_task_begins_level_with_the_others() -> None:
    crowd = Crowd({"a": 20, "b": 20}, 2, QUICK)
    crowd.run(60.0, ROUND_SECONDS / 20)
    before = Counter(crowd.seconds)
    crowd.farm.submit(spec(name="new", shards=(1000,) * 40, rounds=10**6, round_samples=20), "new")
    crowd.run(60.0, ROUND_SECONDS / 20)
    assert crowd.seconds["new"] < 1.5 * 120 / 3, "it is owed nothing for the time before"
    assert crowd.seconds["new"] > 0.6 * 120 / 3
    assert crowd.seconds["a"] - before["a"] > 0.6 * 120 / 3


def test_a_client_that_worked_on_a_task_before_is_preferred() -> None:
    farm = Simulation(settings=CoordinatorSettings(quantum_seconds=5.0))
    farm.submit(spec(name="one", rounds=10**6, max_clients=1), "one")
    ada = farm.join("ada")
    farm.deliver(ada)
    farm.leave(ada)
    bob = farm.join(Volunteer("bob", gflops=1000.0))
    farm.tick(6.0)
    assert bob.held
    eve = farm.join(Volunteer("eve", gflops=2000.0))
    farm.tick(3.0)
    farm.deliver(bob)
    assert bob.held
    assert not eve.held


def test_a_client_is_kept_for_a_moment_between_two_rounds_and_no_longer() -> None:
    farm = Simulation()
    farm.submit(spec(name="one", rounds=10), "one")
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.deliver(ada) if ada.held else None
    farm.submit(spec(name="two", rounds=10), "two")
    busy, free = (bob, ada) if bob.held else (ada, bob)
    if not free.held:
        farm.tick(farm.settings.keep_seconds + 0.1)
    assert busy.held
    assert free.held, "a slow part of a round does not keep the other clients for long"

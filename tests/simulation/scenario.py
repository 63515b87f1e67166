"""What a seed stands for: tasks, clients, settings, and which faults there will be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

from coordinator.settings import CoordinatorSettings
from protocol.aggregates import COUNTING_LIARS, ROBUST_VOTES, AggregateName, votes_needed
from protocol.data_split import DataPart, SplitName
from protocol.maps import MapPlan, OnError
from protocol.recipe import PartSizes, Recipe, Requirements
from protocol.retry import RetryPolicy
from protocol.sandbox import Rung, Sandbox
from protocol.secure_aggregation import LEAST_CLIENTS
from protocol.tasks import Dataset, Split, TaskSpec
from tests.coordinator.farm_simulation import spec
from tests.simulation.choices import Choices, draw_choices, with_choices

FAULTS = (
    "cut",
    "silence",
    "partition",
    "client_crash",
    "client_loss",
    "bye",
    "drain",
    "slow_client",
    "stuck",
    "executor_fails",
    "code_fails",
    "passing_fault",
    "counts_wrong",
    "rejects",
    "repeat",
    "owner_pauses",
    "owner_resumes",
    "server_crash",
    "clock_jump",
    "disk_slow",
    "disk_full",
    "aggregation_fails",
    "bad_update",
    "damage",
    "pause_task",
    "resume_task",
    "cancel_task",
    "retry_task",
    "submit",
)


ROBUST_FROM = 1_000_000
"""Seeds from here on have tasks with a robust aggregate; the tasks of those before add their updates up."""
EARLY_FROM = 2_000_000
"""Seeds from here on have tasks that may stop before their recipe ends."""
EPOCH_ENDS_FROM = 3_000_000
"""Seeds from here on have tasks whose code has an ``on_epoch_end``."""
OWNERS_FROM = 4_000_000
"""Seeds from here on have tasks that ask for a sandbox, clients with less, and owners who allow some people only."""
POISON = "poison"
"""In a map's config: the positions of the items that end executors."""
POISON_FROM = 5_500_000
"""Seeds from here on have maps with items that end executors."""
CHOICES_FROM = 6_000_000
"""Seeds from here on have owners who choose kinds of work and topics, and tasks with packages of their own."""
MAPS_FROM = 5_000_000
"""Seeds from here on have tasks that map a function over their data."""
ASYNCHRONOUS_FROM = 7_000_000
"""Seeds from here on have tasks whose clients wait for nobody."""
SECURE_FROM = 8_000_000
"""Seeds from here on have tasks of whose rounds the server learns the sum alone."""
DISTANCES_FROM = 9_000_000
"""Seeds from here on have tasks with a robust aggregate by distances or norms."""
SPLITS_FROM = 10_000_000
"""Seeds from here on have tasks whose rows are dealt to virtual clients, some with control variates."""
_BY_DISTANCE = (
    AggregateName.KRUM,
    AggregateName.MULTI_KRUM,
    AggregateName.BULYAN,
    AggregateName.GEOMETRIC_MEDIAN,
    AggregateName.CENTERED_CLIPPING,
    AggregateName.NORM_BOUNDING,
)
_RUNGS: tuple[Rung | None, ...] = (None, None, *Rung)
_SANDBOXES = (None, *(Sandbox(rung=rung, probes=probes) for rung in Rung for probes in (0, 1)))
_BEST = Sandbox(rung=Rung.STRICT, probes=1)
_TWO = Requirements(clients=("c0", "c1"))
_NOBODY = Requirements(tags=("quantum",))


@dataclass(frozen=True, slots=True)
class Machine:
    """One client as it is when it joins."""

    name: str
    slots: int
    samples_per_second: float
    keeps_jobs: bool
    joins_at: float
    sandboxes: tuple[Sandbox | None, ...] = (None,)
    """Each of its starts finds one of these."""
    allows: frozenset[str] | None = None
    """Whose tasks its owner lets it work on; None: anybody's."""
    choices: Choices = field(default_factory=Choices)


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that is drawn before the first event. ``weights``: how often each fault comes, relative to the others."""

    seed: int
    settings: CoordinatorSettings
    tasks: tuple[tuple[float, TaskSpec], ...]
    machines: tuple[Machine, ...]
    weights: dict[str, float]
    stormy_seconds: float
    fault_every_seconds: float

    def draw_task(self, rng: Random) -> TaskSpec:
        """Draw another task of its kind."""
        return _draw_task(rng, len(self.machines), self.seed)


def draw_scenario(seed: int) -> Scenario:
    """Draw it. A seed has some kinds of faults and lacks others, so that common ones do not drown rare ones."""
    rng = Random(seed)
    is_secure = SECURE_FROM <= seed < DISTANCES_FROM
    least = ROBUST_VOTES if ROBUST_FROM <= seed < EARLY_FROM else LEAST_CLIENTS if is_secure else 1
    machines = rng.randint(least, 6)
    if DISTANCES_FROM <= seed < SPLITS_FROM:
        machines = votes_needed(AggregateName.BULYAN, 1)
    kinds = rng.sample(FAULTS, rng.randint(0, len(FAULTS)))
    return Scenario(
        seed=seed,
        settings=_settings(),
        tasks=tuple(
            (rng.uniform(0, 20) * (number > 0), _draw_task(rng, machines, seed))
            for number in range(rng.choice((1, 1, 2, 3)))
        ),
        machines=tuple(_machine(rng, number, seed) for number in range(machines)),
        weights={kind: rng.choice((1.0, 1.0, 3.0, 10.0)) for kind in sorted(kinds)},
        stormy_seconds=rng.choice((10.0, 40.0, 90.0)),
        fault_every_seconds=rng.choice((0.5, 1.5, 4.0, 10.0)),
    )


def _settings() -> CoordinatorSettings:
    """The defaults with shorter waits, so that more happens in less simulated time."""
    return CoordinatorSettings(
        offer_seconds=4.0,
        stall_seconds=12.0,
        return_seconds=6.0,
        deadline_grace_seconds=5.0,
        breaker_failures=3,
        does_not_fit_seconds=10.0,
        quantum_seconds=4.0,
        keep_seconds=1.0,
        task_retry=RetryPolicy(first_seconds=0.5, longest_seconds=4.0),
        client_retry=RetryPolicy(first_seconds=1.0, longest_seconds=8.0),
        breaker_retry=RetryPolicy(first_seconds=2.0, longest_seconds=15.0),
    )


def _machine(rng: Random, number: int, seed: int) -> Machine:
    machine = Machine(
        name=f"c{number}",
        slots=rng.choice((1, 1, 1, 2, 3)),
        samples_per_second=rng.choice((10.0, 30.0, 100.0)),
        keeps_jobs=rng.random() < 0.6,
        joins_at=rng.choice((0.0, rng.uniform(0, 10))),
    )
    if CHOICES_FROM <= seed < ASYNCHRONOUS_FROM:
        return replace(machine, sandboxes=(_BEST,), choices=draw_choices(rng, number))
    return _of_an_owner(rng, machine, number) if OWNERS_FROM <= seed < ASYNCHRONOUS_FROM else machine


def _of_an_owner(rng: Random, machine: Machine, number: int) -> Machine:
    """Give a machine a sandbox and an owner. The first one can do every task, so that each comes to its end."""
    if number == 0:
        return replace(machine, sandboxes=(_BEST,))
    allows = rng.choice((None, frozenset({"ada"}), frozenset({"bob", "eve"})))
    return replace(machine, sandboxes=tuple(rng.sample(_SANDBOXES, 2)), allows=allows)


def _draw_task(rng: Random, machines: int, seed: int) -> TaskSpec:
    """Draw a task of a few small rounds, of the kind that a seed has."""
    task = _draw_mean_task(rng, machines)
    if seed >= SPLITS_FROM:
        return _split(rng, task)
    if seed >= DISTANCES_FROM:
        return _voting_by_distance(rng, task)
    if seed >= SECURE_FROM:
        return _secure(rng, task)
    if seed >= ASYNCHRONOUS_FROM:
        return _waiting_for_nobody(rng, task)
    if seed >= OWNERS_FROM:
        recipe = task.recipe.model_copy(update={"min_clients": 1})
        task = task.model_copy(update={"recipe": recipe, "requirements": Requirements(sandbox=rng.choice(_RUNGS))})
        if seed >= CHOICES_FROM:
            return with_choices(rng, task)
        if seed >= POISON_FROM:
            return _poisoned(rng, _mapping(rng, task))
        return _mapping(rng, task) if seed >= MAPS_FROM else task
    if seed >= EPOCH_ENDS_FROM:
        return task.model_copy(update={"epoch_end": True})
    if seed >= EARLY_FROM:
        return _stopping_early(rng, task)
    return _voting(rng, task) if seed >= ROBUST_FROM else task


def _mapping(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let a task map a function over its training data."""
    shards = task.dataset.of(Split.TRAIN)
    plan = MapPlan(
        part_items=rng.choice((None, None, 4, 8)),
        part_seconds=rng.choice((0.2, 1.0, 5.0)),
        batch_items=rng.choice((1, 4)),
    )
    recipe = Recipe(epochs=1, max_retries=task.recipe.max_retries, longest_round_seconds=60.0, gather_seconds=0.0)
    dataset = Dataset(kind="files", shards=shards)
    return task.model_copy(update={"map": plan, "recipe": recipe, "dataset": dataset})


def _poisoned(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let one or two items of a map end the executors that are given them; some maps stop at that."""
    items = rng.sample(range(task.dataset.samples(Split.TRAIN)), rng.choice((1, 1, 2)))
    plan = (task.map or MapPlan()).model_copy(update={"on_error": rng.choice((OnError.SKIP,) * 5 + (OnError.STOP,))})
    return task.model_copy(update={"map": plan, "config": {POISON: items}})


def _stopping_early(rng: Random, task: TaskSpec) -> TaskSpec:
    """Give a task a rule to stop by; held-out losses are 1 in the simulation."""
    rules: tuple[dict[str, object], ...] = (
        {"max_seconds": rng.uniform(0.5, 30.0)},
        {"patience": rng.choice((1, 2)), "keep_best": "min:loss"},
        {"target": rng.choice(("loss<=1", "loss<=0.5"))},
    )
    rule = rng.choice(rules if task.dataset.samples(Split.HOLDOUT) else rules[:1])
    recipe = task.recipe.model_dump() | rule | {"evaluate_every": rng.choice((1, 2, 3))}
    return task.model_copy(update={"recipe": Recipe.model_validate(recipe)})


def _waiting_for_nobody(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let a version be of some results, whoever brings them."""
    of_clients = {"quorum_clients": rng.choice((1, 2)), "grace": rng.choice((0.0, 0.5, 3.0)), "max_clients": None}
    asynchronous = {
        **rng.choice(({"buffer": rng.choice((1, 2, 3, 5))}, of_clients)),
        "max_staleness": rng.choice((1, 3, 16)),
        "pipeline": False,
        "quorum": 1.0,
        "over_provision": 0.0,
    }
    recipe = Recipe.model_validate(task.recipe.model_dump() | asynchronous)
    return task.model_copy(update={"recipe": recipe})


def _secure(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let the server learn a task's sums alone."""
    summed = {
        "secure_aggregation": True,
        "min_clients": LEAST_CLIENTS,
        "max_clients": None,
        "max_staleness": 0,
        "pipeline": False,
        "over_provision": 0.0,
        "quorum": 1.0,
        "round_samples": max(task.recipe.round_samples, LEAST_CLIENTS),
        "parts": rng.choice(("speed", "speed", "fixed")),
    }
    requirements = task.requirements if task.requirements != _TWO else Requirements()
    recipe = Recipe.model_validate(task.recipe.model_dump() | summed)
    return task.model_copy(update={"recipe": recipe, "requirements": requirements})


def _split(rng: Random, task: TaskSpec) -> TaskSpec:
    """Deal a task's rows to virtual clients, each with some shards."""
    train = task.dataset.of(Split.TRAIN)
    cuts = sorted(rng.sample(range(1, len(train)), rng.randint(0, len(train) - 1)))
    groups = [train[start:stop] for start, stop in pairwise([0, *cuts, len(train)])]
    parts = tuple(DataPart(shards=len(group), samples=sum(shard.samples for shard in group)) for group in groups)
    dealt = {
        "split": SplitName.IID,
        "split_parts": len(parts),
        "parts": PartSizes.FIXED,
        "max_staleness": 0,
        "pipeline": False,
        "quorum": 1.0,
        "over_provision": 0.0,
        **({"scaffold_clients": len(parts), "inner_state": "carried"} if rng.random() < 0.5 else {}),
    }
    recipe = Recipe.model_validate(task.recipe.model_dump() | dealt)
    dataset = Dataset(kind="files", shards=task.dataset.shards, parts=parts)
    return task.model_copy(update={"recipe": recipe, "dataset": dataset})


def _voting_by_distance(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let each client's update of a task have one vote, whose distance to others counts."""
    return _with_votes(task, rng.choice(_BY_DISTANCE))


def _voting(rng: Random, task: TaskSpec) -> TaskSpec:
    """Let each client's update of a task have one vote."""
    return _with_votes(task, rng.choice((AggregateName.MEDIAN, AggregateName.TRIMMED_MEAN)))


def _with_votes(task: TaskSpec, aggregate: AggregateName) -> TaskSpec:
    byzantine = int(aggregate in COUNTING_LIARS)
    votes = {
        "aggregate": aggregate,
        "trim_share": 0.25 if aggregate is AggregateName.TRIMMED_MEAN else 0.0,
        "byzantine": byzantine,
        "min_clients": votes_needed(aggregate, byzantine),
        "max_clients": None,
        "max_staleness": 0,
        "pipeline": False,
    }
    requirements = task.requirements if task.requirements != _TWO else Requirements()
    recipe = Recipe.model_validate(task.recipe.model_dump() | votes)
    return task.model_copy(update={"recipe": recipe, "requirements": requirements})


def _draw_mean_task(rng: Random, machines: int) -> TaskSpec:
    shards = tuple(rng.randint(1, 40) for _ in range(rng.randint(1, 10)))
    round_samples = rng.randint(1, 80)
    rounds = min(-(-sum(shards) // round_samples), 12)
    by_epochs = rng.random() < 0.6 and rounds < 12
    spare = rng.choice((0.0, 0.0, 0.3, 1.0))
    staleness = rng.choice((0, 0, 1, 3))
    return spec(
        shards=shards,
        holdout=(7, 5) if rng.random() < 0.4 else (),
        requirements=rng.choice((*[None] * 16, _TWO, _TWO, _NOBODY)),
        submitter=rng.choice(("ada", "bob", "eve")),
        priority=rng.choice((1, 5, 5, 9)),
        mode="weights",
        rounds=None if by_epochs else rng.randint(1, 12),
        epochs=rng.choice((1, 1, 2)) if by_epochs else None,
        round_samples=round_samples,
        min_clients=min(rng.choice((1, 1, 1, 2)), machines),
        max_clients=rng.choice((None, None, 2)),
        gather_seconds=rng.choice((0.0, 1.0)),
        longest_round_seconds=rng.choice((0.0, 20.0, 60.0)) + 8.0 + 0.3 * round_samples * (1 + spare),
        quorum=rng.choice((1.0, 1.0, 0.5, 0.8)),
        over_provision=spare,
        max_staleness=staleness,
        keep_every=rng.choice((0, 0, 3)),
        pipeline=staleness > 0 and rng.random() < 0.6,
        max_retries=rng.choice((1, 1_000, 1_000)),
    )

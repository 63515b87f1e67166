"""Who is served: the queue, fairness, requirements, the score, and the reasons people are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.eligibility import needed_ram_bytes, qualifies
from coordinator.events import AssignmentRejected, ClientConnected, ClientReady
from coordinator.lifecycle import TaskState
from coordinator.offers import brief
from coordinator.queue import band, fair_share, queue_order
from coordinator.records import ClientRecord, TaskRecord
from coordinator.scoring import WEIGHTS, Facts, reliability, score, total
from coordinator.throughput import DecayingSum, MovingAverage
from protocol.assignments import Kind, RejectCode
from protocol.data_split import DataPart
from protocol.named_schedule import NamedSchedule
from protocol.recipe import InnerState, Mode, Requirements
from protocol.resources import Gpu, Resources
from protocol.task_length import global_steps, task_length
from protocol.tasks import BaseFile, Footprint, Origin, Split
from protocol.versions import (
    BASE_FOLDER,
    CARRIED_STATE,
    CONTROL_VARIATES,
    FRAGMENTS,
    FROZEN_APART,
    NAMED_SCHEDULE,
    PROXIMAL_TERM,
    QUANTIZED_BASE,
    SPLIT_VARIATES,
    STEP_RULES,
    TASK_LENGTH,
)
from tests.coordinator.farm_simulation import GIGABYTE, Simulation, Volunteer, blob, spec


@pytest.fixture
def farm() -> Simulation:
    return Simulation()


def task(name: str, priority: int = 5, created_at: float = 0.0, served_at: float = 0.0, submitter: str = "ada"):
    return TaskRecord(
        task_id=name,
        spec=spec(priority=priority, submitter=submitter),
        state=TaskState.PENDING,
        created_at=created_at,
        served_at=served_at,
    )


def names(tasks: list[TaskRecord]) -> list[str]:
    return [t.task_id for t in tasks]


def test_higher_priority_first_then_the_one_served_longest_ago() -> None:
    tasks = [task("low", 1), task("b", 5, served_at=20), task("a", 5, served_at=10), task("high", 9, served_at=29)]
    assert names(queue_order(tasks, {}, now=30, ageing_seconds=60)) == ["high", "a", "b", "low"]


def test_a_waiting_task_ages_to_the_top_and_no_further() -> None:
    assert band(task("t", 0), now=59, ageing_seconds=60) == 0
    assert band(task("t", 0), now=61, ageing_seconds=60) == 1
    assert band(task("t", 0), now=10_000, ageing_seconds=60) == 9


def test_the_submitter_that_used_less_comes_first() -> None:
    used = {"ada": DecayingSum(600), "bob": DecayingSum(600)}
    used["ada"].add(100, now=0)
    used["bob"].add(10, now=0)
    tasks = [task("of ada"), task("of bob", submitter="bob")]
    assert names(queue_order(tasks, used, now=1, ageing_seconds=60)) == ["of bob", "of ada"]
    used["bob"].add(900, now=1)
    assert names(queue_order(tasks, used, now=2, ageing_seconds=60)) == ["of ada", "of bob"]


def test_past_use_is_forgotten_by_halves() -> None:
    used = DecayingSum(half_life_seconds=10)
    used.add(8, now=0)
    assert used.read(10) == pytest.approx(4)
    assert used.read(30) == pytest.approx(1)


@pytest.mark.parametrize(
    ("idle", "peers", "needed", "share"), [(4, 1, 1, 4), (4, 2, 1, 2), (5, 2, 1, 3), (4, 4, 3, 3), (2, 4, 3, 2)]
)
def test_fair_share(idle: int, peers: int, needed: int, share: int) -> None:
    assert fair_share(idle, peers, needed) == share


def test_two_tasks_share_the_clients_and_neither_starves(farm: Simulation) -> None:
    for name in ("ada", "bob", "eve", "max"):
        farm.join(name)
    farm.submit(spec(name="one", rounds=3), "t1")
    farm.submit(spec(name="two", rounds=3, submitter="grace"), "t2")
    farm.run()
    assert farm.task("t1").state is TaskState.COMPLETED
    assert farm.task("t2").state is TaskState.COMPLETED


def test_tasks_that_wait_together_part_the_clients(farm: Simulation) -> None:
    farm.submit(spec(name="one"), "t1")
    farm.submit(spec(name="two"), "t2")
    for name in ("ada", "bob"):
        farm.join(Volunteer(name, slots=2))
    held = [a.task.task_id for v in farm.volunteers.values() for a in v.held]
    assert sorted(set(held)) == ["t1", "t2"]


def test_a_high_priority_task_takes_all_it_can_use(farm: Simulation) -> None:
    farm.submit(spec(priority=1), "low")
    farm.submit(spec(priority=9, requirements=Requirements(clients=("ada", "bob"))), "high")
    ada, eve = farm.join("ada"), farm.join("eve")
    assert ada.held[0].task.task_id == "high"
    assert eve.held[0].task.task_id == "low"
    farm.deliver(ada)
    assert ada.held[0].task.task_id == "high", "its next round comes before the low task's"


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        (Requirements(cpu_cores=8), "has 4 CPU cores of 8"),
        (Requirements(ram_bytes=32 * GIGABYTE), "has 14.9 GiB RAM of 29.8 GiB"),
        (Requirements(gpu=True), "has no GPU"),
        (Requirements(gpu_memory_bytes=8 * GIGABYTE), "has 0 B GPU memory of 7.5 GiB"),
        (Requirements(tags=("lab", "fast")), "lacks the tag fast, lab"),
        (Requirements(clients=("bob",)), "is not a named client"),
    ],
)
def test_a_machine_that_does_not_qualify_is_told_why(farm: Simulation, requirements: Requirements, reason: str) -> None:
    ada = farm.join("ada")
    farm.submit(spec(requirements=requirements))
    assert not ada.held
    assert "no client meets its requirements" in farm.view().why
    explanation = farm.coordinator.explain("t1", farm.now)
    assert [(c.eligible, c.reason) for c in explanation.clients] == [(False, reason)]


def test_the_pre_flight_refuses_a_client_without_the_memory(farm: Simulation) -> None:
    small = farm.join(Volunteer("small", free_bytes=GIGABYTE))
    big = farm.join(Volunteer("big", free_bytes=8 * GIGABYTE))
    large = spec().model_copy(update={"footprint": Footprint(peak_ram_bytes=3 * GIGABYTE)})
    assert needed_ram_bytes(large) == 3 * GIGABYTE
    farm.submit(large)
    assert not small.held
    assert big.held
    refused = next(c for c in farm.coordinator.explain("t1", farm.now).clients if c.name == "small")
    assert refused.reason == "has 953.7 MiB RAM free of 2.8 GiB"


def test_a_client_that_says_it_does_not_fit_is_not_asked_again(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.submit(spec())
    assign = ada.held.popleft()
    here = ("id-ada", ada.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.DOES_NOT_FIT, message="needs 3 GB"))
    farm._ready(ada)
    farm.tick(60)
    assert not ada.held
    assert "it does not fit: needs 3 GB" in farm.view().why
    farm.tick(600)
    assert ada.held


def test_the_scheduler_waits_a_moment_for_a_client_that_is_about_to_be_ready(farm: Simulation) -> None:
    ada = Volunteer("ada", incarnation=50, online=True)
    farm.volunteers["ada"] = ada
    farm.handle(ClientConnected(ada.hello(), "hash", 50))
    bob = farm.join("bob")
    farm.submit(spec(gather_seconds=2.0))
    assert not bob.held
    assert "waits a moment for ada" in farm.view().why
    farm.handle(ClientReady("id-ada", 50, 1))
    assert bob.held
    assert ada.held


def test_the_gathering_has_a_longest_time(farm: Simulation) -> None:
    ada = Volunteer("ada", incarnation=50, online=True)
    farm.volunteers["ada"] = ada
    farm.handle(ClientConnected(ada.hello(), "hash", 50))
    bob = farm.join("bob")
    farm.submit(spec(gather_seconds=2.0))
    farm.tick(2.1)
    assert bob.held


def join_cold(farm: Simulation, name: str) -> Volunteer:
    """Connect a client that says that it can take nothing yet."""
    volunteer = farm.volunteers[name] = Volunteer(name, incarnation=50, online=True)
    farm.handle(ClientConnected(volunteer.hello(), "hash", 50))
    farm.handle(ClientReady(f"id-{name}", 50, 0))
    return volunteer


def test_a_first_round_waits_for_a_client_that_warms_up(farm: Simulation) -> None:
    """Nobody knows yet how long a round takes: it may be minutes, and the client warm in seconds."""
    ada, bob = join_cold(farm, "ada"), farm.join("bob")
    farm.submit(spec(gather_seconds=2.0))
    farm.tick(5.0)
    assert not bob.held
    assert "waits a moment for ada" in farm.view().why
    farm.handle(ClientReady("id-ada", 50, 1))
    assert bob.held
    assert ada.held


def test_a_client_that_never_gets_warm_is_not_waited_for_longer(farm: Simulation) -> None:
    join_cold(farm, "ada")
    bob = farm.join("bob")
    farm.submit(spec(gather_seconds=2.0))
    farm.tick(farm.settings.warm_up_seconds + 0.1)
    assert bob.held


def test_nobody_is_waited_for_where_the_recipe_says_so(farm: Simulation) -> None:
    join_cold(farm, "ada")
    bob = farm.join("bob")
    farm.submit(spec(gather_seconds=0.0))
    assert bob.held


@pytest.mark.parametrize(("round_seconds", "is_waited_for"), [(1.0, False), (30.0, True)])
def test_short_rounds_go_on_without_a_client_that_warms_up(
    farm: Simulation, round_seconds: float, is_waited_for: bool
) -> None:
    """A second client saves half a round. This one has warmed up for two seconds when the next round could open."""
    bob = farm.join("bob")
    farm.submit(spec(gather_seconds=2.0))
    farm.now += round_seconds
    farm.deliver(bob)
    join_cold(farm, "ada")
    farm.now += 2.0
    farm.deliver(bob)
    assert not bob.held if is_waited_for else bob.held


def facts(**changes: object) -> Facts:
    middle = Facts(
        speed=50.0,
        measured=True,
        best_speed=100.0,
        free_bytes=3,
        needed_bytes=2,
        delivered=8,
        failed=0,
        cached_bytes=1,
        data_bytes=4,
        cpu=0.5,
        held=0,
    )
    return replace(middle, **changes)


def test_the_score_is_the_sum_of_its_documented_terms() -> None:
    terms = {t.name: t.value for t in score(facts())}
    assert terms == {"throughput": 0.5, "memory": 0.5, "reliability": 0.9, "cached": 0.25, "load": 0.5}
    assert total(score(facts())) == pytest.approx(sum(value * WEIGHTS[name] for name, value in terms.items()))
    assert sum(WEIGHTS[name] for name in terms) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "better",
    [{"speed": 90.0}, {"free_bytes": 4}, {"delivered": 80}, {"cached_bytes": 4}, {"cpu": 0.1}, {"data_bytes": 0}],
)
def test_more_of_what_helps_scores_higher(better: dict[str, object]) -> None:
    assert total(score(facts(**better))) > total(score(facts()))


@pytest.mark.parametrize("worse", [{"failed": 5}, {"held": 2}, {"needed_bytes": 9}])
def test_less_of_it_scores_lower(worse: dict[str, object]) -> None:
    assert total(score(facts(**worse))) < total(score(facts()))


def test_reliability_starts_at_a_half() -> None:
    assert reliability(0, 0) == 0.5
    assert reliability(98, 0) == pytest.approx(0.99)


def test_a_moving_average_follows() -> None:
    average = MovingAverage(weight=0.5)
    average.add(10)
    average.add(20)
    assert average.value == 15


def test_explain_ranks_the_eligible_and_lists_the_others_last(farm: Simulation) -> None:
    farm.join(Volunteer("slow", gflops=1))
    farm.join(Volunteer("fast", gflops=10))
    farm.join(Volunteer("gone", gflops=10))
    farm.leave(farm.volunteers["gone"], "connection reset")
    farm.submit(spec())
    ranked = farm.coordinator.explain("t1", farm.now).clients
    assert [(c.name, c.eligible) for c in ranked] == [("fast", True), ("slow", True), ("gone", False)]
    assert ranked[2].reason == "offline: connection reset"
    assert {t.name for t in ranked[0].terms} == set(WEIGHTS) - {"environment"}


def test_client_views_tell_what_each_one_does(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.leave(bob, "closed")
    farm.submit(spec(holdout=(5,)))
    views = {v.name: v for v in farm.coordinator.client_views(farm.now)}
    assert (views["ada"].state, views["ada"].assignments) == ("online", 1)
    assert (views["bob"].state, views["bob"].reason) == ("offline", "closed")
    farm.deliver(ada)
    assert ada.held[0].kind is Kind.EVALUATE
    assert farm.coordinator.client_views(farm.now)[0].samples_per_second == {"t1": 20.0}


def test_a_gpu_meets_a_gpu_requirement(farm: Simulation) -> None:
    card = Gpu(index=0, name="H100", memory_bytes=80 * GIGABYTE, memory_free_bytes=80 * GIGABYTE)
    resources = Resources(cpu_cores=4, ram_bytes=64 * GIGABYTE, gpus=(card,))
    client = ClientRecord("c", "c", "h", 0, 0, resources=resources)
    assert qualifies(client, spec(requirements=Requirements(gpu=True, gpu_memory_bytes=40 * GIGABYTE))).value


def test_frozen_tensors_as_a_file_of_their_own_go_to_clients_that_can_take_them(farm: Simulation) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(FROZEN_APART,)))
    farm.submit(spec().model_copy(update={"frozen": blob("frozen")}))
    assert not old.held
    assert new.held[0].task.frozen == blob("frozen")
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert "it needs a newer aifarm" in reasons["old"]


def test_a_base_goes_to_clients_that_can_take_it(farm: Simulation) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(BASE_FOLDER,)))
    base = (BaseFile(path="config.json", blob=blob("config")),)
    farm.submit(spec().model_copy(update={"base": base}))
    assert not old.held
    assert new.held[0].task.base == base
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert reasons["old"] == "cannot take the folder that the task starts from: it needs a newer aifarm"


def test_a_quantized_base_goes_to_clients_that_know_what_its_layers_keep(farm: Simulation) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(QUANTIZED_BASE,)))
    farm.submit(spec().model_copy(update={"is_quantized": True}))
    assert not old.held
    assert new.held
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert reasons["old"] == "cannot train over a quantized base: it needs a newer aifarm"


def test_a_state_is_carried_by_clients_that_can(farm: Simulation) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(CARRIED_STATE,)))
    farm.submit(spec(inner_state="carried"))
    assert not old.held
    assert new.held[0].task.inner_state is InnerState.CARRIED
    assert not new.held[0].task.keep_inner_optimizer, "an older client would take it for that"
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert "it needs a newer aifarm" in reasons["old"]
    assert brief("t2", spec(inner_state="kept")).keep_inner_optimizer


@pytest.mark.parametrize("asks", ["clip_norm", "clip_value", "scheduler"])
def test_local_steps_with_clipping_or_a_scheduler_go_to_clients_that_have_them(farm: Simulation, asks: str) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(STEP_RULES,)))
    if asks == "scheduler":
        farm.submit(spec().model_copy(update={"has_scheduler": True}))
    else:
        farm.submit(spec(**{asks: 1.0}))
    assert not old.held
    assert new.held
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert "cannot clip gradients, or follow a scheduler: it needs a newer aifarm" in reasons["old"]


@pytest.mark.parametrize(
    ("asks", "feature", "lack"),
    [
        ({"proximal_mu": 0.5}, PROXIMAL_TERM, "add a proximal term to local gradients"),
        ({"scaffold_clients": 2}, CONTROL_VARIATES, "keep control variates"),
        ({"fragments": 2, "fragment_mix": 0.5}, FRAGMENTS, "send a fragment of the model in each round"),
    ],
)
def test_local_objectives_and_fragments_go_to_clients_that_know_them(
    farm: Simulation, asks: dict[str, Any], feature: str, lack: str
) -> None:
    old = farm.join(Volunteer("old", features=(CARRIED_STATE,)))
    new = farm.join(Volunteer("new", features=(CARRIED_STATE, feature)))
    farm.submit(spec(**asks))
    assert not old.held
    assert {name: getattr(new.held[0].task, name) for name in asks} == asks
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert reasons["old"] == f"cannot {lack}: it needs a newer aifarm"


def test_control_variates_of_a_split_go_to_clients_that_take_them_from_the_version(farm: Simulation) -> None:
    has = (CARRIED_STATE, CONTROL_VARIATES)
    old, new = farm.join(Volunteer("old", features=has)), farm.join(Volunteer("new", features=(*has, SPLIT_VARIATES)))
    asks = spec(shards=(10, 10, 20), split="iid", split_parts=2, scaffold_clients=2, inner_state="carried")
    parts = (DataPart(shards=2, samples=20), DataPart(shards=1, samples=20))
    farm.submit(asks.model_copy(update={"dataset": asks.dataset.model_copy(update={"parts": parts})}))
    assert not old.held
    [first] = new.held
    assert first.data_part == int(first.slices[0].shard.index == 2)
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert "cannot take control variates of virtual clients from the version" in reasons["old"]


def test_a_named_schedule_goes_to_clients_that_know_them_with_the_length_of_the_task(farm: Simulation) -> None:
    old, new = (
        farm.join(Volunteer("old", features=(STEP_RULES,))),
        farm.join(Volunteer("new", features=(NAMED_SCHEDULE,))),
    )
    farm.submit(spec(schedule={"name": "cosine"}, rounds=3))
    assert not old.held
    task = new.held[0].task
    assert task.schedule == NamedSchedule(name="cosine")
    assert task.schedule_steps == global_steps(spec(rounds=3).recipe, spec().dataset.samples(Split.TRAIN)) > 3
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert reasons["old"] == "cannot follow a schedule that the recipe names: it needs a newer aifarm"
    assert brief("t2", spec()).schedule_steps == 0


@pytest.mark.parametrize("mode", list(Mode))
def test_code_that_asks_how_long_the_task_is_goes_to_clients_that_can_tell(farm: Simulation, mode: Mode) -> None:
    old, new = farm.join("old"), farm.join(Volunteer("new", features=(TASK_LENGTH,)))
    asking = spec(mode=mode, rounds=3).model_copy(update={"reads_length": True})
    farm.submit(asking)
    assert not old.held
    length = new.held[0].task.length
    assert length == task_length(asking.recipe, mode, asking.dataset.samples(Split.TRAIN))
    assert length is not None
    assert length.steps == global_steps(asking.recipe, asking.dataset.samples(Split.TRAIN)) >= 3
    reasons = {client.name: client.reason for client in farm.coordinator.explain("t1", farm.now).clients}
    assert reasons["old"] == "cannot tell the code how long the task is: it needs a newer aifarm"


def test_a_continued_task_is_as_long_as_both_parts_of_it() -> None:
    whole = spec(rounds=5)
    rest = whole.model_copy(update={"continues": Origin(task_id="abcd2345", round=2)})
    assert brief("t2", rest).length == brief("t1", whole).length


def test_what_the_server_follows_any_client_may_compute(farm: Simulation) -> None:
    old = farm.join("old")
    farm.submit(spec(mode="gradients", schedule={"name": "cosine"}))
    assert old.held[0].task.schedule_steps == 0


def test_what_the_server_clips_any_client_may_compute(farm: Simulation) -> None:
    old = farm.join("old")
    farm.submit(spec(mode="gradients", clip_norm=1.0))
    assert old.held


def test_clients_of_one_name_are_told_apart_where_reasons_name_them(farm: Simulation) -> None:
    for client_id, name in (("1a2b3c4d", "box"), ("9f8e7d6c", "box"), ("id-ada", "ada")):
        hello = Volunteer(name).hello().model_copy(update={"client_id": client_id})
        farm.volunteers[client_id.removeprefix("id-")] = Volunteer(client_id.removeprefix("id-"))
        farm.handle(ClientConnected(hello, "hash", 1))
    farm.submit(spec(requirements=Requirements(tags=("lab",))))
    why = farm.view().why
    assert "box (1a2b3c) " in why
    assert "box (9f8e7d) " in why
    assert "ada " in why
    assert "ada (" not in why

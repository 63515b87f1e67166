"""Clients whose owners choose kinds of work or topics: they are offered nothing else, and people read why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import AssignmentRejected, ClientReady
from coordinator.lifecycle import TaskState
from coordinator.offers import brief
from protocol.assignments import Kind, RejectCode
from protocol.tasks import TaskSpec
from protocol.wanted_work import ANY_WORK, WantedWork
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

TOPICS = ("ads", "physics", "science")


def about(*topics: str, name: str = "task") -> TaskSpec:
    return spec(name=name).model_copy(update={"topics": topics})


def choose(farm: Simulation, volunteer: Volunteer, wanted: WantedWork | None, slots: int = 1) -> None:
    farm.handle(ClientReady(f"id-{volunteer.name}", volunteer.incarnation, slots, wanted=wanted))


def choosing(farm: Simulation, name: str, **wanted: tuple[str, ...]) -> Volunteer:
    volunteer = farm.join(name)
    choose(farm, volunteer, WantedWork(**wanted))
    return volunteer


def test_a_client_is_told_what_a_task_is_about() -> None:
    assert brief("t1", about("science")).topics == ("science",)


def test_an_evaluation_goes_to_who_evaluates_and_training_to_who_trains() -> None:
    farm = Simulation()
    choosing(farm, "trainer", kinds=(Kind.TRAIN,))
    choosing(farm, "judge", kinds=(Kind.EVALUATE,))
    farm.submit(spec(holdout=(6,), eval_every=1, rounds=2))
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    kinds = {(record.client_id, record.kind) for record in farm.ledger.assignments.values()}
    assert kinds == {("id-trainer", Kind.TRAIN), ("id-judge", Kind.EVALUATE)}


def test_what_nobody_wants_to_do_waits_and_says_so() -> None:
    farm = Simulation()
    trainer = choosing(farm, "trainer", kinds=(Kind.TRAIN,))
    farm.submit(spec(holdout=(6,), eval_every=1, rounds=2))
    farm.run()
    assert "trainer refuses: its owner wants train done, not evaluate" in farm.view().why
    choose(farm, trainer, ANY_WORK)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED, "it is offered as soon as the owner changes their mind"


def test_a_task_goes_to_who_wants_its_topic() -> None:
    farm = Simulation()
    box = choosing(farm, "box", topics=("science",), not_topics=("ads",))
    farm.submit(about("ads", "science", name="campaign"), "t1")
    farm.submit(about(name="plain"), "t2")
    assert not box.held
    reasons = [farm.coordinator.explain(task_id, farm.now).clients[0].reason for task_id in ("t1", "t2")]
    assert reasons == [
        "refuses: its owner wants nothing done about ads",
        "refuses: its owner wants work about science, and it names no topic",
    ]
    farm.submit(about("science", name="study"), "t3")
    assert [assign.task.task_id for assign in box.held] == ["t3"]


def test_a_ready_without_a_word_of_it_changes_nothing_and_another_connection_begins_anew() -> None:
    farm = Simulation()
    box = choosing(farm, "box", not_topics=("ads",))
    farm.submit(about("ads"))
    choose(farm, box, None)
    assert not box.held
    farm.leave(box)
    farm.join(box)
    assert box.held


def test_what_is_handed_back_for_a_choice_that_was_told_is_not_kept_against_the_task() -> None:
    """The client told what it wants, and then handed back what came before that was heard: the task may come again."""
    farm = Simulation()
    box = farm.join("box")
    farm.submit(about("ads"))
    assign = box.held.popleft()
    choose(farm, box, WantedWork(not_topics=("ads",)), slots=0)
    here = (f"id-{box.name}", box.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.OWNER, message="not about ads"))
    choose(farm, box, None)
    assert not box.held
    choose(farm, box, ANY_WORK)
    assert box.held


def test_a_refusal_in_an_unknown_word_is_a_refusal_for_a_while() -> None:
    farm = Simulation()
    box = farm.join("box")
    farm.submit(spec())
    assign = box.held.popleft()
    here = (f"id-{box.name}", box.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.OTHER, message="too dark"))
    farm._ready(box)
    assert not box.held
    assert "other: too dark" in farm.view().why
    farm.tick(60)
    assert box.held


_wanted = st.builds(
    WantedWork,
    kinds=st.sets(st.sampled_from(Kind)).map(tuple),
    topics=st.sets(st.sampled_from(TOPICS)).map(tuple),
    not_topics=st.sets(st.sampled_from(TOPICS)).map(tuple),
)


@given(choices=st.lists(_wanted, min_size=1, max_size=4), topics=st.sets(st.sampled_from(TOPICS)))
def test_nothing_is_offered_that_would_be_declined(choices: list[WantedWork], topics: set[str]) -> None:
    farm = Simulation()
    wanted = {}
    for number, choice in enumerate(choices):
        box = farm.join(f"box{number}")
        wanted[f"id-{box.name}"] = choice
        choose(farm, box, choice)
    task = spec(holdout=(6,), eval_every=1, rounds=2).model_copy(update={"topics": tuple(sorted(topics))})
    farm.submit(task)
    farm.run()
    for record in farm.ledger.assignments.values():
        assert wanted[record.client_id].why_not(record.kind, task.topics) is None
    everything = all(any(c.why_not(kind, task.topics) is None for c in choices) for kind in ("train", "evaluate"))
    assert (farm.task().state is TaskState.COMPLETED) == everything

"""A plan of faults is read exactly, and each fault happens as often as it was asked for."""

import pytest

from tests.injection.plan import (
    BadFaultPlan,
    Fault,
    FaultAction,
    FaultPlan,
    Injection,
    parse_faults,
)


def test_a_plan_names_places_rounds_and_actions() -> None:
    plan = parse_faults(
        "client_after_send@3:kill, executor_during@2:segfault,client_slow@*:2.5,server_before_fold:exit"
    )
    assert plan.pending == [
        Injection(Fault.CLIENT_AFTER_SEND, FaultAction.KILL, round=3),
        Injection(Fault.EXECUTOR_DURING, FaultAction.SEGFAULT, round=2),
        Injection(Fault.CLIENT_SLOW, FaultAction.SLEEP, every_time=True, seconds=2.5),
        Injection(Fault.SERVER_BEFORE_FOLD, FaultAction.EXIT),
    ]


@pytest.mark.parametrize("place", Fault)
@pytest.mark.parametrize("action", [action for action in FaultAction if action is not FaultAction.SLEEP])
def test_every_place_and_action_can_be_written(place: Fault, action: FaultAction) -> None:
    assert parse_faults(f"{place}@0:{action}").pending == [Injection(place, action, round=0)]


def test_a_fault_happens_once_and_in_its_round_only() -> None:
    plan = parse_faults("client_slow@2:kill")
    assert plan.take(Fault.CLIENT_SLOW, 1) is None
    assert plan.take(Fault.CLIENT_AFTER_SEND, 2) is None
    assert plan.take(Fault.CLIENT_SLOW, 2) is not None
    assert plan.take(Fault.CLIENT_SLOW, 2) is None


def test_without_a_round_the_first_time_counts() -> None:
    plan = parse_faults("client_slow:kill")
    assert plan.take(Fault.CLIENT_SLOW, 7) is not None
    assert plan.take(Fault.CLIENT_SLOW, 8) is None


def test_a_star_is_never_spent() -> None:
    plan = parse_faults("client_slow@*:0.5")
    assert [plan.take(Fault.CLIENT_SLOW, number) for number in (0, 0, 9)] == plan.pending * 3


def test_the_same_place_can_strike_as_often_as_it_is_written() -> None:
    plan = parse_faults("executor_during@1:kill,executor_during@1:segfault")
    taken = [plan.take(Fault.EXECUTOR_DURING, 1) for _ in range(3)]
    assert [found and found.action for found in taken] == [FaultAction.KILL, FaultAction.SEGFAULT, None]


def test_names_tell_faults_apart_and_fit_a_file_system() -> None:
    plan = parse_faults("client_slow@2:1,client_slow@2:2,client_slow:2,client_slow@3:kill")
    names = [injection.name for injection in plan.pending]
    assert names == ["client_slow-2-1", "client_slow-2-2", "client_slow-first-2", "client_slow-3-kill"]


@pytest.mark.parametrize("text", ["", " , "])
def test_nothing_is_an_empty_plan(text: str) -> None:
    assert parse_faults(text) == FaultPlan()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere@1:kill", "choose from executor_before"),
        ("client_slow@1", "does not say what happens"),
        ("client_slow@one:kill", "no round"),
        ("client_slow@-1:kill", "no round"),
        ("client_slow@:kill", "no round"),
        ("client_slow@1:explode", "choose from kill"),
        ("client_slow@1:sleep", "or give seconds"),
        ("client_slow@1:-2", "or give seconds"),
        ("client_slow@1:nan", "or give seconds"),
        ("client_slow@1:inf", "or give seconds"),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(BadFaultPlan, match=words):
        parse_faults(text)

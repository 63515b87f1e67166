"""Credit: the FLOPs that a client may claim, and books that are the sum of what is counted, whatever happens."""

from __future__ import annotations

from dataclasses import replace
from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.credit import (
    ESTABLISHED_AFTER,
    FASTEST,
    MOST_FIGURES,
    MOST_TEAM_CHARS,
    FlopFigures,
    credited,
    entry_of,
    team_name,
)
from coordinator.events import Action, CheckpointDamaged, ClientRemoved, TaskAction
from protocol.assignments import Ack
from protocol.bounds import MAX_COUNT
from protocol.credit import CREDIT, Credit
from storage.credit_sums import ranked, sum_up
from storage.ports.ledger import CreditBy, CreditQuery
from tests.coordinator.credit_books import worth, worth_of_counted
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec
from tests.storage import records

FIGURES = st.integers(1, MAX_COUNT)
CLAIMS = st.dictionaries(st.sampled_from("abcdefgh"), FIGURES, max_size=8)


def established(**figures: int) -> FlopFigures:
    known = FlopFigures()
    for _ in range(ESTABLISHED_AFTER):
        known.take_in(figures)
    return known


def test_two_bound_each_other_and_one_alone_is_believed() -> None:
    assert FlopFigures().limit({"a": 7}) == 7
    assert FlopFigures().limit({}) is None
    assert established(a=100, b=10**15).limit({}) == 100
    assert established(a=100, b=101, c=10**15).limit({}) == 101


@given(CLAIMS, CLAIMS, CLAIMS)
def test_newcomers_never_raise_it(known: dict[str, int], claims: dict[str, int], others: dict[str, int]) -> None:
    figures = established(**known)
    newcomers = {f"new {name}": figure for name, figure in others.items()}
    before, after = figures.limit(claims), figures.limit({**claims, **newcomers})
    if before is not None:
        assert after is not None
        assert after <= before
    if known:
        assert after == before, "nor do they lower it where others are established"


@given(CLAIMS.filter(bool), st.data())
def test_fewer_than_half_cannot_raise_it_over_every_honest_figure(honest: dict[str, int], data: st.DataObject) -> None:
    liars = data.draw(st.lists(FIGURES, max_size=len(honest)))
    figures = established(**honest, **{f"liar {n}": figure for n, figure in enumerate(liars)})
    limit = figures.limit({})
    assert limit is not None
    assert limit <= max(honest.values())


@given(CLAIMS.filter(bool))
def test_among_the_established_it_is_the_lower_median(known: dict[str, int]) -> None:
    assert established(**known).limit({}) == median_low(known.values())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, MAX_COUNT), st.integers(1, 99)), min_size=1))
def test_nobody_is_credited_with_more_than_was_claimed_or_can_be(round_: list[tuple[str, int, int]]) -> None:
    delivered = [
        records.assignment(
            f"{n}", client_id=who, flops_per_sample=claim, samples=samples, offered_at=0.0, delivered_at=20.0
        )
        for n, (who, claim, samples) in enumerate(round_)
    ]
    for before, after in zip(delivered, credited(FlopFigures(), delivered), strict=True):
        assert after.flops_per_sample <= before.flops_per_sample
        assert after.flops_per_sample * after.samples <= 20 * FASTEST
        assert (after.flops_per_sample == 0) >= (before.flops_per_sample == 0), "unknown stays unknown"


@pytest.mark.parametrize(("held", "seconds"), [(20.0, 20), (0.0, 10), (5.0, 10)])
def test_who_is_alone_is_credited_with_what_a_machine_can_compute_in_that_time(held: float, seconds: int) -> None:
    claim = records.assignment("a", samples=1000, flops_per_sample=MAX_COUNT, offered_at=7.0, delivered_at=7.0 + held)
    [after] = credited(FlopFigures(), [claim])
    assert after.flops_per_sample * 1000 == seconds * FASTEST


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), FIGURES.map(lambda one: min(one, 10**12)))
def test_who_all_say_the_same_are_credited_with_that(rounds: list[str], figure: int) -> None:
    figures = FlopFigures()
    for number, who in enumerate(rounds):
        [after] = credited(
            figures, [records.assignment(f"{number}", client_id=who, flops_per_sample=figure, samples=9)]
        )
        assert after.flops_per_sample == figure


def test_a_newcomer_is_believed_after_some_counted_work() -> None:
    figures = established(a=100)
    for _ in range(ESTABLISHED_AFTER):
        assert figures.limit({"b": 900, "c": 900}) == 100
        figures.take_in({"b": 900, "c": 900})
    assert figures.limit({}) == 900


def test_figures_of_so_many_clients_are_kept() -> None:
    figures = FlopFigures()
    for number in range(MOST_FIGURES + 9):
        figures.take_in({f"c{number}": 5})
    assert len(figures._figures) == len(figures._counted) == MOST_FIGURES
    assert "c0" not in figures._figures


@given(st.integers(0, MAX_COUNT), st.integers(1, MAX_COUNT), st.floats(0, 1e10))
def test_an_entry_is_exact_and_taken_back_whole(flops: int, samples: int, at: float) -> None:
    record = records.assignment("a", samples=samples, flops_per_sample=flops, delivered_at=at, team="red")
    entry, back = entry_of(record), entry_of(record, -1)
    assert entry.all_flops == flops * samples
    assert entry.measured_samples == (samples if flops else 0)
    assert not worth([entry, back])
    assert 0 <= at - entry.day * 86_400 < 86_400


@given(st.text())
def test_a_teams_name_is_a_short_line_that_is_tidy_already(text: str) -> None:
    name = team_name(text)
    assert len(name) <= MOST_TEAM_CHARS
    assert name == name.strip() == team_name(name)
    assert name.isprintable() or any(c in name for c in "\u200c\u200d") or not name.isascii()


def test_a_teams_name_acts_on_no_terminal() -> None:
    assert team_name("  red\x1b[31m \n  team\u202e ") == "red team\\u202e"


def farm_of(**recipe: object) -> Simulation:
    """Two volunteers of a team, one without; bob is a liar."""
    farm = Simulation()
    farm.join(Volunteer("ada", team=" red  team ", flops_per_sample=1000, features=(CREDIT,)))
    farm.join(Volunteer("bob", team="red team", flops_per_sample=10**15))
    farm.join(Volunteer("eve", flops_per_sample=0))
    farm.submit(spec(shards=(600,), **{"rounds": 6, "round_samples": 30, **recipe}))
    return farm


def play(farm: Simulation, rounds: int = 1) -> None:
    for _ in range(rounds):
        for volunteer in farm.volunteers.values():
            farm.deliver(volunteer)


def books_hold(farm: Simulation) -> None:
    assert worth(farm.ledger.credits.values()) == worth_of_counted(farm.ledger.assignments.values())


def credit_by(farm: Simulation, by: CreditBy) -> dict[str, tuple[int, int, int]]:
    found = ranked(sum_up(farm.ledger.credits.values(), CreditQuery(by)))
    return {one.key: (one.samples, one.measured_samples, one.flops) for one in found}


def last_told(farm: Simulation, name: str) -> tuple[int, int]:
    last = [m.credit for m in farm.volunteers[name].messages if isinstance(m, Ack)][-1]
    assert last is not None
    return last.samples, last.flops


def test_counted_work_is_credited_to_client_team_and_task() -> None:
    farm = farm_of()
    play(farm, 2)
    assert credit_by(farm, CreditBy.CLIENT) == {
        "id-ada": (20, 20, 20_000),
        "id-bob": (20, 20, 20_000),  # as much as ada counts, whatever it says
        "id-eve": (20, 0, 0),
    }
    assert credit_by(farm, CreditBy.TEAM) == {"red team": (40, 40, 40_000), "": (20, 0, 0)}
    assert credit_by(farm, CreditBy.TASK) == {"t1": (60, 40, 40_000)}
    books_hold(farm)


def test_a_client_that_knows_credit_is_told_its_own() -> None:
    farm = farm_of()
    play(farm, 2)
    told = {name: [m.credit for m in v.messages if isinstance(m, Ack)] for name, v in farm.volunteers.items()}
    assert told["ada"] == [Credit(samples=10, flops=10_000), Credit(samples=20, flops=20_000)]
    assert told["bob"] == [None, None]


def test_an_open_round_is_worth_nothing_yet_and_a_lost_one_never() -> None:
    farm = farm_of()
    farm.deliver(farm.volunteers["ada"])
    assert not farm.ledger.credits
    farm.handle(TaskAction("t1", Action.CANCEL))
    assert not farm.ledger.credits


def test_a_version_that_is_undone_takes_its_credit_along() -> None:
    farm = farm_of()
    play(farm)
    farm.hold_writes = True
    play(farm, 2)
    assert credit_by(farm, CreditBy.TASK)["t1"][0] == 30, "what is not durable is not credited"
    farm.handle(TaskAction("t1", Action.PAUSE))
    farm.finish_writes()
    assert credit_by(farm, CreditBy.TASK)["t1"][0] == 30
    books_hold(farm)


def test_what_a_damaged_checkpoint_undoes_is_taken_back() -> None:
    farm = farm_of()
    play(farm, 2)
    undone = tuple(a for a in farm.ledger.assignments.values() if a.counted and a.round == 1)
    kept = farm.ledger.checkpoints["t1", 1]
    farm.handle(CheckpointDamaged("t1", 2, farm.open["t1"][1], "wrong digest", kept, undone))
    assert credit_by(farm, CreditBy.CLIENT)["id-ada"] == (10, 10, 10_000)
    books_hold(farm)
    farm.run()
    assert credit_by(farm, CreditBy.TASK)["t1"][0] == farm.task().samples_done == 180
    assert last_told(farm, "ada") == credit_by(farm, CreditBy.CLIENT)["id-ada"][::2]


def test_credit_outlives_a_restart_and_the_clients_removal() -> None:
    farm = farm_of()
    play(farm)
    farm.restart()
    ada = farm.volunteers["ada"]
    farm.handle(ClientRemoved("id-ada"))
    ada.held.clear()
    for volunteer in farm.volunteers.values():
        volunteer.held.clear()
        farm.join(volunteer)
    farm.run()
    assert last_told(farm, "ada") == credit_by(farm, CreditBy.CLIENT)["id-ada"][::2]
    books_hold(farm)


def test_who_changes_teams_leaves_the_old_one_its_credit() -> None:
    farm = farm_of()
    play(farm)
    ada = farm.volunteers["ada"]
    farm.leave(ada)
    ada.team = "blue"
    farm.join(ada)
    farm.run()
    teams = credit_by(farm, CreditBy.TEAM)
    assert teams["red team"][0] >= 20
    assert teams["blue"][0] > 0
    books_hold(farm)


@pytest.mark.parametrize("counted", [True, False])
def test_a_late_update_is_credited_if_a_round_takes_it(counted: bool) -> None:
    farm = farm_of(over_provision=0.5, max_staleness=1 if counted else 0, round_samples=20)
    ada, bob, eve = farm.volunteers.values()
    late = eve.held[0]
    farm.deliver(ada)
    farm.deliver(bob)
    assert "id-eve" not in credit_by(farm, CreditBy.CLIENT)
    if counted:
        farm.deliver(eve)
    else:
        farm.handle(farm.result(eve, late))
    farm.run()
    assert farm.ledger.assignments[late.assignment_id].counted is counted
    books_hold(farm)
    assert credit_by(farm, CreditBy.TASK)["t1"][0] == farm.task().samples_done


def test_the_order_of_a_leaderboard() -> None:
    a = entry_of(records.assignment("a", client_id="a", samples=5, flops_per_sample=1, delivered_at=0.0))
    b = replace(a, client_id="b", samples=7)
    c = replace(a, client_id="c", gigaflops=1)
    gone = replace(a, client_id="d", assignments=0, samples=0, measured_samples=0, flops=0)
    assert [one.key for one in ranked(sum_up([a, b, c, gone], CreditQuery(CreditBy.CLIENT)))] == ["c", "b", "a"]

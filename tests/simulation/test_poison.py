"""Maps with items that end executors, under the same faults: each is found and kept as failed, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import Random

import pytest

from coordinator import failures, maps, poison
from coordinator.leases import LeaseBook
from coordinator.narrowing import Suspects
from coordinator.records import FailedItemRecord
from coordinator.turn import Turn
from tests.simulation.__main__ import find_violation, replay_command
from tests.simulation.scenario import POISON_FROM
from tests.simulation.test_planted_errors import plant
from tests.simulation.world import run_seed

WITHIN_SEEDS = 20
PLACES = ((failures, "narrow_down"), (poison, "count_items"), (maps, "is_for_others"), (poison, "dismiss"))


def test_promises_hold_where_items_end_executors() -> None:
    seeds = range(POISON_FROM, POISON_FROM + 20)
    broken = [f"{what}; {replay_command(seed)}" for seed, what, _ in map(find_violation, seeds) if what]
    assert not broken, "\n".join(broken)


def test_items_that_end_executors_are_found() -> None:
    """The seeds have something to say: most of their maps complete, and with items that failed."""
    worlds = [run_seed(seed) for seed in range(POISON_FROM, POISON_FROM + 10)]
    failed = sum(len(world.ledger.failed_items) for world in worlds)
    assert failed >= 10


@pytest.mark.parametrize("seed", range(POISON_FROM, POISON_FROM + 8))
def test_every_promise_holds_though_rules_of_narrowing_raise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(seed)
    for place, name in PLACES:
        plant(monkeypatch, place, name, rng)
    assert run_seed(seed).events


def forget_to_keep_it(patch: pytest.MonkeyPatch) -> None:
    """The item that failed is done, and nothing says that it failed."""
    save = Turn.save

    def forgetful(turn: Turn, record: object) -> None:
        if not isinstance(record, FailedItemRecord):
            save(turn, record)  # type: ignore[arg-type]  # a record

    patch.setattr(Turn, "save", forgetful)


def blame_at_the_first_death(patch: pytest.MonkeyPatch) -> None:
    """One client's executor is enough: its machine may have been at fault."""

    def rash(deaths: Mapping[str, int], _able: Collection[str]) -> bool:
        return bool(deaths)

    patch.setattr(poison, "is_at_fault", rash)


def cut_what_somebody_may_bring_whole(patch: pytest.MonkeyPatch) -> None:
    """Who is gone with the whole part may come back with it, when its pieces have counted."""
    patch.setattr(poison, "dismiss", lambda *_: None)


def keep_it_in_the_queue(patch: pytest.MonkeyPatch) -> None:
    """The item is kept as failed, and given out all the same."""
    divide = LeaseBook.divide
    patch.setattr(LeaseBook, "divide", lambda book, parts, start, some: divide(book, parts, start, some) if some else 0)


def lose_the_second_half(patch: pytest.MonkeyPatch) -> None:
    """Of a part that is cut only the first piece waits."""
    narrow = Suspects.narrow
    patch.setattr(Suspects, "narrow", lambda *of_part: narrow(*of_part)[:1])


@pytest.mark.parametrize(
    "defect",
    [
        forget_to_keep_it,
        blame_at_the_first_death,
        cut_what_somebody_may_bring_whole,
        keep_it_in_the_queue,
        lose_the_second_half,
    ],
)
def test_a_defect_in_narrowing_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    assert any(find_violation(POISON_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), defect.__doc__

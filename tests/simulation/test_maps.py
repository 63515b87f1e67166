"""Maps under the same faults: each item has one output, its own, whatever dies; and the simulation finds defects."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from coordinator import maps, recovery, scheduling, step_ends
from coordinator.in_flight import Part
from coordinator.records import AssignmentRecord, OutputRecord
from coordinator.state import ClientState, Step, TaskRun
from coordinator.turn import Turn
from protocol.tasks import Dataset
from tests.simulation.__main__ import find_violation, replay_command
from tests.simulation.scenario import MAPS_FROM
from tests.simulation.test_planted_errors import plant
from tests.simulation.world import run_seed

WITHIN_SEEDS = 100
PLACES = (
    (scheduling, "open_map"),
    (scheduling, "offer_items"),
    (maps, "offer"),
    (maps, "part_between"),
    (recovery, "reopen_map"),
    (step_ends, "keep_outputs"),
)


def test_promises_hold_where_tasks_are_maps() -> None:
    seeds = range(MAPS_FROM, MAPS_FROM + 30)
    broken = [f"{what}; {replay_command(seed)}" for seed, what, _ in map(find_violation, seeds) if what]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("seed", range(MAPS_FROM, MAPS_FROM + 8))
def test_every_promise_holds_though_rules_of_maps_raise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(seed)
    for place, name in PLACES:
        plant(monkeypatch, place, name, rng)
    assert run_seed(seed).events


def give_the_rest_to_nobody(patch: pytest.MonkeyPatch) -> None:
    """What a client's part leaves of a waiting one is lost."""
    offer = maps._offer

    def forgetful(turn: Turn, run: TaskRun, step: Step, client: ClientState, part: Part) -> None:
        offer(turn, run, step, client, part)
        step.parts.waiting = [one for one in step.parts.waiting if one.position < part.position + 5]

    patch.setattr(maps, "_offer", forgetful)


def cut_what_somebody_may_bring(patch: pytest.MonkeyPatch) -> None:
    """A part of which a dormant client may come back with all of it is cut to another one's measure."""
    between = maps.part_between

    def whole_or_half(turn: Turn, run: TaskRun, step: Step, client: ClientState, part: Part) -> None:
        half = max(part.samples // 2, 1)
        maps.offer(turn, run, client, between(run.record.spec.dataset, part.position, part.position + half))
        if half < part.samples:
            end = part.position + part.samples
            turn.farm.leases.wait(step.parts, between(run.record.spec.dataset, part.position + half, end))

    patch.setattr(maps, "_offer", whole_or_half)


def save_no_place(patch: pytest.MonkeyPatch) -> None:
    """What has an output is not saved with it: a restart begins with the first item again."""
    patch.setattr(maps, "_left", lambda run, parts: (run.record.cursor, run.record.leftover))


def owe_nothing_before_the_cursor(patch: pytest.MonkeyPatch) -> None:
    """Items that are out when later ones have arrived are taken for done after a restart."""
    left = maps._left
    patch.setattr(maps, "_left", lambda run, parts: (left(run, parts)[0], ()))


def keep_outputs_of_the_first_only(patch: pytest.MonkeyPatch) -> None:
    """Outputs that arrive before those of earlier items are not kept."""
    save = Turn.save

    def choosy(turn: Turn, record: object) -> None:
        if not isinstance(record, OutputRecord) or turn.farm.tasks[record.task_id].record.cursor >= record.position:
            save(turn, record)  # type: ignore[arg-type]  # a record

    patch.setattr(Turn, "save", choosy)


def read_one_item_on(patch: pytest.MonkeyPatch) -> None:
    """Parts that do not begin with the data are of the items after theirs."""
    ranges = maps.ranges_between

    def shifted(dataset: Dataset, start: int, stop: int) -> object:
        last = dataset.starts[-1] + dataset.shards[-1].samples
        return ranges(dataset, start + 1, stop + 1) if start > 0 and stop < last else ranges(dataset, start, stop)

    patch.setattr(maps, "ranges_between", shifted)


def forget_who_held_what(patch: pytest.MonkeyPatch) -> None:
    """After a restart parts are kept for their clients with the wrong ends."""
    reopen = recovery.reopen_map

    def half(turn: Turn, run: TaskRun, held: list[AssignmentRecord]) -> None:
        reopen(turn, run, held)
        if run.step is not None:
            run.step.parts.waiting = run.step.parts.waiting[:-1]

    patch.setattr(recovery, "reopen_map", half)


@pytest.mark.parametrize(
    "defect",
    [
        give_the_rest_to_nobody,
        cut_what_somebody_may_bring,
        save_no_place,
        owe_nothing_before_the_cursor,
        keep_outputs_of_the_first_only,
        read_one_item_on,
        forget_who_held_what,
    ],
)
def test_a_defect_in_maps_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    assert any(find_violation(MAPS_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), defect.__doc__

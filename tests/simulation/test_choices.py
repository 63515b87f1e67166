"""Owners who choose kinds of work and topics, and tasks with packages: the promises hold, and defects are found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator import eligibility, pools
from tests.simulation.__main__ import find_violation, replay_command
from tests.simulation.scenario import CHOICES_FROM
from tests.simulation.world import run_seed

WITHIN_SEEDS = 60


def test_promises_hold_where_owners_choose_their_work() -> None:
    seeds = range(CHOICES_FROM, CHOICES_FROM + 60)
    broken = [f"{what}; {replay_command(seed)}" for seed, what, _ in map(find_violation, seeds) if what]
    assert not broken, "\n".join(broken)


def test_choices_and_packages_are_drawn() -> None:
    worlds = [run_seed(CHOICES_FROM + seed) for seed in range(20)]
    tasks = [task.spec for world in worlds for task in world.ledger.tasks.values()]
    assert {spec.environment is None for spec in tasks} == {bool(spec.topics) for spec in tasks} == {True, False}
    choices = [client.choices for world in worlds for client in world.clients]
    assert len({choice.wanted.kinds for choice in choices}) > 2
    assert {choice.installs for choice in choices} == {True, False}


def told_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The farm reads a client's choice as that of anything."""
    monkeypatch.setattr(eligibility, "_refusal", lambda *_: None)


def packages_come_from_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not install a task's packages is given it all the same."""
    monkeypatch.setattr(pools, "has_or_installs", lambda *_: True)


@pytest.mark.parametrize("defect", [told_and_forgotten, packages_come_from_nowhere], ids=lambda one: one.__name__)
def test_a_defect_is_found(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    assert any(find_violation(CHOICES_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), defect.__doc__

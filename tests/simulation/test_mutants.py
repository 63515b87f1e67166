"""The simulation finds what it is there to find."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import find_violation
from tests.simulation.mutants import (
    ASYNCHRONOUS_MUTANTS,
    DISTANCE_MUTANTS,
    EARLY_MUTANTS,
    EPOCH_END_MUTANTS,
    MUTANTS,
    OWNER_MUTANTS,
    ROBUST_MUTANTS,
    SPLIT_MUTANTS,
    Mutant,
)
from tests.simulation.scenario import (
    ASYNCHRONOUS_FROM,
    DISTANCES_FROM,
    EARLY_FROM,
    EPOCH_ENDS_FROM,
    OWNERS_FROM,
    ROBUST_FROM,
    SECURE_FROM,
    SPLITS_FROM,
)
from tests.simulation.secure_mutants import SECURE_MUTANTS

WITHIN_SEEDS = 200


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", ROBUST_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_updates_vote(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(ROBUST_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", EARLY_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_tasks_stop_early(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(EARLY_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", OWNER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_machines_have_owners(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(OWNERS_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", EPOCH_END_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_epochs_are_shown_to_the_code(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(EPOCH_ENDS_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", ASYNCHRONOUS_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_clients_wait_for_nobody(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(ASYNCHRONOUS_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", SECURE_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_sums_are_secure(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(SECURE_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", DISTANCE_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_distances_count(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(DISTANCES_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__


@pytest.mark.parametrize("mutant", SPLIT_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_is_found_where_rows_are_split(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(find_violation(SPLITS_FROM + seed)[1] for seed in range(WITHIN_SEEDS)), mutant.__doc__

"""Duty cycles, shares of the processor and target temperatures, on clocks and thermometers that a test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.machine.duty import LEAST_DUTY, CpuPlan, Thermostat, cpu_plan, turn_at

shares = st.floats(0.01, 1.0)


@given(shares, st.integers(1, 256))
def test_a_plan_holds_the_share_with_the_fewest_cores(share: float, cores: int) -> None:
    plan = cpu_plan(share, cores)
    assert 1 <= plan.cores <= cores
    assert 0 < plan.duty <= 1
    assert plan.cores * plan.duty == pytest.approx(min(share * cores, plan.cores), rel=1e-5)
    assert plan.cores - 1 < share * cores + 1e-5


@pytest.mark.parametrize(
    ("share", "cores", "plan"),
    [(1.0, 2, CpuPlan(2, 1.0)), (0.5, 2, CpuPlan(1, 1.0)), (0.25, 2, CpuPlan(1, 0.5)), (0.1, 10, CpuPlan(1, 1.0))],
)
def test_plans_of_known_machines(share: float, cores: int, plan: CpuPlan) -> None:
    assert cpu_plan(share, cores) == plan


@given(st.floats(0, 1), st.floats(0, 1e6))
def test_over_whole_periods_it_works_so_much_of_the_time(duty: float, began: float) -> None:
    now, worked, periods = began, 0.0, 4
    end = began + periods * 1.0
    for _ in range(100):
        turn = turn_at(duty, now, period=1.0)
        assert 0 < turn.seconds <= 1.0
        seconds = min(turn.seconds, end - now)
        worked += seconds if turn.works else 0.0
        now += seconds
        if now >= end:
            break
    assert worked / periods == pytest.approx(duty, abs=5e-3)


@given(st.lists(st.one_of(st.none(), st.floats(0, 120)), max_size=50), st.floats(30, 100))
def test_the_duty_stays_within_its_bounds_and_follows_the_temperature(readings: list[float], target: float) -> None:
    thermostat = Thermostat()
    for celsius in readings:
        before = thermostat.duty
        after = thermostat.read(celsius, target)
        assert LEAST_DUTY <= after <= 1.0
        if celsius is not None and celsius > target:
            assert after < before or after == LEAST_DUTY
        elif celsius is not None and celsius <= target - 2:
            assert after > before or after == 1.0


@pytest.mark.parametrize("full_heat", [70.0, 95.0, 140.0])
def test_a_card_settles_at_its_target(full_heat: float) -> None:
    """A card that warms towards what its duty brings, a tenth of the way between two readings."""
    thermostat, celsius, late = Thermostat(), 30.0, []
    for reading in range(400):
        heat = 30.0 + thermostat.read(celsius, 75.0) * (full_heat - 30.0)
        celsius += 0.1 * (heat - celsius)
        if reading >= 200:
            late.append(celsius)
    assert max(late) < 75.0 + 3.0
    assert min(late) > min(75.0, full_heat) - 12.0


def test_without_a_target_or_a_reading_nothing_slows_down() -> None:
    thermostat = Thermostat()
    for _ in range(5):
        thermostat.read(99.0, 70.0)
    assert thermostat.duty < 0.5
    assert thermostat.read(99.0, None) == 1.0
    thermostat.read(99.0, 70.0)
    assert thermostat.read(None, 70.0) == 1.0

"""Schedules by name give torch's curves, in float64, and refuse what their shape has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler as torchs

from protocol.contradictions import contradiction
from protocol.named_schedule import NamedSchedule, ScheduleName
from protocol.recipe import Recipe
from protocol.task_length import global_steps
from protocol.tasks import Dataset, Shard

RATE = 0.3
HUNDRED = Dataset(kind="code", shards=(Shard(index=0, samples=100),))
Maker = Callable[[torch.optim.Optimizer], Any]

_share = st.floats(0.01, 0.95)


def rates_of_torch(make: Maker, steps: int) -> list[float]:
    """Return the rate at which torch's own loop would take each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def rates_by_name(schedule: NamedSchedule, steps: int) -> list[float]:
    sent = NamedSchedule.model_validate_json(schedule.model_dump_json())
    return [RATE * sent.factor(step, steps) for step in range(steps)]


def shape_of(name: str, left: int, data: st.DataObject) -> tuple[dict[str, Any], Maker]:
    """Return options by which a shape goes over ``left`` steps, and torch's scheduler of them."""
    share, power, every = data.draw(_share), data.draw(st.floats(0.3, 4)), data.draw(st.integers(1, 40))
    shapes: dict[str, tuple[dict[str, Any], Maker]] = {
        "constant": ({}, lambda o: torchs.ConstantLR(o, 1.0, 0)),
        "linear": ({"end": share}, lambda o: torchs.LinearLR(o, 1.0, share, left)),
        "cosine": ({"end": share}, lambda o: torchs.CosineAnnealingLR(o, left, RATE * share)),
        "step": ({"every": every, "gamma": share}, lambda o: torchs.StepLR(o, every, share)),
        "polynomial": ({"power": power}, lambda o: torchs.PolynomialLR(o, left, power)),
    }
    return shapes[name]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "step", "polynomial"])
@given(data=st.data(), left=st.integers(1, 60), rise=st.integers(0, 30), start=_share)
@settings(max_examples=12)
def test_a_shape_is_torchs_after_a_warm_up_of_torchs(
    name: str, data: st.DataObject, left: int, rise: int, start: float
) -> None:
    options, after = shape_of(name, left, data)
    if rise:
        options |= {"warmup": rise, "start": start}

    def make(optimizer: torch.optim.Optimizer) -> Any:
        if not rise:
            return after(optimizer)
        warmup = torchs.LinearLR(optimizer, start, 1.0, rise)
        return torchs.SequentialLR(optimizer, [warmup, after(optimizer)], [rise])

    ours = rates_by_name(NamedSchedule(name=ScheduleName(name), **options), left + rise)
    assert ours == pytest.approx(rates_of_torch(make, left + rise), rel=1e-9, abs=1e-12)


@given(rise=st.integers(2, 50), fall=st.integers(1, 50), start=_share, end=st.floats(1e-6, 1))
@settings(max_examples=25)
def test_one_cycle_is_torchs(rise: int, fall: int, start: float, end: float) -> None:
    steps = rise + fall

    def make(optimizer: torch.optim.Optimizer) -> Any:
        return torchs.OneCycleLR(
            optimizer,
            RATE,
            total_steps=steps + 1,  # torch raises after its last step, and counts the one before the first
            pct_start=rise / (steps + 1),
            div_factor=1 / start,
            final_div_factor=start / end,
            cycle_momentum=False,
        )

    schedule = NamedSchedule(name=ScheduleName.ONE_CYCLE, warmup=rise, start=start, end=end)
    ours = [RATE * schedule.factor(step, steps + 1) for step in range(steps)]
    assert ours == pytest.approx(rates_of_torch(make, steps), rel=1e-9, abs=1e-12)


def test_one_cycle_is_torchs_where_nothing_is_said() -> None:
    theirs = rates_of_torch(lambda o: torchs.OneCycleLR(o, RATE, total_steps=100), 99)
    schedule = NamedSchedule(name=ScheduleName.ONE_CYCLE)
    assert [RATE * schedule.factor(step, 100) for step in range(99)] == pytest.approx(theirs, rel=1e-9)
    assert RATE * schedule.factor(99, 100) == pytest.approx(RATE / 25 / 1e4)


@given(rise=st.integers(2, 50), fall=st.integers(1, 50), base=st.floats(0, 1), most=st.floats(0, 1))
@settings(max_examples=25)
def test_the_momentum_of_one_cycle_is_torchs(rise: int, fall: int, base: float, most: float) -> None:
    assume(base != most)
    steps = rise + fall + 1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    cycle = {"base_momentum": base, "max_momentum": most}
    scheduler, theirs = torchs.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=rise / steps, **cycle), []
    for _ in range(steps - 1):
        theirs.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    schedule = NamedSchedule(name=ScheduleName.ONE_CYCLE, warmup=rise, **cycle)
    assert [schedule.momentum(step, steps) for step in range(steps - 1)] == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert schedule.momentum(steps + 9, steps) == pytest.approx(most)


def test_only_one_cycle_moves_the_momentum_and_it_need_not() -> None:
    cycle = NamedSchedule(name=ScheduleName.ONE_CYCLE)
    assert (cycle.momentum(0, 100), cycle.momentum(29, 100)) == (0.95, 0.85), "as torch's, where nothing is said"
    assert cycle.moves_momentum
    assert not NamedSchedule(name=ScheduleName.ONE_CYCLE, cycle_momentum=False).moves_momentum
    assert not NamedSchedule(name=ScheduleName.COSINE).moves_momentum


@given(
    name=st.sampled_from(ScheduleName),
    warmup=st.none() | _share | st.integers(1, 300),
    steps=st.integers(1, 200),
    step=st.integers(0, 400),
)
@settings(max_examples=60)
def test_every_factor_is_a_share_and_the_last_one_stays(
    name: ScheduleName, warmup: float | None, steps: int, step: int
) -> None:
    schedule = NamedSchedule(name=name, warmup=warmup)
    assert 0.0 <= schedule.factor(step, steps) <= 1.0
    assert schedule.factor(steps + step, steps) == schedule.factor(steps - 1, steps)


def test_shares_are_of_the_task_and_options_may_be_left_out() -> None:
    warmed = NamedSchedule(warmup=0.25)
    assert [warmed.factor(step, 8) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
    thirds = NamedSchedule(name=ScheduleName.STEP)
    assert [thirds.factor(step, 9) for step in (0, 2, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    lowered = NamedSchedule(name=ScheduleName.POLYNOMIAL, power=2, end=0.2)
    assert lowered.factor(5, 10) == pytest.approx(0.2 + 0.8 * 0.25)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "cosin"}, "name"),
        ({"name": "cosine", "gamma": 0.5}, "gamma is for step, and the schedule is cosine"),
        ({"name": "linear", "power": 2}, "power is for polynomial, and the schedule is linear"),
        ({"end": 0.1}, "end is for cosine and linear and one_cycle and polynomial, and the schedule is constant"),
        ({"name": "cosine", "start": 0.1}, "start is what a warm-up begins with"),
        ({"warmup": 2.5}, "warmup is 2.5: write whole steps, or a share"),
        ({"warmup": -1}, "greater than or equal to 0"),
        ({"name": "step", "every": 0}, "every is 0"),
        ({"name": "one_cycle", "max_momentum": 0.85}, "base_momentum is max_momentum: write cycle_momentum = false"),
        ({"name": "cosine", "max_momentum": 0.9}, "max_momentum is for one_cycle, and the schedule is cosine"),
        ({"name": "one_cycle", "cycle_momentum": False, "base_momentum": 0.9}, "so the momentum stays: leave out"),
        ({"name": "cosine", "end": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_a_shape_has_not_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NamedSchedule.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"rounds": 3, "round_samples": 50, "batch_samples": 8}, 19),
        ({"rounds": 3, "round_samples": 30, "batch_samples": 10}, 9),
        ({"rounds": 5, "round_samples": 30, "batch_samples": 10}, 13),
        ({"epochs": 2.5, "round_samples": 30, "batch_samples": 10}, 25),
        ({"rounds": 4, "epochs": 9, "round_samples": 30, "batch_samples": 10}, 10),
        ({"rounds": 5, "round_samples": 33, "batch_samples": 10}, 17),
        ({"rounds": 1, "round_samples": 3, "batch_samples": 10}, 1),
        ({"rounds": 7, "mode": "gradients", "round_samples": 30}, 7),
        ({"epochs": 2.5, "mode": "gradients", "round_samples": 30}, 10),
    ],
)
def test_the_steps_of_a_task_and_a_warm_up_that_is_longer(fields: dict[str, Any], steps: int) -> None:
    recipe = Recipe.model_validate(fields)
    assert global_steps(recipe, 100) == steps
    fits, longer = ({"schedule": {"name": "linear", "warmup": warmup}} for warmup in (steps, steps + 1))
    assert contradiction(Recipe.model_validate(fields | fits), HUNDRED) is None
    why = contradiction(Recipe.model_validate(fields | longer), HUNDRED)
    assert f"warmup is {steps + 1} steps, and the task has {steps} (" in (why or "")

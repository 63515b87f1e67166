"""Losses that stay on an accelerator: read many at once, all checked, and averaged as if read one by one."""

from __future__ import annotations

import math

import pytest
import torch

from farm_client.executor import step_metrics
from farm_client.executor.failures import LossNotFinite
from farm_client.executor.step_metrics import READ_EVERY, StepMetrics, left_there


class Readings:
    """Counts how often numbers are fetched; ``late`` ones have not come unless they are waited for."""

    def __init__(self, monkeypatch, *, late):
        self.begun = self.waits = 0
        of_farm = step_metrics._Reading

        class Counted(of_farm):
            def __init__(reading, steps):
                self.begun += 1
                super().__init__(steps)

            def has_come(reading):
                return not late

            def steps(reading):
                self.waits += late
                return super().steps()

        monkeypatch.setattr(step_metrics, "_Reading", Counted)


def losses(count):
    """Float32 numbers whose mean depends on the order and precision of the sum."""
    return (torch.arange(count, dtype=torch.float32) * 0.1 + 1 / 3).unbind()


def test_steps_are_read_many_at_once_and_nobody_waits_before_the_end(monkeypatch):
    readings = Readings(monkeypatch, late=True)
    metrics = StepMetrics()
    for step, loss in enumerate(losses(3 * READ_EVERY + 1), start=1):
        metrics.add(step, {"loss": loss, "accuracy": loss * 2}, samples=step)
    assert (readings.begun, readings.waits) == (3, 0)
    metrics.result()
    assert (readings.begun, readings.waits) == (4, 4)


@pytest.mark.parametrize("late", [False, True])
def test_the_means_are_those_of_numbers_read_at_once_to_the_bit(monkeypatch, late):
    Readings(monkeypatch, late=late)
    apart, together = StepMetrics(), StepMetrics()
    for step, loss in enumerate(losses(2 * READ_EVERY + 5), start=1):
        samples = step % 3 + 1
        apart.add(step, {"loss": loss.item(), "half": loss.bfloat16().item(), "plain": 0.1 * step}, samples)
        together.add(step, {"loss": loss, "half": loss.bfloat16(), "plain": 0.1 * step}, samples)
    assert together.result() == apart.result()


def test_a_bad_loss_ends_the_assignment_with_the_step_that_had_it_first():
    metrics = StepMetrics()
    for step in range(1, 6):
        metrics.add(step, {"loss": torch.tensor(math.nan if step >= 3 else 1.0)}, samples=1)
    with pytest.raises(LossNotFinite, match="the loss is nan at step 3 "):
        metrics.result()


def test_a_bad_loss_is_seen_before_the_end_once_it_has_come():
    metrics = StepMetrics()
    for step in range(1, READ_EVERY):
        metrics.add(step, {"loss": torch.tensor(math.inf if step == 2 else 1.0)}, samples=1)
    with pytest.raises(LossNotFinite, match="at step 2 "):
        metrics.add(READ_EVERY, {"loss": torch.tensor(1.0)}, samples=1)


def test_a_number_in_hand_is_checked_at_its_step():
    with pytest.raises(LossNotFinite, match="at step 7 "):
        StepMetrics().add(7, {"loss": math.nan}, samples=1)


def test_an_evaluations_loss_may_be_anything():
    metrics = StepMetrics(checks=False)
    metrics.add(1, {"loss": torch.tensor(math.nan)}, samples=1)
    assert math.isnan(metrics.result()["loss"])


def test_a_number_of_the_cpu_is_read_at_once():
    value = torch.tensor([0.5], requires_grad=True)
    assert left_there(value) == 0.5

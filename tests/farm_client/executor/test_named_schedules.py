"""A schedule that the recipe names: followed by local steps, tabulated for the server, refused beside another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.numerics.schedule import value_at
from farm_client.executor.failures import CodeError
from farm_client.executor.script_runner import ScriptRunner
from protocol.named_schedule import NamedSchedule, ScheduleName
from protocol.recipe import Mode
from tests.farm_client.executor.agent_side import load_order
from tests.farm_client.executor.bench_task import LINEAR, Bench
from tests.farm_client.executor.rehearsing import complaint, rehearsed
from tests.farm_client.executor.test_schedules import LIT, SCHEDULED, rates_of, trained_in_rounds

COSINE = NamedSchedule(name=ScheduleName.COSINE, warmup=10, start=0.1, end=0.2)
PLAIN, _, _ = SCHEDULED.partition("    def build_scheduler")
MADE = SCHEDULED.replace("def build_scheduler", "def _scheduler").replace(
    "return torch.optim.SGD(model.parameters(), lr=0.5)",
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.5)\n        _scheduler(optimizer, config)\n"
    "        return optimizer",
)
GROUPS = (
    LINEAR
    + """
    def build_optimizer(model, config):
        return torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}])
"""
)
TWO = (
    PLAIN
    + """
    def train_step(model, batch, optimizers, step):
        for optimizer in optimizers:
            optimizer.zero_grad()
        found = loss(model, batch)
        found.backward()
        for optimizer in optimizers:
            optimizer.step()
        return found

    def build_optimizer(model, config):
        return [torch.optim.SGD([model.weight], lr=0.5), torch.optim.SGD([model.bias], lr=0.5)]

    def evaluate(model, data):
        return {"loss": 1.0}
"""
)


def test_local_steps_are_taken_at_the_named_rate_and_the_last_one_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PLAIN, schedule=COSINE, schedule_steps=25)
    rates = rates_of(lambda: trained_in_rounds(bench, 3))
    assert len(rates) > 25
    assert rates == [0.5 * COSINE.factor(step, 25) for step in range(len(rates))]
    assert rates[-1] == rates[24]


def test_several_optimizers_follow_it_together(tmp_path: Path) -> None:
    rates = rates_of(lambda: trained_in_rounds(Bench(tmp_path, TWO, schedule=COSINE, schedule_steps=25), 1))
    assert rates[::2] == rates[1::2] == [0.5 * COSINE.factor(step, 25) for step in range(len(rates) // 2)]


def test_without_one_a_round_is_what_it_was(tmp_path: Path) -> None:
    flat = Bench(tmp_path / "flat", PLAIN, schedule=NamedSchedule(), schedule_steps=25)
    assert flat.train().update == Bench(tmp_path / "none", PLAIN).train().update


def test_the_server_gets_the_rates_of_each_group(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, GROUPS, mode=Mode.GRADIENTS, schedule=COSINE)
    assert complaint(report) == ""
    assert report.outer is not None
    for group, rate in zip(report.outer.groups, (0.5, 0.1), strict=True):
        values = [value_at(group.schedules["lr"], version) for version in range(60)]
        np.testing.assert_allclose(values, [rate * COSINE.factor(step, 60) for step in range(60)], rtol=1e-9)
        assert group.options["lr"] == rate if "lr" in group.options else report.outer.options["lr"] == rate


def test_a_mode_that_is_open_has_it_too(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, PLAIN, mode=None, schedule=COSINE)
    assert (complaint(report), report.mode) == ("", Mode.GRADIENTS)
    assert report.outer is not None
    assert set(report.outer.schedules) == {"lr"}
    assert rehearsed(tmp_path / "weights", PLAIN, schedule=COSINE).has_scheduler


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("source", [SCHEDULED, MADE, LIT])
def test_beside_a_scheduler_of_the_code_it_is_refused_unless_that_is_ignored(
    tmp_path: Path, source: str, mode: Mode
) -> None:
    if source is LIT:
        pytest.importorskip("lightning")
    told = complaint(rehearsed(tmp_path / "both", source, mode=mode, schedule=COSINE))
    assert "the recipe's schedule is cosine, and the code has a learning-rate scheduler: leave one of them out" in told
    report = rehearsed(tmp_path / "ignored", source, mode=mode, schedule=COSINE, ignore=("schedule",))
    assert complaint(report) == ""
    if report.outer is not None:
        rates = report.outer.schedules["lr"]
        assert [value_at(rates, step) for step in (0, 10)] == pytest.approx([0.05, 0.5]), "of the optimizer's own rate"


def test_an_optimizer_without_a_rate_is_named(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"speed": 0.5})

        def step(self):
            pass

    def build_optimizer(model, config):
        return Rateless(model.parameters())
"""
    )
    assert "scales the learning rate, and Rateless has none" in complaint(rehearsed(tmp_path, source, schedule=COSINE))


def test_a_script_steps_its_optimizer_itself(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"dataset_kind": "code", "schedule": COSINE}
    with pytest.raises(CodeError, match=r"a script with farm\.parts steps its optimizer itself"):
        ScriptRunner(load_order(tmp_path, "import farm_client", **changes), torch.device("cpu"))

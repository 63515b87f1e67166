"""A schedule that the recipe names: followed by local steps, tabulated for the server, refused beside another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.schedule import value_at
from farm_client.executor.failures import CodeError
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.script_runner import ScriptRunner
from farm_client.executor.timeline import Place, Timeline, as_scheduled, scheduled_by_name
from protocol.named_schedule import NamedSchedule, ScheduleName
from protocol.recipe import Mode
from protocol.tensors import Layout, TensorSpec
from tests.farm_client.executor.agent_side import load_order
from tests.farm_client.executor.bench_task import LINEAR, Bench
from tests.farm_client.executor.rehearsing import complaint, rehearsed
from tests.farm_client.executor.test_schedules import LIT, SCHEDULED, rates_of, trained_in_rounds

COSINE = NamedSchedule(name=ScheduleName.COSINE, warmup=10, start=0.1, end=0.2)
CYCLE = NamedSchedule(name=ScheduleName.ONE_CYCLE, warmup=10)
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


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "RMSprop"])
@given(rise=st.integers(2, 20), fall=st.integers(2, 20), base=st.floats(0.1, 0.8))
@settings(max_examples=10, deadline=None)
def test_one_cycle_moves_rate_and_momentum_as_torchs_own(name: str, rise: int, fall: int, base: float) -> None:
    steps = rise + fall + 1

    def build() -> Optimizers:
        return Optimizers.of(getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(1))], lr=0.5))

    schedule = NamedSchedule(
        name=ScheduleName.ONE_CYCLE, warmup=rise, start=0.1, end=0.01, base_momentum=base, max_momentum=0.9
    )
    own, torchs = build(), build()
    ours = Timeline(own, scheduled_by_name(own, schedule, steps), lambda: (own, ()))
    theirs = Timeline(torchs, as_scheduled(torchs_cycle(torchs.only, rise, steps, base)), lambda: (torchs, ()))
    for step in range(steps - 1):
        ([mine],), ([its],) = (one.options_at(Place(step, 0)).values() for one in (ours, theirs))
        assert mine.keys() == its.keys()
        assert flat(mine) == pytest.approx(flat(its), rel=1e-9), step


def torchs_cycle(optimizer: torch.optim.Optimizer, rise: int, steps: int, base: float) -> Any:
    shape = {"pct_start": rise / steps, "div_factor": 10.0, "final_div_factor": 10.0}
    return OneCycleLR(optimizer, 0.5, total_steps=steps, base_momentum=base, max_momentum=0.9, **shape)


def flat(options: dict[str, Any]) -> list[float]:
    return [float(options["lr"]), *map(float, options.get("betas", (options.get("momentum", 0.0),)))]


@pytest.mark.parametrize("optimizer", ["SGD(model.parameters(), lr=0.5)", "AdamW(model.parameters(), lr=0.5)"])
def test_in_gradients_mode_the_server_takes_the_steps_of_one_cycle(tmp_path: Path, optimizer: str) -> None:
    source = PLAIN.replace("SGD(model.parameters(), lr=0.5)", optimizer)
    report = rehearsed(tmp_path, source, mode=Mode.GRADIENTS, schedule=CYCLE)
    assert complaint(report) == ""
    assert report.outer is not None
    names, steps = ("weight", "bias"), 60
    layout = Layout(tuple(TensorSpec(name, "F64", (3,)) for name in sorted(names)))
    ours = {name: torch.ones(3, dtype=torch.float64) for name in names}
    server = OuterStep(report.outer, ours, layout)
    theirs = {name: torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for name in names}
    own = eval(f"torch.optim.{optimizer}", {"torch": torch, "model": SimpleNamespace(parameters=theirs.values)})
    cycle = OneCycleLR(own, 0.5, total_steps=steps, pct_start=10 / steps)
    random = torch.Generator().manual_seed(0)
    for version in range(steps - 1):
        means = {name: torch.randn(3, generator=random, dtype=torch.float64) for name in names}
        for name, parameter in theirs.items():
            parameter.grad = means[name].clone()
        own.step()
        cycle.step()
        server.step(means, version=version)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-8, atol=1e-9)


def test_local_steps_are_taken_at_the_momentum_of_one_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = Bench(tmp_path, PLAIN, schedule=CYCLE, schedule_steps=25), []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda own: (seen.append(own.param_groups[0]["momentum"]), step(own)))
    trained_in_rounds(bench, 1)
    assert len(seen) > 5
    assert seen == [CYCLE.momentum(place, 25) for place in range(len(seen))]


@pytest.mark.parametrize("cycles", [None, False])
def test_an_optimizer_without_a_momentum_is_named_unless_it_stays(tmp_path: Path, cycles: bool | None) -> None:
    source = PLAIN.replace("SGD(", "Adagrad(")
    schedule = NamedSchedule(name=ScheduleName.ONE_CYCLE, cycle_momentum=cycles)
    told = complaint(rehearsed(tmp_path, source, schedule=schedule))
    assert ("moves the momentum, and Adagrad has none: write cycle_momentum = false" in told) is (cycles is None)


def test_a_script_steps_its_optimizer_itself(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"dataset_kind": "code", "schedule": COSINE}
    with pytest.raises(CodeError, match=r"a script with farm\.parts steps its optimizer itself"):
        ScriptRunner(load_order(tmp_path, "import farm_client", **changes), torch.device("cpu"))

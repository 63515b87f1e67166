"""Schedules: written down for the server, against float64 formulas; and followed by local steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from coordinator.numerics.schedule import value_at
from farm_client.data.sharding import plan_shards
from farm_client.executor import schedule_fit
from farm_client.executor.optimizers import Optimizers
from farm_client.executor.rehearsal_records import RehearsalRequest
from farm_client.executor.schedule_fit import TooLong, fit, schedules_of
from farm_client.executor.timeline import Place, Scheduled, TaskPace, Timeline, as_scheduled
from protocol.recipe import Mode, Recipe
from protocol.schedule import Schedule
from protocol.task_length import TaskLength, global_steps, rounds_per_epoch
from protocol.tasks import Split
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

BASE = 0.1


def timeline_of(make: Callable[[Optimizer], Any], **options: Any) -> Timeline:
    def build() -> tuple[Optimizers, tuple[Scheduled, ...]]:
        optimizers = Optimizers.of(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE, momentum=0.9, **options))
        return optimizers, as_scheduled(make(optimizers.only))

    return Timeline(*build(), build)


def server_values(make: Callable[[Optimizer], Any], steps: int, per_epoch: int = 1, option: str = "lr") -> list[float]:
    """Return what the server steps by at each version."""
    [schedules] = schedules_of(
        timeline_of(make), TaskLength(steps=steps, steps_per_epoch=per_epoch, epochs=-(-steps // per_epoch))
    )
    sent = Schedule.model_validate_json(schedules[option].model_dump_json())
    return [value_at(sent, version) for version in range(steps)]


def half_wave(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


_count = st.integers(2, 40)
_factor = st.floats(0.05, 0.95)
CASES: dict[str, st.SearchStrategy[tuple[Any, Callable[[int], float]]]] = {
    "constant": st.builds(
        lambda factor, n: (
            lambda o: torch_schedulers.ConstantLR(o, factor, n),
            lambda t: BASE * factor if t < n else BASE,
        ),
        _factor,
        _count,
    ),
    "warm-up": st.builds(
        lambda factor, n: (
            lambda o: torch_schedulers.LinearLR(o, factor, 1.0, n),
            lambda t: BASE * (factor + (1 - factor) * min(t, n) / n),
        ),
        _factor,
        _count,
    ),
    "cosine": st.builds(
        lambda least: (
            lambda o: torch_schedulers.CosineAnnealingLR(o, 100, least),
            lambda t: half_wave(BASE, least, t / 100),
        ),
        st.floats(0, 0.05),
    ),
    "restarts": st.builds(
        lambda n: (
            lambda o: torch_schedulers.CosineAnnealingWarmRestarts(o, n),
            lambda t: half_wave(BASE, 0, t % n / n),
        ),
        _count,
    ),
    "step": st.builds(
        lambda factor, n: (lambda o: torch_schedulers.StepLR(o, n, factor), lambda t: BASE * factor ** (t // n)),
        _factor,
        _count,
    ),
    "multistep": st.builds(
        lambda factor, n, m: (
            lambda o: torch_schedulers.MultiStepLR(o, [n, n + m], factor),
            lambda t: BASE * factor ** ((t >= n) + (t >= n + m)),
        ),
        _factor,
        _count,
        _count,
    ),
    "exponential": st.builds(
        lambda factor: (lambda o: torch_schedulers.ExponentialLR(o, factor), lambda t: BASE * factor**t),
        st.floats(0.8, 0.999),
    ),
    "polynomial": st.builds(
        lambda power, n: (
            lambda o: torch_schedulers.PolynomialLR(o, n, power),
            lambda t: BASE * (1 - min(t, n) / n) ** power,
        ),
        st.floats(0.5, 3),
        st.integers(2, 150),
    ),
    "one cycle": st.builds(
        lambda rise: (
            lambda o: torch_schedulers.OneCycleLR(o, 1.0, 100, pct_start=rise),
            lambda t: (
                half_wave(0.04, 1.0, t / (rise * 100 - 1))
                if t <= rise * 100 - 1
                else half_wave(1.0, 4e-6, (t - rise * 100 + 1) / (100 - rise * 100))
            ),
        ),
        st.floats(0.1, 0.9),
    ),
    "cyclic": st.builds(
        lambda n: (
            lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.2, n, cycle_momentum=False),
            lambda t: 0.01 + 0.19 * (1 - abs(t / n % 2 - 1)),
        ),
        st.integers(5, 40),
    ),
    "a function: inverse root": st.builds(
        lambda n: (
            lambda o: torch_schedulers.LambdaLR(o, lambda t: min((t + 1) ** -0.5, (t + 1) * n**-1.5)),
            lambda t: BASE * min((t + 1) ** -0.5, (t + 1) * n**-1.5),
        ),
        _count,
    ),
    "one after the other": st.builds(
        lambda n: (
            lambda o: torch_schedulers.SequentialLR(
                o,
                [torch_schedulers.LinearLR(o, 0.1, 1.0, n), torch_schedulers.CosineAnnealingLR(o, 100 - n)],
                [n],
            ),
            lambda t: BASE * (0.1 + 0.9 * t / n) if t < n else half_wave(BASE, 0, (t - n) / (100 - n)),
        ),
        _count,
    ),
    "both at once": st.builds(
        lambda factor, n: (
            lambda o: torch_schedulers.ChainedScheduler(
                [torch_schedulers.ConstantLR(o, 0.5, n), torch_schedulers.ExponentialLR(o, factor)]
            ),
            lambda t: BASE * factor**t * (0.5 if t < n else 1),
        ),
        st.floats(0.8, 0.999),
        _count,
    ),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5)
@given(data=st.data(), steps=st.integers(2, 100))
def test_the_server_steps_by_the_schedule_of_its_formula(name: str, data: st.DataObject, steps: int) -> None:
    make, formula = data.draw(CASES[name])
    expected = [formula(t) for t in range(steps)]
    if min(expected) == max(expected):
        return
    np.testing.assert_allclose(server_values(make, steps), expected, rtol=1e-9, atol=1e-12)


def test_one_cycle_moves_the_momentum_too() -> None:
    values = server_values(lambda o: torch_schedulers.OneCycleLR(o, 1.0, 10, pct_start=0.4), 10, option="momentum")
    falling = [half_wave(0.95, 0.85, t / 3) for t in range(4)]
    np.testing.assert_allclose(values, falling + [half_wave(0.85, 0.95, t / 6) for t in range(1, 7)], rtol=1e-12)


def test_a_pair_of_momenta_is_followed_one_by_one() -> None:
    adam = Optimizers.of(torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=BASE))
    scheduler = torch_schedulers.OneCycleLR(adam.only, 1.0, 10)
    [schedules] = schedules_of(
        Timeline(adam, as_scheduled(scheduler), lambda: (adam, ())), TaskLength(steps=5, steps_per_epoch=1, epochs=5)
    )
    assert schedules.keys() == {"lr", "beta1"}
    assert value_at(schedules["beta1"], 0) == pytest.approx(0.95)


def test_one_that_ends_before_the_task_stays_as_it_ended() -> None:
    values = server_values(lambda o: torch_schedulers.OneCycleLR(o, 1.0, 10), 30)
    assert values[9] == pytest.approx(4e-6)
    assert values[10:] == pytest.approx([values[9]] * 20)


def test_one_by_the_epoch_steps_once_in_so_many_versions() -> None:
    values = server_values(lambda o: {"scheduler": torch_schedulers.StepLR(o, 1, 0.5), "interval": "epoch"}, 8, 3)
    assert values == [0.1] * 3 + [0.05] * 3 + [0.025] * 2


def test_a_long_schedule_is_short_when_written_down() -> None:
    def shape(step: int) -> float:
        return (step + 1) / 1000 if step < 1000 else half_wave(1.0, 0.1, min(1.0, (step - 1000) / 30_000))

    schedule = fit(np.array([shape(step) for step in range(40_000)]))
    assert schedule is not None
    assert len(schedule.segments) <= 4
    assert len(schedule.model_dump_json()) < 2000


def test_plateaus_are_exact_and_no_rate_is_negative() -> None:
    values = np.array([0.1] * 5 + [0.3] * 5 + [half_wave(0.3, 0.0, t / 50) for t in range(51)])
    schedule = fit(values)
    assert schedule is not None
    assert [value_at(schedule, step) for step in range(10)] == [0.1] * 5 + [0.3] * 5
    assert all(value_at(schedule, step) >= 0 for step in range(70))


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60))
@settings(max_examples=30)
def test_any_table_is_given_again(values: list[float]) -> None:
    schedule = fit(np.array(values))
    assert schedule is not None
    got = [value_at(schedule, step) for step in range(len(values))]
    np.testing.assert_allclose(got, values, rtol=1e-10, atol=1e-10 * max(map(abs, values)) + 1e-300)


def test_one_that_never_repeats_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_fit, "MAX_SEGMENTS", 20)
    noise = np.random.default_rng(0).random(200)
    with pytest.raises(TooLong, match="its lr changes too often"):
        server_values(lambda o: torch_schedulers.LambdaLR(o, lambda t: float(noise[t])), len(noise))
    with pytest.raises(TooLong, match="1,000,001 steps, over 1,000,000"):
        server_values(lambda o: torch_schedulers.StepLR(o, 5), 1_000_001)


SCHEDULED = (
    LINEAR
    + """
    def build_model(config):
        torch.manual_seed(2)
        return nn.Linear(3, 2)

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def build_scheduler(optimizer, config):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10) * 0.97**step)
"""
)
LIT = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.net = nn.Linear(3, 2)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.25)]
"""


def trained_in_rounds(bench: Bench, rounds: int) -> dict[str, torch.Tensor]:
    """Return the weights after rounds of all samples each, as a farm of one client would count them."""
    weights = safetensors.torch.load(bench.weights)
    samples = sum(piece.stop - piece.start for piece in bench.run_order().pieces)
    for number in range(rounds):
        data = safetensors.torch.save(weights)
        done = bench.train(
            round=number,
            epoch=number,
            weights=data,
            weights_digest=f"{number:064x}",
            samples_before=number * samples,
            round_samples=samples,
        )
        weights = {name: weights[name] - value for name, value in update_of(done).items()}
    return weights


def rates_seen(folder: Path, source: str, rounds: int) -> list[float]:
    """Return the rate at which each local step was taken."""
    bench = Bench(folder, source)
    return rates_of(lambda: trained_in_rounds(bench, rounds))


def rates_of(train: Callable[[], object]) -> list[float]:
    """Return the rate of each step of SGD that is taken meanwhile."""
    rates: list[float] = []
    original = torch.optim.SGD.step

    def step(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        return original(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        train()
    return rates


def test_local_steps_are_taken_at_the_rate_of_the_tasks_step(tmp_path: Path) -> None:
    rates = rates_seen(tmp_path, SCHEDULED, 3)
    assert len(rates) > 12
    np.testing.assert_allclose(rates, [0.5 * min(1.0, t / 10) * 0.97**t for t in range(len(rates))], rtol=1e-12)


def test_an_executor_that_begins_in_the_middle_finds_the_same_place(tmp_path: Path) -> None:
    bench, fresh = Bench(tmp_path / "a", SCHEDULED), Bench(tmp_path / "b", SCHEDULED)
    weights = trained_in_rounds(bench, 2)
    data = safetensors.torch.save(weights)
    later = {"round": 2, "epoch": 2, "weights": data, "weights_digest": "2" * 64, "samples_before": 144}
    assert bench.train(**later).update == fresh.train(**later).update
    again = {**later, "samples_before": 72}
    assert bench.train(**again).update == Bench(tmp_path / "c", SCHEDULED).train(**again).update


def test_a_lightning_modules_scheduler_steps_by_the_epoch(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    rates = rates_seen(tmp_path, LIT, 2)
    half = len(rates) // 2
    assert rates == [0.5] * half + [0.125] * half


@given(clients=st.integers(1, 8), batches=st.integers(1, 20), rounds=st.integers(0, 5))
def test_a_round_passes_as_many_steps_whoever_shares_it(clients: int, batches: int, rounds: int) -> None:
    batch, own = 32, 32 * batches
    whole = own * clients
    places = []
    for done in range(0, own, batch):
        pace = TaskPace(timeline_of(lambda o: []), batch, rounds * whole, whole, own, rounds, done)
        places.append(pace.place)
    first = rounds * whole // batch
    assert places == [Place(first + clients * number, rounds) for number in range(batches)]


def test_short_last_batches_of_epochs_are_steps_of_their_own() -> None:
    """72 samples in batches of 32: the plain loop takes three steps an epoch, and so does the schedule."""
    steps = [
        TaskPace(timeline_of(lambda o: []), 32, 72 * epoch, 72, 72, epoch, done).place.step
        for epoch in range(2)
        for done in (0, 32, 64)
    ]
    assert steps == [0, 1, 2, 3, 4, 5]


def test_a_schedule_goes_to_the_server_with_the_optimizer(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, SCHEDULED, mode=Mode.GRADIENTS)
    assert complaint(report) == ""
    assert report.outer is not None
    values = [value_at(report.outer.schedules["lr"], version) for version in range(60)]
    np.testing.assert_allclose(values, [0.5 * min(1.0, t / 10) * 0.97**t for t in range(60)], rtol=1e-9)


def test_a_task_in_weights_mode_says_that_clients_need_to_follow_it(tmp_path: Path) -> None:
    assert rehearsed(tmp_path / "with", SCHEDULED).has_scheduler
    assert not rehearsed(tmp_path / "without", LINEAR).has_scheduler


@pytest.mark.parametrize("mode", list(Mode))
def test_an_ignored_schedule_is_not_followed_and_said_to_be(tmp_path: Path, mode: Mode) -> None:
    report = rehearsed(tmp_path, SCHEDULED, mode=mode, ignore=("schedule",))
    assert complaint(report) == ""
    assert report.notes[0].startswith("ignored, as asked: a learning-rate scheduler (LambdaLR) was made")
    if mode is Mode.GRADIENTS:
        assert report.outer is not None
        assert (report.outer.options["lr"], report.outer.schedules) == (0.5, {})


@pytest.mark.parametrize("mode", list(Mode))
def test_one_that_follows_a_metric_is_refused_by_its_name(tmp_path: Path, mode: Mode) -> None:
    source = SCHEDULED.replace(
        "LambdaLR(optimizer, lambda step: min(1.0, step / 10) * 0.97**step)", "ReduceLROnPlateau(optimizer)"
    )
    told = complaint(rehearsed(tmp_path, source, mode=mode))
    assert "ReduceLROnPlateau follows a metric" in told
    assert "--ignore schedule" in told
    assert complaint(rehearsed(tmp_path / "ignored", source, mode=mode, ignore=("schedule",))) == ""


def test_what_is_no_scheduler_is_named(tmp_path: Path) -> None:
    source = SCHEDULED.replace("return torch.optim.lr_scheduler", "torch.optim.lr_scheduler")
    assert "a scheduler has a step(), and build_scheduler returned NoneType" in complaint(rehearsed(tmp_path, source))


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({"rounds": 7}, TaskLength(steps=7, steps_per_epoch=10, epochs=1)),
        ({"epochs": 2.5}, TaskLength(steps=25, steps_per_epoch=10, epochs=3)),
        ({"rounds": 7, "epochs": 2.5}, TaskLength(steps=7, steps_per_epoch=10, epochs=1)),
        ({"epochs": 1, "holdout": 0.2}, TaskLength(steps=8, steps_per_epoch=8, epochs=1)),
    ],
)
def test_the_length_of_a_task_in_steps(given: dict[str, Any], length: TaskLength) -> None:
    request = RehearsalRequest.model_construct(
        **{"rounds": None, "epochs": None, "holdout": 0.0, "round_samples": 10, "batch_samples": 10} | given
    )
    assert request.length(Mode.GRADIENTS, 100) == length


@given(
    rows=st.integers(2, 400),
    round_samples=st.integers(1, 50),
    epochs=st.floats(0.05, 3.0),
    holdout=st.sampled_from([0.0, 0.1, 0.25, 1 / 3]),
)
def test_a_trial_counts_a_tasks_steps_as_the_farm_does(
    rows: int, round_samples: int, epochs: float, holdout: float
) -> None:
    """A stray sample that the last round of an epoch takes along is no round of its own."""
    request = RehearsalRequest.model_construct(
        rounds=None, epochs=epochs, holdout=holdout, round_samples=round_samples, batch_samples=round_samples
    )
    recipe = Recipe(mode=Mode.GRADIENTS, epochs=epochs, round_samples=round_samples, batch_samples=round_samples)
    trained = sum(shard.samples for shard in plan_shards(rows, rows, holdout) if shard.split is Split.TRAIN)
    length = request.length(Mode.GRADIENTS, rows)
    assert length.steps == global_steps(recipe, trained)
    assert length.steps_per_epoch == rounds_per_epoch(recipe, trained)

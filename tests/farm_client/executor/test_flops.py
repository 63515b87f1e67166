"""Counting FLOPs: torch's own figures, on a batch that is trained on anyway, and not one bit of the weights another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from farm_client.executor.flops import FlopMeter, shape_of
from protocol.bounds import MAX_COUNT
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import LINEAR, Bench


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = checkpoint(self.body, x, use_reentrant=False)
        return answer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(16, 8, 2, batch_first=True, dropout=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.cells(x)[0]
        return states


Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), (6, 16)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Conv2d(8, 4, 3, stride=2)),
        (4, 3, 9, 9),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (3, 5, 16)),
    "attention": (Attention, (3, 5, 16)),
    "checkpointed": (Checkpointed, (6, 16)),
    "recurrent": (Recurrent, (3, 5, 16)),
}


def train(make: Make, shape: tuple[int, ...], meter: FlopMeter | None) -> nn.Module:
    torch.manual_seed(3)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(4):
        batch = torch.randn(*shape)
        with nullcontext() if meter is None else meter.step(batch, shape[0]):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_counting_changes_no_bit(name: str) -> None:
    make, shape = MODELS[name]
    plain, counted = train(make, shape, None), train(make, shape, FlopMeter())
    for mine, theirs in zip(plain.state_dict().values(), counted.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "encoder", "checkpointed"])
def test_it_is_torchs_own_figure(name: str) -> None:
    make, shape = MODELS[name]
    meter = FlopMeter()
    train(make, shape, meter)
    model = make()
    with FlopCounterMode(display=False) as torchs:
        model(torch.randn(*shape)).square().mean().backward()
    assert meter.per_sample == torchs.get_total_flops() // shape[0] > 0


def test_attention_on_a_cpu_counts_as_on_a_card() -> None:
    """Of torch's flop formulas none is for a CPU's attention: its two products, and the five of its backward pass."""
    make, shape = MODELS["attention"]
    meter = FlopMeter()
    train(make, shape, meter)
    samples, rows, width = shape
    linear = 2 * samples * rows * width * 48
    scores = 2 * samples * rows * rows * width
    assert meter.per_sample == (2 * linear + 7 * scores) // samples  # the input has no gradient


def test_what_torch_has_no_formula_for_is_said_once_and_alone_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    make, shape = MODELS["recurrent"]
    meter = FlopMeter()
    train(make, shape, meter)
    assert meter.per_sample == 0
    said = capsys.readouterr().err
    assert said.count("torch has no formula for it") == 1
    assert "rnn" in said or "lstm" in said


def test_an_operator_of_somebodys_own_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    library = torch.library.Library("farmtest", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    meter, x = FlopMeter(), torch.ones(2, 3)
    for _ in range(2):
        with meter.step(x, 2):
            torch.ops.farmtest.twice(x @ x.T)
    assert meter.per_sample == 2 * 2 * 3 * 2 // 2
    assert "leave out farmtest.twice" in capsys.readouterr().err


def test_a_formula_that_fails_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise AssertionError("shapes that it does not know")

    monkeypatch.setattr("farm_client.executor.flops._FORMULAS", {torch.ops.aten.mm: broken})
    meter, x = FlopMeter(), torch.ones(2, 2)
    for _ in range(2):
        with meter.step(x, 2):
            assert (x @ x).sum() == 8
    assert meter.per_sample == 0
    assert "aten.mm" in capsys.readouterr().err


class Clock:
    """Each reading is ``seconds`` later than the one before."""

    def __init__(self) -> None:
        self.now, self.seconds = 0.0, 1.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def steps(meter: FlopMeter, *shapes: tuple[int, int]) -> Iterator[int]:
    """Multiply batches of these shapes by their own transpose; yield the figure after each."""
    for shape in shapes:
        x = torch.ones(shape)
        with meter.step(x, shape[0]):
            x @ x.T
        yield meter.per_sample


def test_the_second_batch_is_counted_and_its_shape_no_more() -> None:
    meter = FlopMeter(clock=Clock())
    assert list(steps(meter, (2, 3), (2, 3), (2, 3), (4, 3))) == [0, 12, 12, 12]


def test_other_shapes_are_counted_while_that_costs_next_to_nothing() -> None:
    clock = Clock()
    meter = FlopMeter(clock=clock)
    assert list(steps(meter, (2, 3), (2, 3))) == [0, 12]
    assert list(steps(meter, (2, 5))) == [(24 + 40) // 4]  # a counted step was no slower than others
    clock.seconds = 1.5
    assert list(steps(meter, (2, 7))) == [(24 + 40 + 56) // 6]  # this one was, by half a second
    clock.seconds = 1.0
    assert list(steps(meter, (2, 9))) == [(24 + 40 + 56) // 6]
    list(steps(meter, *[(2, 3)] * 97))
    assert list(steps(meter, (2, 9))) == [(24 + 40 + 56) // 6]  # 0.5 s of 98 are too much yet
    list(steps(meter, (2, 3), (2, 3)))
    assert list(steps(meter, (2, 9))) == [(24 + 40 + 56 + 72) // 8]


def test_a_failing_step_fails_as_without() -> None:
    meter, x = FlopMeter(), torch.ones(2, 2)
    list(steps(meter, (2, 3)))
    with pytest.raises(ZeroDivisionError), meter.step(x, 2):
        _ = x @ x / (1 // 0)
    assert meter.per_sample == 0
    assert (x @ x).sum() == 8  # nothing counts any more
    assert list(steps(meter, (2, 3))) == [12]


def test_compiled_steps_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(steps(FlopMeter(is_compiled=True), (2, 3), (2, 3))) == [0, 0]
    import torch._dynamo.utils

    meter = FlopMeter()
    monkeypatch.setitem(torch._dynamo.utils.counters, "frames", {"ok": 1})  # the task's code compiles something
    assert list(steps(meter, (2, 3), (2, 3), (2, 5))) == [0, 0, 0]


def test_a_figure_fits_its_message() -> None:
    meter = FlopMeter()
    list(steps(meter, (2, 3), (2, 3)))
    meter._flops = 10**30
    assert meter.per_sample == MAX_COUNT


def test_the_shape_is_what_a_sample_has() -> None:
    x, y = torch.ones(4, 3), torch.ones(4)
    assert shape_of({"x": x, "y": y}) == shape_of({"x": torch.ones(9, 3), "y": torch.ones(9)}) == ((3,), ())
    assert shape_of((x, ["a", "b"])) == ((3,), ((), ()))


@pytest.mark.parametrize("mode", [Mode.WEIGHTS, Mode.GRADIENTS])
def test_an_assignment_says_what_a_sample_takes(tmp_path: Path, mode: Mode) -> None:
    bench = Bench(tmp_path, LINEAR, batch_samples=9, mode=mode)
    weights = sum(p.numel() for p in bench.runner.tensors.parameters.values() if p.ndim == 2)
    assert bench.train().flops_per_sample == 2 * 2 * weights  # forward, and the weights' gradient

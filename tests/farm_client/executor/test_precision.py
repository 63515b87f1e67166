"""Mixed precision and compiled models: to the bit what the same plain loop gives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.precision import Autocast
from protocol.recipe import InnerState, Mode, Precision
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of

TASK = (
    LINEAR
    + """
    seen = set()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss(model, batch):
        scores = model(batch["x"])
        seen.add((scores.dtype, torch.is_grad_enabled()))
        return nn.functional.cross_entropy(scores, batch["y"]) * config_factor

    config_factor = 1.0
"""
)
NET = (
    TASK
    + """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, 2)

        def forward(self, x):
            return torch.tanh(self.inner(x))

    def build_model(config):
        return Net()
"""
)
HALF = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def plain(bench: Bench, dtype: torch.dtype, scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
    model = bench.runner.contract.build_model()
    model.load_state_dict(bench.whole())
    [optimizer] = bench.runner.contract.build_optimizer(model)
    for batch in bench.runner._source.batches(bench.run_order().pieces, 0):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    after = model.state_dict()
    return {name: first - after[name] for name, first in bench.whole().items()}


@pytest.mark.parametrize("precision", list(HALF))
def test_local_steps_are_those_of_a_plain_loop_with_autocast(tmp_path: Path, precision: Precision) -> None:
    bench = Bench(tmp_path, TASK, precision=precision)
    scaler = torch.amp.GradScaler("cpu") if precision is Precision.FP16 else None
    update, expected = update_of(bench.train()), plain(bench, HALF[precision], scaler)
    assert all(torch.equal(update[name], value) for name, value in expected.items())
    assert all(value.dtype is torch.float32 for value in update.values())
    bench.evaluate()
    assert bench.runner.contract.module.seen == {(HALF[precision], True), (HALF[precision], False)}


@pytest.mark.parametrize("precision", list(HALF))
def test_a_gradient_is_sent_unscaled(tmp_path: Path, precision: Precision) -> None:
    exact = update_of(Bench(tmp_path / "fp32", TASK, mode=Mode.GRADIENTS).train())
    half = Bench(tmp_path / "half", TASK, mode=Mode.GRADIENTS, precision=precision)
    half.weights = Bench(tmp_path / "again", TASK, mode=Mode.GRADIENTS).weights
    for name, value in update_of(half.train()).items():
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)


def test_a_gradient_that_overflows_is_computed_again_at_a_lower_scale(tmp_path: Path) -> None:
    source = TASK.replace("config_factor = 1.0", "config_factor = 100.0")
    exact = update_of(Bench(tmp_path / "fp32", source, mode=Mode.GRADIENTS).train())
    half = Bench(tmp_path / "half", source, mode=Mode.GRADIENTS, precision=Precision.FP16)
    for name, value in update_of(half.train()).items():
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=1.0)
    assert half.runner._gradient._own_scaler.get_scale() < 65536


def test_a_gradient_that_overflows_at_any_scale_is_told(tmp_path: Path) -> None:
    source = TASK.replace("config_factor = 1.0", "config_factor = 1e30")
    with pytest.raises(LossNotFinite, match="too large for float16: use bf16"):
        Bench(tmp_path, source, mode=Mode.GRADIENTS, precision=Precision.FP16).train()


def test_the_scale_of_losses_is_a_part_of_the_inner_state(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TASK, precision=Precision.FP16, inner_state=InnerState.KEPT)
    bench.train()
    loop = bench.runner._kept_loop
    assert loop is not None
    assert set(loop.stateful()) == {"optimizer", "scaler"}
    bench.train()
    assert bench.runner._kept_loop is loop


REFUSED = {
    "train_step": ("def train_step(model, batch, optimizers, step): return 1.0", Precision.BF16, "use torch.autocast"),
    "a closure": (
        "def build_optimizer(model, config): return torch.optim.LBFGS(model.parameters())",
        Precision.FP16,
        "cannot scale losses for fp16: use bf16",
    ),
    "half weights": (
        "def build_model(config): return nn.Linear(3, 2).half()",
        Precision.FP16,
        "Attempting to unscale FP16 gradients",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_scaled_is_refused(tmp_path: Path, case: str) -> None:
    line, precision, sentence = REFUSED[case]
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, f"{TASK}\n    {line}\n", precision=precision).train()


def test_a_card_without_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert Autocast.of(Precision.BF16, torch.device("cuda")).dtype is None
    assert "computes in float32" in capsys.readouterr().err
    assert Autocast.of(Precision.FP16, torch.device("cuda")).dtype is torch.float16


@pytest.fixture
def compiling_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have models compiled by a backend of the test's own: the real one takes seconds."""
    yield lambda backend: monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def test_a_compiled_model_trains_as_it_is_written(tmp_path: Path, compiling_by: Any) -> None:
    written = Bench(tmp_path / "written", NET.replace("WIDTH", "3"))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiling_by(backend)
    compiled = Bench(tmp_path / "compiled", NET.replace("WIDTH", "3"), compile=True)
    compiled.weights = written.weights
    assert compiled.train().update == written.train().update
    assert graphs
    assert compiled.evaluate().metrics == written.evaluate().metrics


def test_a_machine_without_a_compiler_runs_the_model_as_it_is_written(
    tmp_path: Path, compiling_by: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Bench(tmp_path / "written", NET.replace("WIDTH", "3"))

    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    compiling_by(broken)
    compiled = Bench(tmp_path / "compiled", NET.replace("WIDTH", "3"), compile=True)
    compiled.weights = written.weights
    assert compiled.train().update == written.train().update
    compiled.train()
    assert capsys.readouterr().err.count("can't be compiled on this machine") == 1


def test_a_mistake_in_a_compiled_model_is_told_on_its_line(tmp_path: Path, compiling_by: Any) -> None:
    compiling_by("eager")
    with pytest.raises(CodeError, match=r"in forward: RuntimeError: mat1 and mat2"):
        Bench(tmp_path, NET.replace("WIDTH", "5"), compile=True).train()

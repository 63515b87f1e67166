"""Code that takes its own steps, and optimizers that need a closure: to the bit what the same plain loop gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from farm_client.executor.failures import CodeError
from protocol.recipe import InnerState, Mode
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

GAN = """
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)

    def build_model(config):
        torch.manual_seed(4)
        return Pair()

    def build_optimizer(model, config):
        return {
            "critic": torch.optim.Adam(model.critic.parameters(), lr=0.02, betas=(0.5, 0.999)),
            "generator": torch.optim.Adam(model.generator.parameters(), lr=0.01, betas=(0.5, 0.999)),
        }

    def train_step(model, batch, optimizers, step):
        real = batch["x"]
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        made = model.generator(torch.full((len(real), 2), float(step)))
        optimizers["critic"].zero_grad()
        loss = bce(model.critic(real), ones) + bce(model.critic(made.detach()), zeros)
        loss.backward()
        optimizers["critic"].step()
        optimizers["generator"].zero_grad()
        fooled = bce(model.critic(made), ones)
        fooled.backward()
        optimizers["generator"].step()
        return {"loss": loss, "fooled": fooled}

    def evaluate(model, data):
        return {"score": sum(float(model.critic(batch["x"]).mean()) for batch in data) / len(data)}
"""
LBFGS = (
    LINEAR
    + """
    def build_optimizer(model, config):
        return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=3)
"""
)
HOOKED = (
    LINEAR
    + """
    seen = []

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def on_before_step(model, optimizers, step):
        seen.append(step)
        model.weight.grad.div_(model.weight.grad.norm())
        optimizers.param_groups[0]["lr"] = 0.1 / (step + 1)
"""
)


def batches(bench: Bench) -> Iterator[Any]:
    return iter(bench.runner._source.batches(bench.run_order().pieces, 0))


def plain(bench: Bench, take: Callable[[nn.Module, Any, Any, int], None]) -> dict[str, torch.Tensor]:
    """Return what a plain loop would have sent: the first weights minus the last ones."""
    contract = bench.runner.contract
    model = contract.build_model()
    model.load_state_dict(safetensors.torch.load(bench.weights))
    optimizers = contract.build_optimizer(model).given
    for step, batch in enumerate(batches(bench)):
        take(model, batch, optimizers, step)
    after = model.state_dict()
    return {name: first - after[name] for name, first in safetensors.torch.load(bench.weights).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_train_step_with_two_optimizers_is_the_plain_loop(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GAN)
    done = bench.train()
    assert same(update_of(done), plain(bench, bench.runner.contract.module.train_step))
    assert set(done.metrics) == {"loss", "fooled"}
    assert set(bench.evaluate().metrics) == {"score"}
    assert set(bench.runner.optimizers.by_name) == {"optimizer.critic", "optimizer.generator"}


def test_an_optimizer_that_needs_a_closure_gets_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LBFGS)

    def take(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, _step: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
            loss.backward()
            return loss

        optimizer.step(closure)

    assert same(update_of(bench.train()), plain(bench, take))


def test_on_before_step_sees_each_gradient_and_may_change_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HOOKED)
    module = bench.runner.contract.module

    def take(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
        module.on_before_step(model, optimizer, step)
        optimizer.step()

    assert same(update_of(bench.train()), plain(bench, take))
    assert module.seen == [*range(9), *range(9)]


def test_on_before_step_comes_before_the_clipping(tmp_path: Path) -> None:
    blown_up = HOOKED.replace("div_(model.weight.grad.norm())", "mul_(1000)")
    bench = Bench(tmp_path, blown_up, clip_norm=0.5)

    def take(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
        bench.runner.contract.module.on_before_step(model, optimizer, step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    assert same(update_of(bench.train()), plain(bench, take))


def test_the_recipe_does_not_clip_what_it_does_not_step(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="clip the gradients there, and leave out clip_norm"):
        Bench(tmp_path, GAN, clip_norm=1.0).train()


@pytest.mark.parametrize(("source", "name"), [(GAN, "train_step"), (HOOKED, "on_before_step")])
def test_gradients_mode_refuses_own_steps_by_name(tmp_path: Path, source: str, name: str) -> None:
    told = complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))
    assert f"does not call {name}: use --mode weights" in told
    assert f"--ignore {name}" in told


def test_gradients_mode_names_an_optimizer_that_needs_a_closure(tmp_path: Path) -> None:
    assert "LBFGS" in complaint(rehearsed(tmp_path, LBFGS, mode=Mode.GRADIENTS))


def test_own_steps_are_rehearsed_in_weights_mode(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, GAN)
    assert complaint(report) == ""
    assert report.notes == ()


@pytest.mark.parametrize("source", [GAN, HOOKED, LBFGS], ids=["train_step", "on_before_step", "closure"])
def test_where_the_mode_is_open_own_steps_make_it_weights_mode(tmp_path: Path, source: str) -> None:
    report = rehearsed(tmp_path, source, mode=None)
    assert complaint(report) == ""
    assert report.mode is Mode.WEIGHTS
    assert report.obstacle


COUNTED = """

    original = build_model

    def build_model(config):
        with open(config["built"], "a") as file:
            file.write("once\\n")
        return original(config)
"""
FOREIGN = """

    temperature = nn.Parameter(torch.ones(7))

    def build_optimizer(model, config):
        return torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
"""


@pytest.mark.parametrize("addition", ["", FOREIGN], ids=["taken", "refused in either mode"])
def test_where_the_mode_is_open_the_model_is_built_once(tmp_path: Path, addition: str) -> None:
    built = tmp_path / "built"
    (tmp_path / "chosen").mkdir()
    config = {"built": str(built)}
    report = rehearsed(tmp_path, HOOKED + addition + COUNTED, mode=None, config=config)
    assert built.read_text() == "once\n"
    carried = {"mode": Mode.WEIGHTS, "inner_state": InnerState.CARRIED, "config": config}
    chosen = rehearsed(tmp_path / "chosen", HOOKED + addition + COUNTED, **carried)
    assert complaint(report) == complaint(chosen)
    assert (report.loss, report.metrics, report.notes) == (chosen.loss, chosen.metrics, chosen.notes)
    assert bool(complaint(report)) == bool(addition)

"""Local steps of a LightningModule against Lightning's own Trainer, over the same batches in one process."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.lightning_trainer import trainer_view
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, Mode, Precision
from tests.farm_client.executor.bench_task import Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

HEAD = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
            self.events = []

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.05)
"""
SCHEDULED = """
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "INTERVAL"}}
"""
HOOKED = """
        def note(self, name, *details):
            self.events.append((name, self.current_epoch, *details))

        def grad_norm(self):
            return sum(float(p.grad.norm()) if p.grad is not None else -1.0 for p in self.parameters())

        def on_fit_start(self):
            self.note("fit_start", len(self.trainer.optimizers))

        def on_train_start(self):
            self.note("train_start", self.global_step)

        def on_train_epoch_start(self):
            self.note("epoch_start", self.global_step)

        def on_train_epoch_end(self):
            self.note("epoch_end")

        def on_train_batch_start(self, batch, batch_idx):
            self.note("batch_start", batch_idx, self.global_step, float(batch["x"].sum()))

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "x": batch["x"] * 1.5}

        def on_before_zero_grad(self, optimizer):
            self.note("before_zero_grad", type(optimizer).__name__, self.grad_norm() > 0)

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            self.note("zero_grad", epoch, batch_idx)
            optimizer.zero_grad(set_to_none=False)

        def on_before_backward(self, loss):
            self.note("before_backward", float(loss))

        def backward(self, loss):
            (2 * loss).backward()

        def on_after_backward(self):
            self.note("after_backward", self.grad_norm())
            self.net[0].bias.grad[0] = 0.25

        def on_before_optimizer_step(self, optimizer):
            self.note("before_step", self.grad_norm())
            self.net[2].bias.grad += 0.125

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.note("clip", gradient_clip_val, str(getattr(gradient_clip_algorithm, "value", None)))
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            self.note("clipped", self.grad_norm())

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)
            self.note("stepped", epoch, batch_idx, isinstance(optimizer, torch.optim.AdamW))
            with torch.no_grad():
                self.net[0].weight.mul_(0.999)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.note("batch_end", sorted(outputs), float(outputs["loss"]), outputs["loss"].requires_grad, batch_idx,
                      self.global_step)
            self.log("after", 2.0 * batch_idx)
"""


def reference_of(bench: Bench) -> Any:
    """Return another model of the task, with the weights that the task begins with."""
    model = type(bench.runner.tensors.model)()
    model.load_state_dict(bench.whole())
    return model


def fit(model: Any, epochs: list[list[Any]], **options: Any) -> Any:
    """Train with Lightning's Trainer on these batches."""
    import lightning  # 4 s, which no worker that only collects this file should pay

    class Batches:
        def __len__(self) -> int:
            return len(epochs[0])

        def __iter__(self) -> Any:
            yield from epochs[trainer.current_epoch]

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=len(epochs), **quiet, **options)
        trainer.fit(model, Batches())
    return model


def batches_of(bench: Bench, epoch: int = 0) -> list[Any]:
    return list(bench.runner._source.batches(bench.run_order().pieces, epoch))


def assert_same_bits(bench: Bench, update: dict[str, torch.Tensor], trained: Any) -> None:
    base = bench.whole()
    for name, value in trained.state_dict().items():
        assert torch.equal(update[name], base[name] - value), name


def trained_epochs(bench: Bench, count: int) -> dict[str, torch.Tensor]:
    """Train one round an epoch, from version to version, and return the last one's weights."""
    weights = bench.weights
    for epoch in range(count):
        done = bench.train(
            round=epoch,
            epoch=epoch,
            samples_before=72 * epoch,
            round_samples=72,
            weights=weights,
            weights_digest=digest_bytes(weights),
        )
        before, update = safetensors.torch.load(weights), update_of(done)
        weights = safetensors.torch.save({name: before[name] - update[name] for name in before})
    return safetensors.torch.load(weights)


@pytest.mark.parametrize("clipping", [{"clip_norm": 0.05}, {"clip_value": 0.01}, {}])
def test_every_hook_of_the_training_loop_is_called_as_by_lightning_to_the_same_bits(
    tmp_path: Path, clipping: dict[str, float]
) -> None:
    bench = Bench(tmp_path, HEAD + HOOKED, **clipping)
    algorithm = {"clip_norm": "norm", "clip_value": "value"}
    options = [{"gradient_clip_val": v, "gradient_clip_algorithm": algorithm[k]} for k, v in clipping.items()]
    trained = fit(reference_of(bench), [batches_of(bench)], **(options[0] if options else {}))
    done = bench.train()
    assert_same_bits(bench, update_of(done), trained)
    *events, last = trained.events
    assert last == ("epoch_end", 0)
    assert bench.runner.tensors.model.events == events
    assert done.metrics["after"] == pytest.approx(8.0), "what hooks log is averaged like what steps log"
    assert done.metrics["loss"] == pytest.approx(done.metrics["train_loss"])


def test_epochs_begin_and_end_at_the_tasks_own_borders(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HEAD + HOOKED, inner_state=InnerState.KEPT)
    trained = fit(reference_of(bench), [batches_of(bench, epoch) for epoch in range(3)])
    weights = trained_epochs(bench, 3)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)

    def shape(events: list[Any]) -> list[Any]:
        return [(name, *(d for d in details if type(d) in (int, str))) for name, *details in events]

    assert shape(bench.runner.tensors.model.events) == shape(trained.events)[:-1]


def test_a_part_of_an_epoch_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HEAD + HOOKED)
    for epoch in (0, 0, 2):
        bench.train(epoch=epoch)
    told = [
        event for event in bench.runner.tensors.model.events if event[0] in {"train_start", "epoch_start", "epoch_end"}
    ]
    assert [event[:2] for event in told] == [
        ("train_start", 0),
        ("epoch_start", 0),
        ("epoch_end", 0),
        ("epoch_start", 2),
    ]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("own_step", [False, True])
def test_schedules_are_lightnings(tmp_path: Path, interval: str, own_step: bool) -> None:
    source = HEAD + SCHEDULED.replace("INTERVAL", interval)
    if own_step:
        source += """
        def lr_scheduler_step(self, scheduler, metric):
            assert metric is None
            scheduler.step()
            if scheduler.last_epoch == 2:
                scheduler.optimizer.param_groups[0]["lr"] *= 0.5
        """
    bench = Bench(tmp_path, source, inner_state=InnerState.KEPT)
    trained = fit(reference_of(bench), [batches_of(bench, epoch) for epoch in range(3)])
    weights = trained_epochs(bench, 3)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_a_plain_module_with_a_schedule_by_the_step_is_trained_to_the_same_bits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HEAD + SCHEDULED.replace("INTERVAL", "step"), clip_norm=0.5)
    trained = fit(reference_of(bench), [batches_of(bench)], gradient_clip_val=0.5)
    assert_same_bits(bench, update_of(bench.train(round_samples=72)), trained)


def test_an_optimizer_with_a_closure_is_trained_to_the_same_bits(tmp_path: Path) -> None:
    source = HEAD.replace("AdamW(self.parameters(), lr=0.05)", "LBFGS(self.parameters(), lr=0.5, max_iter=3)")
    bench = Bench(tmp_path, source)
    trained = fit(reference_of(bench), [batches_of(bench)])
    assert_same_bits(bench, update_of(bench.train()), trained)


GAN = """
    import torch
    import lightning
    from torch import nn

    class Gan(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
            self.discriminator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
            self.seen = []

        def adversarial_loss(self, scores, target):
            return nn.functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))

        def training_step(self, batch, batch_idx):
            real = batch["x"]
            first, second = self.optimizers()
            noise = real[:, :2].flip(0)
            self.toggle_optimizer(first)
            made = self.generator(noise)
            generator_loss = self.adversarial_loss(self.discriminator(made), 1.0)
            self.log("generator_loss", generator_loss, prog_bar=True)
            self.manual_backward(generator_loss)
            self.clip_gradients(first, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            first.step()
            first.zero_grad()
            self.untoggle_optimizer(first)
            with second.toggle_model():
                loss = self.adversarial_loss(self.discriminator(real), 1.0) / 2
                loss = loss + self.adversarial_loss(self.discriminator(self.generator(noise).detach()), 0.0) / 2
                self.manual_backward(loss)
                second.step()
                second.zero_grad()
            self.lr_schedulers()[1].step()
            self.log("loss", loss)

        def on_train_epoch_end(self):
            self.lr_schedulers()[0].step()

        def on_before_optimizer_step(self, optimizer):
            self.seen.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            first = torch.optim.Adam(self.generator.parameters(), lr=0.02, betas=(0.5, 0.999))
            second = torch.optim.Adam(self.discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))
            schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (first, second)]
            return [first, second], schedulers
"""


def test_a_gan_that_steps_its_optimizers_itself_is_trained_to_the_same_bits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GAN, inner_state=InnerState.CARRIED)
    trained = fit(reference_of(bench), [batches_of(bench)])
    done = bench.train()
    assert_same_bits(bench, update_of(done), trained)
    assert bench.runner.tensors.model.seen == trained.seen
    assert {"loss", "generator_loss"} <= done.metrics.keys()


def test_states_of_all_optimizers_and_schedulers_go_on_over_rounds(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GAN, inner_state=InnerState.KEPT)
    trained = fit(reference_of(bench), [batches_of(bench, epoch) for epoch in range(3)])
    weights = trained_epochs(bench, 3)
    assert bench.runner.tensors.model.seen == trained.seen
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


def test_a_carried_state_has_the_schedulers_that_the_module_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GAN, inner_state=InnerState.CARRIED)
    bench.train()
    loop = bench.runner._new_loop(None)  # type: ignore[arg-type]  # no rules: it takes no step
    assert loop.stateful().keys() == {"optimizer.0", "optimizer.1", "scheduler.0", "scheduler.1"}


def test_manual_optimization_takes_the_recipes_precision(tmp_path: Path) -> None:
    source = GAN.replace("made = self", "self.dtype_seen = self.discriminator(real).dtype; made = self")
    bench = Bench(tmp_path, source, inner_state=InnerState.KEPT, precision=Precision.BF16)
    trained = fit(reference_of(bench), [batches_of(bench)], precision="bf16-mixed")
    assert_same_bits(bench, update_of(bench.train()), trained)
    assert bench.runner.tensors.model.dtype_seen is torch.bfloat16


def test_losses_are_scaled_for_float16_and_gradients_are_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HEAD + HOOKED, precision=Precision.FP16)
    bench.train()
    events = bench.runner.tensors.model.events
    norms = {name: [e[-1] for e in events if e[0] == name] for name in ("after_backward", "before_step")}
    assert all(scaled > 1000 * plain for scaled, plain in zip(*norms.values(), strict=True) if plain < 100)


@pytest.mark.parametrize(
    ("addition", "options", "sentence"),
    [
        ("def on_train_batch_start(self, batch, i): return -1", {}, "on_train_batch_start returned -1"),
        ("def optimizer_step(self, *args): pass", {}, "did not call its closure"),
        ("def on_after_backward(self): 1 / 0", {}, "ZeroDivisionError"),
        ("def on_train_start(self): self.trainer.datamodule", {}, "self.trainer.datamodule is not known on the farm"),
        ("def on_train_start(self): self.trainer.should_stop = True", {}, "self.trainer.should_stop can't be set"),
        ("def on_train_start(self): self.lr_schedulers()", {}, "is for manual optimization"),
        (
            "def configure_gradient_clipping(self, *a, **b): pass",
            {"clip_norm": 1.0, "clip_value": 1.0},
            "takes one limit",
        ),
    ],
)
def test_what_the_farm_can_not_do_is_named(
    tmp_path: Path, addition: str, options: dict[str, float], sentence: str
) -> None:
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, HEAD + f"\n        {addition}\n", **options).train()  # type: ignore[arg-type]


def test_manual_optimization_clips_itself(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="manual optimization clips itself"):
        Bench(tmp_path, GAN, clip_norm=1.0).train()


PULLED = """
        def on_train_start(self):
            self.anchor = [p.detach().clone() for p in self.parameters()]

        def training_step(self, batch, batch_idx):
            far = sum((p - a).square().sum() for p, a in zip(self.parameters(), self.anchor))
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"]) + 0.5 / 2 * far
"""
SEEN = """
        def on_before_optimizer_step(self, optimizer):
            self.seen = [p.grad.clone() for p in self.parameters()]
"""


def test_the_proximal_term_is_in_the_gradients_that_hooks_see(tmp_path: Path) -> None:
    by_hand = Bench(tmp_path / "hand", HEAD + PULLED + SEEN)
    by_recipe = Bench(tmp_path / "recipe", HEAD + SEEN, proximal_mu=0.5)
    expected, found = update_of(by_hand.train()), update_of(by_recipe.train())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(by_recipe.runner.tensors.model.seen, by_hand.runner.tensors.model.seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_manual_optimization_takes_no_proximal_term(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"manual optimization computes its gradients itself.*proximal_mu"):
        Bench(tmp_path, GAN, proximal_mu=1.0).train()


def test_manual_optimization_is_evaluated_by_a_validation_step_alone(tmp_path: Path) -> None:
    step = """
        def validation_step(self, batch, batch_idx):
            return self.adversarial_loss(self.discriminator(batch["x"]), 1.0)
    """
    assert Bench(tmp_path / "has", GAN + step).evaluate().metrics["loss"] > 0
    with pytest.raises(CodeError, match="only a validation_step can evaluate"):
        Bench(tmp_path / "lacks", GAN).evaluate()


def test_there_are_no_optimizers_outside_of_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HEAD)
    with pytest.raises(RuntimeError, match="outside of training"):
        _ = trainer_view(bench.runner.tensors.model).training_loop


def test_several_optimizers_and_schedulers_are_taken_in_weights_mode(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, GAN, inner_state=InnerState.CARRIED)
    assert (complaint(report), report.notes) == ("", ())
    assert not report.evaluates, "its training_step steps the optimizers"
    told = complaint(rehearsed(tmp_path, GAN))
    assert "ExponentialLR of manual optimization would begin anew" in told
    told = complaint(rehearsed(tmp_path, GAN, mode=Mode.GRADIENTS))
    assert "--ignore manual_optimization" in told


def test_an_open_mode_becomes_weights_where_local_steps_have_hooks(tmp_path: Path) -> None:
    for source, why in ((GAN, "manual optimization"), (HEAD + HOOKED, "never called in gradients mode")):
        report = rehearsed(tmp_path, source, mode=None)
        assert complaint(report) == ""
        assert report.mode is Mode.WEIGHTS
        assert why in report.obstacle


def test_counters_and_hooks_on_batches_are_there_in_gradients_mode(tmp_path: Path) -> None:
    source = (
        HEAD.replace("loss = nn", "self.events.append((self.current_epoch, self.global_step)); loss = nn")
        + """
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "z": batch["x"]}

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return {"y": batch["y"], "x": batch["z"].to(device)}

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "x": 0 * batch["x"]}
    """
    )
    bench = Bench(tmp_path, source, mode=Mode.GRADIENTS)
    done = bench.train(round=5, epoch=2)
    assert set(bench.runner.tensors.model.events) == {(2, 5)}
    assert not update_of(done)["net.0.weight"].any(), "the images are all zero"


def test_hooks_of_validation_are_called_in_lightnings_order(tmp_path: Path) -> None:
    names = ["start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end"]
    hooks = "".join(
        f"\n        def on_validation_{name}(self, *args):"
        f"\n            self.events.append(('{name}', *(a for a in args if type(a) in (int, float))))"
        for name in names
    )
    step = """
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 2.0)
            return 1.0
    """
    ending = "\n            self.log('at_end', 3.0)"
    bench = Bench(tmp_path, HEAD + step + hooks.replace("('end'", "('end'") + ending)
    found = bench.evaluate(epoch=4).metrics
    per_batch = [event for i in range(3) for event in (("batch_start", i), ("batch_end", 1.0, i))]
    events = bench.runner.tensors.model.events
    assert events == [("start",), ("epoch_start",), *per_batch, ("epoch_end",), ("end",)]
    assert found == {"val_loss": 2.0, "loss": 1.0, "at_end": 3.0}


def test_what_nested_modules_log_is_kept(tmp_path: Path) -> None:
    source = HEAD.replace("self.events = []", "self.events = []; self.part = Part()").replace(
        'self.log("train_loss", loss)', "self.part.say()"
    )
    source += """
    class Part(lightning.LightningModule):
        def say(self):
            self.log("said", 7.0)

    def build_model(config):
        return Lit()
    """
    assert Bench(tmp_path, source).train().metrics["said"] == 7.0


def test_code_with_a_loss_of_its_own_has_no_hooks_and_says_so(tmp_path: Path) -> None:
    own = """
    def loss(model, batch):
        return nn.functional.cross_entropy(model.net(batch["x"]), batch["y"])
    """
    told = complaint(rehearsed(tmp_path, HEAD + HOOKED + own))
    assert "Lit.on_before_optimizer_step is never called" in told

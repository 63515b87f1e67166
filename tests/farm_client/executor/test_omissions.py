"""What the farm will not run is refused by its name before anything is sent, or noted; nothing is left out silently."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

WARM_UP = (
    LINEAR
    + """
    def build_optimizer(model, config):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
        return optimizer
"""
)
LIT = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def lit(addition: str) -> str:
    """Return the LightningModule with another method, or another ``configure_optimizers``."""
    return LIT + "\n" + addition


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("tries_batch", [True, False])
def test_a_scheduler_is_refused_with_the_way_on(tmp_path: Path, mode: Mode, tries_batch: bool) -> None:
    told = complaint(rehearsed(tmp_path, WARM_UP, mode=mode, tries_batch=tries_batch))
    assert "scheduler" in told
    assert "stay at its first value, 0" in told
    assert "constant rate 0.1" in told
    assert "--ignore schedule" in told
    assert "\n" not in told


SCHEDULERS = {
    "StepLR": "StepLR(o, 1)",
    "ReduceLROnPlateau": "ReduceLROnPlateau(o)",
    "OneCycleLR": "OneCycleLR(o, max_lr=1.0, total_steps=10)",
    "SequentialLR": "SequentialLR(o, [LinearLR(o), StepLR(o, 3)], milestones=[2])",
    "CosineAnnealingWarmRestarts": "CosineAnnealingWarmRestarts(o, 5)",
    "Own": "Own(o)",
}
RETURNS = {
    "pair": "return [o], [s]",
    "dict": 'return {"optimizer": o, "lr_scheduler": s}',
    "nested": 'return {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step", "monitor": "loss"}}',
}


@pytest.mark.parametrize(
    ("scheduler", "returned"), [*((name, "dict") for name in SCHEDULERS), ("StepLR", "pair"), ("StepLR", "nested")]
)
def test_a_lightning_modules_scheduler_is_followed_unless_it_needs_a_metric(
    tmp_path: Path, scheduler: str, returned: str
) -> None:
    source = lit(f"""
        def configure_optimizers(self):
            o = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            s = {SCHEDULERS[scheduler]}
            {RETURNS[returned]}

    from torch.optim.lr_scheduler import *

    class Own(LRScheduler):
        def get_lr(self):
            return [0.5 * rate for rate in self.base_lrs]
    """)
    told = complaint(rehearsed(tmp_path, source))
    if scheduler == "ReduceLROnPlateau":
        assert f"{scheduler} follows a metric" in told
        assert "--ignore schedule" in told
    else:
        assert told == ""


def test_one_that_only_left_its_mark_in_the_groups_is_refused(tmp_path: Path) -> None:
    source = WARM_UP.replace(
        "torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))",
        "optimizer.param_groups[0].update(initial_lr=0.1, lr=1e-7)  # as timm's schedulers do",
    )
    assert "--ignore schedule" in complaint(rehearsed(tmp_path, source))


@pytest.mark.parametrize("mode", list(Mode))
def test_an_ignored_scheduler_leaves_the_optimizers_own_rate(tmp_path: Path, mode: Mode) -> None:
    report = rehearsed(tmp_path, WARM_UP, mode=mode, ignore=("schedule",))
    assert complaint(report) == ""
    [note] = report.notes
    assert note.startswith("ignored, as asked: a learning-rate scheduler")
    if mode is Mode.GRADIENTS:
        assert report.outer is not None
        assert report.outer.options["lr"] == 0.1


def test_a_client_trains_at_the_constant_rate_where_the_schedule_is_ignored(tmp_path: Path) -> None:
    plain = (
        LINEAR + "\n    def build_optimizer(model, config):\n        return torch.optim.SGD(model.parameters(), lr=0.1)"
    )
    seed = "\n    torch.manual_seed(5)\n"
    expected = update_of(Bench(tmp_path / "plain", plain + seed).train())
    told = Bench(tmp_path / "told", WARM_UP + seed, ignore=("schedule",))
    trained = update_of(told.train())
    assert all(torch.equal(expected[name], trained[name]) for name in expected)
    assert any(tensor.any() for tensor in trained.values())


def test_a_rate_that_is_a_tensor_is_put_back_in_place(tmp_path: Path) -> None:
    source = WARM_UP.replace("lr=0.1", "lr=torch.tensor(0.25)")
    bench = Bench(tmp_path, source, ignore=("schedule",))
    assert float(bench.runner.build_optimizers().only.param_groups[0]["lr"]) == 0.25


STEPPED = WARM_UP.replace(
    "torch.optim.lr_scheduler.LambdaLR(", "global scheduler; scheduler = torch.optim.lr_scheduler.LambdaLR("
).replace("return nn.functional", "if torch.is_grad_enabled(): scheduler.step()\n        return nn.functional")


def test_a_scheduler_that_the_code_steps_itself_runs_and_is_left_alone(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, STEPPED)
    assert (complaint(report), report.notes) == ("", ())
    assert "--ignore schedule" in complaint(rehearsed(tmp_path, STEPPED, mode=Mode.GRADIENTS))


HOOKS = ["register_step_pre_hook", "register_step_post_hook"]


def hooked(register: str) -> str:
    return (
        LINEAR
        + f"""
    def clip_norm(optimizer, args, kwargs):
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-9)

    def build_optimizer(model, config):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        {register}
        return optimizer
    """
    )


@pytest.mark.parametrize("register", HOOKS)
def test_optimizer_hooks_are_refused_where_the_server_steps(tmp_path: Path, register: str) -> None:
    source = hooked(f"optimizer.{register}(clip_norm)")
    assert complaint(rehearsed(tmp_path, source, mode=Mode.WEIGHTS)) == ""
    told = complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))
    assert "clip_norm" in told
    assert "--ignore optimizer_hooks" in told
    report = rehearsed(tmp_path, source, mode=Mode.GRADIENTS, ignore=("optimizer_hooks",))
    assert "ignored, as asked" in report.notes[0]


def test_weights_mode_obeys_optimizer_hooks(tmp_path: Path) -> None:
    done = Bench(tmp_path, hooked("optimizer.register_step_pre_hook(clip_norm)")).train()
    assert all(tensor.abs().max() < 1e-6 for tensor in update_of(done).values())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("optimizer.step = lambda closure=None: None", "replaced_step"),
        ("optimizer.state[model.weight]['momentum_buffer'] = torch.ones(2, 3)", "optimizer_state"),
    ],
)
def test_whatever_else_the_servers_optimizer_would_not_have_is_refused(tmp_path: Path, line: str, name: str) -> None:
    assert complaint(rehearsed(tmp_path, hooked(line))) == ""
    assert f"--ignore {name}" in complaint(rehearsed(tmp_path, hooked(line), mode=Mode.GRADIENTS))


def test_tensor_hooks_are_noted_in_gradients_mode(tmp_path: Path) -> None:
    source = hooked("model.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))")
    assert rehearsed(tmp_path, source).notes == ()
    [note] = rehearsed(tmp_path, source, mode=Mode.GRADIENTS).notes
    assert "weight" in note


@pytest.mark.parametrize("mode", list(Mode))
def test_parameters_outside_of_the_model_are_refused(tmp_path: Path, mode: Mode) -> None:
    source = (
        hooked("optimizer.add_param_group({'params': [temperature]})")
        + "\n    temperature = nn.Parameter(torch.ones(7))"
    )
    told = complaint(rehearsed(tmp_path, source, mode=mode))
    assert "[7]" in told
    assert "--ignore foreign_parameters" in told


def test_a_rate_of_zero_is_noted(tmp_path: Path) -> None:
    [note] = rehearsed(tmp_path, hooked("").replace("lr=0.1", "lr=0.0")).notes
    assert "the learning rate is 0" in note


TEACHER = """
    import copy
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = nn.Linear(3, 2)
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def build_model(config):
        return Net()

    def loss(model, batch):
        if model.training:
            for own, target in zip(model.student.parameters(), model.teacher.parameters()):
                CHANGE
        return nn.functional.cross_entropy(model.student(batch["x"]), batch["y"])
"""


@pytest.mark.parametrize(
    "change",
    [
        "target.data = 0.9 * target.data + 0.2 * own.data",
        "target.data.mul_(0.9)",
        "torch.no_grad()(target.mul_)(0.9)",
    ],
)
@pytest.mark.parametrize("mode", list(Mode))
def test_frozen_parameters_that_the_code_changes_are_refused(tmp_path: Path, change: str, mode: Mode) -> None:
    told = complaint(rehearsed(tmp_path, TEACHER.replace("CHANGE", change), mode=mode))
    assert "teacher" in told
    assert "--ignore parameter_changes" in told


def test_changing_trained_parameters_is_refused_in_gradients_mode_only(tmp_path: Path) -> None:
    source = TEACHER.replace("CHANGE", "own.data.clamp_(-0.01, 0.01)")  # Wasserstein GANs do that
    assert complaint(rehearsed(tmp_path, source)) == ""
    assert "student" in complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))


def test_frozen_values_that_are_not_finite_are_no_change(tmp_path: Path) -> None:
    source = TEACHER.replace("CHANGE", "pass").replace(
        "requires_grad_(False)", "requires_grad_(False); self.teacher.weight.data[0] = math.nan"
    )
    assert complaint(rehearsed(tmp_path, "    import math\n" + source)) == ""
    assert math.isnan(math.nan)


REFUSED_HOOKS = [
    "configure_gradient_clipping",
    "on_before_optimizer_step",
    "optimizer_step",
    "on_after_backward",
    "on_train_batch_start",
    "on_train_batch_end",
]


@pytest.mark.parametrize("hook", REFUSED_HOOKS)
def test_hooks_of_local_steps_are_refused_by_name_where_there_are_none(tmp_path: Path, hook: str) -> None:
    source = lit(f"        def {hook}(self, *args, **kwargs):\n            raise RuntimeError\n")
    told = complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))
    assert f"Lit.{hook} is never called in gradients mode: use --mode weights" in told
    assert f"--ignore {hook}" in told
    assert hook in " ".join(rehearsed(tmp_path, source, mode=Mode.GRADIENTS, ignore=(hook,)).notes)
    assert "RuntimeError" in complaint(rehearsed(tmp_path, source)), "there it is called"


@pytest.mark.parametrize("hook", ["configure_model", "configure_callbacks"])
@pytest.mark.parametrize("mode", list(Mode))
def test_hooks_that_make_the_model_or_bring_others_are_refused_by_name(tmp_path: Path, hook: str, mode: Mode) -> None:
    told = complaint(
        rehearsed(tmp_path, lit(f"        def {hook}(self):\n            raise RuntimeError\n"), mode=mode)
    )
    assert f"Lit.{hook} is never called: " in told


def test_all_that_is_refused_is_told_at_once(tmp_path: Path) -> None:
    source = lit("        def backward(self, loss): pass\n\n        def on_train_batch_end(self, *_): pass\n")
    told = complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))
    assert told.endswith("accept that with --ignore backward --ignore on_train_batch_end")


@pytest.mark.parametrize("hook", ["on_train_end", "on_test_epoch_end", "test_step", "train_dataloader", "setup"])
def test_lightning_hooks_beside_the_training_are_noted(tmp_path: Path, hook: str) -> None:
    [note] = rehearsed(tmp_path, lit(f"        def {hook}(self, *args):\n            raise RuntimeError\n")).notes
    assert hook in note


def test_a_hook_of_a_base_class_of_the_researchers_counts_and_lightnings_own_do_not(tmp_path: Path) -> None:
    assert rehearsed(tmp_path, LIT).notes == ()
    source = LIT.replace("class Lit(", "class Base(lightning.LightningModule):\n        def on_train_start(self):\n"
                         "            pass\n\n    class Lit(Base, ")  # fmt: skip
    source += "\n    def build_model(config):\n        return Lit()\n"
    assert "on_train_start" in complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))


def test_a_misspelt_function_is_noted(tmp_path: Path) -> None:
    source = (
        LINEAR + "\n    def build_optimiser(model, config):\n        return None\n\n    def training_step(b, i): pass\n"
    )
    told = rehearsed(tmp_path, source).notes
    assert any("build_optimiser" in note and "did you mean build_optimizer?" in note for note in told)
    assert any("training_step" in note for note in told)


def test_groups_that_decay_differently_are_refused_in_gradients_mode(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    def build_optimizer(model, config):
        groups = [{"params": [model.weight]}, {"params": [model.bias], "decoupled_weight_decay": True}]
        return torch.optim.Adam(groups, weight_decay=0.1)
    """
    )
    assert complaint(rehearsed(tmp_path, source)) == ""
    assert "decoupled_weight_decay differs" in complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))


def test_a_name_that_fits_nothing_is_noted(tmp_path: Path) -> None:
    [note] = rehearsed(tmp_path, LINEAR, ignore=("shedule",)).notes
    assert note == "--ignore shedule does nothing: there is nothing of that name here"

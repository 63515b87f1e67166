"""What a LightningModule reads of its task's length from ``self.trainer``, against Lightning's own Trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from farm_client.executor.failures import CodeError
from farm_client.executor.lightning_trainer import TrainerView, trainer_view
from farm_client.executor.rehearsal_records import RehearsalReport
from protocol.recipe import InnerState, Mode, Precision, Recipe
from protocol.task_length import FOR_EVER, TaskLength, task_length
from tests.farm_client.executor.bench_task import Bench
from tests.farm_client.executor.rehearsing import complaint, rehearsed
from tests.farm_client.executor.test_lightning_loop import HEAD, batches_of, fit, reference_of, trained_epochs

EPOCHS = 3
LENGTH = TaskLength(steps=27, steps_per_epoch=9, epochs=EPOCHS)
"""Of the toy data's 72 training rows in batches of 8."""
READING = (
    HEAD
    + """
        def configure_optimizers(self):
            trainer = self.trainer
            self.read = [trainer.max_epochs, trainer.estimated_stepping_batches, trainer.num_training_batches]
            self.read += [trainer.max_steps, trainer.precision]
            self.read += [trainer.min_steps, trainer.min_epochs, trainer.limit_train_batches]
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            SCHEDULER
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
"""
)
SCHEDULERS = {
    "one cycle by the step": """scheduler = {"interval": "step", "scheduler": torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=0.5, total_steps=trainer.estimated_stepping_batches)}""",
    "a wave by the epoch": "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer.max_epochs)",
    "a warm-up of an epoch": """scheduler = {"interval": "step", "scheduler": torch.optim.lr_scheduler.LinearLR(
                optimizer, 0.01, total_iters=trainer.num_training_batches)}""",
}
READ_A_BATCH = "next(iter(trainer.train_dataloader))"
PLAIN = READING.replace("SCHEDULER", SCHEDULERS["one cycle by the step"])


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_module_that_asks_for_the_length_trains_as_by_lightnings_trainer(tmp_path: Path, scheduler: str) -> None:
    source = READING.replace("SCHEDULER", scheduler)
    bench = Bench(tmp_path, source, inner_state=InnerState.KEPT, length=LENGTH)
    trained = fit(reference_of(bench), [batches_of(bench, n) for n in range(EPOCHS)], max_steps=LENGTH.steps)
    weights = trained_epochs(bench, EPOCHS)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert bench.runner.tensors.model.read == trained.read


def test_an_endless_task_says_so_as_lightning_does(tmp_path: Path) -> None:
    source = READING.replace("SCHEDULER", "scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)")
    endless = TaskLength(steps=FOR_EVER, steps_per_epoch=9, epochs=FOR_EVER // 72)
    bench = Bench(tmp_path, source, length=endless)
    bench.train()
    assert bench.runner.tensors.model.read[:4] == [-1, float("inf"), 9, -1]


@pytest.mark.parametrize(
    ("precision", "name"), [(Precision.FP32, "32-true"), (Precision.BF16, "bf16-mixed"), (Precision.FP16, "16-mixed")]
)
def test_the_precision_has_lightnings_name(tmp_path: Path, precision: Precision, name: str) -> None:
    bench = Bench(tmp_path, HEAD, precision=precision)
    assert trainer_view(bench.runner.tensors.model).precision == name


def test_an_older_server_that_does_not_say_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="max_epochs is not known: this farm's server does not say how long a task is"):
        Bench(tmp_path, PLAIN).train()


LOGGING = PLAIN.replace(
    'self.log("train_loss", loss)',
    'self.log_dict({"epochs": self.trainer.max_epochs, "batches": self.trainer.num_training_batches,'
    ' "steps": self.trainer.estimated_stepping_batches, "most": self.trainer.max_steps})',
)


def logged(report: RehearsalReport) -> TaskLength:
    assert complaint(report) == ""
    assert report.metrics["most"] == report.metrics["steps"]
    read = {name: int(report.metrics[name]) for name in ("steps", "batches", "epochs")}
    return TaskLength(steps=read["steps"], steps_per_epoch=read["batches"], epochs=read["epochs"])


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    "how", [{"epochs": 2.5}, {"rounds": 7, "epochs": None}, {"rounds": 7, "epochs": 0.5, "round_samples": 24}]
)
def test_a_trial_tells_the_code_what_clients_will(tmp_path: Path, mode: Mode, how: dict[str, Any]) -> None:
    report = rehearsed(tmp_path, LOGGING, mode=mode, holdout=0.25, **how)
    recipe = Recipe.model_validate({"round_samples": 8, "batch_samples": 8, "mode": mode, **how})
    assert logged(report) == task_length(recipe, mode, 72)
    assert report.reads_length


def test_where_the_mode_is_open_the_length_is_that_of_the_mode_that_is_tried(tmp_path: Path) -> None:
    report = rehearsed(tmp_path, LOGGING, mode=None, holdout=0.25, round_samples=8)
    assert report.mode is Mode.GRADIENTS
    assert logged(report) == TaskLength(steps=45, steps_per_epoch=9, epochs=5)
    hook = "\n        def on_after_backward(self): pass\n"
    report = rehearsed(tmp_path / "hooked", LOGGING + hook, mode=None, holdout=0.25, round_samples=24)
    assert report.mode is Mode.WEIGHTS
    assert logged(report) == TaskLength(steps=45, steps_per_epoch=9, epochs=5)


def test_code_that_does_not_ask_runs_on_older_clients(tmp_path: Path) -> None:
    assert not rehearsed(tmp_path, HEAD).reads_length


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("fit_loop", "self.trainer.num_training_batches says"),
        ("train_dataloader.dataset", r"put what it says into \[config\]"),
        ("callback_metrics", "keep in the module what you log"),
        ("save_checkpoint", "keep_every, keep_best"),
        ("log_dir", "on_epoch_end"),
        ("datamodule", r"put what it knows into \[config\]"),
        ("no_such_name", r"do without it, or put it into \[config\]"),
    ],
)
@pytest.mark.parametrize("through_a_property", [False, True])
def test_what_the_trainer_does_not_know_is_named_with_what_to_do(
    tmp_path: Path, name: str, instead: str, through_a_property: bool
) -> None:
    source = HEAD.replace("return torch.optim", "self.asked\n            return torch.optim")
    source += (
        f"\n        {'@property' if through_a_property else ''}\n        def asked(self): return self.trainer.{name}\n"
    )
    source = source if through_a_property else source.replace("self.asked\n", "self.asked()\n")
    with pytest.raises(CodeError, match=rf"self\.trainer\.{name} is not known on the farm: .*{instead}"):
        Bench(tmp_path, source).train()


def test_the_loader_has_a_length_and_no_batches(tmp_path: Path) -> None:
    counting = (
        "trainer.estimated_stepping_batches if trainer.train_dataloader is None else len(trainer.train_dataloader)"
    )
    source = PLAIN.replace("trainer.num_training_batches", counting)
    bench = Bench(tmp_path, source, length=LENGTH)
    bench.train()
    assert bench.runner.tensors.model.read[:3] == [EPOCHS, 27, 9]
    with pytest.raises(CodeError, match="train_dataloader has a length and no batches on the farm"):
        Bench(tmp_path / "b", PLAIN.replace("trainer.num_training_batches", READ_A_BATCH), length=LENGTH).train()


def test_all_that_the_trainer_knows_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/researcher-contract.md").read_text()
    section = page.split('<a id="trainer"></a>')[1].split("## ")[0]
    known = {name for name in dir(TrainerView(torch.nn.Linear(1, 1))) if not name.startswith("_")}
    ours = {"at", "begun_epoch", "miss", "missed", "stepped_optimizers", "tell", "train_with", "training_loop"}
    lightnings_own = {"lightning_module", "precision_plugin"}
    assert known - ours - lightnings_own - {"was_asked_for_length"} == {
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(?:len\()?(\w+)\)?`", row)
    }


@pytest.mark.parametrize("asked", ["experiment.add_scalar('a', 1.0)", "log_image('a', [])"])
def test_a_module_that_asks_its_logger_is_told_that_there_is_none(tmp_path: Path, asked: str) -> None:
    source = HEAD.replace("return loss", f"self.logger.{asked}; return loss")
    with pytest.raises(CodeError, match=r"self\.logger: it is None on the farm, so use self\.log"):
        Bench(tmp_path, source).train()


def test_what_can_not_be_set_says_what_to_do() -> None:
    with pytest.raises(AttributeError, match="should_stop can't be set on the farm: give the recipe a patience"):
        TrainerView(torch.nn.Linear(1, 1)).should_stop = True


def test_a_property_that_fails_by_itself_is_not_blamed_on_the_trainer(tmp_path: Path) -> None:
    source = HEAD.replace(
        "return torch.optim", "getattr(self.trainer, 'datamodule', 0); self.mistaken\n            return torch.optim"
    )
    with pytest.raises(CodeError, match="mistaken") as caught:
        Bench(tmp_path, source).train()
    assert "datamodule is not known" not in str(caught.value)

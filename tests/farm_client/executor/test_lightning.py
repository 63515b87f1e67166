"""A LightningModule as it is, with the real package."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from farm_client.executor.failures import CodeError
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import Bench, update_of

LIT = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self, hidden, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))

        def training_step(self, batch, batch_idx):
            scores = self.net(batch["x"])
            loss = nn.functional.cross_entropy(scores, batch["y"])
            self.log("train_loss", loss, prog_bar=True)
            self.log_dict({"accuracy": (scores.argmax(1) == batch["y"]).float().mean()})
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch["x"]), batch["y"]))
            self.log("val_rows", float(len(batch["y"])))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_a_lightning_module_trains_and_validates(tmp_path: Path, mode: Mode) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench = Bench(tmp_path, LIT, mode=mode, config={"hidden": 4, "ignored": 1})
        done = bench.train()
        found = bench.evaluate().metrics
    assert done.metrics["train_loss"] == pytest.approx(done.metrics["loss"])
    assert 0 <= done.metrics["accuracy"] <= 1
    assert set(update_of(done)) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert found["loss"] == found["val_loss"]
    assert found["val_rows"] == 8


def test_build_model_may_return_one(tmp_path: Path) -> None:
    source = (
        LIT
        + """
    class Other(Lit):
        pass

    def build_model(config):
        return Other(hidden=3)
    """
    )
    assert Bench(tmp_path, source).train().samples == 72


def test_without_a_validation_step_the_training_step_evaluates(tmp_path: Path) -> None:
    source = LIT.replace("def validation_step", "def unused_step")
    found = Bench(tmp_path, source, config={"hidden": 4}).evaluate().metrics
    assert found["loss"] == pytest.approx(found["train_loss"])


@pytest.mark.parametrize(
    ("source", "config", "sentence"),
    [
        (LIT, {}, "Lit needs hidden: add it to the task's config"),
        (LIT + "\n    class Second(Lit):\n        pass\n", {}, "several LightningModules"),
        (LIT.replace("return {", "return [optimizer, optimizer]\n            return {"), {"hidden": 2}, "2 optimizers"),
        (LIT.replace("return loss", "return"), {"hidden": 2}, "training_step returned None"),
    ],
)
def test_what_lightning_cannot_do_here_is_said(
    tmp_path: Path, source: str, config: dict[str, int], sentence: str
) -> None:
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, source, config=config).train()


MEASURED = """
    import torch
    import lightning
    import torchmetrics
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.accuracy = torchmetrics.classification.BinaryAccuracy()
            self.several = torchmetrics.MetricCollection({"recall": torchmetrics.classification.BinaryRecall()})
            self.rows = torchmetrics.SumMetric()
            self.indices = []

        def _step(self, batch, batch_idx):
            self.indices.append(batch_idx)
            scores = self.net(batch["x"])
            hits = scores.argmax(1)
            self.accuracy(hits, batch["y"])
            self.several(hits, batch["y"])
            self.rows(float(len(hits)))
            self.log("object", self.accuracy, on_epoch=True)
            self.log("rows", self.rows)
            self.log_dict(self.several)
            self.log("plain", (hits == batch["y"]).float().mean())
            return scores, nn.functional.cross_entropy(scores, batch["y"])

        def training_step(self, batch, batch_idx):
            scores, loss = self._step(batch, batch_idx)
            return {"loss": loss, "doubled": 2 * loss, "scores": scores, "words": ["a"], "count": 3, "none": None}

        def validation_step(self, batch, batch_idx):
            scores, loss = self._step(batch, batch_idx)
            RETURNED

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_metric_objects_are_of_one_assignment(tmp_path: Path, mode: Mode) -> None:
    bench = Bench(tmp_path, MEASURED.replace("RETURNED", "pass"), mode=mode)
    for _ in range(3):
        for done in (bench.train(), bench.evaluate()):
            assert done.metrics["object"] == pytest.approx(done.metrics["plain"])
            assert done.metrics["rows"] == done.samples
            assert 0 <= done.metrics["recall"] <= 1
        assert done.samples == 24


def test_what_a_step_returns_beside_the_loss_is_as_with_the_trainer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MEASURED.replace("RETURNED", "return {'scores': scores, 'val_loss': loss, 'none': None}"))
    done, found = bench.train(), bench.evaluate().metrics
    assert done.metrics["doubled"] == pytest.approx(2 * done.metrics["loss"])
    assert done.metrics["count"] == 3
    assert not {"scores", "words", "none"} & {*done.metrics, *found}
    assert found["loss"] == found["val_loss"] > 0


@pytest.mark.parametrize("returned", ["return", "return scores", "return [scores]", "return 'words'", "return {}"])
def test_a_validation_step_may_return_anything(tmp_path: Path, returned: str) -> None:
    found = Bench(tmp_path, MEASURED.replace("RETURNED", returned)).evaluate().metrics
    assert set(found) == {"object", "rows", "recall", "plain"}


def test_steps_are_given_the_batchs_number(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MEASURED.replace("RETURNED", "pass"))
    for _ in range(2):
        bench.train()
        bench.evaluate()
    assert bench.runner.tensors.model.indices == [*range(9), *range(3)] * 2


def test_a_training_step_without_a_loss_is_told(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match='a dict without "loss"'):
        Bench(tmp_path, MEASURED.replace('{"loss": loss, ', "{").replace("RETURNED", "pass")).train()

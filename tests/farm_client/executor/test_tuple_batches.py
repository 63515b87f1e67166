"""Batches as tuples, by a list of columns; and what an error says where a dict was unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from farm_client.executor.failures import CodeError
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of
from tests.farm_client.executor.rehearsing import complaint, rehearsed

UNPACKS = (
    LINEAR.replace('nn.functional.cross_entropy(model(batch["x"]), batch["y"])', "step(model, batch)")
    + """
    def step(model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x.view(-1, 3)), y)
"""
)
MODULE = """
    import lightning
    import torch
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def training_step(self, batch, batch_idx):
            return self._common_step(batch, batch_idx, "train")

        def validation_step(self, batch, batch_idx):
            self._common_step(batch, batch_idx, "val")

        def _common_step(self, batch, batch_idx, stage):
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x.view(x.size(0), -1)), y)
            self.log(f"{stage}_loss", loss, on_step=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_a_tuple_trains_as_the_dict_does(tmp_path: Path, mode: Mode) -> None:
    seed = "\n    torch.manual_seed(1)\n"
    as_dict = update_of(Bench(tmp_path / "dict", LINEAR + seed, mode=mode).train())
    as_tuple = Bench(tmp_path / "tuple", UNPACKS + seed, mode=mode, tuple_columns=("x", "y"))
    assert all(torch.equal(value, as_dict[name]) for name, value in update_of(as_tuple.train()).items())
    assert as_tuple.evaluate().metrics["loss"] > 0


def test_a_lightning_module_that_unpacks_its_batch_runs_as_it_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MODULE, tuple_columns=("x", "y"))
    assert bench.train().samples == 72
    assert bench.evaluate().metrics["loss"] > 0


def test_the_order_is_the_one_that_was_asked_for_and_strings_may_be_in_it(tmp_path: Path) -> None:
    source = (
        LINEAR.replace('nn.functional.cross_entropy(model(batch["x"]), batch["y"])', "check(model, *batch)")
        + """
    def check(model, words, numbers):
        assert [f"w{int(n)}" for n in numbers] == words
        return model(torch.ones(1, 3)).mean()
    """
    )
    arrays = {"a": np.arange(64), "unused": np.zeros(64), "z": np.array([f"w{i}" for i in range(64)])}
    assert Bench(tmp_path, source, arrays=arrays, tuple_columns=("z", "a")).train().samples == 48


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="no column 'label' to make a tuple of: its columns are x, y"):
        Bench(tmp_path, UNPACKS, tuple_columns=("x", "label")).train()


UNPACKING = {
    "names are used as tensors": UNPACKS,
    "too few names": UNPACKS.replace("x, y = batch", "x, y, z = batch"),
    "too many names": UNPACKS.replace("x, y = batch", "(x,) = batch"),
    "by number": UNPACKS.replace("x, y = batch", "x, y = batch[0], batch[1]"),
    "as an argument": UNPACKS.replace("model(x.view(-1, 3))", "model(x)"),
    "in a LightningModule": MODULE,
}


@pytest.mark.parametrize("case", list(UNPACKING))
def test_an_error_of_an_unpacked_dict_says_what_to_do(tmp_path: Path, case: str) -> None:
    told = complaint(rehearsed(tmp_path, UNPACKING[case]))
    assert "the batch is {x: float32 [8, 3], y: int64 [8]}" in told
    assert "--batch tuple" in told


def test_other_errors_do_not_speak_of_tuples(tmp_path: Path) -> None:
    assert "--batch" not in complaint(rehearsed(tmp_path, LINEAR.replace("(3, 2)", "(4, 2)")))
    assert "--batch" not in complaint(rehearsed(tmp_path, LINEAR.replace('"x"', '"image"')))

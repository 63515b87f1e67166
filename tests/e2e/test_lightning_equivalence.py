"""A LightningModule in gradients mode is the same module under Lightning's own Trainer, over the same global batches.

Its schedules by the step and by the epoch are the server's there, and the recipe's ``clip_norm`` is the Trainer's
``gradient_clip_val``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farm_client.data.order import shard_order
from farm_client.data.shards import read_shard
from protocol.recipe import Mode, Recipe
from protocol.task_length import task_length
from protocol.tasks import Split
from tests.e2e.test_gradient_equivalence import (
    CLIP_NORM,
    SHARD_ROWS,
    SHARDS,
    STEP_ROWS,
    STEPS,
    Farm,
    make_shards,
    rows_of,
)
from tests.farm_client.executor.bench_task import Bench
from tests.farm_client.executor.rehearsing import complaint, rehearsed
from tests.farm_client.executor.test_lightning_loop import GAN, HEAD, HOOKED, fit, reference_of

PER_EPOCH = SHARD_ROWS // STEP_ROWS
RECIPE = Recipe(mode=Mode.GRADIENTS, rounds=STEPS, round_samples=SHARDS * STEP_ROWS, batch_samples=7)
SOURCE = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
            self.seen = set()

        def training_step(self, batch, batch_idx):
            self.seen.add((self.global_step, self.current_epoch))
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

        def configure_optimizers(self):
            schedulers = torch.optim.lr_scheduler
            optimizer = OPTIMIZER
            return [optimizer], [{"scheduler": SCHEDULER, "interval": "INTERVAL"}]
"""
OPTIMIZERS = {
    "adamw": "torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.1)",
    "sgd": "torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)",
}
SCHEDULERS = {
    "step": "schedulers.OneCycleLR(optimizer, 0.05, total_steps=self.trainer.estimated_stepping_batches)",
    "epoch": "schedulers.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)",
}


def by_lightning(bench: Bench) -> Any:
    """Return the module after Lightning's Trainer took the union batch of each step."""
    shards = [read_shard(bench.files[s.blob.digest]) for s in bench.shards if s.blob]

    def batch_of(step: int) -> Any:
        epoch, start, stop = rows_of(step)
        orders = [shard_order(3, epoch, index, SHARD_ROWS, Split.TRAIN)[start:stop] for index in range(SHARDS)]
        return shards[0].join([rows.take(order) for rows, order in zip(shards, orders, strict=True)])

    epochs = [[batch_of(epoch * PER_EPOCH + step) for step in range(PER_EPOCH)] for epoch in range(STEPS // PER_EPOCH)]
    return fit(reference_of(bench), epochs, gradient_clip_val=CLIP_NORM)


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("interval", SCHEDULERS.keys())
def test_gradients_mode_is_lightnings_own_loop(tmp_path: Path, clients: int, optimizer: str, interval: str) -> None:
    source = SOURCE.replace("OPTIMIZER", optimizer).replace("SCHEDULER", SCHEDULERS[interval])
    shards, files = make_shards(tmp_path, "float64")
    length = task_length(RECIPE, Mode.GRADIENTS, SHARDS * SHARD_ROWS)
    options: dict[str, Any] = {"mode": Mode.GRADIENTS, "batch_samples": 7, "shards": shards, "files": files}
    farm = Farm(
        [
            Bench(tmp_path, source.replace("INTERVAL", interval), length=length, clip_norm=CLIP_NORM, **options)
            for _ in range(clients)
        ]
    )
    trained = by_lightning(farm.clients[0])
    for step in range(STEPS):
        farm.step(step)
    for name, value in trained.state_dict().items():
        error = (farm.weights[name] - value).norm() / value.norm()
        assert error < 1e-9, f"{name} differs by {error:.2e}"
    assert farm.clients[0].runner.tensors.model.seen == trained.seen


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (GAN, "manual optimization does so itself: use --mode weights"),
        (HEAD + HOOKED, "on_before_optimizer_step is never called in gradients mode: use --mode weights"),
        (
            HEAD.replace(
                "return torch.optim.AdamW", "return [torch.optim.SGD(self.parameters(), 0.1)] * 2, torch.optim.AdamW"
            ),
            "configure_optimizers returned 2 optimizers",
        ),
        (
            HEAD.replace("return torch", "return torch.optim.LBFGS(self.parameters()) or torch"),
            "LBFGS",
        ),
    ],
    ids=["several optimizers by hand", "hooks", "several optimizers", "an optimizer that asks again"],
)
def test_what_gradients_mode_can_not_do_is_refused_at_submit_by_name(tmp_path: Path, source: str, named: str) -> None:
    assert named in complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))

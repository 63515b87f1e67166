"""Digits again, as a LightningModule: the farm takes it as it is, without build_model and loss."""

import lightning
import torch
from torch import nn
from torch.nn import functional


class Digits(lightning.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.lr = config.get("lr", 0.01)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, images):
        return self.layers(images.float() / 16.0)

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self(batch["x"]), batch["y"].long())

    def validation_step(self, batch, batch_idx):
        scores = self(batch["x"])
        self.log("loss", functional.cross_entropy(scores, batch["y"].long()))
        self.log("accuracy", (scores.argmax(dim=1) == batch["y"]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer):
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])
        self.log("gradient_norm", norm)

"""The same model by MuLoCo: Muon for the matrices of the blocks, AdamW for all else, inside of DiLoCo.

MuLoCo is DiLoCo with Muon as the inner optimizer (Thérien et al., arXiv:2505.23725). torch's Muon takes matrices alone;
embeddings, which are the output layer here, norms and biases stay with AdamW, as Muon's author has it.
"""

import torch
from train import build_model, loss

__all__ = ["build_model", "build_optimizer", "loss", "train_step"]


def build_optimizer(model, config):
    is_inner = {name: name.startswith("blocks.") and p.ndim == 2 for name, p in model.named_parameters()}
    matrices, others = ([p for name, p in model.named_parameters() if is_inner[name] is kind] for kind in (True, False))
    # Steps of AdamW's own length, so that both take one learning rate.
    muon = torch.optim.Muon(matrices, lr=config["lr"], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return {"muon": muon, "adamw": torch.optim.AdamW(others, lr=config["lr"], weight_decay=0.01)}


def train_step(model, batch, optimizers, step):
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    metrics = loss(model, batch)
    metrics["loss"].backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return metrics

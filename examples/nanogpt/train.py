"""nanoGPT on a farm: its ``model.py`` as it is, its optimizer, its warm-up and cosine, its clipping (in task.toml)."""

import math

import torch
from model import GPT, GPTConfig
from text import VOCABULARY, windows

SETTINGS = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 64, "rows": 4096, "lr": 3e-3, "steps": 256}


def build_model(config):
    torch.manual_seed(1337)  # as nanoGPT's train.py does
    sizes = {name: value for name, value in {**SETTINGS, **config}.items() if hasattr(GPTConfig, name)}
    return GPT(GPTConfig(**sizes, vocab_size=len(VOCABULARY)))


def make_dataset(config, seed=0):
    config = {**SETTINGS, **config}
    return windows(config["rows"], config["block_size"] + 1, seed)


def loss(model, batch):
    return model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())[1]


def build_optimizer(model, config):
    return model.configure_optimizers(0.1, config.get("lr", SETTINGS["lr"]), (0.9, 0.95), "cpu")


def build_scheduler(optimizer, config):
    """nanoGPT's ``get_lr``: a warm-up over the first twentieth of the steps, then a cosine to a tenth of the rate."""
    steps = config.get("steps", SETTINGS["steps"])
    warm_up = max(steps // 20, 1)

    def share(step):
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        progress = min((step - warm_up) / (steps - warm_up), 1.0)
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)

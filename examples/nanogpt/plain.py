"""The same training without a farm, to compare with: python plain.py [model.safetensors]."""

import sys

import torch
import train
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_

CLIP_NORM, BATCH_SAMPLES, EPOCHS = 1.0, 32, 2  # those of task.toml


def shuffled(config, order=0):
    """Return the batches of each epoch, in a random order."""
    torch.manual_seed(order)
    loader = torch.utils.data.DataLoader(train.make_dataset(config), BATCH_SAMPLES, shuffle=True)
    return [list(loader) for _ in range(EPOCHS)]


def trained(config, epochs):
    """Return the model after a loop as nanoGPT's own, over the batches of each epoch."""
    model = train.build_model(config)
    optimizer = train.build_optimizer(model, config)
    scheduler = train.build_scheduler(optimizer, config)
    for batches in epochs:
        for batch in batches:
            loss = train.loss(model, batch)
            loss.backward()
            clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
    return model


@torch.no_grad()
def held_out_loss(model, config):
    """Return the loss on text that was not trained on."""
    model.eval()
    return train.loss(model, train.make_dataset({**config, "rows": 512}, seed=1)).item()


if __name__ == "__main__":
    plain = held_out_loss(trained({}, shuffled({})), {})
    print(f"plain loop: {plain:.4f}")
    if sys.argv[1:]:
        model = train.build_model({})
        model.load_state_dict(load_file(sys.argv[1]))
        farm = held_out_loss(model, {})
        print(f"{sys.argv[1]}: {farm:.4f}, {farm / plain:.3f} of the plain loop's")

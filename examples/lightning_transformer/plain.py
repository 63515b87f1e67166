"""The same training by Lightning's own Trainer, without a farm: python plain.py [model.safetensors]."""

import sys
import warnings

import lightning
import torch
import train
from safetensors.torch import load_file

CLIP_NORM, BATCH_SAMPLES, EPOCHS = 1.0, 32, 2  # those of task.toml


class Epochs:
    """A loader of given batches, another list in each epoch."""

    def __init__(self, epochs):
        self.epochs, self.trainer = epochs, None

    def __len__(self):
        return len(self.epochs[0])

    def __iter__(self):
        return iter(self.epochs[self.trainer.current_epoch])


def shuffled(config, order=0):
    """Return the batches of each epoch, in a random order."""
    torch.manual_seed(order)
    loader = torch.utils.data.DataLoader(train.make_dataset(config), BATCH_SAMPLES, shuffle=True)
    return [list(loader) for _ in range(EPOCHS)]


def trained(config, epochs):
    """Return the model after ``Trainer.fit`` over the batches of each epoch."""
    model, batches = train.build_model(config), Epochs(epochs)
    model.prepare_data = lambda: None  # the demo's would download WikiText2
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches.trainer = lightning.Trainer(
            max_epochs=len(epochs), gradient_clip_val=CLIP_NORM, accelerator="cpu", devices=1, **silent
        )
        batches.trainer.fit(model, batches)
    return model


@torch.no_grad()
def held_out_loss(model, config):
    """Return the loss on text that was not trained on."""
    model.eval()
    inputs, target = torch.utils.data.default_collate(train.make_dataset({**config, "rows": 512}, seed=1))
    return model.training_step((inputs, target), 0).item()


if __name__ == "__main__":
    plain = held_out_loss(trained({}, shuffled({})), {})
    print(f"Lightning's Trainer: {plain:.4f}")
    if sys.argv[1:]:
        model = train.build_model({})
        model.load_state_dict(load_file(sys.argv[1]))
        farm = held_out_loss(model, {})
        print(f"{sys.argv[1]}: {farm:.4f}, {farm / plain:.3f} of the Trainer's")

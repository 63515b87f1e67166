"""Lightning's demo transformer on a farm, with a schedule that asks the Trainer how long the training is."""

import lightning
import torch
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer

SETTINGS = {"rows": 2048, "length": 24, "words": 50, "width": 32, "dropout": 0.0, "lr": 0.01}


class Language(LightningTransformer):
    """Smaller than the demo, and with AdamW. ``training_step`` and ``forward`` are Lightning's."""

    def __init__(self, words, width, dropout, lr):
        super().__init__(vocab_size=words)
        self.lr = lr
        self.model = Transformer(words, ninp=width, nhid=2 * width, nlayers=1, dropout=dropout)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_model(config):
    lightning.seed_everything(1, verbose=False)
    settings = {**SETTINGS, **config}
    return Language(*(settings[name] for name in ("words", "width", "dropout", "lr")))


def make_dataset(config, seed=0):
    """Return pairs of stretches of an invented language, as the demo's WikiText2: the second is one word further on."""
    settings = {**SETTINGS, **config}
    rows, length, words = settings["rows"], settings["length"], settings["words"]
    likely = torch.randint(words, (words, 4), generator=torch.Generator().manual_seed(1))  # four successors of each
    chance = torch.Generator().manual_seed(seed + 2)
    text = [torch.randint(words, (rows,), generator=chance)]
    for _ in range(length):
        text.append(likely[text[-1], torch.randint(4, (rows,), generator=chance)])
    whole = torch.stack(text, 1)
    return [(row[:-1], row[1:]) for row in whole]

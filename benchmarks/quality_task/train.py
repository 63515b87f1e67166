"""What the quality benchmark trains, small: as public code has it. ``config["model"]`` says which.

``digits.npz`` lies beside this file. A farm trains it as it stands; ``benchmarks.quality`` has the plain loop.
"""

import pydoc_data.topics
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BYTES = 128
HELD_OUT = 5  # every fifth row


class Digits(nn.Sequential):
    """A convolutional network, as in examples/digits."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class BasicBlock(nn.Module):
    """Two convolutions with batch norm and a skip connection (He et al., arXiv:1512.03385), as torchvision has it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(out + self.downsample(x))


class ResNet18(nn.Module):
    """Torchvision's ResNet-18 with the 3x3 stem for small images, an eighth of the channels, for 16 x 16 pixels."""

    def __init__(self):
        super().__init__()
        widths = [8, 16, 32, 64]
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        pairs = zip([8, *widths], widths, [1, 2, 2, 2], strict=False)
        self.layers = nn.Sequential(*(nn.Sequential(BasicBlock(i, o, s), BasicBlock(o, o, 1)) for i, o, s in pairs))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = functional.interpolate(x, scale_factor=2)
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def encoder(width, layers):
    """Return a transformer with the norm first."""
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, functional.gelu, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class SimpleViT(nn.Module):
    """Patches of 2 x 2 pixels, fixed places, mean pooling (Beyer et al., arXiv:2205.01580)."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 32), nn.LayerNorm(32))
        angles = torch.arange(16).float()[:, None] / 10 ** torch.linspace(0, 2, 16)
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.blocks, self.head = encoder(32, 2), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, x):
        patches = functional.unfold(x, 2, stride=2).transpose(1, 2)
        return self.head(self.blocks(self.patch(patches) + self.places).mean(1))

    def optimizer(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class GPT(nn.Module):
    """A causal transformer over bytes, with nanoGPT's optimizer: decay for matrices alone."""

    def __init__(self):
        super().__init__()
        self.embed, self.place, self.blocks = nn.Embedding(BYTES, 32), nn.Embedding(32, 32), encoder(32, 2)
        self.head = nn.Linear(32, BYTES, bias=False)

    def forward(self, text):
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1], device=text.device)
        x = self.embed(text) + self.place.weight
        return self.head(self.blocks(x, mask, is_causal=True)).transpose(1, 2)

    def optimizer(self):
        groups = [[p for p in self.parameters() if (p.dim() > 1) is matrix] for matrix in (True, False)]
        decays = ({"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.1, 0.0), strict=True))
        return torch.optim.AdamW(decays, lr=3e-3, betas=(0.9, 0.95))


class SuperResolution(nn.Module):
    """Efficient sub-pixel convolution (Shi et al., arXiv:1609.05158), from 4 x 4 to 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, 1, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1)),
            *(nn.ReLU(), nn.Conv2d(16, 4, 3, 1, 1), nn.PixelShuffle(2)),
        )

    def forward(self, x):
        return self.convs(functional.avg_pool2d(x, 2))

    def optimizer(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class LSTM(nn.Module):
    """PyTorch's word language model in small: embedding, LSTM, decoder; plain SGD."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(BYTES, 32), nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, BYTES)

    def forward(self, text):
        return self.head(self.lstm(self.embed(text))[0]).transpose(1, 2)

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=2.0)


MODELS = {
    "digits": Digits,
    "resnet18": ResNet18,
    "simplevit": SimpleViT,
    "gpt": GPT,
    "superres": SuperResolution,
    "lstm": LSTM,
}
TEXTS = (GPT, LSTM)


def build_model(config):
    torch.manual_seed(config["seed"])  # both sides begin with the same weights
    return MODELS[config["model"]]()


def build_optimizer(model, config):
    return model.optimizer()


def loss(model, batch):
    if isinstance(model, TEXTS):
        return functional.cross_entropy(model(batch["x"][:, :-1]), batch["x"][:, 1:])
    if isinstance(model, SuperResolution):
        return functional.mse_loss(model(batch["x"]), batch["x"])
    return functional.cross_entropy(model(batch["x"]), batch["y"])


def rows_of(config, held_out):
    """Return the rows to train on, or those held out, as a dict of tensors."""
    if MODELS[config["model"]] in TEXTS:
        whole = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
        characters = torch.frombuffer(bytearray(whole.encode("ascii", "replace")), dtype=torch.uint8)
        columns = {"x": characters[: 1280 * 33].view(-1, 33).long()}
    else:
        arrays = np.load(Path(__file__).parent / "digits.npz")
        columns = {"x": torch.tensor(arrays["x"]).float()[:, None] / 16, "y": torch.tensor(arrays["y"]).long()}
    is_held_out = torch.arange(len(columns["x"])) % HELD_OUT == 0
    return {name: column[is_held_out if held_out else ~is_held_out] for name, column in columns.items()}


def make_dataset(config):
    columns = rows_of(config, held_out=False)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

"""A character-level language model: a small causal transformer over bytes.

A batch of a text file is {"text": uint8 [batch, row_bytes]}: the model reads all but the last byte of a row and is
asked for each next one.
"""

import math

import torch
from torch import nn
from torch.nn import functional

BYTES = 256


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a norm and beside a skip connection."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):  # [batch, length, width]
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CharacterModel(nn.Module):
    """The scores of each next byte. The output layer shares its weights with the embedding."""

    def __init__(self, width, layers, heads, context):
        super().__init__()
        self.embed, self.place = nn.Embedding(BYTES, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        for embedding in (self.embed, self.place):  # alike, or places drown what was read
            nn.init.normal_(embedding.weight, std=width**-0.5)
        self.head.weight = self.embed.weight

    def forward(self, text):  # [batch, length] -> [batch, length, 256]
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.norm(self.blocks(self.embed(text) + self.place(places))))


def build_model(config):
    return CharacterModel(config["width"], config["layers"], config["heads"], config["context"])


def loss(model, batch):
    text = batch["text"].long()
    scores = model(text[:, :-1])
    nats = functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())
    return {"loss": nats, "bits_per_byte": nats / math.log(2)}


def build_optimizer(model, config):
    return torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=0.01)

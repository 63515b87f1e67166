"""A GPT of GPT-2's shape (Radford et al., 2019), written as nanoGPT is, on random tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

SMALL = {"layers": 4, "heads": 4, "width": 128, "context": 64, "vocabulary": 512, "batch": 8, "rows": 1024}
MID = {"layers": 6, "heads": 8, "width": 512, "context": 64, "vocabulary": 2048, "batch": 4, "rows": 1024}
TABLE = {"layers": 1, "heads": 4, "width": 512, "context": 16, "vocabulary": 60_000, "batch": 1, "rows": 1024}
"""Of 136 million bytes, nearly all one table: on a CPU its steps are to its weights as GPT-2's are on a card."""
GPT2 = {"layers": 12, "heads": 12, "width": 768, "context": 1024, "vocabulary": 50_304, "batch": 16, "rows": 16_384}
CONFIGS = {"cpu": SMALL, "cuda": GPT2}


class Block(nn.Module):
    """Attention and a two-layer network, each normed before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, context, width]."""
        batch, context, width = x.shape
        split = self.qkv(self.norm_1(x)).view(batch, context, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, context, width))
        grown: torch.Tensor = self.down(functional.gelu(self.up(self.norm_2(x))))
        return x + grown


class GPT(nn.Module):
    """The embedding is the output layer's too, as in GPT-2."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["width"]
        self.tokens = nn.Embedding(config["vocabulary"], width)
        self.places = nn.Embedding(config["context"], width)
        self.blocks = nn.Sequential(*(Block(width, config["heads"]) for _ in range(config["layers"])))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, context, vocabulary]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.places(places)))
        return functional.linear(x, self.tokens.weight)


def build_model(config: dict[str, Any]) -> nn.Module:
    """Return a GPT."""
    return GPT(config)


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Return AdamW as GPT-2's successors are trained; its one-kernel form where the model is on a card."""
    is_on_card = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True if is_on_card else None
    )


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of each next token; on a card in bfloat16."""
    rows = batch["tokens"]
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        logits = model(rows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def load_shard(shard: Any) -> dict[str, torch.Tensor]:
    """Return random tokens [rows, context + 1]."""
    draw = torch.Generator().manual_seed(shard.index)
    size = (shard.samples, shard.config["context"] + 1)
    return {"tokens": torch.randint(shard.config["vocabulary"], size, generator=draw)}

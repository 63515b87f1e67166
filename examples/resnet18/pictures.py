"""Pictures that are generated: bars and rings in noise, and a label that is another one's in one case of ten."""

import torch

SIDE, CLASSES = 32, 4


def pictures(count, seed):
    """Return pictures [count, 3, SIDE, SIDE] float32 and their labels [count] int64."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=chance)
    centre = torch.randint(10, 22, (2, count, 1, 1), generator=chance)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    down, across = y - centre[0], x - centre[1]  # [count, SIDE, SIDE]
    away = (down**2 + across**2).float().sqrt()
    shapes = torch.stack([down.abs() < 2, across.abs() < 2, (down - across).abs() < 3, (away - 7).abs() < 2])
    drawn = shapes[labels, torch.arange(count)] & (away < 10)
    colours = 1.0 + torch.rand(count, 3, 1, 1, generator=chance)
    noise = 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=chance)
    is_wrong = torch.rand(count, generator=chance) < 0.1
    return drawn[:, None] * colours + noise, torch.where(is_wrong, (labels + 1) % CLASSES, labels)

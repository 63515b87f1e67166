"""A small DCGAN (Radford et al., arXiv:1511.06434) that learns to draw digits: two optimizers, stepped in turn.

``train_step`` is the loop's body as it stands in any script: the farm calls it once a batch, and does no step itself.
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

NOISE = 32


def build_model(config):
    return Gan(config.get("width", 16))


class Gan(nn.Module):
    """Both networks are parts of the model, so that both travel."""

    def __init__(self, width):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(NOISE, 4 * width, 2, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.critic = nn.Sequential(
            nn.Conv2d(1, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 2),
        )
        self.apply(initialise)


def initialise(layer):
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


def build_optimizer(model, config):
    options = {"lr": config.get("lr", 0.0005), "betas": (0.5, 0.999)}
    return {
        "critic": torch.optim.Adam(model.critic.parameters(), **options),
        "generator": torch.optim.Adam(model.generator.parameters(), **options),
    }


def train_step(model, batch, optimizers, step):
    real = pictures(batch)
    drawn = draw(model, len(real), real.device)

    optimizers["critic"].zero_grad()
    of_real, of_drawn = model.critic(real).flatten(), model.critic(drawn.detach()).flatten()
    critic_loss = bce(of_real, torch.ones_like(of_real)) + bce(of_drawn, torch.zeros_like(of_drawn))
    critic_loss.backward()
    optimizers["critic"].step()

    optimizers["generator"].zero_grad()
    verdict = model.critic(drawn).flatten()
    generator_loss = bce(verdict, torch.ones_like(verdict))
    generator_loss.backward()
    optimizers["generator"].step()
    return {"loss": critic_loss, "generator_loss": generator_loss}


def evaluate(model, data):
    """How far the drawn pictures are from real ones: the Frechet distance of two Gaussians over their pixels."""
    real = torch.cat([pictures(batch) for batch in data])
    means, spreads = zip(*(moments(images) for images in (real, draw(model, len(real), real.device))), strict=True)
    common = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt().sum()
    return {"frechet": (means[0] - means[1]).square().sum() + (spreads[0] + spreads[1]).trace() - 2 * common}


def pictures(batch):
    return batch["x"].float().unsqueeze(1) / 8.0 - 1.0  # [batch, 1, 8, 8] from -1 to 1


def draw(model, count, device):
    return model.generator(torch.randn(count, NOISE, 1, 1, device=device))


def moments(images):
    pixels = images.flatten(1).double()
    return pixels.mean(dim=0), torch.cov(pixels.T)

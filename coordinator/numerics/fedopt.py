"""FedAdagrad, FedAdam and FedYogi: adaptive optimizers of a server, over pseudo-gradients.

They differ from torch's kin in the first steps: no bias is corrected, the second moment begins at ``tau`` squared, and
``tau`` is added to its root. Each function takes what torch's take: lists of parameters, of gradients (the negative of
the paper's direction of the clients), of first and of second moments; it changes all but the gradients in place.
Source: Reddi et al., arXiv:2003.00295, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Tensors = Sequence[Tensor]


def fedadagrad(
    parameters: Tensors, gradients: Tensors, firsts: Tensors, seconds: Tensors, *, lr: float, beta1: float, tau: float
) -> None:
    """Step with a second moment that is the sum of all squares: v = v + g^2."""
    for parameter, gradient, first, second in zip(parameters, gradients, firsts, seconds, strict=True):
        second.addcmul_(gradient, gradient)
        _follow(parameter, first.lerp_(gradient, 1 - beta1), second, lr, tau)


def fedadam(
    parameters: Tensors,
    gradients: Tensors,
    firsts: Tensors,
    seconds: Tensors,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> None:
    """Step with a second moment that is a running mean: v = beta2 v + (1 - beta2) g^2."""
    for parameter, gradient, first, second in zip(parameters, gradients, firsts, seconds, strict=True):
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        _follow(parameter, first.lerp_(gradient, 1 - beta1), second, lr, tau)


def fedyogi(
    parameters: Tensors,
    gradients: Tensors,
    firsts: Tensors,
    seconds: Tensors,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> None:
    """Step with a second moment that changes by no more than its news: v = v - (1 - beta2) g^2 sign(v - g^2)."""
    for parameter, gradient, first, second in zip(parameters, gradients, firsts, seconds, strict=True):
        square = gradient * gradient
        second.addcmul_(square, (second - square).sign_(), value=beta2 - 1)
        _follow(parameter, first.lerp_(gradient, 1 - beta1), second, lr, tau)


def _follow(parameter: Tensor, first: Tensor, second: Tensor, lr: float, tau: float) -> None:
    """Take the step x = x - lr m / (sqrt(v) + tau)."""
    parameter.addcdiv_(first, second.sqrt().add_(tau), value=-lr)

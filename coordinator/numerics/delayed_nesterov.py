"""Delayed Nesterov: the momentum of an asynchronous server, which follows every Nth version only.

Where a version is of one client's update, or of few, momentum that follows each of them adds the same direction up
again and again: updates that began at one version point the same way. So each version steps along its own update alone,
and the momentum along the mean of the last N, once in N versions.
Source: Liu et al., "Asynchronous Local-SGD Training for Language Modeling", arXiv:2401.09135, algorithm 3.
The paper's text was not at hand: the equations are those of a reimplementation that cites it, after the code of HALoS
(utnslab/halos, src/halos/opt.py). Tests hold them, and Nesterov's momentum at N = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Tensors = Sequence[Tensor]


def delayed_nesterov(
    parameters: Tensors,
    gradients: Tensors,
    momenta: Tensors,
    sums: Tensors,
    steps: Tensors,
    *,
    lr: float,
    momentum: float,
    delay: int,
    activation: float,
) -> None:
    """Step, with g the gradient of version t (from 0 on), m the momentum, D the sum, N = ``delay``, c = ``activation``.

        D = D + g / N
        each Nth version:  m = momentum m + D,  D = 0,  x = x - lr ((1 - cN + c) momentum m + g / N)
        the others:                                     x = x - lr (                c momentum m + g / N)

    c spreads the momentum over the versions in between: none of it at 0, all alike at 1 / N. With N = 1 it is
    Nesterov's momentum as torch's SGD has it, whatever c is. All but the gradients are changed in place.
    """
    for parameter, gradient, kept, total, step in zip(parameters, gradients, momenta, sums, steps, strict=True):
        step.add_(1)
        total.add_(gradient, alpha=1 / delay)
        share = activation
        if int(step.item()) % delay == 0:
            kept.mul_(momentum).add_(total)
            total.zero_()
            share = 1 - activation * delay + activation
        parameter.add_(kept, alpha=-lr * share * momentum).add_(gradient, alpha=-lr / delay)

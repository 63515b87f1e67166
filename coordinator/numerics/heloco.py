"""HeLoCo: late updates are turned towards the outer momentum, tensor by tensor, before they count.

An update that began some versions ago may point against where the weights went since. Each tensor of it is compared
with the outer optimizer's momentum of that tensor: what agrees stays, what is askew is turned and keeps its length, and
of what points against it a part of the opposition is taken off.
Source: HeLoCo, arXiv:2606.00271. The paper's text was not at hand: the equations are those in which three
independent reimplementations agree. Tests hold them, their three cases and the borders between these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from coordinator.numerics.aggregate import OuterMemory
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import Reader, Scratch, decoder
from protocol.codecs.decoder import chunks_of
from protocol.codecs.sums import Sum
from protocol.compression import CodecSpec
from protocol.tensors import Layout, Role, TensorSpec

MOMENTUM: Final = "momentum_buffer"
Tensors = Sequence[Tensor]


class Turned(NamedTuple):
    """What becomes of an update D beside a momentum m: ``own`` D + ``along`` m."""

    own: float
    along: float


UNTURNED: Final = Turned(1.0, 0.0)


def turn(update: float, momentum: float, product: float, options: Mapping[str, Any]) -> Turned:
    """Return how an update D is turned, of |D|, |m| and <D, m>, by the options ``c_ok`` and so on.

    With u = D / |D|, v = m / |m|, c = <u, v> and conf = |D| / (|D| + kappa |m| + eps):

        c >= c_ok:      D
        0 <= c < c_ok:  |D| w / |w|,  w = (1 - l) u + l v,  l = min(k_d (1 - c) conf, 1)
        c < 0:          D - b c |D| v,  b = min(k_s (-c) conf, beta_max)

    A zero has no direction, so an update beside none, or of nothing, stays as it is. The sources divide by
    max(|w|, eps); as c is not negative |w| is at least the root of a half, and eps is never that large.
    """
    if not update or not momentum:
        return UNTURNED
    c = min(max(product / (update * momentum), -1.0), 1.0)
    if c >= options["c_ok"]:
        return UNTURNED
    confidence = update / (update + options["kappa"] * momentum + options["eps"])
    if c < 0:
        share = min(options["k_s"] * -c * confidence, options["beta_max"])
        return Turned(1.0, -share * c * update / momentum)
    share = min(options["k_d"] * (1 - c) * confidence, 1.0)
    length = math.sqrt((1 - share) ** 2 + share**2 + 2 * share * (1 - share) * c)
    return Turned((1 - share) / length, share * update / (momentum * length))


class TurnedMean(WeightedMean):
    """The weighted mean of updates that are each turned towards the outer momentum, a tensor at a time.

    A turned update is a D + b m, so the mean is (sum of s_k n_k a_k D_k + (sum of s_k n_k b_k) m) / (sum of s_k n_k):
    each update is read twice, once to be compared and once to be added, and the momentum is added once for all.
    The momentum is that of the version that the updates step, not of the one that an update began at.
    Memory: that of the mean, and blocks; the momentum is the outer optimizer's, and not copied.
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None = None) -> None:
        super().__init__(layout, codec)
        self._scratch = Scratch()
        self._outer: OuterMemory | None = None
        self._along: dict[str, float] = {}

    def follow(self, outer: OuterMemory) -> None:
        """Turned towards this optimizer's momentum from now on; without one updates stay as they are."""
        self._outer = outer

    def result(self) -> dict[str, Tensor]:
        """Return the weighted mean, with the momentum's share of it."""
        mean = super().result()
        for name, along in self._along.items():
            momentum = self._momentum(name)
            if momentum is not None:
                mean[name].add_(momentum, alpha=along / self._weight)
        self._along.clear()
        return mean

    def reset(self) -> None:
        """Drop all updates, and what they have of the momentum."""
        super().reset()
        self._along.clear()

    def _add(self, total: Sum, spec: TensorSpec, update: Reader, weight: float) -> None:
        own, along = self._turn(spec, update) if spec.role is Role.PARAMETER else UNTURNED
        super()._add(total, spec, update, weight * own)
        if along:
            self._along[spec.name] = self._along.get(spec.name, 0.0) + weight * along

    def _turn(self, spec: TensorSpec, update: Reader) -> Turned:
        momentum = self._momentum(spec.name)
        if self._outer is None or momentum is None:
            return UNTURNED
        stored, flat = decoder(update, spec, self._codec, self._scratch), momentum.reshape(-1)
        products = torch.zeros(3, dtype=torch.float64)
        for start, stop in chunks_of(spec.elements):
            values = self._scratch.take("compared", stop - start, stored.dtype)
            stored.read(start, values)
            u = self._scratch.take("update", stop - start, torch.float64).copy_(values)
            v = self._scratch.take("momentum", stop - start, torch.float64).copy_(flat[start:stop])
            products += torch.stack((u.dot(u), v.dot(v), u.dot(v)))
        uu, vv, uv = products.tolist()
        return turn(math.sqrt(uu), math.sqrt(vv), uv, self._outer.options_of(spec.name))

    def _momentum(self, name: str) -> Tensor | None:
        return None if self._outer is None else self._outer.kept_of(name).get(MOMENTUM)


def heloco(
    parameters: Tensors,
    gradients: Tensors,
    momenta: Tensors,
    aheads: Tensors,
    *,
    lr: float,
    momentum: float,
    look_ahead: bool,
) -> None:
    """Step along the mean g of turned updates, with m the momentum and x the parameter.

        m = momentum m + (1 - momentum) g,  x = x - lr (g + momentum m)

    With ``look_ahead`` the parameter is, between steps, x - lr momentum m, where clients then begin: ``aheads`` says
    by how much of m it is ahead of x, so that a rate may change. All but the gradients are changed in place.
    """
    for parameter, gradient, kept, ahead in zip(parameters, gradients, momenta, aheads, strict=True):
        parameter.add_(kept, alpha=ahead.item())
        kept.mul_(momentum).add_(gradient, alpha=1 - momentum)
        ahead.fill_(lr * momentum if look_ahead else 0.0)
        parameter.add_(gradient, alpha=-lr).add_(kept, alpha=-lr * momentum - ahead.item())

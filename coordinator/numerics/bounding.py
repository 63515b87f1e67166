"""Means of votes that are cut down to a norm first: norm bounding, and clipping around the last aggregate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coordinator.numerics.aggregate import CENTRE
from coordinator.numerics.distances import blocks_of, lower_median
from coordinator.numerics.robust import Median
from coordinator.numerics.votes import Vote
from protocol.compression import CodecSpec
from protocol.errors import LayoutMismatch
from protocol.tensors import Layout, TensorSpec


class NormBounding(Median):
    """The mean of the votes, each scaled down to ``bound``: of d_i remains d_i min(1, M / ||d_i||).

    Norms are Euclidean, over all parameters. Without a bound M is the lower median of the round's norms, so that half
    of the votes are cut: a liar's is no longer than an honest one's then. Buffers are the votes' coordinate-wise
    medians.
    Memory: the result, and blocks.
    Source: Sun et al., "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, section 4.
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None = None, bound: float | None = None) -> None:
        super().__init__(layout, codec)
        self._bound = bound

    def _settle(self, votes: Sequence[Vote]) -> None:
        norms = self._norms(votes)
        bound = lower_median(norms) if self._bound is None else self._bound
        shares = (bound / norms).clamp_(max=1.0).nan_to_num_(nan=1.0)  # 0 / 0: a vote of nothing stays one
        for spec, out in self._results.items():
            if spec not in self._layout.parameters:
                self._settle_one(votes, spec, out)
                continue
            centre = self._centre(spec)
            for start, stop, values in blocks_of(self._rows(votes, spec), spec.elements, self._scratch):
                mean = shares @ values
                if centre is not None:
                    mean.add_(centre[start:stop].double(), alpha=len(votes) - float(shares.sum()))
                out[start:stop] = mean.div_(len(votes))

    def _norms(self, votes: Sequence[Vote]) -> Tensor:
        """Return how far each vote is from the centre."""
        squares = torch.zeros(len(votes), dtype=torch.float64)
        for spec in self._layout.parameters:
            centre = self._centre(spec)
            for start, stop, values in blocks_of(self._rows(votes, spec), spec.elements, self._scratch):
                if centre is not None:
                    values.sub_(centre[start:stop])
                squares += values.square_().sum(dim=1)
        return squares.sqrt_()

    def _centre(self, _spec: TensorSpec) -> Tensor | None:
        """Return what the votes' norms are counted from; None: zero."""
        return None


class CenteredClipping(NormBounding):
    """The last aggregate v, moved by the mean of the votes' differences to it, each cut down to ``bound``.

    The next one is v + 1/n sum (d_i - v) min(1, tau / ||d_i - v||). One step, which is enough where v is close to
    what honest votes have in common; before the first round v is zero. Without a bound tau is the lower median of the
    round's distances from v. v is a part of the task's checkpoint, with the outer optimizer's state. Memory: v, the
    result, and blocks.
    Source: Karimireddy et al., "Learning from History for Byzantine Robust Optimization", arXiv:2012.10333, section 4.
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None = None, bound: float | None = None) -> None:
        super().__init__(layout, codec, bound)
        self._last = {spec.name: torch.zeros_like(self._results[spec]) for spec in layout.parameters}

    def _settle(self, votes: Sequence[Vote]) -> None:
        super()._settle(votes)
        for spec in self._layout.parameters:
            self._last[spec.name].copy_(self._results[spec])

    def _centre(self, spec: TensorSpec) -> Tensor | None:
        return self._last[spec.name]

    def state(self) -> dict[str, Tensor]:
        """Return the last aggregate by ``centre.<parameter>``."""
        shapes = {spec.name: spec.shape for spec in self._layout.parameters}
        return {CENTRE + name: last.view(shapes[name]) for name, last in self._last.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` returned; without any, from zero."""
        mine = self.state()
        for key, last in state.items():
            if key not in mine or mine[key].shape != last.shape or mine[key].dtype != last.dtype:
                raise LayoutMismatch(f"the aggregate's state has {key!r}, which is not this layout's")
            self._last[key.removeprefix(CENTRE)] = last.reshape(-1)

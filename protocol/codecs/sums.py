"""Running sums and means of one tensor's updates, in the form in which the codec's updates are cheapest to add.

Decoding by demo and powersgd is linear, so that their updates are summed before they are decoded: the coefficients of
demo are transformed once for all updates, and the factors of powersgd multiplied once for many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from torch import Tensor

from protocol.codecs.decoder import PlainDecoder, chunks_of
from protocol.codecs.demo import CoefficientDecoder, inverse
from protocol.codecs.powersgd import PowerSgdDecoder
from protocol.codecs.reading import TORCH_DTYPES, Elements, Reader, Scratch
from protocol.codecs.registry import decoder
from protocol.compression import CodecName, CodecSpec
from protocol.encoded import CHUNK, count_chunks, parts_of
from protocol.tensors import Role, TensorSpec

_CHUNKS_AT_ONCE: Final = 64
"""demo: chunks transformed at once."""
_WAITING_RANK: Final = 32
"""powersgd: the most columns of factors that wait to be multiplied."""


class Sum(ABC):
    """The sum of weighted updates of one tensor: float64 in float64, floats of fewer bits in float32.

    Memory: that of the tensor, kept from round to round; what a codec needs besides is small beside it.
    """

    is_weighted: ClassVar[bool] = True
    """Whether what ``settle`` returns is still to be divided by the sum of the weights."""

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        self._spec = spec
        self._codec = codec
        self._scratch = scratch
        self._dtype = torch.float64 if spec.dtype == "F64" else torch.float32

    @abstractmethod
    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Add ``weight`` times an update; the ``first`` one begins the sum anew, whatever was before."""

    def clear(self) -> None:
        """Begin the sum anew with nothing: an update that has nothing of the tensor is the first.

        Raises: TypeError for buffers, which every update has.
        """
        raise TypeError(f"every update has the buffer {self._spec.name}")

    @abstractmethod
    def settle(self) -> Tensor:
        """Return the sum, 1-D. It is memory that the next ``first`` update overwrites; none may be added before."""


class DecodedSum(Sum):
    """Decodes each update while it adds it."""

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(spec, codec, scratch)
        self._total = torch.empty(spec.elements, dtype=self._dtype)

    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Decode and add, chunk by chunk."""
        decoder(reader, self._spec, self._codec, self._scratch).add_to(self._total, weight, overwrite=first)

    def clear(self) -> None:
        """Let all be zero."""
        self._total.zero_()

    def settle(self) -> Tensor:
        """Return the sum."""
        return self._total


class Maximum(Sum):
    """The largest of each element, in the tensor's own dtype: what becomes of counters and flags."""

    is_weighted = False

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(spec, codec, scratch)
        self._largest = torch.empty(spec.elements, dtype=TORCH_DTYPES[spec.dtype])

    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Keep the larger ones; the weight has no say."""
        stored = PlainDecoder(reader, self._spec, self._codec, self._scratch)
        stored.take_maximum(self._largest, overwrite=first)

    def settle(self) -> Tensor:
        """Return the largest."""
        return self._largest


class RunningMean(Sum):
    """The weighted mean of float buffers, float64: exact where all updates agree, and finite wherever they are.

    A weighted sum divided by the weights is neither: constants would drift by its rounding, float32 would lose whole
    numbers above 2**24, and a mask of the dtype's lowest number would overflow on the way.
    Source: West, "Updating mean and variance estimates: an improved method", CACM 22(9), 1979, equation for the mean;
    differences are halved first, so that those of huge numbers of either sign stay finite.
    """

    is_weighted = False

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(spec, codec, scratch)
        self._mean = torch.empty(spec.elements, dtype=torch.float64)
        self._weight = 0.0

    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Move the mean towards the update by its share of all weight so far."""
        stored = Elements(reader, self._spec.name, "", self._scratch)
        self._weight = weight if first else self._weight + weight
        share = weight / self._weight
        for start, stop in chunks_of(self._spec.elements):
            mean, values = self._mean[start:stop], stored.read(start, stop)
            if first:
                mean.copy_(values)
                continue
            half = self._scratch.take("half difference", stop - start, torch.float64).copy_(values)
            half.div_(2).sub_(mean, alpha=0.5)
            mean.add_(half, alpha=share).add_(half, alpha=share)

    def settle(self) -> Tensor:
        """Return the mean."""
        return self._mean


class CoefficientSum(Sum):
    """demo: the sum of coefficients."""

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(spec, codec, scratch)
        self._total = torch.empty(count_chunks(spec.elements, CHUNK) * CHUNK, dtype=self._dtype)

    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Add the coefficients where there are some."""
        coefficients = CoefficientDecoder(reader, self._spec, self._codec, self._scratch)
        coefficients.add_to(self._total, weight, overwrite=first)

    def clear(self) -> None:
        """Let all coefficients be zero."""
        self._total.zero_()

    def settle(self) -> Tensor:
        """Transform the coefficients."""
        for start, stop in chunks_of(self._total.numel(), _CHUNKS_AT_ONCE * CHUNK):
            inverse(self._total[start:stop], self._scratch)
        return self._total[: self._spec.elements]


class ProductSum(Sum):
    """powersgd: products that wait, side by side, to become one matrix product of a higher rank."""

    def __init__(self, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(spec, codec, scratch)
        rows, columns = spec.shape[0], spec.elements // spec.shape[0]
        # What waits must be small beside the matrix itself.
        waiting_rank = max(min(codec.rank, rows, columns), min(_WAITING_RANK, rows // 4, columns // 4))
        self._total = torch.empty(rows, columns, dtype=self._dtype)
        self._left = torch.empty(rows, waiting_rank, dtype=self._dtype)
        self._right = torch.empty(waiting_rank, columns, dtype=self._dtype)
        self._waiting = 0
        self._begun = False

    def add(self, reader: Reader, weight: float, *, first: bool) -> None:
        """Put the factors beside those that wait; multiply these before, if there is no room."""
        factors = PowerSgdDecoder(reader, self._spec, self._codec, self._scratch)
        if first:
            self._waiting, self._begun = 0, False
        rank = factors.left.shape[1]
        if self._waiting + rank > self._left.shape[1]:
            self._multiply()
        place = slice(self._waiting, self._waiting + rank)
        self._left[:, place] = factors.left * weight
        self._right[place] = factors.right
        self._waiting += rank

    def clear(self) -> None:
        """Forget all products."""
        self._waiting, self._begun = 0, False

    def settle(self) -> Tensor:
        """Multiply what waits."""
        self._multiply()
        return self._total.view(-1)

    def _multiply(self) -> None:
        left, right = self._left[:, : self._waiting], self._right[: self._waiting]
        self._total.addmm_(left, right, beta=1 if self._begun else 0)
        self._waiting, self._begun = 0, True


def sum_of(spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> Sum:
    """Return an empty sum for that tensor's updates in that codec. ``scratch`` is for one thread, and may be shared."""
    if not spec.is_float:
        return Maximum(spec, codec, scratch)
    if spec.role is Role.BUFFER:
        return RunningMean(spec, codec, scratch)
    encoded = parts_of(spec, codec) is not None
    if encoded and codec.name is CodecName.DEMO:
        return CoefficientSum(spec, codec, scratch)
    if encoded and codec.name is CodecName.POWERSGD:
        return ProductSum(spec, codec, scratch)
    return DecodedSum(spec, codec, scratch)

"""One task's tensors on the server: weights, outer optimizer and aggregate. No model code, only named tensors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import torch

from coordinator.numerics.aggregate import CENTRE, Aggregate
from coordinator.numerics.aggregates import aggregate_of
from coordinator.numerics.clipping import Clipping
from coordinator.numerics.inner_state import InnerStateMean, first_bad
from coordinator.numerics.outer_optimizer import OuterStep, all_finite
from coordinator.numerics.secure_sum import SecureSum
from farm_server.tensors.mapped_reader import MappedFileReader
from farm_server.tensors.noise import fresh_gaussian
from farm_server.tensors.tensor_reader import FileReader
from protocol.codecs import (
    TORCH_DTYPES,
    BytesReader,
    Reader,
    TensorReader,
    apply_delta,
    bad_numbers,
    encode,
    encode_bits,
    tensor_file,
)
from protocol.codecs.checking import BadNumbers
from protocol.compression import LOSSLESS, OF_VERSIONS, CodecName, CodecSpec
from protocol.errors import FarmError, NotFinite
from protocol.inner_state import METADATA_KEY, Tree, as_json
from protocol.recipe import InnerState, Recipe
from protocol.secagg.unmasking import LeftMasks
from protocol.tensors import Layout, parse_layout
from protocol.zstd import wrap
from storage.blob_batch import Chunk, size_of
from storage.checkpoints import CheckpointFiles


class Diverged(FarmError):
    """The new weights hold NaN or infinity."""

    code: ClassVar[str] = "diverged"


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version's files in chunks, most of them views of the live tensors: write them before the next fold.

    ``optimizer``: None where it has no state. ``delta``: how the weights follow from those before, where the recipe
    has a ``weights_codec`` and that is smaller than the weights. ``inner_state``: what the clients' optimizers go on
    with, where the recipe has it carried.
    """

    weights: list[Chunk]
    optimizer: list[Chunk] | None
    delta: list[Chunk] | None
    inner_state: list[Chunk] | None = None


_AGGREGATE_OF: Final = partial(aggregate_of, noise=fresh_gaussian)


@dataclass(frozen=True, slots=True)
class _Update:
    """What ``TaskTensors.fold`` was given, where the aggregate reads it later."""

    source: bytes | Path
    samples: int
    scale: float
    client: str | None


class TaskTensors:
    """What a round needs, kept between rounds. Used by one thread at a time.

    Later weights files get the first one's header, byte for byte, so that equal weights are equal files (the
    safetensors package writes metadata in random order).
    Memory: weights, aggregate (with what it keeps) and optimizer state (a master copy of the weights where versions
    are sent as deltas), and no second copy of any of them, neither to read nor to write. Where clients' states are
    carried, one of those, and that of the version before while it is being written. An aggregate that reads all
    updates side by side has them read piece by piece: maps of all of them would be memory that grows with the clients.
    """

    def __init__(
        self,
        recipe: Recipe,
        files: CheckpointFiles,
        make_aggregate: Callable[[Recipe, Layout], Aggregate] = _AGGREGATE_OF,
    ) -> None:
        with FileReader(files.weights) as reader:
            self._layout = parse_layout(reader.header)
            self._lead = reader.lead
            self._weights = _read_all(reader)
        self._weights_codec = recipe.weights_codec
        whole = recipe.weights_codec.name in LOSSLESS
        self._outer = OuterStep(
            recipe.outer, self._weights, self._layout, publishes=whole, clipping=Clipping.of(recipe)
        )
        self._aggregate = make_aggregate(recipe, self._layout)
        self._aggregate.follow(self._outer)
        if files.optimizer is not None:
            with FileReader(files.optimizer) as reader:
                state = _read_all(reader)
            centre = {key: state.pop(key) for key in list(state) if key.startswith(CENTRE)}
            self._aggregate.load(centre)
            self._outer.load(state)
        carried = recipe.inner_state is InnerState.CARRIED
        self._inner = InnerStateMean() if carried else None
        self._waiting: list[_Update] = []

    def begin(self) -> None:
        """Start a round: forget what was folded."""
        self._aggregate.reset()
        self._waiting.clear()
        if self._inner is not None:
            self._inner.reset()

    def fold(self, update: bytes | Path, samples: int, scale: float = 1.0, *, client: str | None = None) -> None:
        """Add ``samples * scale`` times a client's update, given as a file's bytes or its path. It was checked before.

        Where the aggregate reads all updates at the end, this one is only noted, and must be there until ``step`` has
        returned.
        """
        if self._aggregate.reads_in_result:
            self._waiting.append(_Update(update, samples, scale, client))
            return
        with _opened(update, MappedFileReader, forget=True) as reader:
            self._aggregate.fold(reader, samples, scale, client=client)
            if self._inner is not None:
                self._inner.fold(reader, samples, scale)

    def unmask(self, masks: LeftMasks) -> None:
        """Take what masks are left off the sum of what was folded. Raises: TypeError where nothing is masked."""
        if not isinstance(self._aggregate, SecureSum):
            raise TypeError("the updates of this task are not masked")
        self._aggregate.unmask(masks)

    def step(self, version: int = 0) -> NewVersion:
        """Apply the mean of what was folded to this version, and return what is to be written.

        Raises: EmptyRound; Diverged.
        """
        mean = self._aggregated()
        before = self._parameters_apart() if self._weights_codec.name in OF_VERSIONS else None
        self._outer.step(mean, self._aggregate.untouched, version=version)
        delta = self._difference(before, mean)
        if (name := all_finite({spec.name: self._weights[spec.name] for spec in self._layout.returned})) is not None:
            raise Diverged(_diverged(f"{name!r} holds NaN or infinity"))
        weights: list[Chunk] = [self._lead, *(_raw(tensor) for tensor in self._weights.values())]
        state = self._outer.state() | self._aggregate.state()
        return NewVersion(
            weights,
            list(tensor_file(state, {})) if state else None,
            delta if delta is not None and size_of(delta) < size_of(weights) else None,
            None if self._inner is None else state_file(*self._inner.result()),
        )

    def _aggregated(self) -> dict[str, torch.Tensor]:
        """Return the aggregate. The updates that waited for it are open only here, all at once."""
        with ExitStack() as opened:
            for one in self._waiting:
                reader = opened.enter_context(_opened(one.source, FileReader, forget=True))
                self._aggregate.fold(reader, one.samples, one.scale, client=one.client)
            return self._aggregate.result()

    def _parameters_apart(self) -> dict[str, torch.Tensor]:
        return {spec.name: self._weights[spec.name].clone() for spec in self._layout.parameters}

    def _difference(
        self, before: Mapping[str, torch.Tensor] | None, mean: Mapping[str, torch.Tensor]
    ) -> list[Chunk] | None:
        """Return the file of what the version adds to the one ``before``, and publish it where that is lossy."""
        if self._weights_codec.name is CodecName.NONE:
            return None
        stored, metadata = (
            self._publish(mean)
            if before is None
            else encode_bits(before, self._weights, self._layout, self._weights_codec)
        )
        delta: list[Chunk] = list(tensor_file(stored, metadata))
        return wrapped(delta) if self._weights_codec.zstd else delta

    def _publish(self, mean: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Let the weights follow the masters as far as the codec carries it; return what is stored, with its metadata.

        The difference is made in the mean's memory, which nobody needs any more.
        """
        changes = {spec.name: mean[spec.name] for spec in self._layout.parameters}
        self._outer.unpublished(changes)
        buffers = {spec.name: self._weights[spec.name] for spec in self._layout.returned if spec.name not in changes}
        try:
            stored, metadata = encode(changes | buffers, self._layout, self._weights_codec, None)
        except NotFinite as error:
            raise Diverged(_diverged(error.message)) from error
        apply_delta(self._weights, TensorReader(stored, metadata), self._layout, self._weights_codec)
        return stored, metadata


def state_file(tensors: Mapping[str, torch.Tensor], tree: Tree) -> list[Chunk]:
    """Return an inner state as the file that a version has it in."""
    return list(tensor_file(tensors, {METADATA_KEY: as_json(tree)}))


def bad_tensor(update: bytes | Path, layout: Layout, codec: CodecSpec, samples: int) -> BadNumbers | None:
    """Return a stored tensor of the update whose numbers can't be summed over a round of ``samples``, or None.

    The header was checked before. Raises: MalformedTensors if what is stored can't be decoded.
    """
    with _opened(update, MappedFileReader) as reader:
        return bad_numbers(reader, layout, codec, samples)


def bad_state(update: bytes | Path) -> str | None:
    """Return a tensor of the inner state that an update carries which no mean can be made of, or None."""
    with _opened(update, MappedFileReader) as reader:
        return first_bad(reader)


def warm_up(torch_threads: int) -> None:
    """Settle torch's threads. It is imported by now, which is what took the time."""
    torch.set_num_threads(torch_threads)


@contextmanager
def _opened(update: bytes | Path, file_reader: type[FileReader], *, forget: bool = False) -> Iterator[Reader]:
    if isinstance(update, bytes):
        yield BytesReader(update)
    else:
        with file_reader(update, forget=forget) as reader:
            yield reader


def _read_all(reader: FileReader) -> dict[str, torch.Tensor]:
    """Return a file's tensors, in the order of their bytes, each read straight into its own memory."""
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in sorted(reader.header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        tensors[name] = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        reader.read_into(name, 0, _raw(tensors[name]))
    return tensors


def _raw(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's bytes without a copy; as bytes, because numpy, which makes the view, knows no bfloat16."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _diverged(what: str) -> str:
    return f"after this round {what}, though every update was finite; try a smaller learning rate, inner or outer"


class _Pieces:
    """Reads chunks as one file."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""
        while not self._rest.nbytes:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._rest = memoryview(following)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


def wrapped(chunks: list[Chunk]) -> list[Chunk]:
    """Return the chunks as one zstd frame if that is a twentieth smaller, or else as they are."""
    target = io.BytesIO()
    return [target.getbuffer()] if wrap(_Pieces(chunks), target) else chunks

"""From the farm's weights file to a file that any safetensors reader loads into the model.

The farm stores a tensor that a model uses under two names (tied weights) once. ``load_state_dict`` wants every name.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.tensors import DTYPE_BYTES, Layout, TensorBytes, parse_layout, read_header, weights_metadata

MODEL_FORMAT: Final = "pt"
"""What libraries that load safetensors into PyTorch models expect to find as the ``format``."""
_ALIGNMENT_BYTES: Final = 8


Renamed = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor and the bytes of the file that it is in."""

    place: TensorBytes
    file: memoryview


def write_model_file(weights: Sequence[Path], model: Path, notes: Mapping[str, str], renamed: Renamed = str) -> None:
    """Write the tensors of a model's weights files to ``model``, tied ones under each of their names.

    ``notes`` go into the file's metadata, beside the ``format``. ``renamed`` gives a tensor's name in the file, None
    leaves it out.
    Raises: MalformedTensors if one of ``weights`` is no weights file.
    """
    with _opened(weights, with_tied=True) as stored:
        named = {new: one for name, one in stored.items() if (new := renamed(name)) is not None}
        _write(model, named, {**notes, "format": MODEL_FORMAT})


def write_with_roles(weights: Sequence[Path], output: Path, layout: Layout) -> None:
    """Write the tensors of ``layout``, with the roles that it gives them, as they are in a model's weights files.

    Raises: MalformedTensors if one of ``weights`` is no weights file.
    """
    roles = {spec.name: spec.role for spec in layout.tensors}
    with _opened(weights) as stored:
        _write(output, {name: stored[name] for name in roles}, weights_metadata(roles, layout.tied))


@contextmanager
def _opened(paths: Sequence[Path], *, with_tied: bool = False) -> Iterator[dict[str, _Stored]]:
    """Give all tensors of some weights files by name."""
    stored: dict[str, _Stored] = {}
    with ExitStack() as files:
        for path in paths:
            data = files.enter_context(_mapped(path))
            header = read_header(data)
            stored |= {name: _Stored(place, data) for name, place in header.tensors.items()}
            if with_tied:
                stored |= {alias: stored[name] for alias, name in parse_layout(header).tied.items()}
        try:
            yield stored
        finally:
            stored.clear()  # no view may outlive its map


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    if not path.stat().st_size:  # of nothing there is no map
        yield memoryview(b"")
        return
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = memoryview(mapped)
    try:
        yield data
    finally:
        with suppress(BufferError):  # an error on its way still holds views: the map ends with the last of them
            data.release()
            mapped.close()


def _write(output: Path, sources: Mapping[str, _Stored], metadata: Mapping[str, str]) -> None:
    # Wide types first keeps every tensor aligned to its element's size, which readers rely on.
    names = sorted(sources, key=lambda name: (-DTYPE_BYTES[sources[name].place.dtype], name))
    with output.open("wb") as file:
        file.write(_header({name: sources[name].place for name in names}, metadata))
        for name in names:
            place = sources[name].place
            file.write(sources[name].file[place.start : place.stop])


def _header(tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.stop - tensor.start
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text

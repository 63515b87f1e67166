"""From the farm's weights file to a file that any safetensors reader loads into the model.

The farm stores a tensor that a model uses under two names (tied weights) once. ``load_state_dict`` wants every name.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from protocol.tensors import DTYPE_BYTES, Layout, TensorBytes, parse_layout, read_header, weights_metadata

MODEL_FORMAT: Final = "pt"
"""What libraries that load safetensors into PyTorch models expect to find as the ``format``."""
_ALIGNMENT_BYTES: Final = 8


def write_model_file(weights: Path, model: Path, notes: Mapping[str, str]) -> None:
    """Write the tensors of a weights file to ``model``, tied ones under each of their names.

    ``notes`` go into the file's metadata, beside the ``format``.
    Raises: MalformedTensors if ``weights`` is no weights file.
    """
    with _mapped(weights) as data:
        header = read_header(data)
        sources = dict(header.tensors)
        for alias, name in parse_layout(header).tied.items():
            sources[alias] = header.tensors[name]
        _write(model, data, sources, {**notes, "format": MODEL_FORMAT})


def write_with_roles(weights: Path, output: Path, layout: Layout) -> None:
    """Write the tensors of a weights file with the roles that ``layout``, which is otherwise equal, gives them.

    Raises: MalformedTensors if ``weights`` is no weights file.
    """
    roles = {spec.name: spec.role for spec in layout.tensors}
    with _mapped(weights) as data:
        _write(output, data, read_header(data).tensors, weights_metadata(roles, layout.tied))


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        yield data


def _write(output: Path, data: memoryview, sources: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> None:
    # Wide types first keeps every tensor aligned to its element's size, which readers rely on.
    names = sorted(sources, key=lambda name: (-DTYPE_BYTES[sources[name].dtype], name))
    with output.open("wb") as file:
        file.write(_header({name: sources[name] for name in names}, metadata))
        for name in names:
            file.write(data[sources[name].start : sources[name].stop])


def _header(tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.stop - tensor.start
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text

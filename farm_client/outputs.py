"""A map's outputs as bytes and back: what msgpack knows, numpy arrays and torch tensors, and errors of items.

An array is msgpack's extension type 1: its dtype, its shape, its bytes in C order. An item that failed has an
``ItemError`` in its place, extension type 2. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack
import numpy as np

from protocol.maps import MAX_OUTPUT_BYTES
from protocol.outputs import MalformedOutputs
from protocol.wording import sized

_ARRAY: Final = 1
_ERROR: Final = 2
_PLAIN: Final = "biufc"
"""The kinds of numpy's types that are numbers, and nothing else."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """What stands in the place of an output where the function raised: of which item, and how."""

    position: int
    error: str
    traceback: str = ""


class UnpackableOutput(ValueError):
    """The function returned what no message can carry, or too much of it."""


def pack_output(value: object) -> bytes:
    """Return an output's bytes. Raises: UnpackableOutput."""
    try:
        data: bytes = msgpack.packb(value, default=_extended, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnpackableOutput(
            f"a {type(value).__name__} can't be an output ({error}): return numbers, text, bytes, lists, dicts, "
            "numpy arrays or tensors"
        ) from error
    if len(data) > MAX_OUTPUT_BYTES:
        raise UnpackableOutput(f"an output of {sized(len(data))} is over the most, {sized(MAX_OUTPUT_BYTES)}")
    return data


def unpack_output(data: bytes) -> Any:
    """Return the value of an output: arrays as numpy arrays, tuples as lists. Raises: MalformedOutputs."""
    try:
        return msgpack.unpackb(data, ext_hook=_restored, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedOutputs(f"an output can't be read: {error}") from error


def as_json(value: Any) -> Any:
    """Return an output as JSON can say it: arrays as lists, bytes in hexadecimal, an error as a map."""
    match value:
        case np.ndarray():
            return value.tolist()
        case bytes():
            return value.hex()
        case ItemError():
            return asdict(value)
        case Mapping():
            return {str(key): as_json(one) for key, one in value.items()}
        case list():
            return [as_json(one) for one in value]
    return value


def _extended(value: Any) -> Any:
    if isinstance(value, ItemError):
        return msgpack.ExtType(_ERROR, msgpack.packb(asdict(value)))
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in _PLAIN:
        packed = msgpack.packb((value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()))
        return msgpack.ExtType(_ARRAY, packed)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"no {type(value).__name__} has a msgpack form")


def _restored(code: int, data: bytes) -> Any:
    if code == _ARRAY:
        dtype, shape, content = msgpack.unpackb(data)
        if np.dtype(dtype).kind not in _PLAIN:
            raise ValueError(f"an array of {dtype}")
        return np.frombuffer(content, np.dtype(dtype)).reshape(shape)
    if code == _ERROR:
        return ItemError(**msgpack.unpackb(data))
    return msgpack.ExtType(code, data)

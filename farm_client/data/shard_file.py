"""A shard's file: safetensors with one tensor a column, first dimension the rows. Written here, read by ``shards``.

A string column ``c`` is UTF-8 bytes ``c`` and int64 offsets ``c#offsets`` [rows + 1]. NumPy has no bfloat16, so such
a column is written as uint16 and named in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from farm_client.data.columns import Column, Values

SPECIAL_KEY: Final = "special"
"""The one metadata entry: JSON {"texts": [names], "bfloat16": [names]} of the columns that need it.

One entry, because safetensors writes several in a random order, and equal rows must give equal digests.
"""
OFFSETS_SUFFIX: Final = "#offsets"

_DTYPES: Final = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def write_shard_file(path: Path, columns: Sequence[Column], values: Mapping[str, Values]) -> None:
    """Write rows, given by column, as one shard file."""
    arrays: dict[str, NDArray[Any]] = {}
    for column in columns:
        arrays |= _arrays(column, values[column.name])
    special = {
        "texts": [c.name for c in columns if c.is_text],
        "bfloat16": [c.name for c in columns if c.dtype == "BF16"],
    }
    save_file(arrays, path, metadata={SPECIAL_KEY: json.dumps(special)})


def _arrays(column: Column, values: Values) -> dict[str, NDArray[Any]]:
    if isinstance(values, list):
        offsets = np.fromiter(accumulate(map(len, values), initial=0), np.int64, len(values) + 1)
        data = np.frombuffer(b"".join(values), np.uint8)
        return {column.name: data, column.name + OFFSETS_SUFFIX: offsets}
    return {column.name: values.view(_DTYPES[column.dtype]).reshape(len(values), *column.shape)}

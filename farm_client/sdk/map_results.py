"""The outputs of a map on this machine: one after the other in the order of its items, and as a file of results."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from farm_client.outputs import ItemError, as_json, unpack_output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import check_output, download_weights
from farm_client.sdk.errors import BadOutput
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch
from protocol.maps import FailedItemView, OutputList
from protocol.outputs import split_outputs
from protocol.tasks import BlobRef

ASK_AGAIN_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 2.0
Seen = Callable[[OutputList], None]


def read_outputs(
    api: FarmApi, task_id: str, start: int = 0, *, follow: bool = False, seen: Seen = lambda _: None
) -> Iterator[Any]:
    """Yield the outputs of a map from the item ``start`` on, in order; an ``ItemError`` for an item that failed.

    Without ``follow`` those that are there without a gap; with it also what comes, until the task is over. ``seen`` is
    called with each answer of the farm. Raises: NotFound if the task is no map; DigestMismatch; MalformedOutputs.
    """
    wait = ASK_AGAIN_SECONDS
    with tempfile.TemporaryDirectory(prefix="aifarm-outputs-") as folder:
        while True:
            listed = api.outputs(task_id, start)
            seen(listed)
            for part in listed.entries:
                if isinstance(part, FailedItemView):
                    yield ItemError(part.position, _death_of(part))
                    start = part.position + 1
                    continue
                data = _fetched(api, BlobRef(digest=part.digest, size_bytes=part.size_bytes), Path(folder))
                yield from map(unpack_output, islice(split_outputs(data, part.items), start - part.position, None))
                start = part.position + part.items
            if start >= listed.items or (listed.end is None and (listed.is_over or not follow)):
                return
            wait = ASK_AGAIN_SECONDS if listed.end is not None else min(wait * 1.5, _LONGEST_WAIT_SECONDS)
            if listed.end is None:
                time.sleep(wait)


def _death_of(item: FailedItemView) -> str:
    """Return the error of an item that ended executors: how, and on which clients."""
    return f"{item.error} (on {', '.join(item.clients)})" if item.clients else item.error


def _fetched(api: FarmApi, blob: BlobRef, folder: Path) -> bytes:
    path = folder / blob.digest
    download_weights(api, blob, path)
    data = path.read_bytes()
    path.unlink()
    if digest_bytes(data) != blob.digest:
        raise DigestMismatch(f"the outputs {blob.digest[:12]}… came damaged; ask again")
    return data


class ResultsForm(StrEnum):
    """How a file of results is written; its name's suffix says which."""

    JSONL = ".jsonl"
    """A line of JSON for each item, as it comes."""
    NPZ = ".npz"
    """Arrays with a row for each item, at the end: of equal shapes, by name where outputs are dicts."""
    PARQUET = ".parquet"
    """A row for each item, at the end."""


def form_of(path: Path) -> ResultsForm:
    """Return the form that a file's name asks for. Raises: BadOutput."""
    check_output(path)
    try:
        return ResultsForm(path.suffix)
    except ValueError:
        known = ", ".join(ResultsForm)
        raise BadOutput(f"{path} has no suffix that says how to write results: give one of {known}") from None


def write_results(outputs: Iterator[Any], path: Path) -> int:
    """Write outputs to a file in the form of its name, and return how many there were.

    Raises: BadOutput where the outputs have no such form, or the file can't be written.
    """
    form = form_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if form is ResultsForm.JSONL:
            return _write_lines(outputs, path)
        rows = list(outputs)
        if failed := next((one for one in rows if isinstance(one, ItemError)), None):
            raise BadOutput(
                f"item {failed.position} has an error in its place ({failed.error}): only .jsonl can say so"
            )
        (_write_npz if form is ResultsForm.NPZ else _write_parquet)(rows, path)
    except OSError as error:
        raise BadOutput(f"{path} can't be written: {error.strerror or error}") from error
    return len(rows)


def _write_lines(outputs: Iterator[Any], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, output in enumerate(outputs, 1):  # noqa: B007 - the number of the last one is what is returned
            file.write(json.dumps(as_json(output), ensure_ascii=False) + "\n")
    return count


def _write_npz(rows: list[Any], path: Path) -> None:
    columns = _columns(rows) if rows and all(isinstance(row, dict) for row in rows) else {"outputs": rows}
    try:
        arrays = {name: np.asarray(values) for name, values in columns.items()}
    except ValueError as error:
        raise BadOutput(f"the outputs have different shapes, and .npz holds arrays: write .jsonl ({error})") from error
    if odd := next((name for name, array in arrays.items() if array.dtype.kind == "O"), None):
        raise BadOutput(f"{odd!r} is no array of numbers or text: write .jsonl")
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stubs take its keywords for its options


def _write_parquet(rows: list[Any], path: Path) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional, and large
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise BadOutput("to write .parquet install pyarrow: pip install 'aifarm[parquet]'") from error
    values = [as_json(row) for row in rows]
    records = values if values and all(isinstance(row, dict) for row in values) else [{"output": row} for row in values]
    try:
        parquet.write_table(pa.Table.from_pylist(records), path)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BadOutput(
            f"the outputs are no rows of one type, as .parquet needs them: write .jsonl ({error})"
        ) from error


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the values by name. Raises: BadOutput if the rows have different names."""
    names = list(rows[0])
    if odd := next((place for place, row in enumerate(rows) if list(row) != names), None):
        raise BadOutput(f"item {odd} has other names than the first one, and .npz has one array a name: write .jsonl")
    return {name: [row[name] for row in rows] for name in names}

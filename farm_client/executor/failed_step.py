"""The step in which a task's code failed, as one tensor file: what it began with, and its batch.

The state is that of ``step_state``: as the last whole step left it, unless the failing one came as far as changing it.
The tensors of the batch are ``batch/0``, ``batch/1`` and so on; the metadata ``failure`` is JSON and says what went
wrong, where, and how the batch is put together: nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from farm_client.executor.failures import CodeError, text_of
from farm_client.executor.inner_state import SavedState
from farm_client.executor.layout import TensorMap, as_stored
from farm_client.executor.means import remark
from farm_client.executor.messages import FailedStepFile, Run
from farm_client.executor.samples import Batches
from farm_client.executor.step_state import StepState
from protocol.codecs import TORCH_DTYPES, tensor_file
from protocol.digests import new_hasher
from protocol.failed_steps import BATCH_PREFIX, METADATA_KEY, error_line

_STORABLE: Final = frozenset(TORCH_DTYPES.values())
_DEEPEST: Final = 32
Tree = Any
"""What JSON can say: how a batch is put together, its tensors by name."""


def failed_step_file(
    error: CodeError, order: Run, data: Batches, state: StepState | None, folder: Path
) -> FailedStepFile | None:
    """Write the file of the step under way into ``folder``, if one is wanted; None where there is none.

    What is too large for the order's bound is left out: the state first. Whatever keeps the file from being written is
    remarked on and nothing more: the failure itself is what must be reported.
    """
    if state is None or state.batch is None or not order.failed_step_bytes or state.tensors.shards:
        return None
    try:
        return _written(_record(error, order, data, state), order, state, folder)
    except Exception as problem:
        remark(f"the step that failed could not be kept: {text_of(problem)}")
        return None


def _record(error: CodeError, order: Run, data: Batches, state: StepState) -> dict[str, Any]:
    rows = data.rows(state.samples, state.samples + state.batch_samples)
    return {
        "error": error.message,
        "code": error.code,
        "line": error_line(error.message),
        "round": order.round,
        "epoch": order.epoch,
        "step": state.steps + 1,
        "samples": state.batch_samples,
        "rows": [{"shard": piece.shard, "rows": of} for piece, of in zip(order.pieces, rows, strict=True) if of],
    }


def _written(record: dict[str, Any], order: Run, state: StepState, folder: Path) -> FailedStepFile | None:
    batch: TensorMap = {}
    tree = flattened(state.batch, batch)
    stored = as_stored(batch)
    saved, notes = _saved(state)
    for part in (saved, None):
        left_out = notes if part is not None else [f"the state: it is over {order.failed_step_bytes} bytes"]
        metadata = {METADATA_KEY: json.dumps({**record, "left_out": left_out, "batch": tree})}
        tensors = stored if part is None else part.tensors | stored
        chunks = tensor_file(tensors, metadata if part is None else part.metadata | metadata)
        if (size_bytes := sum(memoryview(chunk).nbytes for chunk in chunks)) <= order.failed_step_bytes:
            path = folder / f"failed-{order.assignment_id}.step"
            return FailedStepFile(path=str(path), digest=_write(path, chunks), size_bytes=size_bytes)
    remark(f"the batch that failed is not kept: it has {size_bytes} bytes, and {order.failed_step_bytes} are allowed")
    return None


def _saved(state: StepState) -> tuple[SavedState, list[str]]:
    """Return the state, and what of it had to be left out."""
    notes = []
    try:
        saved = state.saved({})
    except CodeError as error:  # such as NaN, which is what went wrong
        notes.append(f"the inner optimizer's state: {error.message}")
        saved = state.saved({}, with_inner=False)
    drawn = {} if state.drawn is None else {"random/torch": state.drawn}
    return SavedState(as_stored(saved.tensors | drawn), saved.metadata), notes


def _write(path: Path, chunks: list[bytes | memoryview]) -> str:
    """Write a file and return its digest."""
    hasher = new_hasher()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
    return hasher.hexdigest()


def flattened(value: Any, found: TensorMap, depth: int = _DEEPEST) -> Tree:
    """Return a batch as a tree, and put its tensors into ``found``; what no file holds is named by its type."""
    match value:
        case None | bool() | int() | float() | str():
            return {"value": value}
        case torch.Tensor() if value.layout is torch.strided and value.dtype in _STORABLE:
            return {"tensor": _put(value.detach(), found)}
        case np.ndarray() if value.dtype.kind in "biuf":
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            return {"array": _put(tensor, found)} if tensor.dtype in _STORABLE else {"left_out": "ndarray"}
        case Mapping() if depth and all(isinstance(key, str | int) for key in value):
            return {"dict": [[key, flattened(item, found, depth - 1)] for key, item in value.items()]}
        case tuple() | list() if depth:
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [flattened(item, found, depth - 1) for item in value]}
    return {"left_out": type(value).__name__}


def rebuilt(tree: Tree, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the batch of a tree; a named tuple has become a tuple, and what was left out None.

    Raises: KeyError, TypeError, ValueError if it is no such tree.
    """
    ((kind, value),) = tree.items()
    if kind in ("tensor", "array"):
        return tensors[value] if kind == "tensor" else tensors[value].numpy()
    if kind == "dict":
        return {key: rebuilt(item, tensors) for key, item in value}
    if kind in ("tuple", "list"):
        items = [rebuilt(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    if kind not in ("value", "left_out"):
        raise ValueError(f"a batch has no {kind}")
    return value if kind == "value" else None


def _put(tensor: torch.Tensor, found: TensorMap) -> str:
    name = f"{BATCH_PREFIX}{len(found)}"
    found[name] = tensor
    return name

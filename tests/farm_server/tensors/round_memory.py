"""A process that opens, folds and commits one round, and prints by how many bytes its memory grew at most."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from coordinator.events import RoundAggregated
from farm_server.tensors.task_tensors import warm_up
from protocol.inner_state import METADATA_KEY, PREFIX, as_json
from protocol.recipe import InnerState, Recipe
from protocol.tensors import UPDATE_METADATA, weights_metadata
from tests.farm_server.tensors.aggregator_bench import Bench


def _resident_bytes(field: str) -> int:
    (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def _file(tensors: int, elements: int, metadata: dict[str, str]) -> bytes:
    return safetensors.numpy.save({f"layer{i}": np.zeros(elements, np.float32) for i in range(tensors)}, metadata)


def _with_state(tensors: int, elements: int) -> bytes:
    """An update with a state of twice its size, as Adam has one."""
    names = [f"{PREFIX}optimizer/state/layer{i}/{moment}" for i in range(tensors) for moment in ("first", "second")]
    tree = {"dict": [[name, {"tensor": name}] for name in names]}
    weights = {f"layer{i}": np.zeros(elements, np.float32) for i in range(tensors)}
    metadata = {**UPDATE_METADATA, METADATA_KEY: as_json(tree)}
    return safetensors.numpy.save(weights | {name: np.zeros(elements, np.float32) for name in names}, metadata)


def main(folder: Path, *, recipe: dict[str, Any], tensors: int, elements: int, updates: int) -> int:
    bench = Bench(folder)
    bench.start_from(_file(tensors, elements, weights_metadata({}, {})), Recipe.model_validate(recipe))
    is_carried = bench.spec.recipe.inner_state is InnerState.CARRIED
    data = _with_state(tensors, elements) if is_carried else _file(tensors, elements, dict(UPDATE_METADATA))
    update = bench.blobs.put_bytes(data)
    del data
    warm_up(1)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    bench.open()
    for _ in range(updates):
        bench.fold_stored(update)
    event = bench.commit()
    grown_bytes = _resident_bytes("VmHWM") - before
    bench.aggregator.close()
    assert isinstance(event, RoundAggregated), event
    return grown_bytes


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), **json.loads(sys.argv[2])))

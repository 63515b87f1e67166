"""Items per second of a map whose function does nothing, beside Dask and Ray on the same machine in the same run.

The farm's outputs are durable before they count, in order, and outlive a kill of the server; theirs are in memory. A
farm's part has as many items as a client does in a while, so theirs is stated for lists of items as well.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.farm import BenchmarkError, running_farm
from benchmarks.measurement import Measurement
from farm_client.sdk.farm import Farm
from farm_client.sdk.map_results import read_outputs
from farm_client.sdk.map_submission import MapSubmission, prepare_map
from farm_client.sdk.submission import Prepared

PEERS: Final = {"dask": "distributed", "ray": "ray"}
"""Each one's module."""
PEER_SECONDS: Final = 300.0
ALONE: Final = 100
"""Items of a map with one item a part, for the time of an item alone."""
CODE: Final = "def map_item(item, config):\n    return item\n"


@dataclass(frozen=True)
class MapSpeed(Measurement):
    """What one system does with ``items`` items on ``clients`` processes; ``p50_ms`` is of an item alone.

    The farm says no median: it is the mean of parts of one item, each of which is durable before the next one goes out.
    ``durable``: whether a result that the researcher has survives a kill of the server. ``batched_items_per_s``: with
    lists of a hundred items a task, where a task is else one item; of the farm the same, for it cuts parts itself.
    """

    system: str
    clients: int
    items: int
    items_per_s: float
    p50_ms: float
    durable: bool
    batched_items_per_s: float


def measure(clients: int, items: int, peer_items: int) -> Iterator[MapSpeed]:
    """Measure the farm, then the peers that are installed. Raises: BenchmarkError, DaemonFailed."""
    yield measure_farm(clients, items)
    for peer, module in PEERS.items():
        if importlib.util.find_spec(module) is not None:
            yield measure_peer(peer, clients, peer_items)


def measure_farm(clients: int, items: int) -> MapSpeed:
    """Measure from the submission to the last output in hand, the start of the task's executors included."""
    with tempfile.TemporaryDirectory(prefix="aifarm-map-bench-") as name:
        folder = Path(name)
        code = folder / "noop.py"
        code.write_text(CODE)
        with running_farm(clients, folder / "farm") as running:
            farm = Farm.over(running.api)
            alone = _seconds_alone(farm, _prepared(code, ALONE, folder / "alone", part_items=1), clients)
            speed = items / _seconds(farm, _prepared(code, items, folder / "whole"), items)
    return MapSpeed("map", "farm", clients, items, speed, 1000 * alone, True, speed)


def _prepared(code: Path, items: int, folder: Path, part_items: int | None = None) -> Prepared:
    folder.mkdir()
    return prepare_map(MapSubmission(code=code, items=items, part_items=part_items, check=False), folder)


def _seconds_alone(farm: Farm, prepared: Prepared, clients: int) -> float:
    """Run a map with one item a part, and return how long a client takes for one, from the first output to the last."""
    farm.send(prepared)
    task = farm.queue(prepared).task
    seen: list[float] = []
    while len(seen) < ALONE:
        count = len(farm.api.outputs(task.task_id).outputs)
        seen += [time.perf_counter()] * (count - len(seen))
        time.sleep(0.001)
    return clients * (seen[-1] - seen[0]) / (len(seen) - 1)


def _seconds(farm: Farm, prepared: Prepared, items: int) -> float:
    """Submit a map, read its outputs, and return how long that took. Raises: BenchmarkError if they are others."""
    farm.send(prepared)
    began = time.perf_counter()
    task = farm.queue(prepared).task
    found = list(read_outputs(farm.api, task.task_id, follow=True))
    took = time.perf_counter() - began
    if found != list(range(items)):
        raise BenchmarkError(f"{len(found)} outputs of {items} items, or others: {farm.api.why(task.task_id)}")
    return took


def measure_peer(peer: str, clients: int, items: int) -> MapSpeed:
    """Measure another system in a process of its own. Raises: BenchmarkError."""
    command = [sys.executable, "-m", "benchmarks.map_peers", peer, str(items), str(clients)]
    try:
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PEER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{peer} took over {PEER_SECONDS:g} s for {items} items") from error
    if answer.returncode:
        raise BenchmarkError(f"{peer} failed: {answer.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return MapSpeed("map", peer, clients, items, durable=False, **found)

"""A function of no effect on every item, with Dask or Ray on this machine: one task an item, as their users write it.

    python -m benchmarks.map_peers dask ITEMS WORKERS

Prints a line of JSON: items in a second, one at a time and in lists of a hundred, and the time of a task alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

LIST_ITEMS: Final = 100
ALONE: Final = 20
"""Tasks that are sent one after the other."""

Send = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Runs a function on each of some arguments, a task each, and returns the results in order."""


def noop(item: int) -> int:
    """Return the item."""
    return item


def noop_list(items: list[int]) -> list[int]:
    """Return the items, each of which went through ``noop``."""
    return [noop(item) for item in items]


def figures(send: Send, items: int) -> dict[str, float]:
    """Measure a farm of either kind that is up already."""
    send(noop, range(50))  # functions are sent, workers are warm
    began = time.perf_counter()
    if send(noop, range(items)) != list(range(items)):
        raise RuntimeError("the results are not those of the items")
    single = items / (time.perf_counter() - began)
    lists = [list(range(start, min(start + LIST_ITEMS, items))) for start in range(0, items, LIST_ITEMS)]
    began = time.perf_counter()
    send(noop_list, lists)
    batched = items / (time.perf_counter() - began)
    alone = []
    for number in range(ALONE):
        began = time.perf_counter()
        send(noop, [number])
        alone.append(time.perf_counter() - began)
    return {"items_per_s": single, "batched_items_per_s": batched, "p50_ms": 1000 * median(alone)}


def with_dask(items: int, workers: int) -> dict[str, float]:
    """Measure ``Client.map`` and ``Client.gather`` of a local cluster of processes."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 - an extra

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return figures(lambda function, each: list(client.gather(client.map(function, each, pure=False))), items)


def with_ray(items: int, workers: int) -> dict[str, float]:
    """Measure remote functions and ``ray.get`` of a local cluster."""
    import ray  # noqa: PLC0415 - an extra

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:

        def send(function: Callable[[Any], Any], each: Sequence[Any]) -> list[Any]:
            remote = ray.remote(function)
            return list(ray.get([remote.remote(one) for one in each]))

        return figures(send, items)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    measure = {"dask": with_dask, "ray": with_ray}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))) + "\n")

"""The executor's heap: kept from step to step, and given back at rest."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from farm_client.executor.environment import HEAP_VARIABLES
from farm_client.executor.messages import Done, Loaded, Run, Warm
from tests.farm_client.executor.agent_side import Agent, load_order, run_order, started
from tests.farm_client.executor.bench_task import write_data

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux's C library")

BLOCKS = 5
"""So many of ``BLOCK_BYTES`` are more than glibc keeps by itself at the most, 64 MiB, and less than the setting."""
BLOCK_BYTES = 30 << 20
TRAIN = f"""
    import resource
    import psutil
    import torch
    from torch import nn
    from farm_client.task import log

    def build_model(config):
        return nn.Linear(3, 2)

    def loss(model, batch):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        log(step=1, metrics={{"faults": faults, "resident": psutil.Process().memory_info().rss}})
        blocks = [torch.ones({BLOCK_BYTES} // 4) for _ in range({BLOCKS})]
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


def logged(agent: Agent, order: Run) -> dict[str, list[float]]:
    """Return what each step logged, by the metric's name."""
    agent.send(order)
    advances, done = agent.hear_end()
    assert isinstance(done, Done)
    points = [point for advance in advances for point in advance.metrics]
    return {name: [point.value for point in points if point.name == name] for name in ("faults", "resident")}


def test_steps_keep_what_they_freed_and_an_executor_at_rest_keeps_nothing(tmp_path: Path) -> None:
    shards, files = write_data(tmp_path)
    with started(**HEAP_VARIABLES) as agent:
        assert isinstance(agent.hear(), Warm)
        agent.send(load_order(tmp_path, TRAIN))
        assert agent.hear() == Loaded()
        first = run_order(shards, files)
        while_training = logged(agent, first)
        after_rest = logged(agent, first.model_copy(update={"assignment_id": "a2", "weights": None}))
    pages_of_a_step = BLOCKS * BLOCK_BYTES / 4096
    later = while_training["faults"][2:]  # the first steps find the places of their blocks
    assert median(after - before for before, after in pairwise(later)) < pages_of_a_step / 2
    assert while_training["resident"][-1] - after_rest["resident"][0] > BLOCKS * BLOCK_BYTES / 2

"""Executors of one task share one copy of the weights, however many they are; and a rebase by a real process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch import nn

from farm_client.executor.layout import ModelTensors
from farm_client.executor.messages import Difference, Done, Failed, Loaded, Rebase, Rebased, Warm
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from tests.farm_client.executor.agent_side import Agent, load_order, run_order, started
from tests.farm_client.executor.bench_task import write_data
from tests.farm_client.executor.test_rebase import next_version

WIDTH = 4096
"""64 MiB of float32 weights."""
WIDE = f"""
    import torch
    from torch import nn

    def build_model(config):
        return nn.Sequential(nn.Linear(3, {WIDTH}, bias=False), nn.Linear({WIDTH}, {WIDTH}, bias=False))

    def loss(model, batch):
        return model(batch["x"]).square().mean()

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)
"""
INT8 = CodecSpec(name=CodecName.INT8)


@pytest.fixture
def two_agents() -> Iterator[list[Agent]]:
    with ExitStack() as stack:
        yield [stack.enter_context(started(OMP_NUM_THREADS="1")) for _ in range(2)]


def mapped_kib(pid: int, path: Path) -> dict[str, int]:
    """Sum what /proc/PID/smaps says of a process's maps of a file, in KiB."""
    sums: dict[str, int] = {}
    of_file = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_file = line.endswith(str(path))
        elif of_file and line.endswith(" kB"):
            name, value = line.removesuffix(" kB").split(":")
            sums[name] = sums.get(name, 0) + int(value)
    return sums


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_executors_hold_one_copy_of_the_weights(two_agents: list[Agent], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
    weights = ModelTensors.of(model).weights_file()
    file = tmp_path / "weights"
    file.write_bytes(weights)
    file.chmod(0o444)
    shards, files = write_data(tmp_path)
    by_path = {"weights": None, "weights_path": str(file), "weights_digest": digest_bytes(weights)}
    for number, agent in enumerate(two_agents):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        assert isinstance(agent.hear(), Warm)
        agent.send(load_order(tmp_path, WIDE, scratch_dir=str(scratch), batch_samples=72, update_codec=INT8))
        assert agent.hear() == Loaded()
        agent.send(run_order(shards, files).model_copy(update=by_path))
        assert isinstance(agent.hear_end()[1], Done)
    size_kib = len(weights) // 1024
    for agent in two_agents:
        kib = mapped_kib(agent.process.pid, file)
        assert kib["Anonymous"] == 0, "a page of its own, because something wrote to it"
        assert kib["Shared_Clean"] + kib["Shared_Dirty"] > 0.95 * size_kib, "every page is the other's too"
        assert kib["Pss"] < 0.55 * size_kib, "each has half of them to its account"
    assert file.read_bytes() == weights


def test_a_real_executor_rebases_before_and_after_its_load(two_agents: list[Agent], tmp_path: Path) -> None:
    agent = two_agents[0]
    weights = ModelTensors.of(nn.Linear(3, 2)).weights_file()
    difference, expected = next_version(weights, INT8, 1)
    base, made = tmp_path / "base", tmp_path / "made"
    base.write_bytes(weights)
    order = Rebase(
        assignment_id="a1",
        base_path=str(base),
        differences=(Difference(codec=INT8, data=difference),),
        made_path=str(made),
    )
    assert isinstance(agent.hear(), Warm)
    agent.send(order)
    assert agent.hear() == Rebased(assignment_id="a1")
    assert made.read_bytes() == expected
    agent.send(load_order(tmp_path, WIDE))
    assert agent.hear() == Loaded()
    agent.send(order.model_copy(update={"assignment_id": "a2", "base_path": str(tmp_path / "gone")}))
    failed = agent.hear()
    assert isinstance(failed, Failed)
    assert (failed.assignment_id, failed.code) == ("a2", "missing_file")
    agent.send(order.model_copy(update={"differences": (Difference(codec=INT8, data=b"no tensors"),)}))
    failed = agent.hear()
    assert isinstance(failed, Failed)
    assert failed.code == "malformed_tensors"
    agent.send(order.model_copy(update={"differences": ()}))
    assert agent.hear() == Rebased(assignment_id="a1")
    assert made.read_bytes() == weights

"""A long assignment goes on from its last snapshot, to the bits of one that nothing disturbed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from farm_client.executor import snapshots as snapshots_module
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import Advance, Done, Loaded, Saved, Stop, Suspend, Suspended, Warm
from farm_client.executor.snapshots import Snapshots
from farm_client.executor.step_metrics import StepMetrics
from farm_client.executor.step_state import StateUnusable, StepState, read_record
from protocol.compression import CodecName, CodecSpec
from protocol.recipe import InnerState, Mode
from tests.farm_client.executor.agent_side import load_order, run_order, started
from tests.farm_client.executor.bench_task import Bench, write_data
from tests.farm_client.executor.ordered_task import LSTM, ordered_bench

DROPOUT_AND_BATCHNORM = """
    import random
    import numpy as np
    import torch
    from torch import nn

    config = {}
    losses = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
            self.register_buffer("steps", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.steps += 1
            return self.layers(x) + self.steps * 1e-3

    def build_model(given):
        config.update(given)
        return Net()

    def build_optimizer(model, given):
        if given.get("optimizer") == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=0.01)
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def build_scheduler(optimizer, given):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def loss(model, batch):
        losses.append(len(batch["y"]))
        if len(losses) == config.get("stop_at"):
            raise RuntimeError("stopped")
        noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1)
        value = nn.functional.cross_entropy(model(batch["x"] + noise), batch["y"])
        return {"loss": value, "noise": noise}
"""

STOPPED_AT = 6


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a snapshot after every step, and wait for it."""
    taken = Snapshots.after_step

    def take_and_wait(self: Snapshots, *arguments: Any) -> None:
        self._due_at = 0.0
        taken(self, *arguments)
        self.wait()

    monkeypatch.setattr(Snapshots, "after_step", take_and_wait)


def bench(folder: Path, **options: Any) -> Bench:
    config = {key: options.pop(key) for key in ("stop_at", "optimizer") if key in options}
    return Bench(folder, options.pop("source", DROPOUT_AND_BATCHNORM), config=config, snapshot_seconds=1e-9, **options)


def stopped(folder: Path, path: Path, **options: Any) -> Bench:
    """Train until the task's code raises at its step; its last snapshot stays."""
    broken = bench(folder / "broken", stop_at=STOPPED_AT, **options)
    with pytest.raises(CodeError, match="stopped"):
        broken.train(snapshot_path=str(path))
    return broken


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgd", "inner_state": InnerState.CARRIED},
        {"optimizer": "adamw", "inner_state": InnerState.KEPT},
        {"mode": Mode.GRADIENTS},
        {"optimizer": "sgd", "clip_norm": 0.1},
        {"optimizer": "sgd", "update_codec": CodecSpec(name=CodecName.INT8)},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values())[:40],
)
def test_it_goes_on_to_the_same_bits(every_step: None, tmp_path: Path, options: dict[str, Any]) -> None:
    undisturbed = bench(tmp_path / "whole", **options).train()
    path = tmp_path / "work.state"
    stopped(tmp_path, path, **options)
    assert read_record(path)["steps"] == STOPPED_AT - 1
    resumed = bench(tmp_path / "resumed", **options)
    done = resumed.train(snapshot_path=str(path))
    assert done.update == undisturbed.update
    assert done.metrics == undisturbed.metrics
    assert "noise" in done.metrics
    assert done.samples == undisturbed.samples


def test_what_is_carried_from_batch_to_batch_goes_on(every_step: None, tmp_path: Path) -> None:
    stops = LSTM.replace(
        "    def loss(model, batch, state):\n",
        "    calls = []\n\n    def loss(model, batch, state):\n        calls.append(1)\n"
        "        if len(calls) == STOP:\n            raise RuntimeError('stopped')\n",
    )
    options: dict[str, Any] = {"rows": 26, "holdout": 0.0, "inner_state": InnerState.CARRIED, "snapshot_seconds": 1e-9}
    undisturbed = ordered_bench(tmp_path / "whole", **options).train()
    path = str(tmp_path / "work.state")
    with pytest.raises(CodeError, match="stopped"):
        ordered_bench(tmp_path / "broken", stops.replace("STOP", "5"), **options).train(snapshot_path=path)
    resumed = ordered_bench(tmp_path / "resumed", stops.replace("STOP", "5"), **options).train(snapshot_path=path)
    assert resumed.update == undisturbed.update
    assert resumed.metrics == undisturbed.metrics


def test_only_what_is_left_is_trained(every_step: None, tmp_path: Path) -> None:
    path = tmp_path / "work.state"
    stopped(tmp_path, path)
    resumed = bench(tmp_path / "resumed")
    resumed.train(snapshot_path=str(path))
    losses = resumed.runner.contract.module.losses
    assert len(losses) == len(resumed.runner._source.batches(resumed.run_order().pieces, 0)) - (STOPPED_AT - 1)


def test_a_finished_assignment_is_not_overtaken_by_its_last_snapshot(tmp_path: Path) -> None:
    """One that is still being written when the assignment ends is never put in its place."""
    path = tmp_path / "work.state"
    snapshots = Snapshots(path, 1e-9)
    whole = bench(tmp_path / "whole")
    state = state_of(whole)
    snapshots.end()
    snapshots._write(state.saved({}), path)
    assert list(tmp_path.glob("work*")) == []


@pytest.mark.parametrize("spoil", ["cut", "garbage", "format", "torch", "work", "shape"])
def test_a_spoilt_snapshot_is_dropped_and_the_assignment_begins_anew(
    every_step: None, tmp_path: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = bench(tmp_path / "whole").train()
    path = tmp_path / "work.state"
    stopped(tmp_path, path)
    spoiling(spoil)(path)
    wanted = path if spoil != "work" else path.rename(tmp_path / "another.state")
    done = bench(tmp_path / "resumed").train(snapshot_path=str(wanted))
    assert done.update == undisturbed.update
    assert "a snapshot was dropped" in capsys.readouterr().err


def spoiling(how: str) -> Callable[[Path], None]:
    def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **record: str) -> None:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if record:
            text = metadata["steps"]
            for key, value in record.items():
                text = text.replace(f'"{key}": ', f'"{key}": {value}, "was_{key}": ', 1)
            metadata["steps"] = text
        whole = safetensors.torch.load_file(path) | (tensors or {})
        safetensors.torch.save_file(whole, path, metadata)

    match how:
        case "cut":
            return lambda path: os.truncate(path, path.stat().st_size // 2)
        case "garbage":
            return lambda path: path.write_bytes(b"no tensors" * 100) and None
        case "format":
            return lambda path: rewrite(path, format="0")
        case "torch":
            return lambda path: rewrite(path, torch='"1.0"')
        case "shape":
            return lambda path: rewrite(path, {"weights/layers.0.bias": torch.zeros(5)})
    return lambda path: None


def test_a_full_disk_ends_snapshots_and_not_the_work(
    every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def full(descriptor: int) -> None:
        tries.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshots_module.os, "fsync", full)
    path = tmp_path / "work.state"
    done = bench(tmp_path / "whole").train(snapshot_path=str(path))
    assert done.update is not None
    assert len(tries) == 1
    assert capsys.readouterr().err.count("no more snapshots of this assignment") == 1
    assert list(tmp_path.glob("work*")) == []


def test_the_last_room_on_the_disk_is_left_to_others(
    every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def nearly_full(folder: Path) -> Any:
        asked.append(folder)
        return NearlyFull()

    class NearlyFull:
        free = snapshots_module.SPARED_DISK_BYTES + 100

    monkeypatch.setattr(snapshots_module.shutil, "disk_usage", nearly_full)
    assert bench(tmp_path / "whole").train(snapshot_path=str(tmp_path / "work.state")).update is not None
    assert asked == [tmp_path]
    assert "has no room" in capsys.readouterr().err
    assert list(tmp_path.glob("work*")) == []


def test_a_state_that_no_file_can_hold_ends_snapshots_and_not_the_work(
    every_step: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = DROPOUT_AND_BATCHNORM.replace(
        "return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)",
        "odd = torch.optim.SGD(model.parameters(), lr=0.1); odd.param_groups[0]['odd'] = object(); return odd",
    )
    path = tmp_path / "work.state"
    assert bench(tmp_path / "whole", source=odd).train(snapshot_path=str(path)).update is not None
    assert "no more snapshots" in capsys.readouterr().err
    assert not path.exists()


def test_without_a_path_or_an_interval_nothing_is_kept(every_step: None, tmp_path: Path) -> None:
    trained = bench(tmp_path / "whole")
    trained.train()
    trained.train(snapshot_path=None)
    never = Snapshots(tmp_path / "never.state", 0.0)
    never.after_step(state_of(trained))
    assert list(tmp_path.glob("*.state")) == []


def state_of(one: Bench) -> Any:
    """Return a state with a step behind it."""
    runner = one.runner
    return StepState(runner.tensors, runner._states, StepMetrics(), steps=1, samples=8)


class Clock:
    """Shows the time that it is told to, each reading once; the last one for ever."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_they_are_as_rare_as_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = Clock(), []
    snapshots = Snapshots(tmp_path / "work.state", 10.0, clock=clock)

    def take(*_: object) -> None:
        taken.append(clock.now)
        clock.now += 2.0  # what one costs: a fiftieth of the time is 100 seconds

    monkeypatch.setattr(snapshots, "_take", take)
    state = state_of(bench(tmp_path / "whole"))
    for second in range(220):
        clock.now = max(clock.now, float(second))
        snapshots.after_step(state)
    assert taken == [10.0, 112.0, 214.0]


def test_one_that_is_being_written_is_not_overtaken_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(tmp_path / "work.state", 1e-9)
    monkeypatch.setattr(Snapshots, "_is_writing", property(lambda _: True))
    snapshots._due_at = 0.0
    snapshots.after_step(state_of(bench(tmp_path / "whole")))
    assert snapshots._writing is None


def test_where_there_is_no_room_for_a_copy_the_steps_wait(
    every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoRoom:
        available = 0

    monkeypatch.setattr(snapshots_module.psutil, "virtual_memory", NoRoom)
    undisturbed = bench(tmp_path / "whole").train()
    path = tmp_path / "work.state"
    stopped(tmp_path, path)
    assert bench(tmp_path / "resumed").train(snapshot_path=str(path)).update == undisturbed.update


def test_what_is_no_state_is_told_from_one(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.state")
    with pytest.raises(StateUnusable, match="no state of steps"):
        read_record(tmp_path / "a.state")


KILLED_MIDWAY = """
    import os, signal, threading
    from pathlib import Path
    import torch
    from torch import nn

    config = {}

    def build_model(given):
        config.update(given)
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))

    def loss(model, batch):
        path = Path(config["snapshot"])
        if config["waits"] and path.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if config["waits"] and config.setdefault("steps", 0) == 8:
            while not path.exists():
                threading.Event().wait(0.001)
        config["steps"] = config.get("steps", 0) + 1
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


@pytest.mark.slow
def test_a_killed_executor_is_gone_on_from_by_the_next(tmp_path: Path) -> None:
    """The first one is killed by SIGKILL in the midst of a step, once a snapshot of it is there."""
    path = tmp_path / "work.state"
    shards, files = write_data(tmp_path)
    weights = safetensors.torch.save({"1.weight": torch.ones(2, 3), "1.bias": torch.zeros(2)})
    run = run_order(shards, files, weights=weights, weights_digest="0" * 64)

    def load(waits: bool) -> Any:
        config = {"snapshot": str(path), "waits": waits}
        return load_order(tmp_path, KILLED_MIDWAY, config=config, snapshot_seconds=1e-6, batch_samples=4)

    def done(snapshot: Path | None) -> Done:
        with started() as agent:
            assert isinstance(agent.hear(), Warm)
            agent.send(load(waits=False))
            assert isinstance(agent.hear(), Loaded)
            agent.send(run.model_copy(update={"snapshot_path": snapshot and str(snapshot)}))
            while not isinstance(report := agent.hear(), Done):
                pass
            return report

    undisturbed = done(None)
    with started() as agent:
        assert isinstance(agent.hear(), Warm)
        agent.send(load(waits=True))
        assert isinstance(agent.hear(), Loaded)
        agent.send(run.model_copy(update={"snapshot_path": str(path)}))
        assert agent.process.wait(timeout=60) == -9
        assert isinstance(agent.hear(), Saved)
    steps = read_record(path)["steps"]
    assert 0 < steps < undisturbed.samples // 4
    resumed = done(path)
    assert (resumed.update, resumed.metrics) == (undisturbed.update, undisturbed.metrics)


WAITS_IN_A_STEP = """
    from pathlib import Path
    from torch import nn

    config = {}

    def build_model(given):
        config.update(given)
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))

    def loss(model, batch):
        config["steps"] = config.get("steps", 0) + 1
        if config["steps"] == config["waits_in"]:
            Path(config["gate"]).read_bytes()
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


@pytest.mark.slow
def test_a_suspended_executor_keeps_every_step_and_does_no_more(tmp_path: Path) -> None:
    """The order comes within the third step, long before a snapshot is due."""
    path, gate = tmp_path / "work.state", tmp_path / "gate"
    os.mkfifo(gate)
    shards, files = write_data(tmp_path)
    weights = safetensors.torch.save({"1.weight": torch.ones(2, 3), "1.bias": torch.zeros(2)})
    run = run_order(shards, files, weights=weights, weights_digest="0" * 64, snapshot_path=str(path))

    def load(waits_in: int, snapshot_seconds: float = 1e6) -> Any:
        config = {"gate": str(gate), "waits_in": waits_in}
        return load_order(tmp_path, WAITS_IN_A_STEP, config=config, snapshot_seconds=snapshot_seconds, batch_samples=4)

    def suspended(snapshot_seconds: float) -> list[Any]:
        with started() as agent:
            assert isinstance(agent.hear(), Warm)
            agent.send(load(3, snapshot_seconds))
            assert isinstance(agent.hear(), Loaded)
            agent.send(run)
            with gate.open("wb"):  # it is in the step now
                agent.send(Suspend())
            heard = [agent.hear()]
            while not isinstance(heard[-1], Suspended):
                heard.append(agent.hear())
            agent.connection.close()
            assert agent.process.wait(timeout=60) == 0
        return [type(report) for report in heard if not isinstance(report, Advance)]

    def done() -> Done:
        with started() as agent:
            assert isinstance(agent.hear(), Warm)
            agent.send(load(0))
            assert isinstance(agent.hear(), Loaded)
            agent.send(run)
            while not isinstance(report := agent.hear(), Done):
                assert isinstance(report, Advance)
            return report

    undisturbed = done()
    assert suspended(snapshot_seconds=0.0) == [Suspended]
    assert not path.exists()
    assert suspended(snapshot_seconds=1e6) == [Saved, Suspended]
    assert read_record(path)["steps"] == 3
    resumed = done()
    assert (resumed.update, resumed.metrics) == (undisturbed.update, undisturbed.metrics)


def test_an_executor_that_does_nothing_is_suspended_at_once() -> None:
    with started() as agent:
        assert isinstance(agent.hear(), Warm)
        agent.send(Suspend())
        assert isinstance(agent.hear(), Suspended)
        agent.send(Stop())
        assert agent.process.wait(timeout=60) == 0


def test_without_room_for_the_last_one_a_suspended_executor_stops_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        """In the place of the end of the process."""

    class Ordered:
        def is_ordered(self) -> bool:
            return True

        def obey(self) -> None:
            raise Stopped

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Snapshots, "_take", full)
    stand_in: Any = Ordered()
    for path in (tmp_path / "work.state", None):
        with pytest.raises(Stopped):
            Snapshots(path, 1e6, suspension=stand_in).after_step(stand_in)
    assert list(tmp_path.iterdir()) == []

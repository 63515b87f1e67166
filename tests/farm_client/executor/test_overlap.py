"""Steps beside an update's way: a real executor reports before it takes them, and takes them before the next order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from farm_client.executor.layout import ModelTensors
from farm_client.executor.messages import Done, Failed
from farm_client.executor.overlap import NO_OVERLAP, LaterSteps, Overlap
from protocol.digests import digest_bytes
from protocol.recipe import InnerState
from tests.farm_client.executor.agent_side import load_order, run_order, started
from tests.farm_client.executor.bench_task import Bench, write_data

LAYERS = """
    import os
    from pathlib import Path
    from torch import nn

    STEPS = 0

    def build_model(config):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def loss(model, batch):
        global STEPS
        STEPS += 1
        if STEPS == int(os.environ.get("GATED_STEP", 0)) and Path(os.environ["GATE"]).read_bytes() == b"fail":
            raise ValueError("a late mistake")
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
TRAIN_STEPS = 9
"""Of the 72 training rows in batches of 8."""


def two_orders(folder: Path, said_at_the_gate: bytes) -> tuple[Done, Done | Failed]:
    """Give an executor two orders with two steps of overlap, of which the first one waits at the gate."""
    os.mkfifo(folder / "gate")
    weights = ModelTensors.of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).weights_file()
    order = run_order(*write_data(folder), weights=weights, weights_digest=digest_bytes(weights))
    variables = {"GATE": str(folder / "gate"), "GATED_STEP": str(TRAIN_STEPS - 1)}
    with started(**variables) as agent:
        agent.hear()
        agent.send(load_order(folder, LAYERS, fragments=2, fragment_overlap_steps=2, batch_samples=8))
        agent.hear()
        agent.send(order)
        _, first = agent.hear_end()  # here although its eighth step can't be taken yet
        assert isinstance(first, Done), first
        agent.send(order.model_copy(update={"assignment_id": "a2", "round": 1}))
        (folder / "gate").write_bytes(said_at_the_gate)
        _, second = agent.hear_end()
    assert isinstance(second, Done | Failed)
    return first, second


def test_the_update_is_on_its_way_while_the_last_steps_are_taken(tmp_path: Path) -> None:
    first, second = two_orders(tmp_path, b"go")
    assert first.samples == 72
    assert isinstance(second, Done)
    assert second.assignment_id == "a2"


def test_a_mistake_in_the_last_steps_is_told_to_the_next_order(tmp_path: Path) -> None:
    _, second = two_orders(tmp_path, b"fail")
    assert isinstance(second, Failed)
    assert second.assignment_id == "a2"
    assert "a late mistake" in second.message


def trained_on(bench: Bench, number: int) -> dict[str, torch.Tensor]:
    done = bench.train(round=number)
    assert done.update is not None
    return safetensors.torch.load(done.update)


def test_what_fails_there_leaves_no_optimizer_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, LAYERS, inner_state=InnerState.KEPT, fragments=2, fragment_overlap_steps=2)
    trained_on(bench, 0)
    monkeypatch.setattr(bench.runner._later, "_left", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.runner.go_on()
    assert bench.runner._kept_loop is None
    bench.runner.go_on()  # nothing is left
    assert bench.runner._kept_loop is None


def test_the_steps_beside_an_update_come_with_its_fragments_next_turn(tmp_path: Path) -> None:
    """Without them, the fragment that waits brings less."""
    all_taken, none_taken = (
        Bench(tmp_path / name, LAYERS, fragments=2, fragment_overlap_steps=5) for name in ("all", "none")
    )
    for bench in (all_taken, none_taken):
        told = trained_on(bench, 0)
        assert set(told) == {"0.weight", "0.bias"}
    all_taken.runner.go_on()
    assert trained_on(all_taken, 1)["1.weight"].norm() > 1.2 * trained_on(none_taken, 1)["1.weight"].norm()


def test_an_update_waits_for_one_step_at_least() -> None:
    assert [Overlap(3).steps_of(steps) for steps in (1, 2, 3, 4, 9)] == [0, 1, 2, 3, 3]
    assert NO_OVERLAP.steps_of(9) == 0


def test_the_time_of_the_steps_left_counts_once_as_the_next_assignments() -> None:
    rest = LaterSteps()
    rest.leave(lambda: None)
    rest.take()
    assert rest.seconds() > 0
    assert rest.seconds() == 0

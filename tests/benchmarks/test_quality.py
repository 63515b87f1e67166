"""The quality benchmark: its tasks train, both sides begin alike and see equal samples; nothing runs on a farm here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.quality import BATCH_SAMPLES, MODELS, MODES, Run, arguments_of, held_out_loss, lay_out, plain_loss


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return lay_out(tmp_path_factory.mktemp("quality") / "task")


@pytest.mark.parametrize("model", MODELS)
def test_each_model_takes_a_step_and_has_a_held_out_loss(task: ModuleType, model: str) -> None:
    config = {"model": model, "seed": 0}
    network = task.build_model(config)
    before = held_out_loss(task, model, network.state_dict())
    rows = task.rows_of(config, held_out=False)
    task.loss(network, {name: column[:BATCH_SAMPLES] for name, column in rows.items()}).backward()
    task.build_optimizer(network, config).step()
    assert held_out_loss(task, model, network.state_dict()) != before


@pytest.mark.parametrize("model", ["digits", "gpt"])
def test_no_row_is_both_trained_on_and_held_out(task: ModuleType, model: str) -> None:
    config = {"model": model, "seed": 0}
    kept, held_out = (task.rows_of(config, held_out)["x"] for held_out in (False, True))
    assert len(held_out) == -(-(len(kept) + len(held_out)) // 5)
    assert len(task.make_dataset(config)) == len(kept)
    assert torch.equal(task.make_dataset(config)[-1]["x"], kept[-1])


def test_a_seed_gives_the_same_weights_to_begin_with(task: ModuleType) -> None:
    first, again, other = (task.build_model({"model": "lstm", "seed": seed}).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_plain_loop_learns(task: ModuleType) -> None:
    untrained = held_out_loss(task, "superres", task.build_model({"model": "superres", "seed": 0}).state_dict())
    assert plain_loss(task, "superres", 0, epochs=1) < untrained / 2


def test_the_default_is_told_no_mode() -> None:
    told = {mode: arguments_of(Run("gpt", mode, 2, 3), Path("code")) for mode in MODES}
    assert not {"--mode", "--round-samples", "--rounds", "--min-clients"} & set(told["default"])
    assert told["gradients"][-4:] == ["--mode", "gradients", "--round-samples", "32"]
    assert all(told["default"] == line[: len(told["default"])] for line in told.values())
    assert "model=gpt" in told["default"]

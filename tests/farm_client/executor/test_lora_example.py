"""examples/lora on the farm's executor: its own plain loop to the bit, and no more than the adapter on the wire."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from farm_client.data.readers import open_data
from farm_client.data.seeds import derived_seed
from farm_client.data.sharding import plan_shards, write_shards
from farm_client.executor.randomness import seed_everything
from farm_client.sdk.submission import Prepared, Submission, prepare
from protocol.recipe import Mode, Recipe
from protocol.tasks import TaskSpec
from tests.farm_client.executor.bench_task import Bench, update_of

EXAMPLE = Path(__file__).parents[3] / "examples/lora"
MOST_OVERHEAD = 1.1
"""Bytes of a round's update or version over those of the adapter's own file."""


def made(folder: Path) -> Path:
    """Make the example's base and data in a folder, after one step of pretraining."""
    pytest.importorskip("transformers")
    make = loaded(EXAMPLE / "make.py")
    make.write(folder, steps=1, rows=48)
    return folder


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lora_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return made(tmp_path_factory.mktemp("lora"))


def benched(lora: Path, folder: Path, mode: Mode) -> Bench:
    source = open_data([lora / "data.parquet"])
    shards, files = _sharded(source, folder)
    config = {"base": str(lora / "base"), "rank": 8, "lr": 0.003}
    return Bench(folder, (EXAMPLE / "train.py").read_text(), mode=mode, config=config, shards=shards, files=files)


def _sharded(source, folder):
    (folder / "shards").mkdir()
    return write_shards(source, plan_shards(source.rows, source.size_bytes, 0.25), folder / "shards", seed=1)


def plain(bench: Bench):
    """Return the example's own model as the round began, and the round's batches in order."""
    module = bench.runner.contract.module
    model = module.build_model(bench.config)
    model.load_state_dict(bench.whole(), strict=False)  # a tied tensor has a second name
    order = bench.run_order()
    first = order.pieces[0]
    seed = derived_seed(bench.load_order().seed, order.round, order.epoch, (first.shard, first.start))
    seed_everything(seed, torch.device("cpu"))
    return module, model, list(bench.runner._source.batches(order.pieces, 0))


def test_a_round_in_weights_mode_is_the_plain_loop(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    update = update_of(bench.train())
    module, model, batches = plain(bench)
    optimizer = module.build_optimizer(model, bench.config)
    for batch in batches:
        optimizer.zero_grad()
        module.loss(model, batch).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    begun = safetensors.torch.load(bench.weights)
    assert update.keys() == begun.keys() == {name for name, p in after.items() if p.requires_grad}
    for name, first in begun.items():
        assert torch.equal(update[name], first - after[name]), name
    held_out = bench.evaluate().metrics["loss"]
    assert math.isfinite(held_out)


def test_a_round_in_gradients_mode_is_the_plain_loops_gradient(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.GRADIENTS)
    update = update_of(bench.train())
    module, model, batches = plain(bench)
    rows = torch.cat([batch["input_ids"] for batch in batches])
    module.loss(model, {"input_ids": rows}).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert update.keys() == named.keys()
    for name, gradient in named.items():
        torch.testing.assert_close(update[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_round_is_as_large_as_the_adapter(lora: Path, tmp_path: Path) -> None:
    bench = benched(lora, tmp_path, Mode.WEIGHTS)
    bench.runner.tensors.model.save_pretrained(tmp_path / "adapter")
    adapter_bytes = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    base_bytes = (lora / "base/model.safetensors").stat().st_size
    update_bytes = len(bench.train().update)
    assert update_bytes <= MOST_OVERHEAD * adapter_bytes  # up
    assert len(bench.weights) <= MOST_OVERHEAD * adapter_bytes  # down, and in each checkpoint
    assert len(bench.frozen) >= 0.95 * base_bytes > 5 * len(bench.weights)  # once


@pytest.fixture(scope="module")
def prepared(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    recipe = Recipe(mode=Mode.WEIGHTS, rounds=1, batch_samples=4)
    asked = Submission(
        EXAMPLE, recipe, (lora / "data.parquet",), {"rank": 8, "lr": 0.003}, base=lora / "base", holdout=0.2
    )
    return prepare(asked, tmp_path_factory.mktemp("prepared"))


def test_the_example_is_submitted_with_its_base(lora: Path, prepared: Prepared) -> None:
    spec = prepared.spec
    assert {file.path for file in spec.base} == {path.name for path in (lora / "base").iterdir()}
    assert {file.blob.digest for file in spec.base} <= prepared.blobs.keys()
    assert spec.config == {"rank": 8, "lr": 0.003}, "where a base lies is each machine's own"
    with pytest.raises(ValidationError, match="config has a value base"):
        TaskSpec.model_validate(spec.model_dump() | {"config": {"base": "x"}})
    with pytest.raises(ValidationError, match=r"the base has two files config\.json"):
        TaskSpec.model_validate(spec.model_dump() | {"base": [spec.base[0].model_dump()] * 2})

"""examples/lora as tests run it: its base and data, an executor that has loaded it, and a farm to pull it from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

from farm_client.data.readers import open_data
from farm_client.data.seeds import derived_seed
from farm_client.data.sharding import plan_shards, write_shards
from farm_client.executor.randomness import seed_everything
from farm_client.executor.rehearsal import rehearse
from farm_client.sdk import check
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import BadOutput
from farm_client.sdk.model_folder import pull_folder
from farm_client.sdk.submission import Prepared, Submission, prepare
from protocol.digests import digest_bytes
from protocol.recipe import Mode, Recipe
from protocol.rest import MetricView, TaskDetail
from protocol.tasks import TaskSpec
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm, answer
from tests.farm_client.executor.bench_task import Bench

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


def benched(lora: Path, folder: Path, mode: Mode, base: str = "base") -> Bench:
    """Return an executor that has loaded the example, with a base and the data of a folder that was ``made``."""
    source = open_data([lora / "data.parquet"])
    shards, files = _sharded(source, folder)
    config = {"base": str(lora / base), "rank": 8, "lr": 0.003}
    return Bench(folder, (EXAMPLE / "train.py").read_text(), mode=mode, config=config, shards=shards, files=files)


def _sharded(source, folder):
    (folder / "shards").mkdir()
    return write_shards(source, plan_shards(source.rows, source.size_bytes, 0.25), folder / "shards", seed=1)


def plain(bench: Bench):
    """Return the example's own model as the round began, and the round's batches in order."""
    module = bench.runner.contract.module
    model = module.build_model(bench.config)
    model.load_state_dict(bench.whole(), strict=False)  # a tied tensor has a second name
    model.train()
    order = bench.run_order()
    first = order.pieces[0]
    seed = derived_seed(bench.load_order().seed, order.round, order.epoch, (first.shard, first.start))
    seed_everything(seed, torch.device("cpu"))
    return module, model, list(bench.runner._source.batches(order.pieces, 0))


def trained_plainly(bench: Bench) -> dict[str, torch.Tensor]:
    """Return what a round of the example's own loop makes of the adapter: what it began with minus what came of it."""
    module, model, batches = plain(bench)
    optimizer = module.build_optimizer(model, bench.config)
    for batch in batches:
        optimizer.zero_grad()
        module.loss(model, batch).backward()
        optimizer.step()
    begun = safetensors.torch.load(bench.weights)
    after = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert after.keys() == begun.keys()
    return {name: begun[name] - after[name] for name in begun}


def adapter_bytes(bench: Bench, folder: Path) -> int:
    """Return how long the file is that PEFT itself writes of the adapter."""
    bench.runner.tensors.model.save_pretrained(folder / "adapter")
    return (folder / "adapter/adapter_model.safetensors").stat().st_size


def submitted(lora: Path, folder: Path) -> Prepared:
    """Return the example as it is submitted. It is tried in this process: one of its own takes seconds to import."""
    recipe = Recipe(mode=Mode.WEIGHTS, rounds=1, batch_samples=4)
    config = {"rank": 8, "lr": 0.003}
    asked = Submission(EXAMPLE, recipe, (lora / "data.parquet",), config, base=lora / "base", holdout=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_run_process", lambda request, folder: (rehearse(request), ""))
        return prepare(asked, folder)


def pulled(folder: Path, spec: TaskSpec, blobs: dict[str, bytes], weights: bytes, *, merged: bool = False) -> Path:
    """Return the folder that is pulled from a farm whose only task has this specification and these weights."""
    fake = FakeFarm(blobs={**blobs, digest_bytes(weights): weights}, model_digest=digest_bytes(weights))
    fake.metrics = [metric(round=1, name="loss", value=2.5, source="eval")]
    detail = TaskDetail(task=fake.tasks[0], spec=spec, rounds=())
    fake.overrides["GET", f"/v1/tasks/{detail.task.task_id}"] = lambda: answer(detail)
    with FarmApi(parse_address(ADDRESS, "test"), fake.transport()) as api:
        model = api.model(detail.task.task_id).model_copy(update={"frozen": spec.frozen})
        pull_folder(api, model, folder / "pulled", merged=merged)
        with pytest.raises(BadOutput, match="is there already"):
            pull_folder(api, model, folder / "pulled")
    return folder / "pulled"


def metric(**changes: object) -> MetricView:
    return MetricView.model_validate({"seq": 1, "at": 0.0, "step": 0, **changes})


def in_memory(prepared: Prepared) -> dict[str, bytes]:
    return {name: blob if isinstance(blob, bytes) else blob.read_bytes() for name, blob in prepared.blobs.items()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(64)[None]).logits

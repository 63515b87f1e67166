"""The step in which the task's code failed comes in a file: its batch and what it began with, to the bits."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from farm_client.data.shards import read_shard
from farm_client.executor.failed_step import flattened, rebuilt
from farm_client.executor.failures import CodeError, LossNotFinite, as_failed
from farm_client.executor.layout import TensorMap
from farm_client.executor.messages import FailedStepFile
from protocol.digests import digest_bytes
from protocol.failed_steps import METADATA_KEY
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import Bench

CODE = """
    import torch
    from torch import nn

    config, seen = {}, []

    def build_model(given):
        config.update(given)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def build_optimizer(model, given):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def loss(model, batch):
        seen.append(torch.get_rng_state())
        if len(seen) == config["fails_at"]:
            config["kept"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}, batch
            if config["how"] == "nan":
                return model(batch["x"]).mean() * float("nan")
            raise ValueError("row 17 is bad")
        torch.rand(3)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
STEP = 4


def failed(folder: Path, *, how: str = "raise", limit_bytes: int = 1 << 20, **options: Any) -> tuple[Bench, CodeError]:
    bench = Bench(folder, options.pop("source", CODE), config={"fails_at": STEP, "how": how}, **options)
    with pytest.raises(CodeError) as caught:
        bench.train(failed_step_bytes=limit_bytes)
    return bench, caught.value


def file_of(error: CodeError) -> tuple[dict[str, torch.Tensor], dict[str, Any], FailedStepFile]:
    """Return the tensors and the record of the failed step, whose digest and size are looked at."""
    assert error.failed_step is not None
    path = Path(error.failed_step.path)
    assert digest_bytes(path.read_bytes()) == error.failed_step.digest
    assert path.stat().st_size == error.failed_step.size_bytes
    with safetensors.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
    return load_file(path), record, error.failed_step


def code_of(bench: Bench) -> Any:
    """Return the task's module, in this process."""
    return sys.modules[Path(bench.entry).stem]


@pytest.mark.parametrize("mode", list(Mode))
def test_the_batch_and_the_weights_are_those_that_the_code_was_given(tmp_path: Path, mode: Mode) -> None:
    bench, error = failed(tmp_path, mode=mode)
    tensors, record, _ = file_of(error)
    weights, batch = code_of(bench).config["kept"]
    given = rebuilt(record["batch"], tensors)
    assert given.keys() == batch.keys()
    assert all(torch.equal(given[name], batch[name]) for name in batch)
    assert all(torch.equal(tensors[f"weights/{name}"], weights[name]) for name in weights)


def test_the_record_says_what_failed_and_where(tmp_path: Path) -> None:
    bench, error = failed(tmp_path)
    tensors, record, _ = file_of(error)
    assert record["error"].startswith(f"{bench.entry}:")
    assert "ValueError: row 17 is bad (the batch is {x: float32" in record["error"]
    assert record["line"] == record["error"].partition(": ")[0]
    assert (record["code"], record["round"], record["epoch"], record["step"]) == ("task_code", 0, 0, STEP)
    assert record["left_out"] == []
    rows = [row for piece in record["rows"] for row in piece["rows"]]
    assert len(rows) == record["samples"] == len(tensors["batch/0"])


def test_the_rows_are_those_of_the_shard(tmp_path: Path) -> None:
    bench, error = failed(tmp_path)
    tensors, record, _ = file_of(error)
    expected = []
    for piece in record["rows"]:
        (shard,) = [one for one in bench.shards if one.index == piece["shard"]]
        assert shard.blob is not None
        expected.append(read_shard(bench.files[shard.blob.digest]).take(torch.tensor(piece["rows"]))["x"])
    assert torch.equal(rebuilt(record["batch"], tensors)["x"], torch.cat(expected))


def test_the_inner_optimizer_and_the_generators_come_along(tmp_path: Path) -> None:
    bench, error = failed(tmp_path)
    tensors, _, _ = file_of(error)
    assert any(name.startswith("inner_state/") and name.endswith("exp_avg") for name in tensors)
    assert torch.equal(tensors["random/torch"], code_of(bench).seen[STEP - 1])


def test_a_loss_that_is_nan_is_kept_with_the_weights_before_it(tmp_path: Path) -> None:
    _, error = failed(tmp_path, how="nan")
    assert isinstance(error, LossNotFinite)
    tensors, record, _ = file_of(error)
    assert record["code"] == "loss_not_finite"
    assert f"at step {STEP} " in record["error"]
    assert torch.isfinite(tensors["weights/0.weight"]).all()


def test_nan_in_the_inner_state_leaves_that_out_and_nothing_else(tmp_path: Path) -> None:
    """The gradient of the step before was NaN, its loss was not."""
    source = CODE.replace(
        "torch.rand(3)",
        "return model(batch['x']).mul(0).sqrt().sum()",
    )
    _, error = failed(tmp_path, source=source)
    assert isinstance(error, LossNotFinite)
    tensors, record, _ = file_of(error)
    assert torch.isnan(tensors["weights/0.weight"]).any()
    assert "batch/0" in tensors
    assert not any(name.startswith("inner_state/") for name in tensors)
    (left_out,) = record["left_out"]
    assert left_out.startswith("the inner optimizer's state: training left NaN")


def test_what_is_too_large_is_left_out_the_state_first(tmp_path: Path) -> None:
    _, whole = failed(tmp_path / "whole")
    size_bytes = file_of(whole)[2].size_bytes
    _, error = failed(tmp_path / "bare", limit_bytes=size_bytes - 1)
    tensors, record, kept = file_of(error)
    assert kept.size_bytes < size_bytes
    assert sorted(tensors) == ["batch/0", "batch/1"]
    assert record["left_out"] == [f"the state: it is over {size_bytes - 1} bytes"]
    _, error = failed(tmp_path / "none", limit_bytes=100)
    assert error.failed_step is None


def test_nothing_is_written_that_nobody_wants(tmp_path: Path) -> None:
    bench, error = failed(tmp_path, limit_bytes=0)
    assert error.failed_step is None
    assert list(bench.folder.glob("*.step")) == []


def test_a_full_disk_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("farm_client.executor.failed_step._write", full)
    _, error = failed(tmp_path)
    assert error.failed_step is None
    assert "row 17 is bad" in error.message
    assert "the step that failed could not be kept" in capsys.readouterr().err


def test_the_report_names_the_file(tmp_path: Path) -> None:
    _, error = failed(tmp_path)
    assert as_failed(error, "a").failed_step == error.failed_step
    assert as_failed(ValueError("x"), "a").failed_step is None


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"x": [1, 2.5, None, True], "texts": ["ä", "b"]}, {"x": [1, 2.5, None, True], "texts": ["ä", "b"]}),
        ((1, ("a", [])), (1, ("a", []))),
        (Pair("l", "r"), ("l", "r")),
        ({3: "three"}, {3: "three"}),
        ({"what": object(), "x": 1}, {"what": None, "x": 1}),
        ({"sparse": torch.eye(2).to_sparse(), "names": np.array(["a"])}, {"sparse": None, "names": None}),
    ],
)
def test_batches_of_plain_values_survive_json(batch: Any, expected: Any) -> None:
    found: TensorMap = {}
    assert rebuilt(json.loads(json.dumps(flattened(batch, found))), found) == expected
    assert found == {}


def test_tensors_and_arrays_of_any_nesting_come_back() -> None:
    batch = {"image": torch.arange(6.0).view(2, 3).T, "more": (torch.tensor([True]), [np.arange(3)])}
    found: TensorMap = {}
    back = rebuilt(json.loads(json.dumps(flattened(batch, found))), found)
    assert torch.equal(back["image"], batch["image"])
    assert torch.equal(back["more"][0], torch.tensor([True]))
    assert isinstance(back["more"][1][0], np.ndarray)
    assert back["more"][1][0].tolist() == [0, 1, 2]


def test_a_batch_that_holds_itself_ends() -> None:
    batch: list[Any] = []
    batch.append(batch)
    tree = flattened(batch, {})
    assert json.dumps(tree).endswith('{"left_out": "list"}' + "]}" * 32)


def test_a_tree_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no pickle"):
        rebuilt({"pickle": "x"}, {})

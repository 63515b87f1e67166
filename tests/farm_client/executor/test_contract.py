"""The researcher's contract: every form that is accepted, and one sentence with file and line for every mistake."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from farm_client.executor.contract import load_contract
from farm_client.executor.failures import CodeError, as_failed
from protocol.messages import Scope
from protocol.recipe import Mode
from protocol.tasks import Shard, Split
from tests.farm_client.executor.bench_task import LINEAR, Bench, write_code

MODEL = """
import torch
from torch import nn

def build_model(config):
    return nn.Linear(3, 2)
"""
LOSS = """
def loss(model, batch):
    return model(batch["x"]).mean()
"""
NO_MODEL = "import torch\n" + LOSS


def fail(folder: Path, source: str, **options: Any) -> CodeError:
    """Load and train; return the error."""
    with pytest.raises(CodeError) as caught:
        Bench(folder, source, **options).train()
    error = caught.value
    assert "\n" not in error.message
    assert as_failed(error, "a").scope is Scope.NOBODY
    assert str(folder) not in error.message + (error.trace or "")
    return error


MISTAKES = {
    "syntax": ("def build_model(config)\n    return 1\n", r"task_\d+\.py:1: SyntaxError: expected ':'"),
    "raises at import": ("x = 1\ny = x / 0\n", r"task_\d+\.py:2: ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(3)\n", r"task_\d+\.py:2: SystemExit: 3; the code must not exit"),
    "no build_model": (NO_MODEL, r"task_\d+\.py has no build_model\(config\): add it"),
    "no loss": (MODEL, r"task_\d+\.py has no loss\(model, batch\): add it"),
    "model of a wrong type": (
        MODEL.replace("nn.Linear(3, 2)", "[1]") + LOSS,
        "build_model must return a torch.nn.Module, it returned list",
    ),
    "nothing to train": (
        MODEL.replace("nn.Linear(3, 2)", "nn.ReLU()") + LOSS,
        "the model has no trainable parameter",
    ),
    "build_model raises": (
        MODEL.replace("nn.Linear(3, 2)", 'nn.Linear(config["width"], 2)') + LOSS,
        r"task_\d+\.py:6, in build_model: KeyError: 'width'",
    ),
    "shapes": (
        MODEL.replace("nn.Linear(3, 2)", "nn.Linear(5, 2)") + LOSS,
        r"task_\d+\.py:9, in loss: RuntimeError: .* \(the batch is \{x: float32 \[8, 3\], y: int64 \[8\]\}\)",
    ),
    "unknown column": (
        MODEL + LOSS.replace('"x"', '"image"'),
        r"in loss: KeyError: 'image' \(the batch is \{x:",
    ),
    "loss of a wrong type": (MODEL + LOSS.replace('model(batch["x"]).mean()', "3"), "it returned a int"),
    "dict without loss": (
        MODEL + LOSS.replace('model(batch["x"]).mean()', '{"l": 1}'),
        'a dict without "loss"',
    ),
    "loss not a scalar": (MODEL + LOSS.replace(".mean()", ""), r"returned shape \[8, 2\]: take its .mean\(\)"),
    "loss without a graph": (MODEL + LOSS.replace(".mean()", ".mean().detach()"), "does not depend on the model"),
    "signature": (
        MODEL + LOSS.replace("(model, batch)", "(model)"),
        r"loss\(model, batch\): TypeError: loss\(\) takes 1",
    ),
    "optimizer of a wrong type": (
        MODEL + LOSS + "def build_optimizer(model, config):\n    return 0.1\n",
        "build_optimizer must return a torch optimizer, it returned float",
    ),
    "optimizer raises": (
        MODEL + LOSS + "def build_optimizer(model, config):\n    return torch.optim.SGD(model.parameters(), lr=-1)\n",
        r"in build_optimizer: ValueError: Invalid learning rate",
    ),
    "two optimizers without train_step": (
        MODEL + LOSS + "def build_optimizer(model, config):\n    return [torch.optim.SGD(model.parameters())] * 2\n",
        "returned 2 optimizers, and the farm's loop steps exactly one: add train_step",
    ),
    "one of two is no optimizer": (
        MODEL + LOSS + "def build_optimizer(model, config):\n    return {'g': 3}\n",
        "must return torch optimizers, and g is of type int",
    ),
    "no optimizer at all": (
        MODEL + LOSS + "def build_optimizer(model, config):\n    return []\n",
        "build_optimizer returned no optimizer",
    ),
    "train_step returns nothing": (
        MODEL + LOSS + "def train_step(model, batch, optimizers, step):\n    model(batch['x'])\n",
        "train_step returned 'loss', which is no number: .*NoneType",
    ),
    "train_step raises": (
        MODEL + LOSS + "def train_step(model, batch, optimizers, step):\n    model(batch['z'])\n",
        r"in train_step: KeyError: 'z' \(the batch is \{x:",
    ),
    "train_step's loss": (
        MODEL + LOSS + "def train_step(model, batch, optimizers, step):\n    return float('nan')\n",
        "the loss is nan at step 1 of the round",
    ),
    "neither loss nor evaluate": (
        MODEL + "def train_step(model, batch, optimizers, step):\n    return 1.0\n",
        r"has no loss\(model, batch\): add it",
    ),
    "on_before_step raises": (
        MODEL + LOSS + "def on_before_step(model, optimizers, step):\n    raise ValueError(step)\n",
        "in on_before_step: ValueError: 0",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_every_mistake_has_its_sentence(tmp_path: Path, mistake: str) -> None:
    source, sentence = MISTAKES[mistake]
    with pytest.raises(CodeError, match=sentence):
        raise fail(tmp_path, source)


def test_the_traceback_has_the_researchers_frames_and_no_others(tmp_path: Path) -> None:
    source = MODEL + "def deep(x):\n    return x @ torch.ones(7)\n" + LOSS.replace("model(", "deep(")
    trace = fail(tmp_path, source).trace or ""
    assert trace.startswith("Traceback")
    assert "in loss" in trace
    assert "in deep" in trace
    assert "farm_client" not in trace
    assert "RuntimeError" in trace


def test_evaluate_must_return_a_dict(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LINEAR + "\n    def evaluate(model, data):\n        return 3\n")
    with pytest.raises(CodeError, match="evaluate must return a dict of numbers, it returned int"):
        bench.evaluate()


def test_a_folder_imports_its_own_modules(tmp_path: Path) -> None:
    write_code(tmp_path, "WIDTH = 4\n", "widths_of_the_folder.py")
    write_code(
        tmp_path / "src",
        MODEL.replace("3, 2", "3, WIDTH") + LOSS + "from widths_of_the_folder import WIDTH\n",
        "a_train.py",
    )
    contract = load_contract(tmp_path, "src/a_train.py", {})
    assert contract.build_model().out_features == 4


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"there is no other\.py"):
        load_contract(tmp_path, "other.py", {})


def test_running_out_of_memory_is_this_machines_fault() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), _allocator_error()):
        failed = as_failed(error, "a")
        assert (failed.code, failed.scope) == ("out_of_memory", Scope.ELSEWHERE)
    assert as_failed(FileNotFoundError(2, "gone", "shard"), "a").scope is Scope.HERE
    assert as_failed(OSError(28, "No space left"), "a").scope is Scope.ELSEWHERE


def _allocator_error() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    return caught.value


def test_memory_errors_of_the_researchers_code_pass_through(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MODEL + LOSS.replace("return", "torch.empty(2**55)\n    return"))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        bench.train()


DATASET = (
    MODEL
    + """
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {"x": torch.full((3,), float(i)), "label": i, "name": f"item {i}"}

def make_dataset(config):
    return Squares()

def loss(model, batch):
    assert batch["name"] == [f"item {i}" for i in batch["label"].tolist()]
    seen.extend(batch["label"].tolist())
    return model(batch["x"]).square().mean()

seen = []
"""
)


@pytest.mark.parametrize("mode", list(Mode))
def test_make_dataset_rows_are_each_read_once(tmp_path: Path, mode: Mode) -> None:
    shards = [Shard(index=0, samples=25, start=0), Shard(index=1, samples=15, start=25)]
    bench = Bench(tmp_path, DATASET, mode=mode, shards=shards)
    assert bench.train().samples == 40
    assert sorted(bench.runner.contract.module.seen) == list(range(40))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return iter([])", "map-style"),
        ("raise OSError('no disk')", r"in make_dataset: OSError: no disk"),
        ("return [object()] * 40", r"the data set's items: TypeError"),
        ("return [1 / 0 for _ in range(1)]", r"ZeroDivisionError"),
    ],
)
def test_data_set_mistakes(tmp_path: Path, body: str, sentence: str) -> None:
    source = MODEL + LOSS + f"def make_dataset(config):\n    {body}\n"
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, source, shards=[Shard(index=0, samples=40)]).train()


def test_load_shard_gets_the_shard_and_may_return_tensors(tmp_path: Path) -> None:
    source = (
        MODEL
        + """
import numpy as np
views = []

def load_shard(shard):
    views.append(shard)
    return {"x": np.ones((shard.samples, 3), np.float32) * shard.config["scale"], "i": torch.arange(shard.samples)}
"""
        + LOSS
    )
    shards = [Shard(index=0, samples=10), Shard(index=1, samples=6, start=10, split=Split.HOLDOUT)]
    bench = Bench(tmp_path, source, shards=shards, config={"scale": 2.0})
    bench.train()
    bench.train()
    bench.evaluate()
    views = bench.runner.contract.module.views
    assert [(v.index, v.split, v.samples, v.first_row, v.path) for v in views] == [
        (0, Split.TRAIN, 10, 0, None),
        (1, Split.HOLDOUT, 6, 10, None),
    ]


def test_load_shard_may_read_the_file_and_return_a_data_set(tmp_path: Path) -> None:
    source = (
        MODEL
        + """
from safetensors.torch import load_file

def load_shard(shard):
    columns = load_file(shard.path)
    return [{"x": row * 2} for row in columns["x"]]
"""
        + LOSS
    )
    assert Bench(tmp_path, source).train().samples == 72


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 3", "load_shard must return a dict of tensors or a map-style data set, it returned int"),
        ('return {"x": torch.zeros(3, 3)}', "shard 0 has 3 rows and should have 10"),
        ('return {"x": torch.zeros(10, 3), "y": torch.zeros(9)}', "columns must have one length"),
        ('return {"x": ["a"] * 10}', "'x' is no tensor"),
        ('return {"x": 1.0}', "single number"),
    ],
)
def test_load_shard_mistakes(tmp_path: Path, body: str, sentence: str) -> None:
    source = MODEL + LOSS + f"def load_shard(shard):\n    {body}\n"
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, source, shards=[Shard(index=0, samples=10)]).train()


def test_log_prints_outside_of_an_executor(capsys: pytest.CaptureFixture[str]) -> None:
    from farm_client.task import log

    log(step=3, metrics={"loss": torch.tensor(0.25, requires_grad=True), "n": 2})
    assert capsys.readouterr().out == textwrap.dedent("step 3: loss 0.25  n 2\n")

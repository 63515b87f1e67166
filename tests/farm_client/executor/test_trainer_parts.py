"""Scripts whose loop is a Trainer's, Lightning's and Hugging Face's, in an executor."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import farm_client as farm
from farm_client.executor.failures import CodeError
from farm_client.own_loop import LoopPart, PartError, host_parts
from farm_client.trainer_parts import TrainerParts
from protocol.assignments import Kind
from protocol.recipe import InnerState, Mode, Recipe
from protocol.task_length import task_length
from tests.farm_client.executor.test_scripts import Bench

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the trainers' logs and checkpoints fall there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))


LIGHTNING = """
import lightning
import torch
import farm_client as farm

class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        [x] = batch
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

def evaluate(model, part):
    return {"rows": len(part.rows_of(40))}

data = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
loader = torch.utils.data.DataLoader(farm.rows(torch.utils.data.TensorDataset(data)), batch_size=4, OPTIONS)
trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=2, enable_model_summary=False, TRAINER
                            callbacks=[farm.lightning.Callback(evaluate)])
model = Lit()
trainer.fit(model, loader)
print("fitted", trainer.current_epoch)
"""
HF = """
import torch
import transformers
import farm_client as farm

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def forward(self, x, labels):
        return {"loss": (self.net(x) - labels).square().mean()}

data = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
items = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in data]
args = transformers.TrainingArguments("OUT", num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.05,
    use_cpu=True, report_to=[], disable_tqdm=True, warmup_steps=2, ARGUMENTS)
model = Net()
trainer = transformers.Trainer(model, args, train_dataset=farm.rows(items), callbacks=[farm.hf.Callback()])
trainer.train()
print("fitted", trainer.state.global_step)
"""


def lightning_script(options: str = "shuffle=False", trainer: str = "") -> str:
    return LIGHTNING.replace("OPTIONS", options).replace("TRAINER", trainer)


def hf_script(folder: Path, arguments: str = "") -> str:
    return HF.replace("OUT", str(folder / "out")).replace("ARGUMENTS", arguments)


def weights_after(bench: Bench, done: Any, weights: bytes | None = None) -> dict[str, torch.Tensor]:
    base = safetensors.torch.load(weights or bench.weights)
    update = safetensors.torch.load(done.update)
    return {name: base[name] - update[name] for name in base}


def plain_loop(bench: Bench, parts: Sequence[Sequence[int]], rates: Iterator[float], **adam: Any) -> Any:
    """Train by hand on these rows, and return the model's weights after each part."""
    base = {name.removeprefix("net."): value for name, value in safetensors.torch.load(bench.weights).items()}
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model.load_state_dict(base)
    optimizer = (torch.optim.AdamW if adam.pop("decoupled", False) else torch.optim.Adam)(model.parameters(), **adam)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    for rows in parts:
        for start in range(0, len(rows), 4):
            optimizer.param_groups[0]["lr"] = next(rates)
            batch = x[list(rows[start : start + 4])]
            optimizer.zero_grad()
            (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) if "fused" in adam else None
            optimizer.step()
        yield {f"net.{name}": value.clone() for name, value in model.state_dict().items()}


def rows_seen(bench: Bench, **order: Any) -> list[int]:
    """Return the rows of the order that the bench gives."""
    from farm_client.data.order import StrideOrder, shard_order
    from protocol.tasks import Split

    shuffled = shard_order(3, 0, 0, 40, Split.TRAIN)[: order.get("stop", 20)].tolist()
    return [StrideOrder(40, 3).item(row) for row in shuffled]


def constant_by_part(rate: float, factor: float, batches: Sequence[int]) -> Iterator[float]:
    for number, count in enumerate(batches):
        yield from [rate * factor**number] * count


def test_lightnings_trainer_fits_part_after_part_to_the_bits_of_a_plain_loop(tmp_path: Path) -> None:
    """Parts of different lengths; the optimizer and the schedule go on, and nothing is left behind on the disk."""
    bench = Bench(tmp_path, lightning_script())
    expected = plain_loop(
        bench, [rows_seen(bench, stop=n) for n in (20, 40, 8)], constant_by_part(0.05, 0.9, (5, 10, 2)), lr=0.05
    )
    weights = bench.weights
    for number, (stop, plain) in enumerate(zip((20, 40, 8), expected, strict=True)):
        done = bench.run(stop=stop, round_number=number, weights=weights)
        after = weights_after(bench, done, weights)
        if number == 0:
            base = safetensors.torch.load(bench.weights)
            update = safetensors.torch.load(done.update)
            assert all(torch.equal(update[name], base[name] - value) for name, value in plain.items())
        for name, value in plain.items():
            torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
        weights = safetensors.torch.save(after)
        assert done.metrics.keys() >= {"train_loss"}
        assert done.samples == stop
    assert bench.run(stop=7, kind=Kind.EVALUATE).metrics == {"rows": 7.0}
    assert {path.name for path in tmp_path.iterdir()} == {"train.py"}


def test_a_trainers_module_reads_its_length_at_home_as_on_the_farm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training, when schedules are made: what the task has that trains as many epochs."""
    script = lightning_script().replace(
        "        optimizer =",
        "        t = self.trainer\n"
        "        print('length', t.estimated_stepping_batches, t.num_training_batches, t.max_epochs)\n"
        "        optimizer =",
    )
    length = task_length(Recipe(mode=Mode.WEIGHTS, epochs=2, round_samples=40, batch_samples=4), Mode.WEIGHTS, 40)
    said = f"length {length.steps} {length.steps_per_epoch} {length.epochs}"
    Bench(tmp_path, script)
    assert said in capsys.readouterr().out
    at_home = subprocess.run([sys.executable, tmp_path / "train.py"], capture_output=True, text=True, check=True)
    assert said in at_home.stdout


def test_the_states_of_a_trainers_optimizer_and_schedule_are_carried(tmp_path: Path) -> None:
    first, second = (Bench(tmp_path, lightning_script(), inner_state=InnerState.CARRIED) for _ in range(2))
    assert first.runner._script.carries.keys() == {"optimizer", "scheduler"}
    weights = safetensors.torch.save(weights_after(first, first.run(stop=12)))
    state = first.runner._state_file()
    stayed = first.run(stop=12, round_number=1, weights=weights, inner_state=state)
    handed_on = second.run(stop=12, round_number=1, weights=weights, inner_state=state)
    assert handed_on.update == stayed.update


@pytest.mark.parametrize("options", ["shuffle=True", "num_workers=2"])
def test_a_loader_that_shuffles_or_has_workers_reads_every_row_once(tmp_path: Path, options: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bench = Bench(tmp_path, lightning_script(options))
        assert bench.run(stop=18).samples == 18
        assert bench.run(stop=24, round_number=1).samples == 24


@pytest.mark.parametrize(
    ("options", "trainer", "said"),
    [
        ("drop_last=True", "", "part.done.. came with 2 of 18 rows unread"),
        ("shuffle=False", "limit_train_batches=2,", "came with 10 of 18 rows unread"),
        ("shuffle=False", "limit_train_batches=0,", r"left its loop without part\.done"),
    ],
)
def test_rows_that_lightnings_trainer_leaves_unread_are_named(
    tmp_path: Path, options: str, trainer: str, said: str
) -> None:
    with pytest.raises(CodeError, match=said):
        Bench(tmp_path, lightning_script(options, trainer)).run(stop=18)


def test_a_trainer_with_other_data_than_the_farms_rows_is_told(tmp_path: Path) -> None:
    source = lightning_script().replace("farm.rows(", "(")
    with pytest.raises(CodeError, match=r"read no row of this part: give it farm\.rows"):
        Bench(tmp_path, source).run(stop=12)


@pytest.mark.parametrize(("kind", "counted"), [("lightning", "fitted 2"), ("hf", "fitted 20")])
def test_the_same_file_runs_by_itself(tmp_path: Path, kind: str, counted: str, monkeypatch: Any, capsys: Any) -> None:
    """All rows, as often as the Trainer was told, as without the callback."""
    monkeypatch.chdir(tmp_path)
    run_as_main(lightning_script() if kind == "lightning" else hf_script(tmp_path, "save_strategy='no'"))
    assert counted in capsys.readouterr().out


def run_as_main(source: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, "train.py", "exec"), {"__name__": "__main__"})


def linear(step: int, steps: int = 20, warm_up: int = 2) -> float:
    return step / warm_up if step < warm_up else (steps - step) / (steps - warm_up)


def test_hugging_faces_trainer_trains_part_after_part_like_a_plain_loop(tmp_path: Path) -> None:
    """With the schedule of its two epochs, whatever the parts; the data are the part's rows, in the Trainer's order."""
    bench = Bench(tmp_path, hf_script(tmp_path, "train_sampling_strategy='sequential',"))
    rates = iter([0.05 * linear(step) for step in range(20)])
    expected = plain_loop(
        bench,
        [rows_seen(bench, stop=n) for n in (20, 40, 8)],
        rates,
        lr=0.05,
        weight_decay=0.0,
        decoupled=True,
        fused=True,
    )
    weights = bench.weights
    for number, (stop, plain) in enumerate(zip((20, 40, 8), expected, strict=True)):
        done = bench.run(stop=stop, round_number=number, weights=weights)
        after = weights_after(bench, done, weights)
        for name, value in plain.items():
            torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
        weights = safetensors.torch.save(after)
        assert set(done.metrics) == {"loss"}
    assert bench.runner._script.carries.keys() == {"optimizer", "scheduler"}


def test_hugging_faces_trainer_shuffles_the_parts_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hf_script(tmp_path, "dataloader_num_workers=1, gradient_accumulation_steps=2,"))
    assert bench.run(stop=16).samples == 16
    with pytest.raises(CodeError, match="a part of 3 batches is no multiple of gradient_accumulation_steps = 2"):
        bench.run(stop=12, round_number=1)
    assert bench.run(stop=24, round_number=2).samples == 24, "a new script waits, and counts anew"


def test_rows_that_hugging_faces_trainer_leaves_unread_are_named(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="came with 2 of 18 rows unread"):
        Bench(tmp_path, hf_script(tmp_path, "dataloader_drop_last=True,")).run(stop=18)


class Named(list[int]):
    """A data set with something beside its items."""

    column = "x"


class Ending:
    """A host with two parts, after which there is nothing more."""

    def __init__(self) -> None:
        self.done: list[LoopPart] = []

    def open(self, model: Any, carries: Any, evaluate: Any) -> None:
        self.carries = carries

    def next_part(self) -> LoopPart | None:
        if len(self.done) == 2:
            return None
        self.done.append(LoopPart(lambda items: range(len(self.done), items)))
        return self.done[-1]

    def config(self) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def at_home() -> Iterator[None]:
    """Begin without a farm, whatever script ran before, and end so."""
    host_parts(None)
    yield
    host_parts(None)


@pytest.fixture
def ending() -> Ending:
    host = Ending()
    host_parts(host)
    return host


@pytest.mark.parametrize("kind", ["lightning", "hf"])
def test_a_farm_without_more_parts_ends_the_fit(tmp_path: Path, ending: Ending, kind: str, capsys: Any) -> None:
    source = lightning_script() if kind == "lightning" else hf_script(tmp_path)
    run_as_main(source)
    assert [(part.is_done, part.unread) for part in ending.done] == [(True, 0), (True, 0)]
    assert "fitted" in capsys.readouterr().out


def test_rows_are_the_data_sets_own_without_a_farm() -> None:
    import lightning
    import transformers

    data = [1, 2, 3]
    assert farm.rows(data) is data
    assert not TrainerParts(None).is_hosted
    assert issubclass(farm.lightning.Callback, lightning.pytorch.Callback)
    assert issubclass(farm.hf.Callback, transformers.TrainerCallback)


def test_rows_follow_the_part_and_note_what_was_fetched(ending: Ending) -> None:
    seen = farm.rows(Named(range(5)))
    assert len(seen) == 5
    parts = TrainerParts(None)
    parts.open(None, {})
    assert (len(seen), seen[0], seen.column) == (4, 1, "x")
    copy = pickle.loads(pickle.dumps(seen))  # as it comes into a worker process that is spawned
    assert (len(copy), copy[1]) == (4, 2)
    with pytest.raises(AttributeError):
        _ = seen.missing
    parts.report()
    assert not parts.is_read
    assert ending.done[0].unread == 3
    assert [seen[index] for index in range(4)] == [1, 2, 3, 4]
    parts.report()
    assert parts.is_read
    assert parts.next({"loss": 1.0})
    assert (ending.done[0].metrics, len(seen)) == ({"loss": 1.0}, 3)
    with pytest.raises(PartError, match="read no row"):
        TrainerParts(None).open(None, {}) or parts.next({})

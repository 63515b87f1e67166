"""The bytes benchmark: what it counts until which version, its corpus and its figure, and a tiny run on a real farm."""

from __future__ import annotations

import itertools
import json
import shutil
import sys

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import bytes as bytes_benchmark
from benchmarks import evaluations
from benchmarks.__main__ import app
from benchmarks.bytes import Point, Trainer, Training
from benchmarks.bytes_figure import draw
from benchmarks.bytes_methods import METHODS, REFERENCE
from benchmarks.farm import BenchmarkError, RunningFarm
from benchmarks.meters import ServerCount
from farm_client.sdk.config import FarmAddress
from protocol.compression import OF_UPDATES, CodecName
from protocol.recipe import Mode
from protocol.rest import MetricView
from tests.benchmarks.test_rounds import VIEW


def training(*losses: float, method: str = "m", per_round: int = 100) -> Training:
    curve = [Point(n, per_round * n, per_round * n, loss) for n, loss in enumerate(losses, start=1)]
    return Training(method, params=10, round_samples=32, start_bytes=80, curve=curve)


def test_bytes_are_those_of_the_first_version_that_is_good_enough():
    reference = training(3.0, 2.03, 2.0, per_round=1000).result(2.04, None)
    assert (reference.rounds, reference.up_bytes, reference.loss, reference.factor) == (2, 2000, 2.03, 1.0)
    found = training(2.5, 2.04, 1.9).result(2.04, reference)
    assert (found.rounds, found.samples, found.up_bytes, found.down_bytes) == (2, 64, 200, 200)
    assert (found.reached, found.factor) == (True, 10.0)
    assert (found.bytes_per_round_up, found.bytes_per_round_down) == (100.0, 100.0)
    assert (found.up_dense_factor, found.down_dense_factor) == (0.8, 0.8)
    assert found.factor_with_start == pytest.approx(4080 / 480)
    assert len(found.curve) == 3


def test_a_method_that_never_gets_there_has_no_factor():
    reference = training(2.0).result(2.04, None)
    found = training(3.0, 2.9).result(2.04, reference)
    assert (found.reached, found.factor, found.factor_with_start, found.loss) == (False, None, None, 2.9)


def test_there_is_a_method_for_each_family_of_codecs():
    used = {method.update_codec.name for method in METHODS.values()}
    assert used == set(OF_UPDATES) - {CodecName.FP16, CodecName.BF16}


def test_every_method_trains_on_the_same_batches():
    recipes = {name: method.recipe(clients=2, batch_samples=16) for name, method in METHODS.items()}
    assert recipes[REFERENCE].mode is Mode.GRADIENTS
    for name, recipe in recipes.items():
        assert recipe.batch_samples == 16
        assert recipe.round_samples == 32 * (METHODS[name].local_steps or 1)
        assert (recipe.update_codec, recipe.weights_codec) == (METHODS[name].update_codec, METHODS[name].weights_codec)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The task's code as the benchmark bundles it."""
    for file in (
        bytes_benchmark.MODEL,
        bytes_benchmark.MULOCO,
        bytes_benchmark.CORPUS,
        bytes_benchmark.CORPUS_MULOCO,
    ):
        shutil.copy(file, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("train", "muloco", "corpus", "corpus_muloco"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import corpus

    yield corpus
    for name in ("train", "muloco", "corpus", "corpus_muloco"):
        sys.modules.pop(name, None)


def test_the_corpus_is_text_in_whole_rows_and_the_model_reads_it(corpus):
    rows = corpus.make_dataset({"context": 64})
    assert len(rows) > 5000
    assert b"assert" in bytes(rows.rows.flatten().tolist())
    model = corpus.build_model({"width": 16, "layers": 1, "heads": 4, "context": 64})
    batch = {"text": rows.rows[:4]}
    assert 4 < corpus.loss(model, batch)["loss"].item() < 7


def test_muloco_trains_the_same_model_with_muon_on_its_matrices(corpus):
    import corpus_muloco

    config = {"width": 16, "layers": 1, "heads": 4, "context": 64, "lr": 0.01}
    torch.manual_seed(0)
    model = corpus_muloco.build_model(config)
    optimizers = corpus_muloco.build_optimizer(model, config)
    stepped = {name: sum(p.numel() for p in one.param_groups[0]["params"]) for name, one in optimizers.items()}
    assert stepped["muon"] == (3 + 1 + 4 + 4) * 16 * 16
    assert sum(stepped.values()) == sum(p.numel() for p in model.parameters())
    batch = {"text": corpus_muloco.make_dataset(config).rows[:8]}
    losses = [float(corpus_muloco.train_step(model, batch, optimizers, step)["loss"].detach()) for step in range(20)]
    assert losses[-1] < losses[0] - 1


class FakeApi:
    """A farm whose task commits a round at each look, and evaluates every second."""

    address = FarmAddress("http://127.0.0.1:1", None, "a test")

    def __init__(self, last: str = "completed", rounds: int = 6) -> None:
        self.round = 0
        self.last = last
        self.rounds = rounds

    def task(self, task_id):
        self.round = min(self.round + 1, self.rounds)
        state = self.last if self.round == self.rounds else "running"
        return type("Detail", (), {"task": VIEW.model_copy(update={"state": state, "round": self.round, "error": "?"})})

    def metrics(self, task_id, after):
        views = [
            MetricView(seq=n, at=0.0, round=n, step=n, name="loss", value=10.0 - n, source=source)
            for n in range(1, self.round + 1)
            for source in (("eval",) if n % 2 == 0 else ("train",))
        ]
        return [view for view in views if view.seq > after]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Make a trainer on a fake farm that counts 100 bytes up and 50 down in a round."""
    monkeypatch.setattr(evaluations, "POLL_SECONDS", 0)

    folders = (tmp_path / str(number) for number in itertools.count())

    def on(api: FakeApi) -> Trainer:
        count = lambda _: ServerCount(100 * api.round, 50 * api.round, 0, 0)  # noqa: E731
        monkeypatch.setattr(evaluations, "server_count", count)
        folder = next(folders)
        folder.mkdir()
        return Trainer(RunningFarm(processes=None, api=api), folder, bytes_benchmark.QUICK)

    return on


def test_each_evaluated_version_has_the_bytes_until_its_commit(trainer):
    points = list(trainer(FakeApi())._points("t", ServerCount(0, 0, 0, 0), start_bytes=50))
    assert points == [Point(2, 200, 50, 8.0), Point(4, 400, 150, 6.0), Point(6, 600, 250, 4.0)]


def test_a_task_that_fails_or_stalls_is_told(trainer, monkeypatch):
    with pytest.raises(BenchmarkError, match=r"noop failed: \?"):
        list(trainer(FakeApi(last="failed"))._points("t", ServerCount(0, 0, 0, 0), start_bytes=0))
    monkeypatch.setattr(evaluations, "STALLED_SECONDS", -1)
    with pytest.raises(BenchmarkError, match="stalled"):
        list(trainer(FakeApi(rounds=10**9))._points("t", ServerCount(0, 0, 0, 0), start_bytes=0))


def test_the_figure_names_each_method_and_is_the_same_each_time(tmp_path):
    reference = training(3.0, 2.0, method="sync", per_round=1000).result(2.04, None)
    found = [
        reference,
        training(2.5, 2.0, method="sign").result(2.04, reference),
        training(9.0).result(2.04, reference),
    ]
    draw(found, tmp_path / "one.svg")
    draw(found, tmp_path / "deeper" / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "deeper" / "two.svg").read_text()
    assert all(label in text for label in (">sync: 1.0x<", ">sign: 10x<", ">m<"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_farm_trains_by_each_way_asked_for(tmp_path):
    figure = tmp_path / "bytes.svg"
    done = CliRunner().invoke(app, ["bytes", "--quick", "--method", "int8", "--figure", str(figure)])
    assert done.exit_code == 0, done.output
    _, reference, int8 = map(json.loads, done.stdout.splitlines())
    assert [reference["method"], int8["method"]] == ["sync", "int8"]
    assert reference["params"] == int8["params"] > 5000
    assert 4 * 2 * reference["params"] * reference["rounds"] < reference["up_bytes"]
    assert int8["down_bytes"] > 0
    assert int8["up_bytes"] / int8["rounds"] < reference["up_bytes"] / reference["rounds"]
    assert figure.read_text().startswith("<?xml")


def test_an_unknown_method_is_refused():
    done = CliRunner().invoke(app, ["bytes", "--method", "telepathy"])
    assert done.exit_code == 2
    assert "there is no 'telepathy'" in done.output

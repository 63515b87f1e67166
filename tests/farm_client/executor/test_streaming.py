"""Streaming DiLoCo: clients and the server's fold against the paper's algorithm in one process. arXiv:2501.18512."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import Done, LoadTask
from farm_client.executor.script_runner import ScriptRunner
from farm_client.executor.speculation import allows_guesses
from protocol.codecs import BytesReader
from protocol.compression import CodecName, CodecSpec
from protocol.contradictions import contradiction
from protocol.digests import digest_bytes
from protocol.encoded import check_encoded, lacking_in, without
from protocol.errors import LayoutMismatch
from protocol.fragments import FragmentPattern, fragments_of
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe
from protocol.tasks import Split
from protocol.tensors import parse_layout
from tests.farm_client.executor.bench_task import Bench, write_code

TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(4)
        return nn.Sequential(
            nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
        ).double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"].double()), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=0.01)
"""
NESTEROV = OuterOptimizer(name="sgd", options={"lr": 0.7, "momentum": 0.9, "nesterov": True})


class Farm:
    """Clients and the server's arithmetic, without the sockets between."""

    def __init__(self, clients: list[Bench]) -> None:
        self.clients = clients
        self.layout = parse_layout(clients[0].weights)
        self.weights = safetensors.torch.load(clients[0].weights)
        self.outer = OuterStep(NESTEROV, self.weights, self.layout)

    def train(self, number: int, shards: list[slice]) -> list[Done]:
        mean, dones = WeightedMean(self.layout, self.clients[0].update_codec), []
        file = safetensors.torch.save(self.weights)
        for client, own in zip(self.clients, shards, strict=True):
            done = client.train(own, round=number, weights=file, weights_digest=digest_bytes(file))
            client.runner.confirm()
            client.runner.go_on()
            assert done.update is not None
            reader = BytesReader(done.update)
            check_encoded(self.layout, client.update_codec, reader.header, self.lacking(reader))
            mean.fold(reader, done.samples)
            dones.append(done)
        self.outer.step(mean.result(), mean.untouched)
        return dones

    def lacking(self, reader: BytesReader) -> frozenset[str]:
        return lacking_in(self.layout, self.clients[0].update_codec, reader.header)


class Paper:
    """Algorithm 2: replicas, an outer optimizer for each fragment, applied ``tau`` steps after its sending."""

    def __init__(
        self, bench: Bench, replicas: int, fragments: int, pattern: FragmentPattern, mix: float, tau: int
    ) -> None:
        contract, self.bench = bench.runner.contract, bench
        self.shared: nn.Module = contract.build_model()
        self.models = [contract.build_model() for _ in range(replicas)]
        self.inner = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in self.models]
        self.fragment = fragments_of(parse_layout(bench.weights), fragments, pattern)
        self.count, self.mix, self.tau = fragments, mix, tau
        self.momentum = {name: torch.zeros_like(p) for name, p in self.shared.named_parameters()}

    def train(self, number: int, shards: list[slice]) -> None:
        due = [name for name, fragment in self.fragment.items() if fragment == number % self.count]
        deltas: list[dict[str, torch.Tensor]] = []
        for model, inner, own in zip(self.models, self.inner, shards, strict=True):
            batches = list(self.bench.runner._source.batches(self.bench.pieces(Split.TRAIN, own), 0))
            sent_after = max(len(batches) - self.tau, 1)
            for step, batch in enumerate(batches, 1):
                inner.zero_grad()
                nn.functional.cross_entropy(model(batch["x"].double()), batch["y"]).backward()
                inner.step()
                if step == sent_after:
                    deltas.append({n: (self.shared.get_parameter(n) - model.get_parameter(n)).detach() for n in due})
        sizes = [sum(p.stop - p.start for p in self.bench.pieces(Split.TRAIN, own)) for own in shards]
        with torch.no_grad():
            for name in due:
                theta = self.shared.get_parameter(name)
                delta = sum(n / sum(sizes) * one[name] for n, one in zip(sizes, deltas, strict=True))
                velocity = self.momentum[name].mul_(0.9).add_(delta)
                theta.sub_(0.7 * (delta + 0.9 * velocity))
                for model in self.models:
                    each = model.get_parameter(name)
                    each.copy_(self.mix * each + (1 - self.mix) * theta)


def bench_of(folder: Path, like: Bench | None = None, **changes: Any) -> Bench:
    given: dict[str, Any] = {} if like is None else {"shards": like.shards, "files": like.files}
    return Bench(folder, TASK, **{"inner_state": InnerState.KEPT, **given, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("streaming"))


def shares(bench: Bench, clients: int) -> list[slice]:
    count = len(bench.pieces(Split.TRAIN))
    return [slice(i * count // clients, (i + 1) * count // clients) for i in range(clients)]


@settings(max_examples=12, deadline=None)
@given(
    clients=st.integers(1, 3),
    fragments=st.integers(2, 4),
    pattern=st.sampled_from(FragmentPattern),
    mix=st.sampled_from([0.0, 0.5, 0.9]),
    tau=st.integers(0, 3),
)
def test_rounds_of_clients_are_the_papers(
    tmp_path_factory: pytest.TempPathFactory,
    data: Bench,
    clients: int,
    fragments: int,
    pattern: FragmentPattern,
    mix: float,
    tau: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    options = {"fragments": fragments, "fragment_pattern": pattern, "fragment_mix": mix, "fragment_overlap_steps": tau}
    farm = Farm([bench_of(folder / str(n), data, **options) for n in range(clients)])
    paper = Paper(data, clients, fragments, pattern, mix, tau)
    for number in range(2 * fragments + 1):
        farm.train(number, shares(data, clients))
        paper.train(number, shares(data, clients))
    for name, theta in paper.shared.named_parameters():
        torch.testing.assert_close(farm.weights[name], theta.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec(name=CodecName.INT8, block=16, zstd=False)])
def test_a_round_tells_one_fragment_and_changes_no_other(tmp_path: Path, data: Bench, codec: CodecSpec) -> None:
    farm = Farm([bench_of(tmp_path, data, fragments=4, update_codec=codec)])
    for number in range(6):
        before = {name: tensor.clone() for name, tensor in farm.weights.items()}
        [done] = farm.train(number, shares(data, 1))
        assert done.update is not None
        told = {name for name in before if name.startswith(f"{2 * (number % 4)}.")}
        assert before.keys() - farm.lacking(BytesReader(done.update)) == told
        assert {name for name in before if not torch.equal(before[name], farm.weights[name])} == told


def test_one_fragment_gives_the_bits_of_a_recipe_without(tmp_path: Path, data: Bench) -> None:
    assert (
        bench_of(tmp_path / "one", data, fragments=1).train().update == bench_of(tmp_path / "none", data).train().update
    )


def told_in(bench: Bench, number: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = safetensors.torch.save(weights)
    done = bench.train(round=number, weights=file, weights_digest=digest_bytes(file))
    assert done.update is not None
    return safetensors.torch.load(done.update)


def test_a_fragment_brings_what_all_rounds_since_its_last_made_of_it(tmp_path: Path, data: Bench) -> None:
    """A second client that did not do the first round, or was started anew, brings less."""
    stayed, anew = (bench_of(tmp_path / name, data, fragments=4) for name in ("stayed", "anew"))
    weights = safetensors.torch.load(data.weights)
    told_in(stayed, 0, weights)
    whole, half = told_in(stayed, 1, weights)["2.weight"], told_in(anew, 1, weights)["2.weight"]
    assert whole.norm() > 1.5 * half.norm()


def test_a_second_part_of_a_round_tells_nothing_twice(tmp_path: Path, data: Bench) -> None:
    bench = bench_of(tmp_path, data, fragments=4, inner_state=InnerState.FRESH)
    weights = safetensors.torch.load(data.weights)
    first, second = told_in(bench, 0, weights), told_in(bench, 0, weights)
    assert second["0.weight"].norm() < 1.5 * first["0.weight"].norm()
    assert not torch.equal(first["0.weight"], second["0.weight"])  # the other layers went on


def test_a_farm_that_went_back_is_begun_with_anew(tmp_path: Path, data: Bench) -> None:
    weights = safetensors.torch.load(data.weights)
    bench, fresh = (
        bench_of(tmp_path / name, data, fragments=4, inner_state=InnerState.FRESH) for name in ("bench", "fresh")
    )
    told_in(bench, 5, weights)
    again, expected = told_in(bench, 2, weights), told_in(fresh, 2, weights)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_what_was_lost_of_a_fragment_comes_in_its_next_turn(tmp_path: Path, data: Bench) -> None:
    """Error feedback keeps what the codec left out, for each fragment."""
    bench = bench_of(tmp_path, data, fragments=2, update_codec=CodecSpec(name=CodecName.SIGN, block=16, zstd=False))
    farm = Farm([bench])
    farm.train(0, shares(data, 1))
    farm.train(1, shares(data, 1))
    kept = {name: tensor.clone() for name, tensor in bench.runner._updates.residual.items()}
    assert {"0.weight", "2.weight"} <= kept.keys()
    farm.train(2, shares(data, 1))
    after = bench.runner._updates.residual
    assert not torch.equal(after["0.weight"], kept["0.weight"])
    assert torch.equal(after["2.weight"], kept["2.weight"])


def test_more_fragments_than_layers_are_refused(tmp_path: Path, data: Bench) -> None:
    with pytest.raises(CodeError, match="4 layers, which can't be cut into 5 fragments: lower fragments"):
        bench_of(tmp_path, data, fragments=5)


def test_a_script_is_refused_by_name(tmp_path: Path) -> None:
    entry = write_code(tmp_path, "import farm_client.own_loop")
    order = LoadTask(
        task_id="t",
        code_dir=str(tmp_path),
        entry=entry,
        config={},
        mode=Mode.WEIGHTS,
        seed=0,
        batch_samples=2,
        dataset_kind="code",
        scratch_dir=str(tmp_path),
        fragments=2,
    )
    with pytest.raises(CodeError, match=r"farm\.parts sends its whole model.*fragments"):
        ScriptRunner(order, torch.device("cpu"))


def test_nothing_is_begun_on_a_guess(data: Bench) -> None:
    assert allows_guesses(data.load_order().model_copy(update={"inner_state": InnerState.FRESH}))
    assert not allows_guesses(data.load_order().model_copy(update={"fragments": 2}))


def test_an_update_of_a_task_without_fragments_lacks_nothing(tmp_path: Path, data: Bench) -> None:
    update = told_in(bench_of(tmp_path, data, fragments=4), 0, safetensors.torch.load(data.weights))
    layout = parse_layout(data.weights)
    names = [spec.name for spec in layout.parameters if spec.name not in update]
    assert set(without(layout, names).parameters) == {spec for spec in layout.parameters if spec.name in update}
    done = bench_of(tmp_path / "again", data, fragments=4).train()
    assert done.update is not None
    with pytest.raises(LayoutMismatch):
        check_encoded(layout, CodecSpec(), BytesReader(done.update).header)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": Mode.GRADIENTS}, "gradients mode"),
        ({"inner_state": "carried"}, "kept"),
        ({"proximal_mu": 0.1}, "proximal_mu"),
        ({"aggregate": "median", "min_clients": 3}, "whole updates"),
        ({"max_staleness": 1}, "late update"),
        ({"dp_clip": 1.0, "dp_noise_multiplier": 1.0}, "whole update"),
        ({"parts": "fixed"}, "no client's past"),
        ({"fragments": 1, "fragment_mix": 0.5}, "fragment_mix"),
        ({"fragments": 1, "fragment_pattern": "sequential"}, "fragment_pattern"),
        ({"fragments": 1, "fragment_mix": 0.0, "fragment_overlap_steps": 1}, "fragment_overlap_steps"),
        (
            {"round_samples": 64, "batch_samples": 8, "min_clients": 2, "fragment_overlap_steps": 4},
            "about 4 local steps",
        ),
    ],
)
def test_what_does_not_go_with_fragments_is_refused(fields: dict[str, Any], why: str) -> None:
    assert contradiction(Recipe(rounds=1, fragments=4, fragment_mix=0.5)) is None
    assert why in (contradiction(Recipe(**{"rounds": 1, "fragments": 4, **fields})) or "")

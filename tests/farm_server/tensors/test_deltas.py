"""A recipe with a ``weights_codec``: versions follow from each other by small files, and nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load

from coordinator.commands import ReleaseTask
from coordinator.events import AggregationFailed, RoundAggregated
from protocol.codecs import BytesReader, apply_delta
from protocol.compression import CodecName, CodecSpec
from protocol.encoded import check_encoded, largest_bytes
from protocol.recipe import OuterOptimizer, Recipe
from protocol.tensors import UPDATE_METADATA, Role, parse_layout, weights_metadata
from protocol.zstd import is_wrapped, unwrap_bytes
from tests.farm_server import model
from tests.farm_server.tensors.aggregator_bench import Bench

ELEMENTS = 3000
ROUNDS = 6
CODECS = [CodecSpec(name=name) for name in (CodecName.FP16, CodecName.INT8, CodecName.SIGN, CodecName.TOPK)]
OUTERS = {
    "averaging": {"options": {"lr": 1.0}},
    "momentum": {"options": {"lr": 0.7, "momentum": 0.9, "nesterov": True}},
    "adam": {"name": "adam", "options": {"lr": 0.1}},
}


def initial() -> bytes:
    random = np.random.default_rng(0)
    tensors = {
        "w": random.standard_normal(ELEMENTS).astype(np.float32),
        "half": random.standard_normal((40, 50)).astype(np.float16),
        "table": np.full(3, -np.inf, np.float32),
        "mean": np.zeros(5, np.float32),
        "seen": np.zeros((), np.int64),
    }
    roles = {"table": Role.FROZEN, "mean": Role.BUFFER, "seen": Role.BUFFER}
    return safetensors.numpy.save(tensors, weights_metadata(roles, {}))


INITIAL = initial()
LAYOUT = parse_layout(INITIAL)


def update(number: int) -> bytes:
    random = np.random.default_rng(number)
    tensors = {
        "w": random.standard_normal(ELEMENTS).astype(np.float32),
        "half": random.standard_normal((40, 50)).astype(np.float16),
        "mean": random.standard_normal(5).astype(np.float32),
        "seen": np.array(number, np.int64),
    }
    return safetensors.numpy.save(tensors, dict(UPDATE_METADATA))


class DeltaBench(Bench):
    """A bench whose task sends its versions as differences."""

    def __init__(self, root: Path, codec: CodecSpec, outer: str = "momentum") -> None:
        super().__init__(root)
        recipe = Recipe(rounds=ROUNDS, weights_codec=codec, outer=OuterOptimizer(**OUTERS[outer]))
        self.start_from(INITIAL, recipe)

    def next(self, number: int) -> RoundAggregated:
        self.open(number)
        self.fold(update(number), number=number)
        event = self.commit(number)
        assert isinstance(event, RoundAggregated), event
        self.checkpoint = event.checkpoint
        return event


@pytest.fixture
def bench(tmp_path, request):
    made = DeltaBench(tmp_path, *request.param)
    yield made
    made.aggregator.close()


@pytest.mark.parametrize("bench", [(codec,) for codec in CODECS], indirect=True, ids=lambda p: p[0].name)
def test_a_client_that_applies_the_deltas_has_the_servers_weights_to_the_bit(bench):
    held = load(INITIAL)
    before = bench.checkpoint.weights.digest
    for number in range(ROUNDS):
        event = bench.next(number)
        delta = event.delta
        assert delta is not None
        assert (delta.base, delta.digest) == (before, event.checkpoint.weights.digest)
        assert delta.codec == bench.spec.recipe.weights_codec
        data = bench.blobs.read(delta.blob.digest)
        assert len(data) == delta.blob.size_bytes < event.checkpoint.weights.size_bytes
        reader = BytesReader(unwrap_bytes(data, largest_bytes(LAYOUT, delta.codec)))
        check_encoded(LAYOUT, delta.codec, reader.header)
        apply_delta(held, reader, LAYOUT, delta.codec)
        served = load(bench.blobs.read(event.checkpoint.weights.digest))
        for name, tensor in served.items():
            assert torch.equal(held[name], tensor), name
        assert bench.small[-1][delta.blob.digest] == data
        before = delta.digest


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("outer", OUTERS)
def test_a_task_that_leaves_memory_goes_on_to_the_same_files(tmp_path, codec, outer):
    through, apart = DeltaBench(tmp_path / "a", codec, outer), DeltaBench(tmp_path / "b", codec, outer)
    events = []
    for made in (through, apart):
        for number in range(ROUNDS):
            events.append(made.next(number))
            if made is apart:
                made.aggregator.release_task(ReleaseTask("t"))
        made.aggregator.close()
    for one, other in zip(events[:ROUNDS], events[ROUNDS:], strict=True):
        assert one == other


PULSE = CodecSpec(name=CodecName.PULSE)


@pytest.mark.parametrize("outer", OUTERS)
def test_versions_in_pulse_are_those_without_a_codec_to_the_bit(tmp_path, outer):
    """And so is all that a resume needs: there is no exact copy beside the published one."""
    plain, pulse = (DeltaBench(tmp_path / codec.name, codec, outer) for codec in (CodecSpec(), PULSE))
    held = load(INITIAL)
    for number in range(ROUNDS):
        without, event = plain.next(number), pulse.next(number)
        assert event.checkpoint.weights.digest == without.checkpoint.weights.digest
        assert event.checkpoint.optimizer == without.checkpoint.optimizer
        assert event.delta is not None
        assert event.delta.blob.size_bytes < event.checkpoint.weights.size_bytes
        data = unwrap_bytes(pulse.blobs.read(event.delta.blob.digest), largest_bytes(LAYOUT, PULSE))
        check_encoded(LAYOUT, PULSE, BytesReader(data).header)
        apply_delta(held, BytesReader(data), LAYOUT, PULSE)
    served = load(pulse.blobs.read(event.checkpoint.weights.digest))
    for name, tensor in served.items():
        assert torch.equal(held[name], tensor), name
    plain.aggregator.close()
    pulse.aggregator.close()


@pytest.mark.parametrize("bench", [(CodecSpec(name=CodecName.SIGN), "averaging")], indirect=True)
def test_what_the_codec_loses_comes_with_a_later_version(bench):
    """While updates are zero, the published weights close in on the exact ones, which the masters keep."""
    bench.next(0)
    exact = load(INITIAL)["w"] - load(update(0))["w"]

    def distance() -> float:
        return float((load(bench.blobs.read(bench.checkpoint.weights.digest))["w"] - exact).norm())

    first = distance()
    still = safetensors.numpy.save(
        {n: np.zeros_like(v) for n, v in safetensors.numpy.load(update(0)).items()}, dict(UPDATE_METADATA)
    )
    for number in range(1, 12):
        bench.open(number)
        bench.fold(still, number=number)
        bench.checkpoint = bench.commit(number).checkpoint
    assert 0 < distance() < first / 4


@pytest.mark.parametrize("bench", [(CodecSpec(name=CodecName.INT8),)], indirect=True)
def test_a_version_that_changes_nothing_needs_no_delta(bench):
    still = safetensors.numpy.save(
        {n: np.zeros_like(v) for n, v in safetensors.numpy.load(update(0)).items()}, dict(UPDATE_METADATA)
    )
    bench.open()
    bench.fold(still)
    event = bench.commit()
    assert event.checkpoint.weights.digest == bench.checkpoint.weights.digest
    assert event.delta is None


@pytest.mark.parametrize("zstd", [True, False])
def test_a_delta_that_compresses_well_is_compressed_unless_the_recipe_forbids_it(tmp_path, zstd):
    """One element of the model changes, as rows of an embedding do."""
    made = DeltaBench(tmp_path, CodecSpec(name=CodecName.INT8, zstd=zstd))
    changed = {n: np.zeros_like(v) for n, v in safetensors.numpy.load(update(0)).items()}
    changed["w"][0] = 1.0
    made.open()
    made.fold(safetensors.numpy.save(changed, dict(UPDATE_METADATA)))
    event = made.commit()
    made.aggregator.close()
    delta = made.blobs.read(event.delta.blob.digest)
    assert is_wrapped(delta) == zstd
    held = load(INITIAL)
    reader = BytesReader(unwrap_bytes(delta, largest_bytes(LAYOUT, event.delta.codec)))
    apply_delta(held, reader, LAYOUT, event.delta.codec)
    assert torch.equal(held["w"], load(made.weights[-1])["w"])


def test_a_delta_that_is_no_smaller_than_the_weights_is_not_sent(tmp_path):
    made = Bench(tmp_path)
    made.start_from(model.weights(), Recipe(rounds=3, weights_codec=CodecSpec(name=CodecName.FP16)))
    event = made.round(0, (1.0, 1))
    made.aggregator.close()
    assert event.delta is None
    assert list(made.small[-1]) == [event.checkpoint.weights.digest]
    np.testing.assert_allclose(model.values(made.weights[-1]), -1.0)


def test_a_round_that_diverges_is_not_committed_and_says_why(tmp_path):
    for codec in (CodecSpec(), CodecSpec(name=CodecName.INT8)):
        made = Bench(tmp_path / codec.name)
        outer = OuterOptimizer(options={"lr": 1e38, "momentum": 0.9})
        made.start_from(INITIAL, Recipe(rounds=1, weights_codec=codec, outer=outer))
        made.open()
        big = {
            n: np.full_like(v, 60000 if v.dtype.kind == "f" else 1)
            for n, v in safetensors.numpy.load(update(0)).items()
        }
        made.fold(safetensors.numpy.save(big, dict(UPDATE_METADATA)))
        event = made.commit()
        made.aggregator.close()
        assert isinstance(event, AggregationFailed)
        assert "NaN" in event.message
        assert "learning rate" in event.message


@pytest.mark.parametrize("bench", [(CodecSpec(name=CodecName.INT8),)], indirect=True)
def test_a_client_that_names_a_difference_as_its_update_does_not_get_it_deleted(bench):
    """It fits the layout and the codec; others are still to fetch it."""
    delta = bench.next(0).delta.blob
    plain = bench.blobs.put_bytes(unwrap_bytes(bench.blobs.read(delta.digest), largest_bytes(LAYOUT, CodecSpec())))
    for named in (delta, plain):
        bench.spooled.hold(named)
    bench.spooled.unwrapped(delta, plain)
    for named in (delta, plain):
        bench.spooled.release(named)
    assert not bench.blobs.has(plain.digest)
    assert bench.blobs.has(delta.digest)
    bench.spooled.release(delta)  # the coordinator drops it
    assert not bench.blobs.has(delta.digest)

"""A round's inner states on the server: what is let in, what becomes of them, and where the version's is kept."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch

from coordinator.events import AggregationFailed, RoundAggregated
from farm_server.tensors import layouts
from farm_server.tensors.intake import NonFiniteUpdate
from protocol.codecs import encode, tensor_file
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.errors import FarmError, LayoutMismatch, MalformedTensors
from protocol.inner_state import METADATA_KEY, PREFIX, as_json
from protocol.limits import INLINE_BYTES
from protocol.recipe import InnerState, OuterOptimizer, Recipe
from protocol.tensors import parse_layout
from protocol.zstd import wrap_bytes
from tests.farm_server import model
from tests.farm_server.tensors.aggregator_bench import Bench
from tests.farm_server.tensors.test_intake import Desk

NAME = f"{PREFIX}optimizer/state/w/m"
CARRIED = Recipe(rounds=9, inner_state=InnerState.CARRIED, outer=OuterOptimizer(options={"lr": 1.0}))


def state(m: torch.Tensor, steps: int = 1, name: str = NAME) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return {name: m}, {METADATA_KEY: as_json({"dict": [["steps", steps], ["m", {"tensor": name}]]})}


def update(value: float, *of_state: Any, codec: CodecSpec | None = None, elements: int = model.ELEMENTS) -> bytes:
    tensors, metadata = encode(
        {"w": torch.full((elements,), value)},
        parse_layout(model.weights(0.0, elements)),
        codec or CodecSpec(),
        None,
    )
    extra, more = of_state or ({}, {})
    return b"".join(tensor_file(tensors | extra, metadata | more))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.start_from(model.weights(), CARRIED)
    yield made
    made.aggregator.close()


def in_round(bench: Bench, number: int, *updates: bytes, spool: bool = False) -> RoundAggregated:
    bench.open(number)
    for data in updates:
        bench.fold(data, number=number, spool=spool)
    event = bench.commit(number)
    assert isinstance(event, RoundAggregated), event
    return event


@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.parametrize("elements", [3, INLINE_BYTES])
def test_a_versions_state_is_the_mean_of_its_updates_and_durable_with_it(bench, spool, elements):
    """Small ones ride inside messages; large ones are files, and stay as they are while the next round is folded."""
    whole, half = torch.arange(elements, dtype=torch.float32), torch.zeros(elements)
    for number in range(2):
        event = in_round(
            bench,
            number,
            update(1.0, *state(whole + number, steps=5)),
            update(3.0, *state(half + number, steps=7)),
            spool=spool,
        )
        ref = event.checkpoint.inner_state
        assert ref is not None
        assert bench.written[-1].inner_state == ref
        data = bench.blobs.read(ref.digest)
        torch.testing.assert_close(safetensors.torch.load(data)[NAME], whole / 2 + number)
        assert b'\\"steps\\",7' in data[:2000]
        is_small = elements == 3
        assert (bench.small[-1].get(ref.digest) == data) is is_small
        assert bench.checkpoints.manifest(bench.written[-1]).inner_state == ref
    assert "inner" not in str(parse_layout(bench.weights[-1])), "the weights are weights alone"


def test_the_state_of_one_client_alone_comes_back_to_the_bit_whatever_the_codec(bench):
    codec = CodecSpec(name=CodecName.INT8, zstd=False)
    bench.start_from(model.weights(), CARRIED.model_copy(update={"update_codec": codec}))
    own, metadata = state(torch.randn(7, dtype=torch.float64), steps=2**40)
    event = in_round(bench, 0, update(1.0, own, metadata, codec=codec))
    assert bench.blobs.read(event.checkpoint.inner_state.digest) == b"".join(tensor_file(own, metadata))


def test_a_round_that_failed_leaves_nothing_to_the_next(bench):
    bench.open(0)
    bench.fold(update(1.0, *state(torch.full((2,), 9.0))))
    bench.fold(update(1.0, *state(torch.ones(3))))
    assert isinstance(bench.outcome(), AggregationFailed)
    bench.open(0, attempt=2)
    bench.fold(update(1.0, *state(torch.ones(2))), attempt=2)
    event = bench.commit(0, attempt=2)
    tensors = safetensors.torch.load(bench.blobs.read(event.checkpoint.inner_state.digest))
    assert tensors[NAME].tolist() == [1, 1]


def desk_of(root: Any, codec: CodecSpec | None = None) -> Desk:
    return Desk(root, codec or CodecSpec(), model.ELEMENTS, inner_state=InnerState.CARRIED)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec(name=CodecName.INT8)], ids=["none", "int8"])
def test_an_update_with_a_state_passes_plain_and_compressed(tmp_path, codec, inline):
    desk = desk_of(tmp_path, codec)
    data = update(1.0, *state(torch.zeros(5000)), codec=codec)
    assert desk.check(data, inline=inline) == desk.result(data, inline=inline).update
    assert desk.check(wrap_bytes(data), inline=inline).digest == digest_bytes(data)


BAD = {
    "none": (update(1.0), LayoutMismatch, "brings no state"),
    "damaged": (update(1.0, {}, {METADATA_KEY: "{"}), MalformedTensors, "can't be read"),
    "unnamed": (update(1.0, state(torch.ones(1))[0], {METADATA_KEY: "0"}), MalformedTensors, "other tensors"),
    "nan": (update(1.0, *state(torch.tensor([torch.nan]))), NonFiniteUpdate, "optimizer/state/w/m"),
    "huge": (update(1.0, *state(torch.tensor([1.7e308], dtype=torch.float64))), NonFiniteUpdate, "w/m"),
    "shape": (update(1.0, *state(torch.ones(5))), LayoutMismatch, r"F32 \[5\]"),
    "dtype": (update(1.0, *state(torch.ones(2, dtype=torch.float64))), LayoutMismatch, r"F64 \[2\]"),
    "extra": (update(1.0, {"x": torch.ones(1)}, {METADATA_KEY: "0"}), LayoutMismatch, "'x'"),
}


@pytest.mark.parametrize(("data", "error", "why"), BAD.values(), ids=BAD)
def test_a_strangers_state_is_refused_with_the_reason(tmp_path, data, error, why):
    desk = desk_of(tmp_path)
    desk.check(update(1.0, *state(torch.ones(2))))
    with pytest.raises(error, match=why) as caught:
        desk.check(data)
    assert isinstance(caught.value, FarmError)
    desk.check(update(2.0, *state(torch.zeros(2), steps=3)))


def test_states_may_bring_tensors_later_but_not_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "largest_state_bytes", lambda _weights_bytes: 16)
    desk = desk_of(tmp_path)
    for name in ("one", "two"):
        desk.check(update(1.0, *state(torch.ones(2), name=f"{PREFIX}{name}")))
    with pytest.raises(LayoutMismatch, match="16 bytes"):
        desk.check(update(1.0, *state(torch.ones(1), name=f"{PREFIX}three")))
    with pytest.raises(MalformedTensors, match="16 bytes"):
        desk.check(update(1.0, *state(torch.ones(5), name=f"{PREFIX}one")))


def test_an_update_with_a_state_that_nobody_asked_for_is_refused(tmp_path):
    desk = Desk(tmp_path, CodecSpec(), model.ELEMENTS)
    with pytest.raises(LayoutMismatch, match="inner_state"):
        desk.check(update(1.0, *state(torch.ones(2))))

"""What every aggregate must do. A new implementation joins by a line in ``MAKERS``, and one in ``REFERENCES``."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.numerics.aggregate import Aggregate, EmptyRound
from coordinator.numerics.aggregates import aggregate_of
from coordinator.numerics.update_rules import options_of
from protocol.codecs import TORCH_DTYPES, Reader, TensorReader, decoder, encode
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.encoded import untouched_metadata
from protocol.errors import LayoutMismatch
from protocol.recipe import Recipe
from protocol.tensors import Layout, Role, TensorSpec
from tests.coordinator.numerics.aggregate_references import REFERENCES, Roles, momentum_of

CHOSEN: Final[dict[str, dict[str, object]]] = {
    "mean": {"aggregate": "mean"},
    "turned mean": {"outer": {"name": "heloco"}, "buffer": 7},
    "median": {"aggregate": "median"},
    "trimmed mean": {"aggregate": "trimmed_mean", "trim_share": 0.2},
    "krum": {"aggregate": "krum", "byzantine": 1},
    "multi-krum": {"aggregate": "multi_krum", "byzantine": 1},
    "bulyan": {"aggregate": "bulyan", "byzantine": 1},
    "geometric median": {"aggregate": "geometric_median"},
    "centered clipping": {"aggregate": "centered_clipping"},
    "norm bounding": {"aggregate": "norm_bounding"},
}
ENOUGH: Final = 7
"""Votes of which none of them is only a median."""


class Remembering:
    """An outer optimizer that remembers the references' momentum."""

    def __init__(self, layout: Layout) -> None:
        self._specs = {spec.name: spec for spec in layout.parameters}

    def kept_of(self, name: str) -> dict[str, torch.Tensor]:
        dtype = torch.float64 if self._specs[name].dtype == "F64" else torch.float32
        return {"momentum_buffer": torch.tensor(momentum_of(self._specs[name].shape), dtype=dtype)}

    def options_of(self, _name: str) -> dict[str, Any]:
        return options_of("heloco", {})


def _maker(chosen: dict[str, object]) -> Callable[[Layout, CodecSpec], Aggregate]:
    recipe = Recipe.model_validate({"rounds": 1, **chosen})

    def make(layout: Layout, codec: CodecSpec) -> Aggregate:
        aggregate = aggregate_of(recipe.model_copy(update={"update_codec": codec}), layout)
        aggregate.follow(Remembering(layout))
        return aggregate

    return make


MAKERS: Final = {name: _maker(chosen) for name, chosen in CHOSEN.items()}
BLOCK_BYTES: Final = 8 * 2**19
"""A chunk of float64: no tensor is read in larger pieces."""

LAYOUT: Final = Layout(
    (
        TensorSpec("b16", "BF16", (5,)),
        TensorSpec("flag", "BOOL", (2,), Role.BUFFER),
        TensorSpec("frozen", "F32", (4,), Role.FROZEN),
        TensorSpec("mean", "F32", (3, 2), Role.BUFFER),
        TensorSpec("none", "F32", (0, 3)),
        TensorSpec("steps", "I64", (), Role.BUFFER),
        TensorSpec("w", "F32", (90, 70)),
        TensorSpec("wide", "F64", (3,)),
    )
)
RESULT_DTYPES: Final = {
    "b16": torch.float32,
    "flag": torch.bool,
    "mean": torch.float64,
    "none": torch.float32,
    "steps": torch.int64,
    "w": torch.float32,
    "wide": torch.float64,
}
ROLES: Final = Roles(buffers=frozenset({"mean"}), counters=frozenset({"flag", "steps"}))
PLAIN: Final = CodecSpec()
Update = dict[str, torch.Tensor]


def update_of(seed: int, layout: Layout = LAYOUT) -> Update:
    generator = torch.Generator().manual_seed(seed)
    drawn = {s: torch.randn(s.shape, generator=generator, dtype=torch.float64).mul_(4) for s in layout.returned}
    return {spec.name: values.to(TORCH_DTYPES[spec.dtype]) for spec, values in drawn.items()}


def aggregated(aggregate: Aggregate, updates: list[Update], samples: list[int]) -> Update:
    aggregate.reset()
    for update, count in zip(updates, samples, strict=True):
        aggregate.fold(TensorReader(update), count)
    return {name: tensor.clone() for name, tensor in aggregate.result().items()}


def bits(update: Update) -> dict[str, bytes]:
    return {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in update.items()}


def by_numpy(name: str, table: dict[str, np.ndarray], samples: list[int]) -> dict[str, np.ndarray]:
    return REFERENCES[name](table, samples, ROLES)


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Callable[..., Aggregate]:
    return lambda layout=LAYOUT, codec=PLAIN: MAKERS[name](layout, codec)


@settings(deadline=None, max_examples=15)
@given(samples=st.lists(st.integers(1, 5000), min_size=1, max_size=13), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", MAKERS)
def test_it_is_what_numpy_computes_of_the_whole_stack(name: str, samples: list[int], seed: int) -> None:
    updates = [update_of(100 * seed + number) for number in range(len(samples))]
    found = aggregated(MAKERS[name](LAYOUT, PLAIN), updates, samples)
    assert {tensor: values.dtype for tensor, values in found.items()} == RESULT_DTYPES
    table = {
        spec.name: np.stack([(u[spec.name].double() if spec.is_float else u[spec.name]).numpy() for u in updates])
        for spec in LAYOUT.returned
    }
    expected = by_numpy(name, table, samples)
    for spec in LAYOUT.returned:
        own = found[spec.name]
        assert own.shape == spec.shape
        np.testing.assert_allclose(own.numpy(), expected[spec.name], rtol=1e-5, atol=1e-5, err_msg=spec.name)


@pytest.mark.parametrize("codec", [c for c in OF_UPDATES if c is not CodecName.NONE])
def test_encoded_updates_count_as_their_decoded_values(name: str, make: Callable[..., Aggregate], codec) -> None:
    spec, by_name = CodecSpec(name=codec, block=64), {t.name: t for t in LAYOUT.tensors}
    aggregate, samples = make(codec=spec), [3, 5, 4, 1, 2, 9, 6]
    readers = [TensorReader(*encode(update_of(seed), LAYOUT, spec, None)) for seed in range(ENOUGH)]
    for reader, count in zip(readers, samples, strict=True):
        aggregate.fold(reader, count)
    found = aggregate.result()
    table = {
        tensor: np.stack([decoder(reader, by_name[tensor], spec).decode().double().numpy() for reader in readers])
        for tensor in ("w", "b16", "wide", "mean")
    }
    for tensor, expected in by_numpy(name, table, samples).items():
        np.testing.assert_allclose(found[tensor].numpy(), expected, rtol=1e-5, atol=1e-5, err_msg=tensor)
    assert {tensor: values.dtype for tensor, values in found.items()} == RESULT_DTYPES


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_updates_give_the_same_bits(name: str, count: int, seed: int) -> None:
    updates, samples = [update_of(seed + number) for number in range(count)], list(range(1, count + 1))
    used, resumed = MAKERS[name](LAYOUT, PLAIN), MAKERS[name](LAYOUT, PLAIN)
    aggregated(used, [update_of(1000)], [7])
    resumed.load({key: tensor.clone() for key, tensor in used.state().items()})
    assert bits(aggregated(used, updates, samples)) == bits(aggregated(resumed, updates, samples))
    assert bits(used.state()) == bits(resumed.state())


def test_what_all_updates_agree_on_in_a_buffer_stays_as_it_is(make: Callable[..., Aggregate]) -> None:
    """An attention mask may be the dtype's lowest number; a constant must not drift by rounding."""
    largest = torch.finfo(torch.float64).max
    constants = torch.tensor([0.1, -largest, largest, -1e-300], dtype=torch.float64)
    layout = Layout((TensorSpec("mask", "F64", (4,), Role.BUFFER),))
    same = {"mask": constants}
    for count in range(1, 9):
        found = aggregated(make(layout), [same] * count, [3, 1, 7, 2, 5, 9, 4, 8][:count])
        assert torch.equal(found["mask"], same["mask"])


def test_nothing_folded_has_no_result(make: Callable[..., Aggregate]) -> None:
    aggregate = make()
    with pytest.raises(EmptyRound):
        aggregate.result()
    aggregated(aggregate, [update_of(1)], [1])
    aggregate.reset()
    with pytest.raises(EmptyRound):
        aggregate.result()


@pytest.mark.parametrize(("samples", "scale"), [(0, 1.0), (-3, 1.0), (3, 0.0), (3, -1.0), (3, math.nan)])
def test_an_update_that_weighs_nothing_is_refused_and_leaves_no_trace(
    make: Callable[..., Aggregate], samples: int, scale: float
) -> None:
    aggregate = make()
    aggregate.fold(TensorReader(update_of(1)), 2)
    with pytest.raises(EmptyRound, match="cannot be folded"):
        aggregate.fold(TensorReader(update_of(2)), samples, scale)
    assert bits(aggregate.result()) == bits(aggregated(make(), [update_of(1)], [2]))


def test_the_result_is_its_own_memory_from_round_to_round(make: Callable[..., Aggregate]) -> None:
    aggregate = make()
    places = []
    for seed in (1, 2):
        aggregate.reset()
        aggregate.fold(TensorReader(update_of(seed)), 2)
        first, again = aggregate.result(), aggregate.result()
        assert bits(first) == bits(again) == bits(aggregated(make(), [update_of(seed)], [2]))
        assert [t.data_ptr() for t in first.values()] == [t.data_ptr() for t in again.values()]
        places.append([t.data_ptr() for t in first.values()])
        with pytest.raises(RuntimeError, match="reset"):
            aggregate.fold(TensorReader(update_of(3)), 2)
    assert places[0] == places[1]


def test_of_an_update_nothing_stays_but_a_reader_that_is_still_needed(make: Callable[..., Aggregate]) -> None:
    aggregate = make()
    reader = TensorReader(update_of(1))
    alive = weakref.ref(reader)
    aggregate.fold(reader, 1)
    del reader
    gc.collect()
    assert (alive() is not None) is aggregate.reads_in_result
    aggregate.result()
    aggregate.reset()
    gc.collect()
    assert alive() is None


class Metered:
    """A reader by pieces, such as that of a file; it notes how large they are."""

    def __init__(self, update: Update, pieces: list[int]) -> None:
        self._whole = TensorReader(update)
        self._pieces = pieces
        self.header = self._whole.header

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        self._pieces.append(buffer.nbytes)
        self._whole.read_into(name, start_byte, buffer)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_updates_are_read_in_blocks_whose_size_has_a_bound(make: Callable[..., Aggregate], dtype: str) -> None:
    elements = 90_000 if make().reads_in_result else 700_000
    layout = Layout((TensorSpec("w", dtype, (elements,)),))
    aggregate, updates = make(layout), [update_of(seed, layout) for seed in range(ENOUGH)]
    pieces: list[list[int]] = [[] for _ in updates]
    for update, own in zip(updates, pieces, strict=True):
        aggregate.fold(Metered(update, own), 2)
    found = bits(aggregate.result())
    for update, own in zip(updates, pieces, strict=True):
        assert sum(own) % update["w"].nbytes == 0  # each byte, once or as often as it takes
        assert max(own) <= BLOCK_BYTES
    assert found == bits(aggregated(make(layout), updates, [2] * ENOUGH))


def test_coordinate_by_coordinate_one_pass_will_do(name: str, make: Callable[..., Aggregate]) -> None:
    layout, pieces = Layout((TensorSpec("w", "F32", (1000,)),)), list[int]()
    aggregate, updates = make(layout), [update_of(seed, layout) for seed in range(ENOUGH)]
    for update in updates:
        aggregate.fold(Metered(update, pieces), 2)
    aggregate.result()
    most = {"mean": 1, "median": 1, "trimmed mean": 1, "geometric median": 18}.get(name, 2)
    assert sum(pieces) <= most * sum(update["w"].nbytes for update in updates)


def untouched_after(aggregate: Aggregate, reports: list[list[str]]) -> frozenset[str]:
    aggregate.reset()
    for names in reports:
        aggregate.fold(with_untouched(names), 1)
    return aggregate.untouched


def with_untouched(names: list[str]) -> Reader:
    return TensorReader(update_of(0), untouched_metadata(names))


def test_untouched_is_what_no_update_touches(make: Callable[..., Aggregate]) -> None:
    aggregate = make()
    assert untouched_after(aggregate, []) == frozenset()
    assert untouched_after(aggregate, [["w", "b16"]] * 5) == {"w", "b16"}
    assert untouched_after(aggregate, [[], ["w"], [], ["wide"], []]) == frozenset()
    assert untouched_after(aggregate, [["w"], ["w", "wide"]]) == {"w"}


def test_a_state_of_another_layout_is_refused_and_one_of_another_aggregate_is_no_use(
    name: str, make: Callable[..., Aggregate]
) -> None:
    aggregate, kept = make(), {"centre.w": torch.ones(3)}
    if name == "centered clipping":
        with pytest.raises(LayoutMismatch, match=r"'centre\.w'"):
            aggregate.load(kept)
    else:
        aggregate.load(kept)
        assert aggregate.state() == {}


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in {"mean", "turned mean"}])
def test_too_few_to_count_do_not_make_a_parameter_touched(name: str) -> None:
    aggregate = MAKERS[name](LAYOUT, PLAIN)
    most_liars = {"trimmed mean": 1, "krum": 1, "multi-krum": 1}.get(name, 2)  # of five bulyan is the median
    for liars in range(6):
        untouched = untouched_after(aggregate, [["w"]] * (5 - liars) + [[]] * liars)
        assert untouched == ({"w"} if liars <= most_liars else frozenset())

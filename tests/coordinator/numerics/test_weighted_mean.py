from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.numerics.aggregate import EmptyRound
from coordinator.numerics.outer_optimizer import OuterStep
from coordinator.numerics.weighted_mean import WeightedMean
from protocol.codecs import CHUNK_ELEMENTS, TORCH_DTYPES, TensorReader, decoder, encode
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.encoded import untouched_metadata
from protocol.recipe import OuterOptimizer
from protocol.tensors import DTYPE_BYTES, Layout, Role, TensorSpec

TOLERANCE = {"F64": 1e-12, "F32": 1e-6, "F16": 1e-6, "BF16": 1e-6}
"""Of the mean before it is rounded into the weights' dtype, relative to the largest value."""


def layout_of(*specs: TensorSpec) -> Layout:
    return Layout(tuple(sorted(specs, key=lambda s: s.name)))


def values(spec: TensorSpec, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return (torch.randn(spec.shape, generator=generator, dtype=torch.float64) * scale).to(TORCH_DTYPES[spec.dtype])


_specs = st.lists(
    st.tuples(
        st.sampled_from(["F64", "F32", "F16", "BF16"]),
        st.lists(st.integers(0, 7), max_size=3),
        st.sampled_from([Role.PARAMETER, Role.BUFFER]),
    ),
    min_size=1,
    max_size=4,
).map(lambda drawn: [TensorSpec(f"t{i}", d, tuple(shape), role) for i, (d, shape, role) in enumerate(drawn)])


@settings(deadline=None)
@given(_specs, st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_the_mean_equals_a_float64_reference(
    specs: list[TensorSpec], samples: list[int], seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    updates = [{s.name: values(s, generator, scale) for s in specs} for _ in samples]
    accumulator = WeightedMean(layout_of(*specs))
    for update, weight in zip(updates, samples, strict=True):
        accumulator.fold(TensorReader(update), weight)
    mean = accumulator.result()
    for spec in specs:
        stack = torch.stack([u[spec.name].double() for u in updates])
        weights = torch.tensor(samples, dtype=torch.float64).reshape(-1, *[1] * len(spec.shape))
        expected = (stack * weights).sum(0) / sum(samples)
        atol = TOLERANCE[spec.dtype] * float(stack.abs().max()) if stack.numel() else 0.0
        torch.testing.assert_close(mean[spec.name].double(), expected, rtol=0, atol=atol)
        assert mean[spec.name].shape == spec.shape


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.booleans()), min_size=1, max_size=6), st.integers(0, 99)
)
def test_what_an_update_lacks_is_zero_in_the_mean(drawn: list[tuple[int, bool, bool]], seed: int) -> None:
    """Whichever update lacks it, and whatever the round before left in the sum."""
    specs = [TensorSpec("a", "F32", (3,)), TensorSpec("b", "F64", (2,))]
    generator = torch.Generator().manual_seed(seed)
    accumulator = WeightedMean(layout_of(*specs))
    accumulator.fold(TensorReader({spec.name: values(spec, generator) for spec in specs}), 1)
    accumulator.result()
    accumulator.reset()
    sums = {spec.name: torch.zeros(spec.shape, dtype=torch.float64) for spec in specs}
    for samples, *has in drawn:
        update = {spec.name: values(spec, generator) for spec, is_there in zip(specs, has, strict=True) if is_there}
        lacking = [spec.name for spec in specs if spec.name not in update]
        accumulator.fold(TensorReader(update, untouched_metadata(lacking)), samples)
        for name, tensor in update.items():
            sums[name] += samples * tensor.double()
    mean, total = accumulator.result(), sum(samples for samples, *_ in drawn)
    for name, expected in sums.items():
        torch.testing.assert_close(mean[name].double(), expected / total, rtol=1e-5, atol=1e-5)
    never = {spec.name for n, spec in enumerate(specs) if not any(one[1 + n] for one in drawn)}
    assert accumulator.untouched == never


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=3), st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.integers(0)
)
def test_fedavg_equals_a_float64_reference(shape: list[int], samples: list[int], seed: int) -> None:
    spec = TensorSpec("w", "F32", tuple(shape))
    generator = torch.Generator().manual_seed(seed % 2**32)
    base = values(spec, generator)
    local = [values(spec, generator) for _ in samples]
    accumulator = WeightedMean(layout_of(spec))
    for weights, count in zip(local, samples, strict=True):
        accumulator.fold(TensorReader({"w": base - weights}), count)
    result = {"w": base.clone()}
    OuterStep(OuterOptimizer(), result, layout_of(spec)).step(accumulator.result())
    expected = sum((w.double() * n for w, n in zip(local, samples, strict=True)), torch.zeros(())) / sum(samples)
    largest = max([1.0, *(float(t.abs().max()) for t in [base, *local] if t.numel())])
    torch.testing.assert_close(result["w"].double(), expected.expand(shape), rtol=0, atol=1e-6 * largest)


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(rng: random.Random) -> None:
    spec = TensorSpec("w", "F32", (257,))
    generator = torch.Generator().manual_seed(1)
    in_position_order = [(position, values(spec, generator), 1 + position % 7) for position in range(9)]

    def aggregate(arrived: list[tuple[int, Tensor, int]]) -> Tensor:
        accumulator = WeightedMean(layout_of(spec))
        for _, update, samples in sorted(arrived, key=lambda entry: entry[0]):
            accumulator.fold(TensorReader({"w": update}), samples)
        return accumulator.result()["w"]

    arrived = list(in_position_order)
    rng.shuffle(arrived)
    assert torch.equal(aggregate(arrived), aggregate(in_position_order))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("elements", [CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 3])
def test_chunks_leave_no_seam(dtype: str, elements: int) -> None:
    spec = TensorSpec("w", dtype, (elements,))
    update = values(spec, torch.Generator().manual_seed(0))
    accumulator = WeightedMean(layout_of(spec))
    accumulator.fold(TensorReader({"w": update}), 3)
    assert torch.equal(accumulator.result()["w"], update.float() * 3 / 3)


def test_integers_and_bools_keep_the_element_wise_maximum() -> None:
    dtypes = [d for d in DTYPE_BYTES if d not in TOLERANCE]
    specs = [TensorSpec(d, d, (3,), Role.BUFFER) for d in dtypes]
    accumulator = WeightedMean(layout_of(*specs))
    for row in ([0, 5, 1], [3, 0, 1], [2, 2, 0]):
        accumulator.fold(TensorReader({d: torch.tensor(row).to(TORCH_DTYPES[d]) for d in dtypes}), 1)
    mean = accumulator.result()
    for dtype in dtypes:
        assert torch.equal(mean[dtype], torch.tensor([3, 5, 1]).to(TORCH_DTYPES[dtype]))


def test_a_maximum_may_be_negative() -> None:
    accumulator = WeightedMean(layout_of(TensorSpec("n", "I64", (), Role.BUFFER)))
    for value in (-5, -3):
        accumulator.fold(TensorReader({"n": torch.tensor(value)}), 1)
    assert accumulator.result()["n"].item() == -3


def test_frozen_tensors_are_no_part_of_a_round() -> None:
    layout = layout_of(TensorSpec("w", "F32", (1,)), TensorSpec("table", "F32", (9,), Role.FROZEN))
    accumulator = WeightedMean(layout)
    accumulator.fold(TensorReader({"w": torch.ones(1)}), 1)
    assert list(accumulator.result()) == ["w"]


def test_untouched_is_what_no_update_of_the_round_touches() -> None:
    names = ("a", "b", "c")
    accumulator = WeightedMean(layout_of(*(TensorSpec(name, "F32", (1,)) for name in names)))
    tensors = {name: torch.zeros(1) for name in names}
    for untouched in (["a", "b"], ["b", "c"]):
        accumulator.fold(TensorReader(tensors, untouched_metadata(untouched)), 1)
    assert accumulator.untouched == {"b"}
    accumulator.fold(TensorReader(tensors), 1)
    assert accumulator.untouched == set()
    accumulator.reset()
    accumulator.fold(TensorReader(tensors, untouched_metadata(["c"])), 1)
    assert accumulator.untouched == {"c"}


def test_an_empty_round_has_no_mean() -> None:
    accumulator = WeightedMean(layout_of(TensorSpec("w", "F32", (1,))))
    with pytest.raises(EmptyRound):
        accumulator.result()
    with pytest.raises(EmptyRound, match="0 samples"):
        accumulator.fold(TensorReader({"w": torch.ones(1)}), 0)


def test_a_reset_starts_the_next_round_from_nothing() -> None:
    layout = layout_of(TensorSpec("w", "F32", (1,)), TensorSpec("n", "I64", (), Role.BUFFER))
    accumulator = WeightedMean(layout)
    accumulator.fold(TensorReader({"w": torch.full((1,), 9.0), "n": torch.tensor(9)}), 5)
    first = {name: tensor.clone() for name, tensor in accumulator.result().items()}
    accumulator.reset()
    accumulator.fold(TensorReader({"w": torch.full((1,), 2.0), "n": torch.tensor(4)}), 2)
    second = accumulator.result()
    assert (second["w"].item(), second["n"].item()) == (2.0, 4)
    assert (first["w"].item(), first["n"].item()) == (9.0, 9)


def test_the_mean_is_the_accumulators_own_memory_until_the_reset() -> None:
    accumulator = WeightedMean(layout_of(TensorSpec("w", "F32", (2,)), TensorSpec("n", "I64", (), Role.BUFFER)))
    update = TensorReader({"w": torch.tensor([1.0, 3.0]), "n": torch.tensor(4)})
    accumulator.fold(update, 4)
    first, again = accumulator.result(), accumulator.result()
    assert first["w"].tolist() == again["w"].tolist() == [1.0, 3.0]
    assert first["w"].data_ptr() == again["w"].data_ptr()
    with pytest.raises(RuntimeError, match="reset"):
        accumulator.fold(update, 1)
    accumulator.reset()
    accumulator.fold(update, 2)
    assert accumulator.result()["w"].data_ptr() == first["w"].data_ptr()


@pytest.mark.parametrize("name", [n for n in OF_UPDATES if n is not CodecName.NONE])
@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16"])
def test_encoded_updates_are_folded_as_their_decoded_values(name: CodecName, dtype: str) -> None:
    layout = layout_of(TensorSpec("w", dtype, (700, 3)), TensorSpec("n", "I32", (2,), Role.BUFFER))
    codec, generator = CodecSpec(name=name, block=64), torch.Generator().manual_seed(3)
    accumulator, expected = WeightedMean(layout, codec), torch.zeros(700, 3, dtype=torch.float64)
    for samples in (3, 5):
        tensors = {"w": values(layout.tensors[1], generator), "n": torch.tensor([samples, -samples], dtype=torch.int32)}
        reader = TensorReader(*encode(tensors, layout, codec, None))
        accumulator.fold(reader, samples, 0.5)
        expected += decoder(reader, layout.tensors[1], codec).decode().double() * samples / 8
    torch.testing.assert_close(accumulator.result()["w"].double(), expected, rtol=1e-6, atol=1e-6)
    assert accumulator.result()["n"].tolist() == [5, -3]


def test_memory_does_not_grow_with_the_clients() -> None:
    spec = TensorSpec("w", "F32", (1000,))
    accumulator = WeightedMean(layout_of(spec))
    update = {"w": torch.ones(1000)}
    alive = weakref.ref(update["w"])
    accumulator.fold(TensorReader(update), 1)
    del update
    gc.collect()
    assert alive() is None

"""A sum of updates is the sum of the decoded updates, in whatever form it is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.codecs import Scratch, TensorReader, decoder, encode, sum_of
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.tensors import Layout, Role, TensorSpec
from tests.protocol.codecs.cases import RangeReader, codec_of, file_of, one, values

SHAPE = (150, 61)


@pytest.mark.parametrize("name", OF_UPDATES)
@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("updates", [1, 2, 9])
def test_it_is_the_sum_of_the_decoded_updates(name: CodecName, dtype: str, updates: int) -> None:
    layout, codec = one(SHAPE, dtype), codec_of(name)
    spec = layout.tensors[0]
    total = sum_of(spec, codec, Scratch())
    for _ in range(2):  # the second round begins anew, in the same memory
        expected = torch.zeros(SHAPE, dtype=torch.float64)
        for number in range(updates):
            reader = TensorReader(encode({"w": values(SHAPE, number, dtype=dtype)}, layout, codec, None)[0])
            total.add(reader, 0.5 + number, first=number == 0)
            expected += decoder(reader, spec, codec).decode().double() * (0.5 + number)
        settled = total.settle()
        assert settled.dtype == (torch.float64 if dtype == "F64" else torch.float32)
        torch.testing.assert_close(settled.view(SHAPE).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", OF_UPDATES)
def test_an_update_that_has_nothing_of_a_tensor_begins_its_sum_with_zero(name: CodecName) -> None:
    layout, codec = one(SHAPE), codec_of(name)
    one_sum, other = (sum_of(layout.tensors[0], codec, Scratch()) for _ in range(2))
    before, reader = (TensorReader(encode({"w": values(SHAPE, n)}, layout, codec, None)[0]) for n in (0, 1))
    for total in (one_sum, other):
        total.add(before, 3.0, first=True)
    one_sum.clear()
    assert not one_sum.settle().any()
    one_sum.clear()
    one_sum.add(reader, 0.5, first=False)
    other.add(reader, 0.5, first=True)
    torch.testing.assert_close(one_sum.settle(), other.settle())


def test_every_update_has_the_buffers() -> None:
    for dtype in ("I64", "F32"):
        total = sum_of(TensorSpec("n", dtype, (2,), Role.BUFFER), CodecSpec(), Scratch())
        with pytest.raises(TypeError, match="buffer n"):
            total.clear()


@pytest.mark.parametrize("shape", [(3, 4000), (4000, 3), (20, 20), (2, 3, 4, 50)])
@pytest.mark.parametrize("rank", [1, 2, 40])
def test_products_wait_as_far_as_there_is_room(shape: tuple[int, ...], rank: int) -> None:
    layout, codec = one(shape), codec_of(CodecName.POWERSGD, rank=rank)
    total, expected = sum_of(layout.tensors[0], codec, Scratch()), torch.zeros(shape)
    for number in range(20):
        reader = TensorReader(encode({"w": values(shape, number)}, layout, codec, None)[0])
        total.add(reader, 2.0, first=number == 0)
        expected += 2 * decoder(reader, layout.tensors[0], codec).decode()
    torch.testing.assert_close(total.settle().view(shape), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", OF_UPDATES)
def test_integers_keep_the_largest(name: CodecName) -> None:
    layout = Layout((TensorSpec("n", "I16", (3,), Role.BUFFER),))
    total = sum_of(layout.tensors[0], codec_of(name), Scratch())
    for number, row in enumerate(([5, -3, 0], [1, -2, 0], [2, -9, 7])):
        total.add(TensorReader({"n": torch.tensor(row, dtype=torch.int16)}), 0.1, first=number == 0)
    assert total.settle().tolist() == [5, -2, 7]
    total.add(TensorReader({"n": torch.tensor([-1, -1, -1], dtype=torch.int16)}), 1.0, first=True)
    assert total.settle().tolist() == [-1, -1, -1]


FLOAT_BUFFERS = st.sampled_from(
    [("F64", torch.float64), ("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)


def mean_of(dtype: str, updates: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    total = sum_of(TensorSpec("b", dtype, tuple(updates[0].shape), Role.BUFFER), CodecSpec(), Scratch())
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        total.add(TensorReader({"b": update}), weight, first=number == 0)
    assert not total.is_weighted
    return total.settle()


@given(FLOAT_BUFFERS, st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8), st.data())
def test_a_buffer_that_no_update_changes_stays_as_it_is(
    kind: tuple[str, torch.dtype], weights: list[float], data: st.DataObject
) -> None:
    name, dtype = kind
    info = torch.finfo(dtype)
    edges = st.sampled_from([info.min, info.max, info.tiny, info.eps, 0.1, 2.0**24 - 1, 2.0**53 - 1, 0.0])
    buffer = torch.tensor(data.draw(st.lists(edges, min_size=1, max_size=5)), dtype=torch.float64).clamp(
        info.min, info.max
    )
    buffer = buffer.to(dtype)
    assert torch.equal(mean_of(name, [buffer] * len(weights), weights).to(dtype), buffer)


@given(FLOAT_BUFFERS, st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 5000)), min_size=1, max_size=8))
def test_the_mean_of_buffers_is_finite_and_between_them(
    kind: tuple[str, torch.dtype], updates: list[tuple[float, int]]
) -> None:
    name, dtype = kind
    largest = torch.finfo(dtype).max
    values = [torch.tensor([share * largest], dtype=torch.float64).to(dtype) for share, _ in updates]
    mean = mean_of(name, values, [float(samples) for _, samples in updates])
    low, high = (bound.double().item() for bound in (min(values), max(values)))
    slack = 1e-12 * largest
    assert low - slack <= mean.item() <= high + slack
    weighed = sum(v.double().item() / largest * n for v, (_, n) in zip(values, updates, strict=True))
    assert mean.item() / largest == pytest.approx(weighed / sum(n for _, n in updates), abs=1e-9)


class CountingScratch(Scratch):
    """Counts the bytes that it handed out for different purposes."""

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[str, int] = {}

    def take(self, purpose: str, elements: int, dtype: torch.dtype) -> torch.Tensor:
        self.most[purpose] = max(self.most.get(purpose, 0), elements * dtype.itemsize)
        return super().take(purpose, elements, dtype)


@pytest.mark.parametrize("name", OF_UPDATES)
def test_scratch_does_not_grow_with_the_number_of_tensors(name: CodecName) -> None:
    codec, used = codec_of(name), []
    for count in (2, 12):
        layout = Layout(tuple(TensorSpec(f"layer{number}.w", "F32", SHAPE) for number in range(count)))
        data = file_of({spec.name: values(SHAPE) for spec in layout.tensors}, layout, codec)
        scratch = CountingScratch()
        for spec in layout.tensors:
            total = sum_of(spec, codec, scratch)
            total.add(RangeReader(data), 1.0, first=True)
            total.settle()
        used.append(sum(scratch.most.values()))
    assert used[0] == used[1] > 0

"""A sum of updates is the sum of the decoded updates, in whatever form it is kept."""

from __future__ import annotations

import pytest
import torch

from protocol.codecs import Scratch, TensorReader, decoder, encode, sum_of
from protocol.compression import CodecName
from protocol.tensors import Layout, Role, TensorSpec
from tests.protocol.codecs.cases import RangeReader, codec_of, file_of, one, values

SHAPE = (150, 61)


@pytest.mark.parametrize("name", CodecName)
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


@pytest.mark.parametrize("name", CodecName)
def test_integers_keep_the_largest(name: CodecName) -> None:
    layout = Layout((TensorSpec("n", "I16", (3,), Role.BUFFER),))
    total = sum_of(layout.tensors[0], codec_of(name), Scratch())
    for number, row in enumerate(([5, -3, 0], [1, -2, 0], [2, -9, 7])):
        total.add(TensorReader({"n": torch.tensor(row, dtype=torch.int16)}), 0.1, first=number == 0)
    assert total.settle().tolist() == [5, -2, 7]
    total.add(TensorReader({"n": torch.tensor([-1, -1, -1], dtype=torch.int16)}), 1.0, first=True)
    assert total.settle().tolist() == [-1, -1, -1]


class CountingScratch(Scratch):
    """Counts the bytes that it handed out for different purposes."""

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[str, int] = {}

    def take(self, purpose: str, elements: int, dtype: torch.dtype) -> torch.Tensor:
        self.most[purpose] = max(self.most.get(purpose, 0), elements * dtype.itemsize)
        return super().take(purpose, elements, dtype)


@pytest.mark.parametrize("name", CodecName)
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

"""A tensor file made from live tensors is one that the safetensors package reads, with every tensor aligned."""

import safetensors.torch
import torch

from protocol.codecs import tensor_file
from protocol.tensors import read_header

TENSORS = {
    "a": torch.tensor([True, False, True]),
    "b": torch.arange(5, dtype=torch.float64),
    "c": torch.arange(3, dtype=torch.float32).reshape(1, 3),
    "d": torch.tensor(7, dtype=torch.int16),
    "e": torch.empty(0),
}


def test_it_is_read_as_it_was_written() -> None:
    data = b"".join(tensor_file(TENSORS, {"kind": "test"}))
    read = safetensors.torch.load(data)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_every_tensor_lies_where_its_elements_are_aligned() -> None:
    data = b"".join(tensor_file(TENSORS, {}))
    places = read_header(data).tensors
    assert all(places[name].start % tensor.element_size() == 0 for name, tensor in TENSORS.items())


def test_equal_tensors_are_equal_bytes_whatever_their_order() -> None:
    turned = dict(reversed(TENSORS.items()))
    metadata = {"x": "1", "y": "2"}
    again = tensor_file(turned, dict(reversed(metadata.items())))
    assert b"".join(again) == b"".join(tensor_file(TENSORS, metadata))

"""Client and server add the same delta to the same weights, and have the same bits then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocol.codecs import BytesReader, apply_delta, decoder
from protocol.compression import OF_UPDATES, CodecName
from protocol.tensors import Role
from tests.protocol.codecs.cases import RangeReader, codec_of, file_of, mixed, values


def weights_of(seed: int) -> dict[str, Tensor]:
    layout, _ = mixed()
    made = {s.name: values(s.shape, seed, dtype=s.dtype) for s in layout.tensors if s.name != "count"}
    return made | {"count": torch.tensor(1)}


@pytest.mark.parametrize("name", OF_UPDATES)
def test_both_sides_get_the_same_bits(name: CodecName) -> None:
    layout, delta = mixed()
    codec = codec_of(name)
    data = file_of(delta, layout, codec)
    server, client = weights_of(50), weights_of(50)
    apply_delta(server, BytesReader(data), layout, codec)
    apply_delta(client, RangeReader(data), layout, codec)
    assert all(
        torch.equal(server[key].flatten().view(torch.uint8), client[key].flatten().view(torch.uint8)) for key in server
    )


@pytest.mark.parametrize("name", OF_UPDATES)
def test_parameters_get_the_sum_and_buffers_the_value(name: CodecName) -> None:
    layout, delta = mixed()
    codec = codec_of(name)
    reader = BytesReader(file_of(delta, layout, codec))
    before, weights = weights_of(50), weights_of(50)
    apply_delta(weights, reader, layout, codec)
    for spec in layout.tensors:
        if spec.role is Role.FROZEN:
            expected = before[spec.name]
        elif spec.role is Role.BUFFER:
            expected = delta[spec.name]
        else:
            wide = torch.float64 if spec.dtype == "F64" else torch.float32
            change = decoder(reader, spec, codec).decode().to(wide)
            expected = (before[spec.name].to(wide) + change).to(before[spec.name].dtype)
        assert torch.equal(weights[spec.name], expected), spec.name

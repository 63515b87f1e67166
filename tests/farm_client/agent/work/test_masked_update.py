"""What an update looks like as it leaves a client in a secure sum, and which ones can't."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load

from farm_client.agent.work import masked_update
from farm_client.agent.work.masked_update import write_masked
from protocol.digests import digest_bytes
from protocol.errors import MalformedTensors
from protocol.secagg.errors import NotForThisRound, SecureSumFailed
from protocol.secagg.member import Member, Terms
from protocol.secagg.unmasking import left_masks
from protocol.secure_messages import SecureTerms
from protocol.secure_wire import grid_of
from protocol.tensors import UPDATE_METADATA

TOLD = SecureTerms(attempt=0, threshold=2, clip=1.0, bits=64, most_samples=64)
TERMS = Terms(b"t/0/0", 2)


def members(*, agreed: bool = True) -> tuple[Member, Member]:
    draw = random.Random(0).randbytes
    one, two = Member(TERMS, 1, draw), Member(TERMS, 2, draw)
    if agreed:
        advertised = [one.advertise(), two.advertise()]
        of_one, of_two = one.share_out(advertised), two.share_out(advertised)
        one.take_shares({2: of_two[1]})
        two.take_shares({1: of_one[2]})
    return one, two


def plain(**tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save(tensors, dict(UPDATE_METADATA))


def written(source: bytes, member: Member, told: SecureTerms = TOLD) -> bytes:
    target = io.BytesIO()
    digest = write_masked(source, target, told, 1, member)
    assert digest == digest_bytes(target.getvalue())
    return target.getvalue()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [3, 1 << 18])
def test_floats_of_any_width_are_masked_block_by_block_in_the_order_of_names(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr(masked_update, "_BLOCK_ELEMENTS", block)
    b = torch.linspace(-0.9, 0.9, 7).to(dtype)
    a = torch.full((2, 2), 0.25, dtype=dtype)
    one, two = members()
    files = [load(written(plain(b=b, a=a), member)) for member in (one, two)]
    words = sum(np.concatenate([file[name].ravel() for name in "ab"]).view("u8") for file in files)
    both = frozenset({1, 2})
    left_masks(TERMS, [one.advertise(), two.advertise()], both, both, [one.reveal(both), two.reveal(both)]).take_off(
        words, 0
    )
    values = torch.cat([a.ravel(), b]).double().numpy()
    assert np.array_equal(words, 2 * grid_of(TOLD).encode(values, 1))


def test_a_tensor_of_no_numbers_keeps_its_place() -> None:
    one, _ = members()
    data = load(written(plain(a=torch.zeros(0, 4), b=torch.ones(2)), one))
    assert (data["a"].shape, data["b"].shape, data["b"].dtype) == ((0, 4), (2,), np.dtype("i8"))


def test_integers_are_refused_by_name() -> None:
    with pytest.raises(MalformedTensors, match="'steps' is I64"):
        written(plain(steps=torch.ones(2, dtype=torch.int64)), members()[0])


@pytest.mark.parametrize("data", [b"", b"\x08", (1 << 40).to_bytes(8, "little"), plain(a=torch.ones(4))[:-1]])
def test_what_is_no_file_of_tensors_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedTensors):
        written(data, members()[0])


def test_nan_has_no_place_in_a_sum() -> None:
    with pytest.raises(SecureSumFailed, match="NaN"):
        written(plain(a=torch.tensor([0.0, float("nan")])), members()[0])


def test_nothing_is_written_without_masks() -> None:
    with pytest.raises(NotForThisRound):
        written(plain(a=torch.ones(2)), members(agreed=False)[0])


def test_too_few_bits_for_the_samples_are_refused() -> None:
    told = TOLD.model_copy(update={"bits": 32, "most_samples": 1 << 31})
    with pytest.raises(SecureSumFailed, match="bits"):
        written(plain(a=torch.ones(2)), members()[0], told)

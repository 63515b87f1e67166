"""From plain update files to the mean, through the client's writer and the server's sum, with a third gone."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save

from coordinator.numerics.secure_sum import SecureSum, StillMasked
from farm_client.agent.work.masked_update import write_masked
from protocol.codecs import BytesReader
from protocol.masked_layout import check_masked
from protocol.recipe import Recipe
from protocol.secagg.member import Member, Terms
from protocol.secagg.unmasking import LeftMasks, left_masks
from protocol.secure_messages import secure_terms
from protocol.secure_wire import grid_of
from protocol.tensors import UPDATE_METADATA, Layout, TensorSpec

LAYOUT = Layout((TensorSpec("a", "F32", (300, 7)), TensorSpec("b", "BF16", (5,))))
SAMPLES = (32, 64, 1, 31, 16, 48)


def updates() -> list[dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    return [{"b": torch.randn(5, generator=made).bfloat16(), "a": torch.randn(300, 7, generator=made)} for _ in SAMPLES]


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_the_plain_one_to_the_bit_with_a_third_gone_after_masking(bits: int) -> None:
    recipe = Recipe(rounds=1, round_samples=192, secure_aggregation=True, min_clients=3, secure_bits=bits)
    told = secure_terms(recipe, attempt=1, threshold=4)
    terms, draw = Terms(b"t/0/1", 4), random.Random(0).randbytes
    members = {point: Member(terms, point, draw) for point in range(1, 7)}
    advertised = [member.advertise() for member in members.values()]
    sealed = {point: member.share_out(advertised) for point, member in members.items()}
    for point, member in members.items():
        member.take_shares({other: shares[point] for other, shares in sealed.items() if other != point})
    files = []
    for member, tensors, samples in zip(members.values(), updates(), SAMPLES, strict=True):
        target = io.BytesIO()
        write_masked(save(tensors, dict(UPDATE_METADATA)), target, told, samples, member)
        files.append(target.getvalue())
    survivors = frozenset({1, 2, 4, 6})
    total = SecureSum(recipe, LAYOUT)
    for point in (6, 1, 4, 2):  # in any order
        reader = BytesReader(files[point - 1])
        check_masked(LAYOUT, reader.header, told.bits)
        total.fold(reader, SAMPLES[point - 1])
    with pytest.raises(StillMasked):
        total.result()
    reveals = [members[point].reveal(survivors) for point in sorted(survivors)]
    total.unmask(left_masks(terms, advertised, frozenset(members), survivors, reveals))
    grid, weight = grid_of(told), sum(SAMPLES[point - 1] for point in survivors)
    for name, mean in total.result().items():
        plain = grid.zeros(mean.numel())
        for point in survivors:
            plain += grid.encode(updates()[point - 1][name].float().numpy().ravel(), SAMPLES[point - 1])
        assert np.array_equal(mean.numpy().ravel(), grid.decode_mean(plain, weight).astype("f4"))


def test_a_round_after_it_begins_with_nothing() -> None:
    recipe = Recipe(rounds=1, round_samples=192, secure_aggregation=True, min_clients=3)
    total = SecureSum(recipe, LAYOUT)
    zeros = {spec.name: torch.zeros(spec.shape, dtype=torch.int32) for spec in LAYOUT.returned}
    for number in (7, 3):
        total.reset()
        total.fold(BytesReader(save({name: zeros[name] + number for name in zeros})), 1)
        total.unmask(LeftMasks(()))
        with pytest.raises(RuntimeError):
            total.unmask(LeftMasks(()))
        grid = grid_of(secure_terms(recipe, attempt=0, threshold=1))
        assert float(total.result()["a"][0, 0]) == pytest.approx(number / grid.scale)

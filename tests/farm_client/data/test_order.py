"""The order of samples is fixed by the seed, as docs/protocol.md defines it."""

from __future__ import annotations

import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from farm_client.data.order import StrideOrder, mixed, shard_order
from farm_client.data.seeds import derived_seed
from protocol.tasks import Split


def test_training_order_is_the_documented_one() -> None:
    seed = int.from_bytes(blake3(b"7/2/5").digest()[:8], "little") & (2**63 - 1)
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    assert derived_seed(7, 2, 5) == seed
    assert torch.equal(shard_order(7, 2, 5, 100, Split.TRAIN), expected)


def test_each_epoch_and_shard_has_its_own_order() -> None:
    orders = {tuple(shard_order(1, e, s, 50, Split.TRAIN).tolist()) for e in range(3) for s in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_holdout_is_read_as_stored() -> None:
    assert shard_order(1, 4, 2, 6, Split.HOLDOUT).tolist() == [0, 1, 2, 3, 4, 5]


@given(rows=st.lists(st.integers(), max_size=40), seed=st.integers(0, 2**63 - 1))
def test_a_mixed_part_has_its_rows_and_one_order_for_a_seed(rows: list[int], seed: int) -> None:
    assert sorted(mixed(rows, seed)) == sorted(rows)
    assert mixed(rows, seed) == mixed(rows, seed)


@given(items=st.integers(1, 500), seed=st.integers(0, 2**63 - 1))
def test_the_stride_is_a_permutation(items: int, seed: int) -> None:
    order = StrideOrder(items, seed)
    assert sorted(order.item(row) for row in range(items)) == list(range(items))


def test_a_run_of_stride_rows_is_spread_over_a_sorted_data_set() -> None:
    order = StrideOrder(1000, seed=5)
    for start in range(0, 1000, 50):
        classes = [order.item(row) // 100 for row in range(start, start + 50)]
        assert min(classes.count(c) for c in range(10)) >= 3

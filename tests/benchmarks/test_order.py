"""The order benchmark: the farm's order is the one that rounds have, and only the order differs."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from benchmarks.order import LAYOUTS, SUBJECTS, Layout, Subject, compare, interval, random_epoch, trained_loss

ROWS = 100


def layout(data: str) -> Layout:
    return LAYOUTS[data](ROWS, 8, 3)


@pytest.mark.parametrize("data", LAYOUTS)
@pytest.mark.parametrize("round_samples", [32, ROWS])
def test_an_epoch_of_the_farm_has_every_row_once_and_differs_from_the_next(data, round_samples):
    first, second = (layout(data).epoch(3, epoch, round_samples) for epoch in (0, 1))
    assert sorted(torch.cat(first).tolist()) == list(range(ROWS))
    assert max(map(len, first)) <= 32
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_a_round_of_one_batch_is_drawn_from_all_shards_of_a_stripe():
    deal = layout("file")
    shard_of = {int(row): shard.index for shard in deal.shards for row in deal.rows[shard.index]}
    of_batch = Counter(shard_of[int(row)] for row in deal.epoch(3, 0, 32)[0])
    assert list(of_batch.values()) == [4] * 8


def test_random_orders_are_new_in_each_epoch_and_have_every_row_once():
    first, second = random_epoch(ROWS, 0, 0), random_epoch(ROWS, 0, 1)
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(ROWS))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_same_steps_give_the_same_loss(name):
    subject: Subject = SUBJECTS[name](0)
    steps = [random_epoch(subject.rows, 0, 0)[:2]]
    assert trained_loss(subject, 0, steps) == trained_loss(subject, 0, steps)
    assert trained_loss(subject, 0, steps) != trained_loss(subject, 1, steps)


def test_the_ratio_lies_in_its_interval():
    found = compare("digits", "file", whole_rounds=True, epochs=1, seeds=2, orders=1)
    assert found.low < found.ratio < found.high


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30 / math.sqrt(3)))

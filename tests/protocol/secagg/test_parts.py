"""Shares, masks and fixed point, each against its own law."""

from __future__ import annotations

import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secagg.errors import BelowThreshold, SecureSumFailed, WrongShares
from protocol.secagg.fixed_point import FixedPoint
from protocol.secagg.masks import add_mask, mask_of
from protocol.secagg.shamir import PRIME, combine, share


@settings(max_examples=50, deadline=None)
@given(data=st.data(), secret=st.binary(min_size=32, max_size=32), count=st.integers(1, 12), seed=st.integers(0, 9))
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject, secret: bytes, count: int, seed: int) -> None:
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count, unique=True))
    shares = share(secret, points, threshold, random.Random(seed).randbytes)
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, count))]
    assert combine({point: shares[point] for point in chosen}, threshold) == secret
    with pytest.raises(BelowThreshold):
        combine({point: shares[point] for point in points[: threshold - 1]}, threshold)


def test_fewer_shares_fit_every_secret() -> None:
    """With one share of two less, each secret has a polynomial through the others: they say nothing of it."""
    shares = share(b"a" * 32, [1, 2, 3], 3, random.Random(0).randbytes)
    drawn = {share(b"a" * 32, [1, 2, 3], 3, random.Random(seed).randbytes)[1] for seed in range(50)}
    assert len(drawn) == 50  # one secret, and no share alike
    assert all(int.from_bytes(one, "big") < PRIME for one in shares.values())


@pytest.mark.parametrize("more", [0, 1])
def test_a_share_that_is_off_is_found(more: int) -> None:
    shares = share(b"s" * 32, [1, 2, 3], 3 - more, random.Random(0).randbytes)
    shares[3] = bytes(66)
    with pytest.raises(WrongShares):
        combine(shares, 3 - more)
    shares[3] = b"\xff" * 66
    with pytest.raises(WrongShares):
        combine(shares, 3 - more)


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (b"short", [1, 2], 2),
        (b"s" * 32, [1, 2], 3),
        (b"s" * 32, [0, 1], 2),
        (b"s" * 32, [1, 1], 2),
        (b"s" * 32, [1], 0),
    ],
)
def test_what_would_give_the_secret_away_is_refused(secret: bytes, points: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"point|shares"):
        share(secret, points, threshold, random.Random(0).randbytes)


@given(first=st.integers(0, 200), count=st.integers(0, 100), is_long=st.booleans())
def test_a_stretch_of_a_mask_is_that_of_the_whole(first: int, count: int, is_long: bool) -> None:
    dtype = np.dtype(np.uint64 if is_long else np.uint32)
    whole = Cipher(algorithms.AES(b"k" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(300 * dtype.itemsize))
    expected = np.frombuffer(whole, dtype=dtype)[first : first + count]
    assert np.array_equal(mask_of(b"k" * 32, first, count, dtype), expected)
    words = np.arange(count).astype(dtype)
    add_mask(words, b"k" * 32, first, 1)
    assert not count or not np.array_equal(words, np.arange(count))
    add_mask(words, b"k" * 32, first, -1)
    assert np.array_equal(words, np.arange(count))


@settings(max_examples=100)
@given(data=st.data(), bits=st.sampled_from([32, 64]), clip=st.floats(1e-3, 1e3), most=st.integers(1, 10**6))
def test_means_are_exact_up_to_the_resolution(data: st.DataObject, bits: int, clip: float, most: int) -> None:
    fixed = FixedPoint(clip, most, bits)  # type: ignore[arg-type]  # of the two
    counts = data.draw(st.lists(st.integers(1, most), min_size=1, max_size=5).filter(lambda c: sum(c) <= most))
    values = [np.array(data.draw(st.lists(st.floats(-clip, clip), min_size=2, max_size=2))) for _ in counts]
    total = fixed.zeros(2)
    for samples, value in zip(counts, values, strict=True):
        total += fixed.encode(value, samples)
    expected = sum(samples * value for samples, value in zip(counts, values, strict=True)) / sum(counts)
    np.testing.assert_allclose(fixed.decode_mean(total, sum(counts)), expected, atol=fixed.error * 1.001 + 1e-12 * clip)


def test_all_samples_at_the_clip_do_not_overflow() -> None:
    for most in (1, 3, 1000, 2**31 - 1):
        fixed = FixedPoint(1.0, most)
        for value in (5.0, -5.0):
            words = fixed.encode(np.array([value]), most)
            assert fixed.decode_mean(words, most)[0] == pytest.approx(np.sign(value))


def test_what_has_no_place_in_a_sum_is_refused() -> None:
    fixed = FixedPoint(1.0, 10)
    for samples in (0, 11):
        with pytest.raises(SecureSumFailed, match="samples"):
            fixed.encode(np.ones(1), samples)
    with pytest.raises(SecureSumFailed, match="NaN"):
        fixed.encode(np.array([np.nan]), 1)
    with pytest.raises(SecureSumFailed, match="64 bits"):
        FixedPoint(1.0, 2**31)
    for clip, most, bits in ((0.0, 1, 32), (1.0, 0, 32), (1.0, 1, 16)):
        with pytest.raises(ValueError, match="bits"):
            FixedPoint(clip, most, bits)  # type: ignore[arg-type]  # on purpose

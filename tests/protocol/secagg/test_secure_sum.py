"""Whole rounds of secure aggregation, with clients that drop out at each step, and servers that ask for too much."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secagg import keys
from protocol.secagg.errors import BelowThreshold, NotForThisRound, SecureSumFailed, WouldUnmask, WrongShares
from protocol.secagg.fixed_point import FixedPoint, Words
from protocol.secagg.member import Advertisement, Member, Reveal, Terms, names_of
from protocol.secagg.unmasking import left_masks

FIXED = FixedPoint(clip=2.0, most_samples=1000)


@dataclass
class Round:
    """A round up to where its clients may mask: all of ``members`` advertised, those in ``sharers`` shared."""

    terms: Terms
    members: dict[int, Member]
    advertised: list[Advertisement]
    sealed: dict[int, dict[int, bytes]]

    def received(self, point: int) -> Mapping[int, bytes]:
        return {sender: letters[point] for sender, letters in self.sealed.items() if sender != point}


def opened(clients: int, threshold: int, sharers: int, seed: int = 0, context: bytes = b"t/1/1") -> Round:
    draw = random.Random(seed).randbytes
    terms = Terms(context, threshold)
    members = {point: Member(terms, point, draw) for point in range(1, clients + 1)}
    advertised = [member.advertise() for member in members.values()]
    sealed = {point: members[point].share_out(advertised) for point in range(1, sharers + 1)}
    one = Round(terms, members, advertised, sealed)
    for point in sealed:
        members[point].take_shares(one.received(point))
    return one


def total_of(one: Round, masked: Mapping[int, Words], revealing: Sequence[int]) -> Words:
    """Sum what came, and take off the masks that are left, in two stretches."""
    survivors = frozenset(masked)
    total = FIXED.zeros(len(next(iter(masked.values()))))
    for words in masked.values():
        total += words
    reveals = [one.members[point].reveal(survivors) for point in revealing]
    left = left_masks(one.terms, one.advertised, frozenset(one.sealed), survivors, reveals)
    half = len(total) // 3
    left.take_off(total[:half], 0)
    left.take_off(total[half:], half)
    return total


@settings(max_examples=25, deadline=None)
@given(data=st.data(), clients=st.integers(3, 9), seed=st.integers(0, 2**32))
def test_the_sum_is_exact_with_any_third_of_the_clients_gone(data: st.DataObject, clients: int, seed: int) -> None:
    threshold = data.draw(st.integers(clients // 2 + 1, clients - clients // 3))
    sharers = data.draw(st.integers(threshold, clients))
    gone = data.draw(st.sets(st.integers(1, sharers), max_size=min(clients // 3, sharers - threshold)))
    survivors = [point for point in range(1, sharers + 1) if point not in gone]
    revealing = data.draw(st.permutations(survivors))[: data.draw(st.integers(threshold, len(survivors)))]
    one = opened(clients, threshold, sharers, seed)
    rng = np.random.default_rng(seed)
    samples = {point: int(rng.integers(1, 1000 // clients)) for point in survivors}
    updates = {point: rng.normal(size=37) for point in survivors}
    plain = {point: FIXED.encode(updates[point], samples[point]) for point in survivors}
    masked = {point: words.copy() for point, words in plain.items()}
    for point, words in masked.items():
        one.members[point].mask(words[:10])  # block by block
        one.members[point].mask(words[10:])
    total = total_of(one, masked, revealing)
    assert total.tolist() == [sum(column) % 2**32 for column in zip(*(w.tolist() for w in plain.values()), strict=True)]
    together = sum(samples.values())
    expected = sum(np.clip(updates[point], -2, 2) * samples[point] for point in survivors) / together
    np.testing.assert_allclose(FIXED.decode_mean(total, together), expected, atol=FIXED.error * 1.0001)


def test_a_masked_update_is_noise() -> None:
    """Of zeros and of an update alike: bytes as even as random ones (chi-square, 255 degrees), words uncorrelated."""
    count = 100_000
    for value in (0.0, 1.5):
        words = FIXED.encode(np.full(count, value), 7)
        opened(3, 2, 3).members[1].mask(words)
        seen = np.bincount(words.view(np.uint8), minlength=256)
        chi_square = float(((seen - 4 * count / 256) ** 2).sum() / (4 * count / 256))
        assert 170 < chi_square < 360  # five standard deviations around 255
        as_floats = words.astype(np.float64)
        assert abs(float(np.corrcoef(as_floats[:-1], as_floats[1:])[0, 1])) < 0.02


def test_masks_of_two_rounds_and_of_two_clients_have_nothing_in_common() -> None:
    found = []
    for context, point in ((b"t/1/1", 1), (b"t/1/2", 1), (b"t/1/1", 2)):
        words = FIXED.zeros(1000)
        opened(3, 2, 3, context=context).members[point].mask(words)
        found.append(words)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.count_nonzero(found[one] == found[other]) <= 2


def masked(one: Round, points: Sequence[int]) -> dict[int, Words]:
    found = {point: FIXED.encode(np.full(5, 0.5), 10) for point in points}
    for point, words in found.items():
        one.members[point].mask(words)
    return found


def test_below_the_threshold_nobody_reveals_and_nothing_is_unmasked() -> None:
    one = opened(5, 3, 5)
    with pytest.raises(BelowThreshold):
        one.members[1].reveal(frozenset({1, 2}))
    updates = masked(one, [1, 2, 3, 4])
    survivors = frozenset(updates)
    reveals = [one.members[point].reveal(survivors) for point in (1, 2)]
    with pytest.raises(BelowThreshold):
        left_masks(one.terms, one.advertised, frozenset(one.sealed), survivors, reveals)
    with pytest.raises(BelowThreshold):  # the same client twice is one
        left_masks(one.terms, one.advertised, frozenset(one.sealed), survivors, [*reveals, reveals[0]])
    with pytest.raises(BelowThreshold):
        opened(2, 3, 0).members[1].share_out(opened(2, 3, 0).advertised)


def test_a_client_never_reveals_both_secrets_of_another_one() -> None:
    one = opened(5, 3, 5)
    answer = one.members[1].reveal(frozenset({1, 2, 3, 4}))
    assert not answer.self_shares.keys() & answer.key_shares.keys()
    assert answer == one.members[1].reveal(frozenset({1, 2, 3, 4}))  # the answer may have been lost
    for others in ({1, 2, 3}, {1, 2, 3, 5}, {1, 2, 3, 4, 5}):
        with pytest.raises(WouldUnmask):
            one.members[1].reveal(frozenset(others))


@pytest.mark.parametrize("survivors", [{2, 3, 4}, {1, 2, 9}])
def test_a_client_reveals_nothing_for_survivors_who_are_not_of_its_round(survivors: set[int]) -> None:
    with pytest.raises(NotForThisRound):
        opened(5, 3, 5).members[1].reveal(frozenset(survivors))


def test_a_client_shares_and_agrees_on_masks_once() -> None:
    one = opened(3, 2, 3)
    with pytest.raises(WouldUnmask):
        one.members[1].share_out(one.advertised)
    with pytest.raises(WouldUnmask):
        one.members[1].take_shares(one.received(1))


def test_nothing_is_masked_before_there_are_masks() -> None:
    with pytest.raises(NotForThisRound):
        opened(3, 2, 0).members[1].mask(FIXED.zeros(3))
    with pytest.raises(NotForThisRound):
        opened(3, 2, 0).members[1].reveal(frozenset({1, 2}))


@pytest.mark.parametrize(("clients", "threshold"), [(4, 2), (9, 4), (2, 1)])
def test_two_halves_of_the_clients_must_not_unmask_two_sums(clients: int, threshold: int) -> None:
    with pytest.raises(SecureSumFailed, match="no majority"):
        opened(clients, threshold, 1)


def test_shares_of_another_round_or_for_another_client_do_not_open() -> None:
    earlier, one = opened(3, 2, 3, context=b"t/1/1"), opened(3, 2, 0, context=b"t/1/2")
    fresh = {point: one.members[point].share_out(one.advertised) for point in (1, 2, 3)}
    for wrong in (earlier.sealed[2][1], fresh[2][3], fresh[3][1], bytes(len(fresh[2][1]))):
        with pytest.raises(NotForThisRound):
            one.members[1].take_shares({2: wrong, 3: fresh[3][1]})
    with pytest.raises(NotForThisRound):
        one.members[2].take_shares({1: fresh[1][2], 3: fresh[3][2], 9: b""})


@pytest.mark.parametrize("of_the_gone", [False, True])
@pytest.mark.parametrize("revealing", [3, 4])
def test_wrong_shares_are_found(of_the_gone: bool, revealing: int) -> None:
    one = opened(5, 3, 5)
    survivors = frozenset(masked(one, [1, 2, 3, 4]))
    reveals = [one.members[point].reveal(survivors) for point in range(1, revealing + 1)]

    def left(changed: Reveal) -> None:
        left_masks(one.terms, one.advertised, frozenset(one.sealed), survivors, [*reveals[:-1], changed])

    left(reveals[-1])
    last = reveals[-1]
    other = opened(5, 3, 5, seed=9).members[last.point].reveal(survivors)  # replayed, of another round
    for shares in (
        dict(other.key_shares if of_the_gone else other.self_shares),
        {},
        {1: b"\xff" * 66, 5: b"\xff" * 66},
    ):
        with pytest.raises(WrongShares):
            left(replace(last, key_shares=shares) if of_the_gone else replace(last, self_shares=shares))


def test_sets_that_do_not_fit_are_refused() -> None:
    one = opened(3, 2, 3)
    for sharers, survivors in (({1, 2}, {1, 3}), ({1, 2, 9}, {1, 2})):
        with pytest.raises(NotForThisRound):
            left_masks(one.terms, one.advertised, frozenset(sharers), frozenset(survivors), [])


def test_a_list_with_other_keys_is_refused() -> None:
    def fresh() -> tuple[Member, list[Advertisement]]:
        one = opened(3, 2, 0)
        return one.members[1], one.advertised

    member, (own, second, third) = fresh()
    without_own, twice = [second, third], [own, second, replace(third, mask_key=second.mask_key)]
    altered, at_zero = (
        [replace(own, cipher_key=second.cipher_key), second, third],
        [own, second, replace(third, point=0)],
    )
    for wrong in (without_own, twice, altered, at_zero):
        with pytest.raises(NotForThisRound):
            member.share_out(wrong)
    member.share_out([own, second, third])


def test_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(NotForThisRound, match="public key"):
        keys.pair_seed(bytes(range(32)), bytes(32), b"")
    with pytest.raises(NotForThisRound):
        keys.open_sealed(b"", bytes(range(32)), b"short", names_of(b"", 1, 2))


def test_secrets_are_not_in_what_is_printed() -> None:
    one = opened(3, 2, 3)
    answer = one.members[1].reveal(frozenset({1, 2, 3}))
    assert repr(answer) == "Reveal(point=1)"
    left = left_masks(
        one.terms,
        one.advertised,
        frozenset({1, 2, 3}),
        frozenset({1, 2, 3}),
        [answer, one.members[2].reveal(frozenset({1, 2, 3}))],
    )
    assert "seeds" not in repr(left)


@pytest.mark.parametrize("of_the_gone", [False, True])
def test_shares_that_fit_together_and_give_another_secret_are_found(of_the_gone: bool) -> None:
    one, other = opened(5, 3, 5), opened(5, 3, 5, seed=9)
    survivors = frozenset({1, 2, 3, 4})
    reveals = []
    for point in (1, 2, 3):
        own, theirs = one.members[point].reveal(survivors), other.members[point].reveal(survivors)
        changed = {"key_shares": theirs.key_shares} if of_the_gone else {"self_shares": theirs.self_shares}
        reveals.append(replace(own, **changed))
    with pytest.raises(WrongShares):
        left_masks(one.terms, one.advertised, frozenset(one.sealed), survivors, reveals)

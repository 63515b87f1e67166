"""The server's part at the end of a round: from the survivors' shares to the masks that are left in their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.secagg import keys, shamir
from protocol.secagg.errors import BelowThreshold, NotForThisRound, WrongShares
from protocol.secagg.fixed_point import Words
from protocol.secagg.masks import add_mask
from protocol.secagg.member import Advertisement, Reveal, Terms, pair_of, sign_of


@dataclass(frozen=True, slots=True, repr=False)
class LeftMasks:
    """The masks that don't cancel in the survivors' sum: their own, and those that they had with who dropped out."""

    seeds: tuple[tuple[bytes, int], ...]

    def take_off(self, total: Words, first: int) -> None:
        """Take the masks off a stretch of the sum, in place; ``first``: the place of its first word in the update."""
        for seed, sign in self.seeds:
            add_mask(total, seed, first, -sign)


def left_masks(
    terms: Terms,
    advertised: Sequence[Advertisement],
    sharers: frozenset[int],
    survivors: frozenset[int],
    reveals: Sequence[Reveal],
) -> LeftMasks:
    """Return what masks the sum over ``survivors``, of the clients ``sharers`` that agreed on masks.

    ``reveals``: at least ``terms.threshold``, of different survivors.
    Raises: BelowThreshold; WrongShares; NotForThisRound of sets that don't fit together.
    """
    by_point = {one.point: one for one in advertised}
    if not survivors <= sharers <= by_point.keys():
        raise NotForThisRound("survivors are some of those who shared, who are some of those who advertised")
    given = {reveal.point: reveal for reveal in reveals if reveal.point in survivors}
    if len(survivors) < terms.threshold or len(given) < terms.threshold:
        raise BelowThreshold(f"{len(given)} clients revealed shares, and the threshold is {terms.threshold}")
    seeds: list[tuple[bytes, int]] = []
    for point in sorted(survivors):
        secret = shamir.combine(_shares({own: one.self_shares for own, one in given.items()}, point), terms.threshold)
        if keys.commitment(secret, terms.context) != by_point[point].commitment:
            raise WrongShares
        seeds.append((keys.self_seed(secret, terms.context), 1))
    for gone in sorted(sharers - survivors):
        private = shamir.combine(_shares({own: one.key_shares for own, one in given.items()}, gone), terms.threshold)
        if keys.public_of(private) != by_point[gone].mask_key:
            raise WrongShares
        for point in sorted(survivors):
            seed = keys.pair_seed(private, by_point[point].mask_key, pair_of(terms.context, point, gone))
            seeds.append((seed, sign_of(point, gone)))
    return LeftMasks(tuple(seeds))


def _shares(given: Mapping[int, Mapping[int, bytes]], of: int) -> dict[int, bytes]:
    """Return one client's shares, by the point of who gave them. Raises: WrongShares if one gave none."""
    try:
        return {own: shares[of] for own, shares in given.items()}
    except KeyError:
        raise WrongShares from None

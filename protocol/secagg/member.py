"""A client's part in one round: advertise keys, share secrets, mask its update, and reveal what unmasks the sum alone.

Protocol of figure 4 in the paper, without the signatures of its active variant. A client belongs to one round for its
whole life: another attempt is another ``Member`` with fresh keys, and one that a process lost has dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.secagg import keys, shamir
from protocol.secagg.errors import BelowThreshold, NotForThisRound, SecureSumFailed, WouldUnmask
from protocol.secagg.fixed_point import Words
from protocol.secagg.masks import add_mask
from protocol.secagg.sizes import KEY_BYTES, SHARE_BYTES


@dataclass(frozen=True, slots=True)
class Terms:
    """What all of a round agree on. ``context`` names the task, the round and its attempt, and was never used before.

    ``threshold``: how many clients must be left for their sum to be unmasked.
    """

    context: bytes
    threshold: int

    def check_clients(self, clients: int) -> None:
        """Raises: BelowThreshold; SecureSumFailed if two halves of the clients could each unmask something else."""
        if clients < self.threshold:
            raise BelowThreshold(f"{clients} clients are left, and the threshold is {self.threshold}")
        if 2 * self.threshold <= clients or self.threshold < 2:  # one client is no sum
            raise SecureSumFailed(f"a threshold of {self.threshold} among {clients} clients is no majority of them")


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A client's public keys of a round, with a commitment to its own mask's secret. ``point``: its number, from 1."""

    point: int
    cipher_key: bytes
    mask_key: bytes
    commitment: bytes


@dataclass(frozen=True, slots=True)
class Reveal:
    """The shares that one client gives: of own masks' secrets of survivors, of mask keys of those who dropped out."""

    point: int
    self_shares: Mapping[int, bytes] = field(repr=False)
    key_shares: Mapping[int, bytes] = field(repr=False)


class Member:
    """One client in one round; each step once, in the order of the methods."""

    def __init__(self, terms: Terms, point: int, draw: shamir.Draw) -> None:
        """``draw``: ``secrets.token_bytes``; called for the keys, and for the shares' polynomials."""
        self._terms = terms
        self._point = point
        self._draw = draw
        self._cipher_private = draw(KEY_BYTES)
        self._mask_private = draw(KEY_BYTES)
        self._self_secret = draw(shamir.SECRET_BYTES)
        self._advertised: dict[int, Advertisement] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        """Shares of each sharer's own mask's secret and mask key."""
        self._seeds: list[tuple[bytes, int]] = []
        self._masked_words = 0
        self._survivors: frozenset[int] | None = None

    def advertise(self) -> Advertisement:
        """Return what the others need of this client."""
        context = self._terms.context
        return Advertisement(
            self._point,
            keys.public_of(self._cipher_private),
            keys.public_of(self._mask_private),
            keys.commitment(self._self_secret, context),
        )

    def share_out(self, advertised: Sequence[Advertisement]) -> dict[int, bytes]:
        """Return, for each other client of the round, the sealed shares that are its own, by point.

        Raises: BelowThreshold, SecureSumFailed, NotForThisRound; WouldUnmask for a second list.
        """
        if self._advertised:
            raise WouldUnmask("this client has shared its secrets of the round")
        self._terms.check_clients(len(advertised))
        by_point = {one.point: one for one in advertised}
        public = {key for one in advertised for key in (one.cipher_key, one.mask_key)}
        if by_point.get(self._point) != self.advertise() or len(public) < 2 * len(advertised) or min(by_point) < 1:
            raise NotForThisRound("the list of the round's keys is not the one that its clients advertised")
        points, threshold = sorted(by_point), self._terms.threshold
        self._advertised = by_point
        of_self = shamir.share(self._self_secret, points, threshold, self._draw)
        of_key = shamir.share(self._mask_private, points, threshold, self._draw)
        self._held[self._point] = of_self[self._point], of_key[self._point]
        return {
            point: keys.seal(
                of_self[point] + of_key[point],
                self._cipher_private,
                by_point[point].cipher_key,
                names_of(self._terms.context, self._point, point),
            )
            for point in points
            if point != self._point
        }

    def take_shares(self, sealed: Mapping[int, bytes]) -> None:
        """Take the shares of all who shared, by point: with these, and with no others, masks are agreed on.

        Raises: BelowThreshold, NotForThisRound; WouldUnmask for a second set.
        """
        if self._seeds:
            raise WouldUnmask("this client has agreed on masks of the round")
        others = sealed.keys() - {self._point}
        if not self._advertised or not others <= self._advertised.keys():
            raise NotForThisRound("shares came of clients that advertised no keys")
        self._terms.check_clients(len(others) + 1)
        for point in others:
            theirs = self._advertised[point]
            names = names_of(self._terms.context, point, self._point)
            opened = keys.open_sealed(sealed[point], self._cipher_private, theirs.cipher_key, names)
            self._held[point] = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            seed = keys.pair_seed(self._mask_private, theirs.mask_key, pair_of(self._terms.context, self._point, point))
            self._seeds.append((seed, sign_of(self._point, point)))
        self._seeds.append((keys.self_seed(self._self_secret, self._terms.context), 1))

    def mask(self, words: Words) -> None:
        """Mask the next words of the update, in place. Raises: NotForThisRound before ``take_shares``.

        No word of the masks is used twice: the difference of two updates under one is no secret. So what was masked
        is kept, and sent again as it is.
        """
        if not self._seeds:
            raise NotForThisRound("there are no masks before the shares have come")
        for seed, sign in self._seeds:
            add_mask(words, seed, self._masked_words, sign)
        self._masked_words += len(words)

    def reveal(self, survivors: frozenset[int]) -> Reveal:
        """Return the shares that unmask the sum over the survivors.

        Of each client either the own mask's secret or the mask key is revealed, and never both: so there is one answer
        in the life of a round, which may be given again.
        Raises: BelowThreshold, NotForThisRound; WouldUnmask for other survivors than before.
        """
        if self._survivors is not None and survivors != self._survivors:
            raise WouldUnmask("this client has revealed its shares for other survivors of the round")
        if not self._seeds or not survivors <= self._held.keys() or self._point not in survivors:
            raise NotForThisRound("the survivors are not some of those with whom this client agreed on masks")
        if len(survivors) < self._terms.threshold:
            raise BelowThreshold(f"{len(survivors)} clients are left, and the threshold is {self._terms.threshold}")
        self._survivors = survivors
        return Reveal(
            self._point,
            {point: self._held[point][0] for point in survivors},
            {point: self._held[point][1] for point in self._held.keys() - survivors},
        )


def sign_of(own: int, other: int) -> int:
    """Return with which sign a client counts the mask that it has with another: the other one's is the opposite."""
    return 1 if own < other else -1


def pair_of(context: bytes, one: int, other: int) -> bytes:
    """Return the name of a pair in a round, which is the same from both sides."""
    return context + b"/%d/%d" % (min(one, other), max(one, other))


def names_of(context: bytes, sender: int, receiver: int) -> bytes:
    """Return the name of a message in a round."""
    return context + b"/from %d to %d" % (sender, receiver)

"""From messages to the method and back: what ``protocol.secure_messages`` carries, as ``Member`` and server have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocol.secagg.fixed_point import FixedPoint
from protocol.secagg.member import Advertisement, Reveal, Terms
from protocol.secagg.unmasking import LeftMasks, left_masks
from protocol.secure_messages import BareShare, KeysAt, PublicKeys, Revealed, SealedShare, SecureTerms, Unmasking


def terms_of(task_id: str, round_number: int, told: SecureTerms) -> Terms:
    """Return what the clients of an attempt of a round agree on."""
    return Terms(b"%s/%d/%d" % (task_id.encode(), round_number, told.attempt), told.threshold)


def grid_of(told: SecureTerms) -> FixedPoint:
    """Return how updates are written as integers. Raises: SecureSumFailed if the bits are too few."""
    return FixedPoint(told.clip, told.most_samples, told.bits)


def keys_of(advertised: Advertisement) -> PublicKeys:
    """Return what a client advertises, without its point: that follows from its part."""
    return PublicKeys(cipher_key=advertised.cipher_key, mask_key=advertised.mask_key, commitment=advertised.commitment)


def advertisements(told: Iterable[KeysAt]) -> list[Advertisement]:
    """Return what all clients of a round advertised."""
    return [Advertisement(one.point, one.keys.cipher_key, one.keys.mask_key, one.keys.commitment) for one in told]


def sealed_shares(shares: Mapping[int, bytes]) -> tuple[SealedShare, ...]:
    """Return what one client shares with the others, by point, as a message has it."""
    return tuple(SealedShare(point=point, sealed=sealed) for point, sealed in shares.items())


def bare_shares(shares: Mapping[int, bytes]) -> tuple[BareShare, ...]:
    """Return shares, by the point of whose secret they are of, as a message has them."""
    return tuple(BareShare(point=point, share=share) for point, share in shares.items())


def masks_left(task_id: str, round_number: int, told: Unmasking) -> LeftMasks:
    """Return what is still on the survivors' sum. Raises: as ``left_masks``."""
    return left_masks(
        terms_of(task_id, round_number, told.terms),
        advertisements(told.advertised),
        told.sharers,
        told.survivors,
        [_reveal_of(point, one) for point, one in sorted(told.revealed.items())],
    )


def _reveal_of(point: int, told: Revealed) -> Reveal:
    return Reveal(
        point,
        {one.point: one.share for one in told.self_shares},
        {one.point: one.share for one in told.key_shares},
    )

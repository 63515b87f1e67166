"""What a client and the server say to each other for a secure sum, beside what every assignment has.

Direction is written as in ``protocol.messages``, whose union these belong to. A client's *point* in a round is one more
than the place of its part there: it names the client to the others, and is where its shares are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from protocol.bounds import Id, Natural, Positive, Threshold
from protocol.frozen import Frozen
from protocol.recipe import Recipe
from protocol.secagg.sizes import KEY_BYTES, SEALED_BYTES, SHARE_BYTES
from protocol.secure_aggregation import MOST_CLIENTS, Bits, most_samples

_Key = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Sealed = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
_Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]


class SecureTerms(Frozen):
    """What an offer says where its round is a secure sum. ``attempt`` numbers the round's openings: keys are of one.

    ``threshold``: how many clients must be left for their sum to be unmasked. The rest is the grid of the sum.
    """

    attempt: Natural
    threshold: Positive
    clip: Threshold
    bits: Bits
    most_samples: Positive


def secure_terms(recipe: Recipe, attempt: int, threshold: int) -> SecureTerms:
    """Return the terms of an attempt of a round of this recipe."""
    return SecureTerms(
        attempt=attempt,
        threshold=threshold,
        clip=recipe.secure_clip,
        bits=recipe.secure_bits,
        most_samples=most_samples(recipe),
    )


class PublicKeys(Frozen):
    """A client's public keys of one round, and the commitment to the secret of its own mask."""

    cipher_key: _Key
    mask_key: _Key
    commitment: _Key


class KeysAt(Frozen):
    """Whose keys they are, by its point."""

    point: Positive
    keys: PublicKeys


class SealedShare(Frozen):
    """What one client shares with another, which alone can read it. ``point``: the other one's, whoever reads this."""

    point: Positive
    sealed: _Sealed


class BareShare(Frozen):
    """A share of a secret of the client at a point."""

    point: Positive
    share: _Share


class RoundKeys(Frozen):
    """S: the keys of all clients of the round. Answered by ``SealedShares``."""

    type: Literal["round_keys"] = "round_keys"
    assignment_id: Id
    fence: Natural
    advertised: tuple[KeysAt, ...] = Field(max_length=MOST_CLIENTS)


class SealedShares(Frozen):
    """C: shares of this client's secrets, one for each other client of the round, which ``point`` names."""

    type: Literal["sealed_shares"] = "sealed_shares"
    assignment_id: Id
    fence: Natural
    shares: tuple[SealedShare, ...] = Field(max_length=MOST_CLIENTS)


class PeerShares(Frozen):
    """S: what the others share with this client; ``point`` names who does. With these it agrees on masks. No answer."""

    type: Literal["peer_shares"] = "peer_shares"
    assignment_id: Id
    fence: Natural
    shares: tuple[SealedShare, ...] = Field(max_length=MOST_CLIENTS)


class Survivors(Frozen):
    """S: whose masked updates are in the sum, by point. Answered by ``Revealed``, by those that still can."""

    type: Literal["survivors"] = "survivors"
    assignment_id: Id
    fence: Natural
    points: tuple[Positive, ...] = Field(max_length=MOST_CLIENTS)


class Revealed(Frozen):
    """C: shares of the own masks' secrets of survivors, and of the mask keys of those who dropped out."""

    type: Literal["revealed"] = "revealed"
    assignment_id: Id
    fence: Natural
    self_shares: tuple[BareShare, ...] = Field(max_length=MOST_CLIENTS, repr=False)
    key_shares: tuple[BareShare, ...] = Field(max_length=MOST_CLIENTS, repr=False)


@dataclass(frozen=True, slots=True)
class Unmasking:
    """All that the server needs to take the masks off a round's sum; no message. Clients are named by point."""

    terms: SecureTerms
    advertised: tuple[KeysAt, ...]
    sharers: frozenset[int]
    survivors: frozenset[int]
    revealed: Mapping[int, Revealed] = field(repr=False)

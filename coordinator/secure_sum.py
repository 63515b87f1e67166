"""A round whose sum alone the server may learn: what it knows of it, and what it waits for.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4, beside a
synchronous round: clients advertise keys when they accept (``KEYS``), share secrets (``SHARES``), deliver masked
updates (``MASKED``), and those whose updates are here reveal what unmasks their sum (``REVEAL``). Who falls behind in
one of these is not in the next. With fewer than the threshold left the round is given up, and begun again with fresh
keys. The arithmetic is the tensor worker's (``protocol.secagg``): here are only messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from coordinator.in_flight import Lease, StepParts
from coordinator.records import AssignmentRecord
from protocol.recipe import Recipe
from protocol.secure_aggregation import majority
from protocol.secure_messages import KeysAt, PublicKeys, Revealed, SealedShare, SecureTerms, Unmasking, secure_terms


class SecurePhase(Enum):
    """Which of a client's answers the round waits for."""

    KEYS = auto()
    SHARES = auto()
    MASKED = auto()
    REVEAL = auto()


def point_of(record: AssignmentRecord) -> int:
    """Return the number of a client among those of its round: its part's place, from 1 on."""
    return record.position + 1


@dataclass(slots=True)
class SecureRound:
    """What the server holds of one attempt of a round. It is in memory only: a restart abandons the attempt."""

    terms: SecureTerms
    since: float
    """When the present phase began."""
    phase: SecurePhase = SecurePhase.KEYS
    keys: dict[str, PublicKeys] = field(default_factory=dict)
    """By assignment."""
    advertised: tuple[KeysAt, ...] = ()
    shares: dict[int, dict[int, SealedShare]] = field(default_factory=dict)
    """Who sealed what for whom, by point."""
    sharers: frozenset[int] = frozenset()
    survivors: dict[int, Lease] = field(default_factory=dict)
    revealed: dict[int, Revealed] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    """Over which connection a client was last told of the present phase, by assignment."""
    alone_since: float | None = None
    """Since when only clients that are gone have not delivered."""

    def enter(self, phase: SecurePhase, now: float) -> None:
        """Begin a phase: nobody was told of it."""
        self.phase, self.since, self.alone_since = phase, now, None
        self.told.clear()

    def forgive(self, seconds: float, now: float) -> None:
        """Wait for so much longer: the server itself stood still."""
        self.since = min(self.since + seconds, now)
        if self.alone_since is not None:
            self.alone_since = min(self.alone_since + seconds, now)

    @property
    def points(self) -> frozenset[int]:
        """The clients whose keys are on the list."""
        return frozenset(one.point for one in self.advertised)

    def unmasking(self) -> Unmasking:
        """Return what takes the masks off."""
        return Unmasking(self.terms, self.advertised, self.sharers, frozenset(self.survivors), dict(self.revealed))


def secure_round(recipe: Recipe, attempt: int, parts: int, now: float) -> SecureRound:
    """Return an attempt of a round of so many parts, which begins now."""
    return SecureRound(secure_terms(recipe, attempt, majority(parts)), now)


def agrees_on_keys(secure: SecureRound | None) -> bool:
    """Whether a secure sum still looks for its clients: whoever goes now may be replaced."""
    return secure is not None and secure.phase is SecurePhase.KEYS


def takes_masked(secure: SecureRound, record: AssignmentRecord) -> bool:
    """Whether an update of this assignment is masked with the round's others, and comes in time."""
    return secure.phase is SecurePhase.MASKED and point_of(record) in secure.sharers


def standing(secure: SecureRound, parts: StepParts) -> str:
    """Return in a clause how far the present phase is."""
    match secure.phase:
        case SecurePhase.KEYS:
            return f"keys of {len(secure.keys)} of {parts.count} clients"
        case SecurePhase.SHARES:
            return f"shares of {len(secure.shares)} of {len(secure.points)} clients"
        case SecurePhase.MASKED:
            return f"{len(parts.delivered)} of {len(secure.sharers)} masked updates delivered"
        case SecurePhase.REVEAL:
            return f"{len(secure.revealed)} of {len(secure.survivors)} clients have unmasked the sum"


def for_client(secure: SecureRound, point: int) -> tuple[SealedShare, ...]:
    """Return what all others sealed for a client, each under the name of who did."""
    return tuple(
        secure.shares[sender][point].model_copy(update={"point": sender}) for sender in sorted(secure.sharers - {point})
    )

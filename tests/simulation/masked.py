"""Secure sums in the simulation: real keys, shares and masks over one word, whose sum must be the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.assignments import Assign
from protocol.secagg.member import Member
from protocol.secure_messages import PeerShares, PublicKeys, Revealed, RoundKeys, SealedShares, Survivors, Unmasking
from protocol.secure_wire import advertisements, bare_shares, keys_of, masks_left, sealed_shares, terms_of
from tests.simulation.exact_weights import Update
from tests.simulation.violation import check

_WORD = (1 << 64) - 1


@dataclass(slots=True)
class Masking:
    """A client in one secure sum. ``waiting``: delivers what it computed before its masks were agreed on."""

    assign: Assign
    draw: Callable[[int], bytes]
    member: Member = field(init=False)
    is_agreed: bool = False
    waiting: Callable[[], None] | None = None
    answers: dict[str, tuple[object, SealedShares | Revealed | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the keys."""
        told = self.assign.secure
        if told is None:
            raise ValueError("no secure sum")
        terms = terms_of(self.assign.task.task_id, self.assign.round, told)
        self.member = Member(terms, self.assign.position + 1, self.draw)

    def keys(self) -> PublicKeys:
        """Return what the accept carries."""
        return keys_of(self.member.advertise())

    def answer(self, message: RoundKeys | PeerShares | Survivors) -> SealedShares | Revealed | None:
        """Return the answer, the same to the same message."""
        asked, given = self.answers.get(message.type, (None, None))
        if asked != message:
            given = self._answer(message)
            self.answers[message.type] = (message, given)
        return given

    def _answer(self, message: RoundKeys | PeerShares | Survivors) -> SealedShares | Revealed | None:
        name, fence = self.assign.assignment_id, self.assign.fence
        match message:
            case RoundKeys():
                shares = sealed_shares(self.member.share_out(advertisements(message.advertised)))
                return SealedShares(assignment_id=name, fence=fence, shares=shares)
            case PeerShares():
                self.member.take_shares({one.point: one.sealed for one in message.shares})
                self.is_agreed = True
                return None
            case Survivors():
                told = self.member.reveal(frozenset(message.points))
                both = told.self_shares.keys() & told.key_shares.keys()
                check(not both, f"{name} reveals both secrets of {both}")
                of_self, of_keys = bare_shares(told.self_shares), bare_shares(told.key_shares)
                return Revealed(assignment_id=name, fence=fence, self_shares=of_self, key_shares=of_keys)


def masked_update(update: Update, masking: Masking) -> Update:
    """Return an update as it leaves its client."""
    words = np.array([update.value & _WORD], dtype=np.uint64)
    masking.member.mask(words)
    return replace(update, masked=int(words[0]))


def check_unmasked(task_id: str, round_number: int, updates: Sequence[Update], told: Unmasking | None) -> None:
    """See that what the server can learn is the sum of these updates, and that they are masked till then."""
    masked = [update.masked for update in updates if update.masked is not None]
    check(len(masked) in {0, len(updates)}, f"round {round_number} of {task_id} sums masked updates and others")
    check((told is not None) == bool(masked), f"round {round_number} of {task_id} is not unmasked, or was not masked")
    if told is None:
        return
    total = np.array([sum(masked) & _WORD], dtype=np.uint64)
    masks_left(task_id, round_number, told).take_off(total, 0)
    plain = sum(update.value for update in updates) & _WORD
    check(int(total[0]) == plain, f"round {round_number} of {task_id} is no sum of its updates")

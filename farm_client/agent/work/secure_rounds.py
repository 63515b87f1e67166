"""This client's part in secure sums: what it answers the farm, and the mask on an update before it leaves.

Keys and secrets are in memory only. With the process they are gone, and the client has dropped out: others unmask the
sum without it, and an update that is masked already counts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from farm_client.agent.home.outbox import Parcel
from protocol.assignments import Accept, Ack, Assign, Cancel
from protocol.messages import Message
from protocol.secagg.errors import NotForThisRound, SecureSumFailed, WouldUnmask
from protocol.secure_messages import PeerShares, PublicKeys, Revealed, RoundKeys, SealedShares, SecureTerms, Survivors
from protocol.tasks import BlobRef

if TYPE_CHECKING:
    from protocol.secagg.member import Member

Asked = RoundKeys | PeerShares | Survivors
Answer = SealedShares | Revealed | None


@dataclass(slots=True)
class _Round:
    """One secure sum that this client takes part in, and what it answered to what."""

    assign: Assign
    member: Member
    agreed: asyncio.Future[None]
    """Done when masks are agreed on; with the error where they can't be."""
    is_masked: bool = False
    answers: dict[str, tuple[Asked, Answer]] = field(default_factory=dict)


class SecureRounds:
    """The secure sums of this process, by assignment. On one event loop."""

    def __init__(self) -> None:
        self._rounds: dict[str, _Round] = {}

    def accept(self, assign: Assign) -> Accept:
        """Return how an offer is accepted: with fresh keys, if its round is a secure sum."""
        keys = None if assign.secure is None else self._begin(assign, assign.secure)
        return Accept(assignment_id=assign.assignment_id, fence=assign.fence, keys=keys)

    def take(self, message: Message, post: Callable[[Message], object]) -> None:
        """Act on a message of the farm, so far as it concerns secure sums; ``post`` sends an answer."""
        match message:
            case RoundKeys() | PeerShares() | Survivors():
                if (answer := self.answer(message)) is not None:
                    post(answer)
            case Ack() | Cancel():
                self.forget(message.assignment_id)

    def _begin(self, assign: Assign, told: SecureTerms) -> PublicKeys:
        from protocol.secagg.member import Member  # noqa: PLC0415  # numpy, which no other task needs in the agent
        from protocol.secure_wire import keys_of, terms_of  # noqa: PLC0415

        terms = terms_of(assign.task.task_id, assign.round, told)
        for name in [n for n, x in self._rounds.items() if x.assign.task.task_id == assign.task.task_id]:
            self.forget(name)  # a task has one round at a time, and a client one part of it
        member = Member(terms, assign.position + 1, secrets.token_bytes)
        agreed = asyncio.get_running_loop().create_future()
        self._rounds[assign.assignment_id] = _Round(assign, member, agreed)
        return keys_of(member.advertise())

    def forget(self, assignment_id: str) -> None:
        """The assignment is settled or over: its secrets are of no more use."""
        if (found := self._rounds.pop(assignment_id, None)) is not None and not found.agreed.done():
            found.agreed.cancel()

    def answer(self, asked: Asked) -> Answer:
        """Return what the farm is answered, the same to the same question.

        None: nothing is to be said, or nothing can be; an error of the method ends the assignment, not the agent.
        """
        found = self._rounds.get(asked.assignment_id)
        if found is None or found.assign.fence != asked.fence:
            return None
        if (before := found.answers.get(asked.type)) is not None and before[0] == asked:
            return before[1]
        try:
            given = _answer(found, asked)
        except SecureSumFailed as error:
            if not found.agreed.done():
                found.agreed.set_exception(error)
                found.agreed.exception()  # it is raised where the masks are waited for, if anywhere
            return None
        found.answers[asked.type] = (asked, given)
        return given

    async def masked(self, assign: Assign, parcel: Parcel) -> Parcel:
        """Wait for the masks of the round and put them on the update; returns the parcel as it may leave.

        The file of the plain update is gone then, also where this is cancelled or raises.
        Raises: SecureSumFailed if there will be none, or an update was masked before; MalformedTensors; OSError.
        """
        try:
            return await self._with_masks(assign, parcel)
        finally:
            if parcel.path is not None:
                parcel.path.unlink(missing_ok=True)

    async def _with_masks(self, assign: Assign, parcel: Parcel) -> Parcel:
        found, update = self._rounds.get(assign.assignment_id), parcel.result.update
        if found is None or assign.secure is None or update is None:
            raise NotForThisRound("the keys of this round are gone with the process that had them")
        await asyncio.shield(found.agreed)
        if found.is_masked:
            raise WouldUnmask("an update of this round was masked before")
        found.is_masked = True
        source = parcel.path if update.carried is None else update.carried
        if source is None:
            raise NotForThisRound(f"the update of {assign.assignment_id} is neither in its result nor in a file")
        masked, path = await asyncio.to_thread(_masked, source, assign, found.member)
        return Parcel(parcel.result.model_copy(update={"update": masked}), parcel.round, path)


def _answer(found: _Round, asked: Asked) -> Answer:
    from protocol.secure_wire import advertisements, bare_shares, sealed_shares  # noqa: PLC0415  # as in ``_begin``

    name, fence, member = asked.assignment_id, asked.fence, found.member
    match asked:
        case RoundKeys():
            shares = sealed_shares(member.share_out(advertisements(asked.advertised)))
            return SealedShares(assignment_id=name, fence=fence, shares=shares)
        case PeerShares():
            member.take_shares({one.point: one.sealed for one in asked.shares})
            if not found.agreed.done():
                found.agreed.set_result(None)
            return None
        case Survivors():
            told = member.reveal(frozenset(asked.points))
            of_self, of_keys = bare_shares(told.self_shares), bare_shares(told.key_shares)
            return Revealed(assignment_id=name, fence=fence, self_shares=of_self, key_shares=of_keys)


def _masked(source: bytes | Path, assign: Assign, member: Member) -> tuple[BlobRef, Path | None]:
    """Return the masked update: with its bytes where it was small, else in a file in the place of the plain one."""
    from farm_client.agent.work.masked_update import write_masked  # noqa: PLC0415  # as in ``_begin``

    if assign.secure is None:
        raise NotForThisRound("the round is no secure sum")
    if isinstance(source, bytes):
        target = BytesIO()
        digest = write_masked(source, target, assign.secure, assign.samples, member)
        return BlobRef.carrying(target.getvalue(), digest), None
    path = source.with_suffix(".masked")
    try:
        with path.open("wb") as file:
            digest = write_masked(source, file, assign.secure, assign.samples, member)
            size_bytes = file.tell()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return BlobRef(digest=digest, size_bytes=size_bytes), path

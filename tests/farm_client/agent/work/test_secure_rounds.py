"""A client's part in secure sums: what it answers once and again, what it refuses, and when its keys are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from farm_client.agent.home.outbox import Parcel
from farm_client.agent.work.secure_rounds import SecureRounds
from protocol.assignments import Ack, Assign, Cancel, Kind, Result, Slice
from protocol.digests import digest_bytes
from protocol.masked_layout import MASKED_FORMAT
from protocol.messages import Message
from protocol.secagg.errors import BelowThreshold, NotForThisRound, SecureSumFailed, WouldUnmask
from protocol.secure_messages import (
    KeysAt,
    PeerShares,
    PublicKeys,
    Revealed,
    RoundKeys,
    SealedShare,
    SealedShares,
    SecureTerms,
    Survivors,
    Unmasking,
)
from protocol.secure_wire import grid_of, masks_left
from protocol.tasks import BlobRef, Shard
from protocol.tensors import UPDATE_METADATA
from tests.protocol.samples import BLOB, BRIEF

POINTS = (1, 2, 3)
SAMPLES = 8


def offer(point: int, attempt: int = 0, task_id: str = "task") -> Assign:
    """Return the offer of a part of a round of three clients."""
    return Assign(
        assignment_id=f"{task_id}-a{attempt}-{point}",
        fence=10 * attempt + point,
        kind=Kind.TRAIN,
        task=BRIEF.model_copy(update={"task_id": task_id}),
        round=0,
        epoch=0,
        weights=BLOB,
        slices=(Slice(shard=Shard(index=0, samples=100, blob=BLOB), start=0, stop=SAMPLES),),
        position=point - 1,
        lease_seconds=30.0,
        secure=SecureTerms(attempt=attempt, threshold=2, clip=1.0, bits=32, most_samples=3 * SAMPLES),
    )


class Clients:
    """Three clients of one attempt of a round, each with its own ``SecureRounds``."""

    def __init__(self, attempt: int = 0, rounds: Sequence[SecureRounds] = ()) -> None:
        self.offers = {point: offer(point, attempt) for point in POINTS}
        self.rounds = dict(zip(POINTS, rounds or [SecureRounds() for _ in POINTS], strict=True))
        accepted = {point: self.rounds[point].accept(assign) for point, assign in self.offers.items()}
        self.keys = {point: one.keys for point, one in accepted.items() if one.keys is not None}
        self.advertised = tuple(KeysAt(point=point, keys=keys) for point, keys in self.keys.items())

    def named(self, point: int) -> dict[str, Any]:
        return {"assignment_id": self.offers[point].assignment_id, "fence": self.offers[point].fence}

    def asked(self, point: int) -> RoundKeys:
        return RoundKeys(**self.named(point), advertised=self.advertised)

    def share(self) -> dict[int, SealedShares]:
        sealed = {}
        for point in POINTS:
            answer = self.rounds[point].answer(self.asked(point))
            assert isinstance(answer, SealedShares)
            sealed[point] = answer
        return sealed

    def peer_shares(self, point: int, sealed: dict[int, SealedShares]) -> PeerShares:
        told = tuple(
            one.model_copy(update={"point": sender})
            for sender, given in sealed.items()
            for one in given.shares
            if one.point == point
        )
        return PeerShares(**self.named(point), shares=told)

    def agree(self) -> None:
        sealed = self.share()
        for point in POINTS:
            assert self.rounds[point].answer(self.peer_shares(point, sealed)) is None

    def survivors(self, point: int, *points: int) -> Survivors:
        return Survivors(**self.named(point), points=points)


def parcel(assign: Assign, tensors: dict[str, np.ndarray], path: Path | None = None) -> Parcel:
    """Return a plain result: with its update in itself, or in a file."""
    data = save(tensors, dict(UPDATE_METADATA))
    update = BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=None if path else data)
    if path is not None:
        path.write_bytes(data)
    result = Result(assignment_id=assign.assignment_id, fence=assign.fence, samples=SAMPLES, metrics={}, update=update)
    return Parcel(result, assign.round, path)


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def tensors(point: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(point)
    return {"b": rng.uniform(-1, 1, 5).astype("f4"), "a": rng.uniform(-1, 1, (3, 4)).astype("f4")}


async def test_a_task_whose_sums_are_not_secret_is_accepted_without_keys() -> None:
    accepted = SecureRounds().accept(offer(1).model_copy(update={"secure": None}))
    assert (accepted.assignment_id, accepted.fence, accepted.keys) == ("task-a0-1", 1, None)


async def test_keys_are_of_one_offer() -> None:
    one, another = Clients(), Clients()
    drawn = {key for clients in (one, another) for keys in clients.keys.values() for key in keys.model_dump().values()}
    assert len(drawn) == 2 * len(POINTS) * len(PublicKeys.model_fields)


@pytest.mark.parametrize("in_file", [False, True])
async def test_three_clients_leave_a_sum_that_two_of_them_unmask(tmp_path: Path, in_file: bool) -> None:
    clients, words = Clients(), {}
    clients.agree()
    for point in POINTS:
        path = tmp_path / f"{point}.safetensors" if in_file else None
        masked = await clients.rounds[point].masked(
            clients.offers[point], parcel(clients.offers[point], tensors(point), path)
        )
        update = masked.result.update
        assert update is not None
        if masked.path is None:
            assert update.carried is not None
            data = update.carried
        else:
            assert path is not None
            assert not path.exists()  # the plain one is gone
            data = masked.path.read_bytes()
        assert (update.digest, update.size_bytes) == (digest_bytes(data), len(data))
        assert MASKED_FORMAT.encode() in data
        words[point] = np.concatenate([load(data)[name].ravel() for name in "ab"]).view("u4")
    revealed = {point: clients.rounds[point].answer(clients.survivors(point, 1, 3)) for point in (1, 3)}
    told = {point: answer for point, answer in revealed.items() if isinstance(answer, Revealed)}
    terms = clients.offers[1].secure
    assert terms is not None
    total, grid = words[1] + words[3], grid_of(terms)
    unmasking = Unmasking(terms, clients.advertised, frozenset(POINTS), frozenset({1, 3}), told)
    masks_left("task", 0, unmasking).take_off(total, 0)
    plain = sum(grid.encode(np.concatenate([tensors(p)[name].ravel() for name in "ab"]), SAMPLES) for p in (1, 3))
    assert np.array_equal(total, plain)


async def test_the_same_question_gets_the_same_answer() -> None:
    clients = Clients()
    first, second = clients.share(), clients.share()
    assert first == second
    told = clients.peer_shares(1, first)
    mine = clients.rounds[1]
    assert mine.answer(told) is mine.answer(told) is None
    asked = clients.survivors(1, 1, 2)
    revealed = mine.answer(asked)
    assert isinstance(revealed, Revealed)
    assert mine.answer(asked) == revealed
    assert mine.answer(clients.survivors(1, 1, 3)) is None  # for others it would reveal both secrets of 2 and of 3
    assert mine.answer(asked) == revealed


async def test_another_list_of_keys_gets_no_answer() -> None:
    clients, others = Clients(), Clients()
    clients.share()
    swapped = (*clients.advertised[:2], others.advertised[2])
    assert clients.rounds[1].answer(RoundKeys(**clients.named(1), advertised=swapped)) is None


@pytest.mark.parametrize("change", [{"fence": 99}, {"assignment_id": "another"}])
async def test_what_is_of_another_lease_gets_no_answer(change: dict[str, Any]) -> None:
    clients = Clients()
    assert clients.rounds[1].answer(clients.asked(1).model_copy(update=change)) is None
    clients.agree()  # and was no question


async def test_another_attempt_of_the_round_has_fresh_keys_and_the_old_ones_are_thrown_away() -> None:
    old = Clients()
    old.agree()
    new = Clients(1, list(old.rounds.values()))
    assert not set(old.keys.values()) & set(new.keys.values())
    assert old.rounds[1].answer(old.survivors(1, 1, 2)) is None
    with pytest.raises(NotForThisRound, match="gone"):
        await old.rounds[1].masked(old.offers[1], parcel(old.offers[1], tensors(1)))
    new.agree()


async def test_a_round_of_another_task_leaves_the_keys_alone() -> None:
    clients = Clients()
    clients.rounds[1].accept(offer(2, task_id="other"))
    clients.agree()


async def test_a_process_without_the_keys_has_dropped_out() -> None:
    clients, after = Clients(), SecureRounds()
    clients.agree()
    assert after.answer(clients.survivors(1, 1, 2)) is None
    with pytest.raises(NotForThisRound, match="gone with the process"):
        await after.masked(clients.offers[1], parcel(clients.offers[1], tensors(1)))


async def test_an_update_is_masked_once() -> None:
    clients = Clients()
    clients.agree()
    await clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1)))
    with pytest.raises(WouldUnmask):
        await clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(2)))


async def test_an_update_waits_for_its_masks() -> None:
    clients = Clients()
    sealed = clients.share()
    waits = asyncio.ensure_future(clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1))))
    await asyncio.sleep(0)
    assert not waits.done()
    clients.rounds[1].answer(clients.peer_shares(1, sealed))
    assert (await waits).result.update is not None


@pytest.mark.parametrize("ended", [Ack, Cancel])
async def test_who_waits_for_masks_is_let_go_when_the_assignment_is_over(ended: type[Ack | Cancel]) -> None:
    clients, posted = Clients(), list[Message]()
    waits = asyncio.ensure_future(clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1))))
    await asyncio.sleep(0)
    more = {"counted": True} if ended is Ack else {"reason": "cancelled"}
    clients.rounds[1].take(ended.model_validate(clients.named(1) | more), posted.append)
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert clients.rounds[1].answer(clients.asked(1)) is None
    assert posted == []


async def test_answers_are_posted_and_nothing_is_where_there_is_none() -> None:
    clients, posted = Clients(), list[Message]()
    for message in (clients.asked(1), clients.survivors(1, 1, 2), Cancel(assignment_id="no", fence=1, reason="")):
        clients.rounds[1].take(message, posted.append)
    assert [type(message) for message in posted] == [SealedShares]


async def test_where_no_masks_can_be_agreed_on_the_update_does_not_leave() -> None:
    clients = Clients()
    sealed = clients.share()
    told = clients.peer_shares(1, sealed)
    few = told.model_copy(update={"shares": ()})
    assert clients.rounds[1].answer(few) is None
    with pytest.raises(BelowThreshold):
        await clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1)))
    assert clients.rounds[1].answer(told) is None  # too late: the error stands
    with pytest.raises(BelowThreshold):
        await clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1)))


async def test_altered_shares_end_it() -> None:
    clients = Clients()
    told = clients.peer_shares(1, clients.share())
    bad = SealedShare(point=told.shares[0].point, sealed=bytes(len(told.shares[0].sealed)))
    clients.rounds[1].answer(told.model_copy(update={"shares": (bad, *told.shares[1:])}))
    with pytest.raises(NotForThisRound):
        await clients.rounds[1].masked(clients.offers[1], parcel(clients.offers[1], tensors(1)))


async def test_a_result_without_an_update_cannot_be_masked() -> None:
    clients = Clients()
    clients.agree()
    plain = parcel(clients.offers[1], tensors(1))
    bare = Parcel(plain.result.model_copy(update={"update": None}), 0)
    with pytest.raises(NotForThisRound):
        await clients.rounds[1].masked(clients.offers[1], bare)
    nowhere = Parcel(plain.result.model_copy(update={"update": BLOB.model_copy(update={"inline": None})}), 0)
    with pytest.raises(NotForThisRound, match="neither in its result nor in a file"):
        await clients.rounds[1].masked(clients.offers[1], nowhere)


@pytest.mark.parametrize("why", ["no masks", "no numbers", "over"])
async def test_no_update_in_a_file_stays_whatever_becomes_of_it(tmp_path: Path, why: str) -> None:
    clients = Clients()
    values = tensors(1) if why != "no numbers" else {"a": np.full(3, np.nan, dtype="f4")}
    plain = parcel(clients.offers[1], values, tmp_path / "0")
    if why == "no numbers":
        clients.agree()
    else:
        clients.rounds[1].answer(clients.peer_shares(1, clients.share()).model_copy(update={"shares": ()}))
    if why == "over":
        clients.rounds[1].forget(clients.offers[1].assignment_id)
    with pytest.raises(SecureSumFailed):
        await clients.rounds[1].masked(clients.offers[1], plain)
    assert left(tmp_path) == []

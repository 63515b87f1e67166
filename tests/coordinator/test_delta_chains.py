"""Which differences between versions a client gets, by hand-made chains: the shortest that leads where it must."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.commands import Command, DropUpdate
from coordinator.deltas import cheapest_chain, forget_deltas, holds_present, keep_delta, version_digest
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef, WeightsDelta
from tests.storage import records as a

CODEC = CodecSpec(name=CodecName.INT8)


def name(version: int) -> str:
    return digest_bytes(b"version %d" % version)


def step(to: int, size_bytes: int = 10) -> WeightsDelta:
    """Make the difference from one version to the next."""
    blob = BlobRef(digest=digest_bytes(b"step %d" % to), size_bytes=size_bytes)
    return WeightsDelta(base=name(to - 1), digest=name(to), blob=blob, codec=CODEC)


class StandInTurn:
    """Keeps the commands."""

    def __init__(self) -> None:
        self.done: list[Command] = []

    def do(self, command: Command) -> None:
        self.done.append(command)

    @property
    def dropped(self) -> list[str]:
        return [command.update.digest for command in self.done if isinstance(command, DropUpdate)]


class StandInRun:
    """What the rules about differences look at of a task."""

    def __init__(self, version: int, refresh_every: int = 8, whole_bytes: int = 1000) -> None:
        spec = a.spec()
        recipe = spec.recipe.model_copy(update={"refresh_every": refresh_every})
        self.record = a.task(version=version, spec=spec.model_copy(update={"recipe": recipe}))
        self.task_id = self.record.task_id
        weights = BlobRef(digest=name(version), size_bytes=whole_bytes)
        self.checkpoint = a.checkpoint(round=version, weights=weights)
        self.deltas: list[WeightsDelta] = []


class StandInClient:
    """What they look at of a client."""

    def __init__(self, version: int | None = None, cached: tuple[int, ...] = ()) -> None:
        self.versions = {} if version is None else {"t1": name(version)}
        self.cached = {name(one) for one in cached}


def run_at(version: int, since: int = 0, **options: int) -> TaskRun:
    """Make a task at a version, with every step since another one."""
    run = StandInRun(version, **options)
    run.deltas = [step(to) for to in range(since + 1, version + 1)]
    return cast("TaskRun", run)


def client(version: int | None = None, cached: tuple[int, ...] = ()) -> ClientState:
    return cast("ClientState", StandInClient(version, cached))


def steps_of(chain: tuple[WeightsDelta, ...]) -> list[str]:
    return [delta.digest for delta in chain]


class TestCheapestChain:
    """From the version that a client holds to the present one."""

    @pytest.mark.parametrize("held", range(6))
    def test_each_step_since_the_version_it_worked_on(self, held: int) -> None:
        chain = cheapest_chain(run_at(5), client(held))
        assert steps_of(chain) == [name(version) for version in range(held + 1, 6)]

    def test_a_copy_in_its_cache_that_is_newer_is_nearer(self) -> None:
        assert steps_of(cheapest_chain(run_at(5), client(1, cached=(0, 3)))) == [name(4), name(5)]

    @pytest.mark.parametrize("who", [client(), client(cached=(99,)), client(0)], ids=["new", "odd", "too old"])
    def test_who_holds_nothing_that_leads_there_gets_the_whole(self, who: ClientState) -> None:
        assert cheapest_chain(run_at(5, since=2), who) == ()

    @pytest.mark.parametrize(("whole_bytes", "count"), [(31, 3), (30, 0), (21, 0), (20, 0)])
    def test_a_chain_that_is_no_smaller_than_the_whole_is_not_worth_it(self, whole_bytes: int, count: int) -> None:
        assert len(cheapest_chain(run_at(5, whole_bytes=whole_bytes), client(2))) == count

    def test_who_has_the_present_version_needs_nothing(self) -> None:
        run = run_at(5)
        assert holds_present(run, client(5))
        assert cheapest_chain(run, client(5)) == ()
        assert not holds_present(run, client(4))
        assert not holds_present(run, client(cached=(5,)))  # what is in the cache may have gone since it was told

    def test_another_task_s_version_is_none_of_this_one(self) -> None:
        other = StandInClient()
        other.versions = {"another": name(3)}
        assert cheapest_chain(run_at(5), cast("ClientState", other)) == ()

    @given(since=st.integers(0, 6), held=st.integers(0, 8), cached=st.sets(st.integers(0, 8), max_size=4))
    def test_a_chain_begins_with_what_is_held_ends_at_the_present_and_has_no_gap(
        self, since: int, held: int, cached: set[int]
    ) -> None:
        run = run_at(6, since=since)
        chain = cheapest_chain(run, client(held, tuple(cached)))
        if not chain:
            assert held == 6 or not ({held, *cached} & set(range(since, 6)))
            return
        assert chain[0].base in {name(one) for one in (held, *cached)}
        assert chain[-1].digest == run.checkpoint.weights.digest
        assert all(before.digest == after.base for before, after in pairwise(chain))


class TestKeeping:
    """The chain of steps grows with each version, and never beyond the recipe's length."""

    @pytest.mark.parametrize("refresh_every", [1, 3, 8])
    def test_the_oldest_goes_and_its_file_with_it(self, refresh_every: int) -> None:
        run, turn = run_at(0, refresh_every=refresh_every), StandInTurn()
        for version in range(1, 11):
            keep_delta(cast("Turn", turn), run, step(version))
        assert steps_of(tuple(run.deltas)) == [name(v) for v in range(11 - refresh_every, 11)]
        assert turn.dropped == [step(v).blob.digest for v in range(1, 11 - refresh_every)]

    def test_a_version_without_a_step_breaks_the_chain(self) -> None:
        run, turn = run_at(3), StandInTurn()
        keep_delta(cast("Turn", turn), run, None)
        assert run.deltas == []
        assert turn.dropped == [step(v).blob.digest for v in (1, 2, 3)]

    def test_a_step_that_does_not_follow_begins_a_new_chain(self) -> None:
        run, turn = run_at(3), StandInTurn()
        keep_delta(cast("Turn", turn), run, step(7))
        assert steps_of(tuple(run.deltas)) == [name(7)]
        assert len(turn.dropped) == 3

    def test_forgetting_drops_each_file_once(self) -> None:
        run, turn = run_at(3), StandInTurn()
        forget_deltas(cast("Turn", turn), run)
        forget_deltas(cast("Turn", turn), run)
        assert len(turn.dropped) == len(set(turn.dropped)) == 3


@pytest.mark.parametrize(("began", "known"), [(5, True), (4, True), (2, True), (1, False), (0, False)])
def test_which_weights_an_assignment_began_with_is_known_as_long_as_the_chain(began: int, known: bool) -> None:
    run = run_at(5, since=2)
    assert version_digest(run, a.assignment(round=began)) == (name(began) if known else "")

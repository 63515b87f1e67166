"""The cheapest way of an assignment's weights to an executor, for every state of message, cache and executor."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.work.weights import Route, choose_route
from protocol.assignments import Assign
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef, WeightsDelta
from tests.protocol.samples import BY_TYPE

SAMPLE = cast("Assign", BY_TYPE["assign"])
INT8 = CodecSpec(name=CodecName.INT8)


def version(number: int) -> str:
    return digest_bytes(b"version %d" % number)


def step(to: int, since: int | None = None) -> WeightsDelta:
    blob = BlobRef(digest=digest_bytes(b"step %d" % to), size_bytes=10)
    return WeightsDelta(base=version(to - 1 if since is None else since), digest=version(to), blob=blob, codec=INT8)


def assign(to: int = 9, deltas: tuple[WeightsDelta, ...] = (), data: bytes | None = None, codec: bool = True) -> Assign:
    weights = BlobRef(digest=version(to), size_bytes=1000)
    if data is not None:
        weights = BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data)
    task = SAMPLE.task.model_copy(update={"weights_codec": INT8 if codec else CodecSpec()})
    return SAMPLE.model_copy(update={"weights": weights, "deltas": deltas, "task": task})


def cached(*numbers: int) -> set[str]:
    return {version(number) for number in numbers}


CHAIN = tuple(step(to) for to in (6, 7, 8, 9))


def test_an_executor_that_holds_them_is_sent_nothing() -> None:
    route = choose_route(assign(), version(9), cached(9).__contains__)
    assert route == Route(must_send=False)
    assert not route.by_file


@pytest.mark.parametrize("codec", [False, True])
def test_what_came_inside_the_message_goes_on_as_it_is_unless_versions_are_kept_as_files(codec: bool) -> None:
    route = choose_route(assign(data=b"small", codec=codec), version(8), cached().__contains__)
    assert route.data == (None if codec else b"small")
    assert route.by_file == codec
    assert route.links == ()


@pytest.mark.parametrize(
    ("here", "count"),
    [
        (cached(), 0),
        (cached(4), 0),
        (cached(5), 4),
        (cached(7), 2),
        (cached(8), 1),
        (cached(5, 8), 1),  # the nearer one
        (cached(9), 0),  # the version itself
        (cached(5, 9), 0),
    ],
    ids=range(8),
)
def test_the_fewest_steps_from_what_is_here(here: set[str], count: int) -> None:
    route = choose_route(assign(deltas=CHAIN), None, here.__contains__)
    assert route.links == CHAIN[len(CHAIN) - count :]
    assert route.must_send
    assert route.by_file


def test_steps_that_failed_once_are_not_taken_again() -> None:
    assert choose_route(assign(deltas=CHAIN), None, cached(8).__contains__, shun_links=True).links == ()


@pytest.mark.parametrize(
    "deltas",
    [
        (step(6), step(8), step(9)),  # a gap
        (step(9), step(8)),  # in the wrong order
        (step(8),),  # it ends elsewhere
        (step(9, since=9),),  # it leads to itself
    ],
    ids=["gap", "order", "end", "loop"],
)
def test_a_chain_that_does_not_lead_there_is_not_taken(deltas: tuple[WeightsDelta, ...]) -> None:
    """The farm says which steps there are; a mistaken one must cost a download, not a wrong model."""
    route = choose_route(assign(deltas=deltas), None, cached(5).__contains__)
    assert route.links == ()
    assert route.by_file


@given(
    deltas=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=6),
    here=st.sets(st.integers(0, 9)),
    held=st.none() | st.integers(0, 9),
)
def test_whatever_the_farm_offers_a_chain_begins_with_what_is_here_and_ends_at_the_weights(
    deltas: list[tuple[int, int]], here: set[int], held: int | None
) -> None:
    offered = tuple(step(to, since) for to, since in deltas)
    route = choose_route(assign(deltas=offered), None if held is None else version(held), cached(*here).__contains__)
    assert route.must_send == (held != 9)
    if route.links:
        assert route.links[0].base in cached(*here)
        assert route.links[-1].digest == version(9)
        assert all(before.digest == after.base for before, after in pairwise(route.links))
        assert 9 not in here
        assert not any(link.base in cached(*here) for link in route.links[1:])

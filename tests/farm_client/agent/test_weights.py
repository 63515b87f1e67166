"""The ways of an assignment's weights to its executor, and what happens where differences are of no use."""

import pytest

from farm_client.agent.weights import choose_route
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.messages import Kind, Phase, Progress, Result
from protocol.tasks import BlobRef, WeightsDelta
from tests.farm_client.agent.scripted_farm import joined

INT8 = CodecSpec(name=CodecName.INT8)


def named(text):
    return digest_bytes(text.encode())


def link(base, digest, data=b"difference"):
    blob = BlobRef(digest=digest_bytes(data), size_bytes=len(data))
    return WeightsDelta(base=named(base), digest=named(digest), codec=INT8, blob=blob)


CHAIN = (link("v1", "v2"), link("v2", "v3"), link("v3", "v4"))


@pytest.fixture
def assign(farm):
    """Weights v4, which follow from v1 by three differences."""

    def make(codec=INT8, inline=None, deltas=CHAIN):
        assign = farm.assign(farm.task().model_copy(update={"weights_codec": codec}))
        weights = BlobRef(digest=named("v4"), size_bytes=2, inline=inline)
        return assign.model_copy(update={"weights": weights, "deltas": deltas})

    return make


def route(assign, *cached, held=None, **options):
    return choose_route(assign, held, {named(version) for version in cached}.__contains__, **options)


async def test_nothing_is_sent_to_who_holds_the_weights(assign):
    assert not route(assign(), held=named("v4")).must_send
    assert not route(assign(inline=b"v4"), held=named("v4")).must_send


async def test_weights_of_a_message_ride_on_unless_versions_are_kept_as_files(assign):
    assert route(assign(codec=CodecSpec(), inline=b"v4")).data == b"v4"
    as_file = route(assign(inline=b"v4"), "v3")
    assert as_file.by_file
    assert as_file.links == ()


async def test_a_version_of_the_cache_needs_no_difference(assign):
    assert route(assign(), "v4", "v3") == route(assign(deltas=()))


async def test_the_shortest_chain_from_what_is_in_the_cache(assign):
    assert route(assign(), "v1", "v3").links == CHAIN[2:]
    assert route(assign(), "v2", "v1", held=named("v1")).links == CHAIN[1:]
    assert route(assign(), "v1").links == CHAIN
    assert route(assign(), "v0").links == ()
    assert route(assign(), "v1", shun_links=True).links == ()


@pytest.mark.parametrize("deltas", [CHAIN[:2], (CHAIN[0], CHAIN[2]), (*CHAIN, link("v4", "v5")), ()])
async def test_a_chain_that_does_not_lead_to_the_weights_is_left_alone(assign, deltas):
    broken = route(assign(deltas=deltas), "v1", "v2")
    assert broken.by_file
    assert broken.links == ()

"""The ways of an assignment's weights to its executor, and what happens where differences are of no use."""

import asyncio
import os

import pytest

from farm_client.agent.work.weights import choose_route
from protocol.assignments import Cancel, Progress, Reject, RejectCode, Result
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef, WeightsDelta
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import gone, until

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


def versioned(farm, **config):
    """A task whose versions are files of the cache."""
    return farm.task(**config).model_copy(update={"weights_codec": INT8})


def following(farm, task, base, *added, inline_links=True, whole=None, round_number=1):
    """Assign weights that follow from ``base`` by appending; the farm has them ``whole`` only if that is given."""
    links, data = [], base
    for each in added:
        ref = farm.store(each)
        inline = each if inline_links else None
        blob = BlobRef(digest=ref.digest, size_bytes=len(each), inline=inline)
        links.append(WeightsDelta(base=digest_bytes(data), digest=digest_bytes(data + each), codec=INT8, blob=blob))
        data += each
    weights = BlobRef(digest=digest_bytes(data), size_bytes=len(data))
    if whole is not None:
        farm.blobs[weights.digest] = whole
    assign = farm.assign(task, round_number=round_number)
    return assign.model_copy(update={"weights": weights, "deltas": tuple(links)})


async def result_of(peer, assign):
    await peer.send(assign)
    while (result := await peer.expect(Result, timeout_seconds=60)).assignment_id != assign.assignment_id:
        await peer.acknowledge(result)  # one that waited in the outbox
    await peer.acknowledge(result)
    return result.update.inline


def lines(peer, stream):
    return [line.text for m in peer.log if isinstance(m, Progress) for line in m.logs if line.stream == stream]


@pytest.mark.parametrize("inline_links", [True, False])
async def test_the_next_version_is_made_from_the_last(farm, start_agent, home, inline_links):
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm)
        assert await result_of(peer, farm.assign(task, weights=b"v1")) == b"v1-shard"
        assert await result_of(peer, following(farm, task, b"v1", b"v2", inline_links=inline_links)) == b"v1v2-shard"
        longer = following(farm, task, b"v1", b"v2", b"v3", b"v4", inline_links=inline_links)
        assert await result_of(peer, longer) == b"v1v2v3v4-shard"
        printed, notes = lines(peer, "stdout"), lines(peer, "agent")
    assert printed.count("rebasing rightly") == 2
    assert notes == []
    kept = {path.name for path in (home / "cache").glob("??/*")}
    assert {digest_bytes(version) for version in (b"v1", b"v1v2", b"v1v2v3v4")} <= kept
    assert digest_bytes(b"v1v2v3") not in kept


@pytest.mark.parametrize("rebasing", ["fail", "wrongly", "die", "link"])
async def test_what_was_not_made_rightly_is_fetched_whole(farm, start_agent, tmp_path, rebasing):
    secret = tmp_path / "secret"
    secret.write_bytes(b"v1v2")
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm, rebasing=rebasing, target=str(secret))
        assert await result_of(peer, farm.assign(task, weights=b"v1")) == b"v1-shard"
        assign = following(farm, task, b"v1", b"v2", whole=b"v1v2")
        assert await result_of(peer, assign) == b"v1v2-shard"
        notes = lines(peer, "agent")
    assert any("fetching them whole" in note for note in notes)
    assert secret.read_bytes() == b"v1v2"


async def test_a_missing_difference_makes_it_fetch_the_weights(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm)
        await result_of(peer, farm.assign(task, weights=b"v1"))
        assign = following(farm, task, b"v1", b"v2", b"v3", inline_links=False, whole=b"v1v2v3")
        del farm.blobs[digest_bytes(b"v3")]
        assert await result_of(peer, assign) == b"v1v2v3-shard"
        printed, notes = lines(peer, "stdout"), lines(peer, "agent")
    assert not any(line.startswith("rebasing") for line in printed)
    assert ["fetching them whole" in note for note in notes] == [True]


async def test_without_the_weights_either_it_is_handed_back(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm, rebasing="wrongly")
        await result_of(peer, farm.assign(task, weights=b"v1"))
        await peer.send(following(farm, task, b"v1", b"v2"))
        assert (await peer.expect(Reject)).code is RejectCode.BLOB_UNAVAILABLE


async def test_a_base_that_was_damaged_meanwhile_is_not_built_on(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm)
        await result_of(peer, farm.assign(task, weights=b"v1"))
        base = next((home / "cache").glob(f"??/{digest_bytes(b'v1')}"))
        base.chmod(0o600)
        base.write_bytes(b"v_")
        assert await result_of(peer, following(farm, task, b"v1", b"v2", whole=b"v1v2")) == b"v1v2-shard"


async def test_two_executors_of_a_task_make_a_version_once(farm, start_agent):
    async with start_agent(slots=2):
        peer = await joined(farm)
        task = versioned(farm)
        for assigns in (
            [farm.assign(task, weights=b"v1") for _ in range(2)],
            [following(farm, task, b"v1", b"v2") for _ in range(2)],
        ):
            for assign in assigns:
                await peer.send(assign)
            for _ in assigns:
                await peer.acknowledge(await peer.expect(Result, timeout_seconds=60))
        printed = lines(peer, "stdout")
    assert printed.count("loading code") == 2
    assert printed.count("rebasing rightly") == 1


async def test_a_stopped_agent_builds_on_the_versions_of_its_last_run(farm, start_agent):
    task = versioned(farm)
    async with start_agent():
        peer = await joined(farm)
        await result_of(peer, farm.assign(task, weights=b"v1"))
    async with start_agent():
        peer = await joined(farm)
        assert await result_of(peer, following(farm, task, b"v1", b"v2")) == b"v1v2-shard"
        assert "rebasing rightly" in lines(peer, "stdout")


async def test_a_cancel_ends_a_rebase(farm, start_agent, tmp_path):
    pid_file = tmp_path / "pid"
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm, rebasing="hang", pid_file=str(pid_file))
        await result_of(peer, farm.assign(task, weights=b"v1"))
        assign = following(farm, task, b"v1", b"v2")
        await peer.send(assign)
        pid = await until(lambda: pid_file.exists() and pid_file.read_text(), longest_seconds=60)
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        await gone(int(pid), longest_seconds=60)


async def test_a_result_instead_of_weights_is_not_heard(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        task = versioned(farm, rebasing="lie")
        await result_of(peer, farm.assign(task, weights=b"v1"))
        assign = following(farm, task, b"v1", b"v2")
        await peer.send(assign)
        await until(lambda: "rebasing lie" in lines(peer, "stdout"), longest_seconds=60)
        await peer.send(Cancel(assignment_id=assign.assignment_id, fence=assign.fence))
        other = farm.task("task2")
        assert await result_of(peer, farm.assign(other)) == b"weights-shard"
    assert [m for m in peer.log if isinstance(m, Result) and m.assignment_id == assign.assignment_id] == []


async def test_what_comes_next_is_fetched_while_it_computes(farm, start_agent, home, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wished = farm.store(b"the next shard")
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(doing="wait", gate=str(gate)))
        await peer.send(assign.model_copy(update={"prefetch": (wished,)}))
        here = home / "cache" / wished.digest[:2] / wished.digest
        await until(here.exists, longest_seconds=60)
        await asyncio.to_thread(gate.write_bytes, b"")
        await peer.acknowledge(await peer.expect(Result, timeout_seconds=60))
    assert here.read_bytes() == b"the next shard"

"""What an agent tells of its link, on a real WebSocket and real blob routes: measured, told once, and told again."""

from __future__ import annotations

from protocol.assignments import Result
from protocol.messages import Heartbeat
from protocol.resources import LinkFigures
from tests.farm_client.agent.scripted_farm import joined

LARGE = b"w" * (1024 * 1024)
"""Enough that its download says how fast the link is."""
LARGE_OVER_A_MINUTE = len(LARGE) / 60
"""A speed that a loaded machine reaches."""


async def told(peer) -> LinkFigures:
    """Return the next figures that a heartbeat brings."""
    while (figures := (await peer.expect(Heartbeat)).load.link) is None:
        continue
    return figures


async def trained(farm, peer, weights: bytes) -> Result:
    await peer.send(farm.assign(farm.task(), weights=weights, inline=False))
    result = await peer.expect(Result)
    await peer.acknowledge(result)
    return result


async def told_speed(peer) -> LinkFigures:
    """Return the first figures with a speed: the round trip may be known before it."""
    while not (figures := await told(peer)).download_bytes_per_second:
        continue
    return figures


async def test_an_agent_that_has_moved_nothing_tells_no_speed(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        for _ in range(3):
            figures = (await peer.expect(Heartbeat)).load.link
            assert figures is None or figures.download_bytes_per_second == figures.upload_bytes_per_second == 0


async def test_a_large_download_is_told_and_a_small_one_is_not(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await trained(farm, peer, b"w" * 5000)
        figures = [beat.load.link for beat in peer.log if isinstance(beat, Heartbeat) and beat.load.link is not None]
        assert not any(one.download_bytes_per_second for one in figures)
        await trained(farm, peer, LARGE)
        assert (await told_speed(peer)).download_bytes_per_second > LARGE_OVER_A_MINUTE


async def test_figures_that_stay_are_told_once_and_again_on_a_new_connection(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await trained(farm, peer, LARGE)
        first = await told_speed(peer)
        while (changed := (await peer.expect(Heartbeat)).load.link) is not None:
            first = changed  # the round trip, which was not known yet or is another; what stays is not told
        await peer.close(1012)
        again = await joined(farm, incarnation=2)
        figures = (await again.expect(Heartbeat)).load.link
        assert figures is not None, "the farm may know nothing of what was told on another connection"
        assert figures.download_bytes_per_second == first.download_bytes_per_second


async def test_figures_have_two_digits_so_that_they_seldom_change(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await trained(farm, peer, LARGE)
        speed = (await told_speed(peer)).download_bytes_per_second
        assert float(f"{speed:.1e}") == speed


async def test_an_upload_is_measured_too(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        result = await trained(farm, peer, LARGE)
        assert result.update.size_bytes > len(LARGE)
        while not (figures := await told(peer)).upload_bytes_per_second:
            continue
        assert figures.upload_bytes_per_second > LARGE_OVER_A_MINUTE

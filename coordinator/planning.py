"""Sizing work to the machines: how a round's samples are parted among clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.records import SampleRange


def shares(samples: int, speeds: Mapping[str, float]) -> dict[str, int]:
    """Part ``samples`` among clients in proportion to their speed, by largest remainder.

    ``speeds``: samples per second by client, each over 0. Clients whose share would be 0 are left out. The result
    is in the order of ``speeds`` and adds up to ``samples``.
    """
    total = sum(speeds.values())
    exact = {client: samples * speed / total for client, speed in speeds.items()}
    parts = {client: int(x) for client, x in exact.items()}
    by_remainder = sorted(exact, key=lambda c: parts[c] - exact[c])
    for client in by_remainder[: samples - sum(parts.values())]:
        parts[client] += 1
    return {client: n for client, n in parts.items() if n > 0}


def cut(ranges: Sequence[SampleRange], sizes: Sequence[int]) -> list[tuple[SampleRange, ...]]:
    """Cut a sequence of ranges into consecutive pieces of ``sizes`` samples; the sizes add up to the whole."""
    pieces: list[tuple[SampleRange, ...]] = []
    queue = list(reversed(ranges))
    for size in sizes:
        piece: list[SampleRange] = []
        missing = size
        while missing:
            head = queue.pop()
            used = min(missing, head.samples)
            piece.append(SampleRange(head.shard, head.start, head.start + used))
            if used < head.samples:
                queue.append(SampleRange(head.shard, head.start + used, head.stop))
            missing -= used
        pieces.append(tuple(piece))
    return pieces


def count_samples(ranges: Sequence[SampleRange]) -> int:
    """Count the samples of all ranges."""
    return sum(r.samples for r in ranges)

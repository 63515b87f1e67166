"""What the farm's links to its clients are like, from what the clients measure: how thin the one that counts is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.rest import ClientView, LinksView


def links_view(clients: Iterable[ClientView]) -> LinksView:
    """Sum up the links of those clients that can take work now.

    A gradients round waits for each of its clients, so the slow ones count; but not the slowest tenth, so that in a
    crowd no single one, be it a modem or a liar, decides.
    """
    links = [client.link for client in clients if client.state == "online"]
    trips = [link.round_trip_seconds for link in links if link.round_trip_seconds > 0]
    down = [link.download_bytes_per_second for link in links if link.download_bytes_per_second > 0]
    up = [link.upload_bytes_per_second for link in links if link.upload_bytes_per_second > 0]
    return LinksView(
        clients=len(links),
        round_trips=len(trips),
        speeds=sum(max(link.download_bytes_per_second, link.upload_bytes_per_second) > 0 for link in links),
        round_trip_seconds=_at_slow_tenth(sorted(trips)),
        download_bytes_per_second=_at_slow_tenth(sorted(down, reverse=True)),
        upload_bytes_per_second=_at_slow_tenth(sorted(up, reverse=True)),
    )


def _at_slow_tenth(fastest_first: Sequence[float]) -> float:
    """Return the last one before the slowest tenth: of fewer than ten that is the slowest. 0 if there is none."""
    return fastest_first[len(fastest_first) - 1 - len(fastest_first) // 10] if fastest_first else 0.0

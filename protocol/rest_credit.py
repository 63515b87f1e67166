"""The leaderboard, as the REST API returns it."""

from __future__ import annotations

from protocol.rest import View


class LeaderView(View):
    """One client, team or task, and what of its work counts. ``rank`` counts from 1, over all pages."""

    rank: int
    key: str
    """The client's or task's id, or the team's name; empty for work for no team."""
    name: str
    """The client's or task's name, as far as the farm knows it still; the team's."""
    assignments: int
    """How many of its assignments rounds contain."""
    samples: int
    measured_samples: int
    """Those of which the FLOPs are known."""
    flops: int
    share: float
    """Of all FLOPs of the list, from 0 to 1; of all samples where no FLOPs are known."""
    first_day: str
    last_day: str
    """Days (UTC) of the first and the last work, such as 2026-11-27."""


class LeaderboardView(View):
    """GET /v1/leaderboard: a page of it, and what the whole list adds up to."""

    by: str
    since_days: int | None
    task_id: str | None
    count: int
    """How many leaders the whole list has."""
    assignments: int
    samples: int
    flops: int
    leaders: tuple[LeaderView, ...]


class CertificateKeyView(View):
    """GET /v1/keys/certificate: the farm's public key (Ed25519), base64 of 32 bytes."""

    public_key: str

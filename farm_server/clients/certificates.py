"""Certificates of contribution: what the ledger has of one client's or team's work, signed with the farm's key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from farm_server.clients.leaderboard import ClientNamer, day_text
from farm_server.environment.clock import Clock
from farm_server.environment.signing_key import SigningKey
from protocol.certificate import MAX_TASKS, Certificate, SignedCertificate, TaskContribution, sign
from protocol.errors import NotFound
from storage.ports.ledger import CreditBy, CreditQuery, LedgerReader


class Certificates:
    """Reads the books, and signs. ``task_names`` gives the names of tasks by id, without those that were removed."""

    def __init__(
        self,
        farm: str,
        ledger: LedgerReader,
        clients: ClientNamer,
        task_names: Callable[[Sequence[str]], Awaitable[dict[str, str]]],
        *,
        key: SigningKey,
        clock: Clock,
    ) -> None:
        self._farm = farm
        self._ledger = ledger
        self._clients = clients
        self._task_names = task_names
        self._key = key
        self._clock = clock

    async def public_key(self) -> str:
        """Return the farm's public key, as certificates have it."""
        return await asyncio.to_thread(self._key.public)

    async def of_client(self, client_id: str) -> SignedCertificate:
        """Return a client's certificate. Raises: NotFound if none of its work counts."""
        query = CreditQuery(CreditBy.CLIENT, client_id=client_id)
        return await self._issued(query, "client", client_id, self._clients.client_name(client_id))

    async def of_team(self, team: str) -> SignedCertificate:
        """Return a team's certificate. Raises: NotFound if no work counts for it."""
        return await self._issued(CreditQuery(CreditBy.TEAM, team=team), "team", team, team)

    async def _issued(self, query: CreditQuery, kind: str, subject: str, name: str) -> SignedCertificate:
        found = [one for one in await self._ledger.credit(query) if subject]
        if not found:
            raise NotFound(
                f"no work of {kind} {subject or '(none)'} counts here; `farm leaderboard --by {kind}` lists whose does"
            )
        [total] = found
        by_task = CreditQuery(CreditBy.TASK, client_id=query.client_id, team=query.team)
        tasks = await self._ledger.credit(by_task)
        names = await self._task_names([one.key for one in tasks[:MAX_TASKS]])
        certificate = Certificate(
            farm=self._farm,
            issued_at=datetime.fromtimestamp(int(self._clock.now()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            kind="team" if kind == "team" else "client",
            subject=subject,
            name=name,
            first_day=day_text(total.first_day),
            last_day=day_text(total.last_day),
            assignments=total.assignments,
            samples=total.samples,
            measured_samples=total.measured_samples,
            flops=total.flops,
            tasks=[
                TaskContribution(
                    task_id=one.key,
                    name=names.get(one.key, ""),
                    assignments=one.assignments,
                    samples=one.samples,
                    flops=one.flops,
                )
                for one in tasks[:MAX_TASKS]
            ],
            more_tasks=max(len(tasks) - MAX_TASKS, 0),
        )
        return await asyncio.to_thread(sign, certificate, self._key.seed)

"""The status page as HTML: bounded, escaped, and rendered at most once a second."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, select_autoescape

from farm_server.clients.leaderboard import LeaderboardPage
from farm_server.http.farm_status import FarmStatus
from protocol.terminal_text import one_line
from protocol.wording import flops_text, sized

_MADE_ANEW_SECONDS: Final = 1.0
_SHOWN: Final = 100
"""The newest so many tasks and clients are shown."""
_TEXT_CHARS: Final = 300
_TASKS_WITH_ROUNDS: Final = 3
_ROUNDS_SHOWN: Final = 8
_LEADERS: Final = LeaderboardPage(since_days=7, limit=5)
_CSS: Final = files("farm_server").joinpath("pages/status.css").read_text(encoding="utf-8")
_CSS_DIGEST: Final = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()

HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_CSS_DIGEST}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Nothing on the page runs, loads or is framed, even if a text came through as HTML."""

_pages = Environment(loader=PackageLoader("farm_server", "pages"), autoescape=select_autoescape(), trim_blocks=True)


def ago(seconds: float) -> str:
    """Return a span of time for people: 5 s, 3 min, 2.5 h."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def shown(text: str) -> str:
    """Return a stranger's text as one line of bounded length, without control characters."""
    line = one_line(text[: 2 * _TEXT_CHARS])
    return line if len(line) <= _TEXT_CHARS else line[: _TEXT_CHARS - 1] + "…"


_pages.filters |= {"size": sized, "flops": flops_text, "ago": ago, "shown": shown}


@dataclass(frozen=True, slots=True)
class _Made:
    html: str
    made_at: float


class PageView:
    """Renders for all readers; while one page is made, other requests for it wait."""

    def __init__(self, status: FarmStatus) -> None:
        self._status = status
        self._made: dict[str, _Made] = {}
        self._making = asyncio.Lock()

    async def full(self, *, by_cookie: bool) -> str:
        """Return the page for who may see everything; ``by_cookie``: and may be forgotten."""
        return await self._page("by cookie" if by_cookie else "by token")

    async def guest(self, refused: str = "") -> str:
        """Return the page for everybody else: counts, health, and the question for the token."""
        if refused:
            return await asyncio.to_thread(_render, "guest.html", await self._counts() | {"refused": refused})
        return await self._page("guest")

    async def _page(self, kind: str) -> str:
        async with self._making:
            now = time.monotonic()
            known = self._made.get(kind)
            if known is None or now - known.made_at >= _MADE_ANEW_SECONDS:
                known = self._made[kind] = _Made(await self._make(kind), now)
            return known.html

    async def _make(self, kind: str) -> str:
        if kind == "guest":
            return await asyncio.to_thread(_render, "guest.html", await self._counts())
        context = await self._everything() | {"by_cookie": kind == "by cookie", "refresh": True}
        return await asyncio.to_thread(_render, "status.html", context)

    def _frame(self) -> dict[str, Any]:
        status = self._status
        now = status.clock.now()
        return {
            "name": status.name,
            "version": version("aifarm"),
            "up_seconds": now - status.started_at,
            "now": now,
            "rendered_at": time.strftime("%H:%M:%S"),
        }

    async def _counts(self) -> dict[str, Any]:
        status = self._status
        states = await status.tasks.counts()
        return self._frame() | {
            "problem": "it can't take new work now; /readyz says why" if status.readiness.not_ready() else None,
            "clients_online": status.clients.online_count(),
            "task_counts": sorted(states.items()),
        }

    async def _everything(self) -> dict[str, Any]:
        status, frame = self._status, self._frame()
        tasks = (await status.tasks.page(_SHOWN)).tasks
        trained = [task for task in tasks if task.started_at is not None][:_TASKS_WITH_ROUNDS]
        return frame | {
            "problem": status.readiness.not_ready(),
            "alarms": status.alarms.newest_first(),
            "tasks": tasks,
            "task_count": sum((await status.tasks.counts()).values()),
            "rounds": [(task, await status.tasks.newest_rounds(task.task_id, _ROUNDS_SHOWN)) for task in trained],
            "clients": status.clients.views(newest=_SHOWN),
            "client_count": status.clients.known_count(),
            "leaders": (await status.leaderboard.page(_LEADERS)).leaders,
        }


def _render(template: str, context: dict[str, Any]) -> str:
    return _pages.get_template(template).render(css=_CSS, **context)

"""The status page at ``/``: plain HTML, rendered here, for anyone who can reach the server."""

from __future__ import annotations

import time
from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape

from farm_server.http.access import FarmDep
from farm_server.http.rounds import newest_rounds

router = APIRouter()

_TASKS_WITH_ROUNDS = 3
_ROUNDS_SHOWN = 8

_pages = Environment(loader=PackageLoader("farm_server", "pages"), autoescape=select_autoescape(), trim_blocks=True)


def size(value: float) -> str:
    """Return bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def ago(seconds: float) -> str:
    """Return a span of time for people: 5 s, 3 min, 2.5 h."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


_pages.filters |= {"size": size, "ago": ago}


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def status_page(farm: FarmDep) -> str:
    """Return tasks, the newest rounds of the newest of them, and clients, as they are now."""
    now = farm.clock.now()
    tasks = farm.coordinator.task_views(now)
    trained = [task for task in tasks if task.started_at is not None][:_TASKS_WITH_ROUNDS]
    rounds = [(task, await newest_rounds(farm, task.task_id, _ROUNDS_SHOWN)) for task in trained]
    return _pages.get_template("status.html").render(
        name=farm.settings.name,
        version=version("aifarm"),
        up_seconds=now - farm.started_at,
        problem=farm.not_ready(),
        alarms=farm.alarms.newest_first(),
        tasks=tasks,
        rounds=rounds,
        clients=farm.coordinator.client_views(now),
        now=now,
        rendered_at=time.strftime("%H:%M:%S"),
    )

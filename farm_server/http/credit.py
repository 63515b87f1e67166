"""Credit: who did how much."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from farm_server.clients.leaderboard import MOST_DAYS, LeaderboardPage
from farm_server.http.access import FARM_TOKEN, LeaderboardDep
from farm_server.http.listing import written
from protocol.bounds import MAX_COUNT
from protocol.rest_credit import LeaderboardView
from storage.ports.ledger import CreditBy

router = APIRouter(prefix="/v1", tags=["farm"], dependencies=FARM_TOKEN)


def _page(
    by: Annotated[CreditBy, Query(description="Whose work is added up.")] = CreditBy.CLIENT,
    since_days: Annotated[
        int | None, Query(ge=0, le=MOST_DAYS, description="Only of today (UTC) and so many days before.")
    ] = None,
    task: Annotated[str | None, Query(max_length=64, description="Only for this task, by its id.")] = None,
    offset: Annotated[int, Query(ge=0, le=MAX_COUNT)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LeaderboardPage:
    return LeaderboardPage(by, since_days, task, offset, limit)


@router.get("/leaderboard", summary="Whose work counts most", response_model=LeaderboardView)
async def leaderboard(
    request: Request, board: LeaderboardDep, page: Annotated[LeaderboardPage, Depends(_page)]
) -> Response:
    """Return a page; if there is more, the `Link` header (`rel="next"`) has the address of what follows."""
    view = await board.page(page)
    answer = written(view)
    if (end := page.offset + len(view.leaders)) < view.count and view.leaders:
        query = urlencode(
            [*((name, value) for name, value in request.query_params.items() if name != "offset"), ("offset", end)]
        )
        answer.headers["link"] = f'<{request.url.path}?{query}>; rel="next"'
    return answer

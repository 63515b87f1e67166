"""Credit: the leaderboard, and certificates of contribution."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from farm_server.clients.leaderboard import MOST_DAYS, LeaderboardPage
from farm_server.http.access import ANY_TOKEN, FARM_TOKEN, CertificatesDep, LeaderboardDep
from farm_server.http.listing import written
from protocol.bounds import MAX_COUNT
from protocol.certificate import SignedCertificate
from protocol.rest_credit import CertificateKeyView, LeaderboardView
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


certificates_router = APIRouter(prefix="/v1", tags=["farm"])


@certificates_router.get(
    "/certificates/clients/{client_id:path}",
    summary="What of a client's work counts, signed by the farm",
    dependencies=ANY_TOKEN,
)
async def client_certificate(client_id: str, certificates: CertificatesDep) -> SignedCertificate:
    """Return it as the file that it is; 404 if none of the client's work counts."""
    return await certificates.of_client(client_id)


@certificates_router.get(
    "/certificates/teams/{team:path}",
    summary="What of a team's work counts, signed by the farm",
    dependencies=ANY_TOKEN,
)
async def team_certificate(team: str, certificates: CertificatesDep) -> SignedCertificate:
    """Return it as the file that it is; 404 if no work counts for the team."""
    return await certificates.of_team(team)


@certificates_router.get("/keys/certificate", summary="The public key that certificates are signed with")
async def certificate_key(certificates: CertificatesDep) -> CertificateKeyView:
    """Return it for everybody: without a token."""
    return CertificateKeyView(public_key=await certificates.public_key())

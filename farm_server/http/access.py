"""Dependencies of the routes: one of the services, and a token of the right role.

The gate has checked the token already, by path; here it stands in the API's description, and a route that the gate does
not know of is not left open.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from farm_server.clients.certificates import Certificates
from farm_server.clients.directory import ClientDirectory
from farm_server.clients.leaderboard import Leaderboard
from farm_server.environment.tokens import TokenRole, Tokens
from farm_server.housekeeping.disk_usage import DiskUsage
from farm_server.http.bulk import Traffic
from farm_server.http.callers import Callers
from farm_server.http.farm_status import FarmStatus
from farm_server.http.services import Services
from farm_server.tasks.commands import TaskCommands
from farm_server.tasks.feeds import Feeds
from farm_server.tasks.queries import TaskQueries
from farm_server.transfers.blob_access import BlobAccess
from farm_server.transfers.uploads import Uploads

_documented = HTTPBearer(auto_error=False, description="Or HTTP Basic with the token as the user name.")


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _tasks(request: Request) -> TaskQueries:
    return _services(request).tasks


def _commands(request: Request) -> TaskCommands:
    return _services(request).commands


def _feeds(request: Request) -> Feeds:
    return _services(request).feeds


def _clients(request: Request) -> ClientDirectory:
    return _services(request).clients


def _leaderboard(request: Request) -> Leaderboard:
    return _services(request).leaderboard


def _certificates(request: Request) -> Certificates:
    return _services(request).certificates


def _blobs(request: Request) -> BlobAccess:
    return _services(request).blobs


def _uploads(request: Request) -> Uploads:
    return _services(request).uploads


def _traffic(request: Request) -> Traffic:
    return _services(request).traffic


def _callers(request: Request) -> Callers:
    return _services(request).callers


def _disk(request: Request) -> DiskUsage:
    return _services(request).disk


def _status(request: Request) -> FarmStatus:
    return _services(request).status


def _tokens(request: Request) -> Tokens:
    return _services(request).tokens


TasksDep = Annotated[TaskQueries, Depends(_tasks)]
CommandsDep = Annotated[TaskCommands, Depends(_commands)]
FeedsDep = Annotated[Feeds, Depends(_feeds)]
ClientsDep = Annotated[ClientDirectory, Depends(_clients)]
CertificatesDep = Annotated[Certificates, Depends(_certificates)]
LeaderboardDep = Annotated[Leaderboard, Depends(_leaderboard)]
BlobsDep = Annotated[BlobAccess, Depends(_blobs)]
UploadsDep = Annotated[Uploads, Depends(_uploads)]
TrafficDep = Annotated[Traffic, Depends(_traffic)]
CallersDep = Annotated[Callers, Depends(_callers)]
DiskUsageDep = Annotated[DiskUsage, Depends(_disk)]
StatusDep = Annotated[FarmStatus, Depends(_status)]
TokensDep = Annotated[Tokens, Depends(_tokens)]


def require_any_token(request: Request, tokens: TokensDep) -> None:
    """Let volunteers and researchers in. Raises: Unauthorized."""
    tokens.require(TokenRole.VOLUNTEER, request.headers.get("authorization"))


def require_farm_token(request: Request, tokens: TokensDep) -> None:
    """Let researchers and operators in. Raises: Unauthorized."""
    tokens.require(TokenRole.RESEARCHER, request.headers.get("authorization"))


ANY_TOKEN = [Depends(_documented), Depends(require_any_token)]
FARM_TOKEN = [Depends(_documented), Depends(require_farm_token)]

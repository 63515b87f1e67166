"""What a route may ask for: the farm, and a token of the right role.

The gate has checked it already, by path; here it stands in the API's description, and a route that the gate does not
know of is not left open.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from farm_server.environment.tokens import Role
from farm_server.farm import Farm

_documented = HTTPBearer(auto_error=False, description="Or HTTP Basic with the token as the user name.")


def get_farm(request: Request) -> Farm:
    """Return the farm that this app serves."""
    farm: Farm = request.app.state.farm
    return farm


FarmDep = Annotated[Farm, Depends(get_farm)]


def require_any_token(request: Request, farm: FarmDep) -> None:
    """Let volunteers and researchers in. Raises: Unauthorized."""
    farm.tokens.require(Role.VOLUNTEER, request.headers.get("authorization"))


def require_farm_token(request: Request, farm: FarmDep) -> None:
    """Let researchers and operators in. Raises: Unauthorized."""
    farm.tokens.require(Role.RESEARCHER, request.headers.get("authorization"))


ANY_TOKEN = [Depends(_documented), Depends(require_any_token)]
FARM_TOKEN = [Depends(_documented), Depends(require_farm_token)]

"""The status page at ``/``: counts without a token, names and errors with the farm token.

A browser sends no bearer token, so the page asks for it in a form and remembers it in a cookie, which holds a proof of
the token and not the token: it opens this page and nothing else, and no other site's page can send it.
"""

from __future__ import annotations

import hashlib
import hmac
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from farm_server.environment.tokens import TokenRole, Tokens
from farm_server.http.access import TokensDep
from farm_server.http.page_view import HEADERS, PageView
from protocol.errors import Unauthorized

router = APIRouter(include_in_schema=False)

COOKIE: Final = "aifarm_page"
_COOKIE_SECONDS: Final = 30 * 24 * 3600


@router.get("/", response_class=HTMLResponse)
async def status_page(request: Request, tokens: TokensDep) -> Response:
    """Return the page that the token, or the cookie, entitles to."""
    view = _view(request)
    if _has_token(request, tokens):
        return HTMLResponse(await view.full(by_cookie=False), headers=HEADERS)
    if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(errors="replace"), _proof(tokens).encode()):
        return HTMLResponse(await view.full(by_cookie=True), headers=HEADERS)
    return HTMLResponse(await view.guest(), headers=HEADERS)


@router.post("/login", response_class=HTMLResponse)
async def login(request: Request, tokens: TokensDep) -> Response:
    """Take the farm token from the form, and remember that it was shown."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    token = form.get("token", [""])[0].strip()
    try:
        tokens.require(TokenRole.RESEARCHER, f"Bearer {token}")
    except Unauthorized:
        refused = "That is not this farm's farm token; `farm-server status` prints it, in FARM_URL before the @."
        return HTMLResponse(await _view(request).guest(refused), HTTPStatus.UNAUTHORIZED, HEADERS)
    answer = RedirectResponse("/", HTTPStatus.SEE_OTHER, HEADERS)
    is_https: bool = request.app.state.is_https
    answer.set_cookie(COOKIE, _proof(tokens), _COOKIE_SECONDS, httponly=True, samesite="strict", secure=is_https)
    return answer


@router.post("/logout", response_class=HTMLResponse)
async def logout() -> Response:
    """Drop the token."""
    answer = RedirectResponse("/", HTTPStatus.SEE_OTHER, HEADERS)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _view(request: Request) -> PageView:
    view: PageView = request.app.state.page
    return view


def _has_token(request: Request, tokens: Tokens) -> bool:
    try:
        tokens.require(TokenRole.RESEARCHER, request.headers.get("authorization"))
    except Unauthorized:
        return False
    return True


def _proof(tokens: Tokens) -> str:
    return hmac.new(tokens.farm.encode(), b"status page", hashlib.sha256).hexdigest()

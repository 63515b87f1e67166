"""The ASGI application: routers, error answers, and the WebSocket."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from farm_server.edge.file_limit import connection_book
from farm_server.edge.guard import Guard
from farm_server.edge.hosts import AllowedHosts
from farm_server.edge.listener import names_of
from farm_server.farm import Farm
from farm_server.http import blobs, errors, feeds, overview, page, room, tasks, uploads
from farm_server.http.gate import Gate, UpgradeGate
from farm_server.http.page_view import PageView


class Application(FastAPI):
    """The routes, and beside them one ASGI application for WebSockets."""

    def __init__(self, websockets: ASGIApp, **options: Any) -> None:
        super().__init__(**options)
        self._websockets = websockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or a connection."""
        if scope["type"] == "websocket":
            await self._websockets(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(farm: Farm) -> FastAPI:
    """Return the application that serves this farm."""
    app = Application(
        websockets=UpgradeGate(farm.tokens, farm.gateway.serve),
        title="AI Farm",
        version=version("aifarm"),
        summary="Train models on machines that volunteers lend.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.farm = farm
    app.state.guard = Guard(connection_book(farm.settings), farm.entrance.refusal)
    errors.install(app)
    app.state.page = PageView(farm)
    hosts = AllowedHosts(names_of(farm.settings))
    app.add_middleware(Gate, tokens=farm.tokens, hosts=hosts, max_body_bytes=farm.settings.max_body_bytes)
    for module in (tasks, feeds, blobs, uploads, overview, page, room):
        app.include_router(module.router)
    for router in (uploads.people_router, overview.watch_router):
        app.include_router(router)
    return app

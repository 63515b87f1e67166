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
from farm_server.http import blobs, credit, errors, feeds, overview, page, tasks, uploads
from farm_server.http.gate import Gate, UpgradeGate
from farm_server.http.page_view import PageView
from farm_server.http.services import Services


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


def create_app(services: Services) -> FastAPI:
    """Return the application that serves a farm by its services."""
    app = Application(
        websockets=UpgradeGate(services.tokens, services.connections.serve),
        title="AI Farm",
        version=version("aifarm"),
        summary="Train models on machines that volunteers lend.",
        docs_url=None,
        redoc_url=None,
    )
    settings = services.settings
    app.state.services = services
    app.state.guard = Guard(connection_book(settings), services.entrance.refusal)
    errors.install(app)
    app.state.page = PageView(services.status)
    app.state.is_https = (settings.public_url or "").startswith("https:")
    hosts = AllowedHosts(names_of(settings))
    app.add_middleware(Gate, tokens=services.tokens, hosts=hosts, max_body_bytes=settings.max_body_bytes)
    for module in (tasks, feeds, blobs, uploads, overview, credit, page):
        app.include_router(module.router)
    for router in (uploads.people_router, overview.watch_router, credit.certificates_router):
        app.include_router(router)
    return app

"""The ASGI application: routers, error answers, and the WebSocket."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, WebSocket

from farm_server.edge.file_limit import connection_book
from farm_server.edge.guard import Guard
from farm_server.edge.hosts import AllowedHosts
from farm_server.edge.listener import names_of
from farm_server.farm import Farm
from farm_server.http import blobs, errors, feeds, overview, page, room, tasks, uploads
from farm_server.http.gate import Gate
from farm_server.http.page_view import PageView


def create_app(farm: Farm) -> FastAPI:
    """Return the application that serves this farm."""
    app = FastAPI(
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

    @app.websocket("/v1/farm")
    async def join(websocket: WebSocket) -> None:
        await farm.gateway.serve(websocket)

    return app

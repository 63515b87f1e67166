from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from farm_server.clients import report_interval
from farm_server.edge.listener import bind, server_info
from farm_server.edge.serving import Serving
from farm_server.environment.data_folder import DataFolder, ServerInfo
from farm_server.environment.settings import ServerSettings
from farm_server.http.app import create_app
from farm_server.server import FarmServer
from tests.farm_server.volunteer import Volunteer


@dataclass
class Running:
    """A server in this process, on a real port."""

    farm: FarmServer
    info: ServerInfo
    http: httpx.AsyncClient
    serving: Serving

    def volunteer(self, client_id: str = "c1", **hello: Any) -> Volunteer:
        return Volunteer(self.websocket_url, self.farm.tokens.join, client_id, **hello)

    @property
    def websocket_url(self) -> str:
        return f"{self.info.url.replace('http', 'ws', 1)}/v1/farm"

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.info.local_url, trust_env=False, timeout=40, **options)


@asynccontextmanager
async def running(root: Path, **settings: Any) -> AsyncIterator[Running]:
    defaults: dict[str, Any] = {"port": 0, "drain_seconds": 0.2, "min_free_bytes": 0, "upload_idle_seconds": 600}
    chosen = ServerSettings(data_dir=root, **defaults | settings)
    folder = DataFolder(root)
    folder.lock()
    listener = bind(chosen.host, 0)
    farm = await FarmServer.open(chosen, folder)
    farm.start()
    await asyncio.to_thread(farm.torch_side.warm_up)  # volunteers here do not beat while they wait
    serving = Serving(create_app(farm.services), listener, chosen)
    await serving.ready()
    info = server_info(chosen, listener, farm.tokens)
    try:
        async with httpx.AsyncClient(base_url=info.farm_url, trust_env=False, timeout=40) as http:
            yield Running(farm, info, http, serving)
    finally:
        await farm.drain("the test is over")
        await serving.stop(force=True)
        await farm.close()
        folder.unlock()


@pytest.fixture
def steady_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the load of the machine that runs the tests change nothing that clients are told."""
    monkeypatch.setattr(report_interval, "LAG_SECONDS", float("inf"))


@pytest.fixture
async def server(tmp_path: Path, steady_pace: None) -> AsyncIterator[Running]:
    async with running(tmp_path) as up:
        yield up


@pytest.fixture
def start(tmp_path: Path, steady_pace: None) -> Callable[..., AbstractAsyncContextManager[Running]]:
    """Start a server with settings of the test's own, as often as it likes, on one folder."""
    return lambda **settings: running(tmp_path, **settings)

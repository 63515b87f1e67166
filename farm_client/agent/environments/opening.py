"""Opens the environments of a home for a running agent, as its settings and its owner's policy say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from farm_client.agent.environments.installer import INSTALL_UV, InstallBounds, find_uv
from farm_client.agent.environments.keeper import EnvironmentKeeper, KeeperParts
from farm_client.agent.environments.store import EnvironmentStore
from farm_client.agent.settings import AgentSettings


@asynccontextmanager
async def open_environments(
    root: Path,
    settings: AgentSettings,
    allows: Callable[[], bool],
    note: Callable[[str], None],
    *,
    in_use: Callable[[], Collection[Path]],
    rests: Callable[[], str | None] = lambda: None,
) -> AsyncIterator[EnvironmentKeeper]:
    """Keep the environments in a folder for the length of a block; what is being installed at its end is given up.

    ``allows``: whether the owner lets packages be installed now. ``in_use``: folders of packages that executors have on
    their path. ``rests``: why the owner wants nothing done now.
    """
    store = EnvironmentStore(root, settings.environment_bytes, lambda: {packages.parent.name for packages in in_use()})
    await asyncio.to_thread(store.clear_up)
    if allows() and find_uv() is None:
        note(f"tasks' packages can't be installed: {INSTALL_UV}")
    bounds = InstallBounds(settings.install_seconds, settings.environment_bytes)
    keeper = EnvironmentKeeper(store, KeeperParts(allows, bounds, settings.package_index, note, rests))
    try:
        yield keeper
    finally:
        await keeper.close()

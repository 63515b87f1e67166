"""Who lends to whom on this machine: the agent in ``host_home`` has the blobs, the others ask it first."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.settings import AgentSettings
from farm_client.agent.sharing.borrower import HostBlobs
from farm_client.agent.sharing.lender import BlobLender


def shared_blobs(home: HomeFolder, settings: AgentSettings) -> HostBlobs | None:
    """Return whom an agent asks before it downloads a blob; nobody, if it is the host's own or shares nothing."""
    host = HomeFolder(settings.host_home.absolute())
    return HostBlobs(host.blobs_socket) if settings.share and host != home else None


def lending(cache: BlobCache, home: HomeFolder, settings: AgentSettings) -> AbstractAsyncContextManager[object]:
    """Lend an agent's blobs while the context lasts, unless it shares nothing."""
    if not settings.share:
        return nullcontext()
    return BlobLender(cache, home.blobs_socket, settings.cache_bytes).open()

"""How the weights of an assignment get to its executor.

Held there from the last round, inside the message, or as a file of the cache, which every executor of the task maps
read-only. Under a ``weights_codec`` each version is kept as such a file, because the next one may come as its
difference to it: then the executor, which has a tensor library, writes the new file from the old one, and the agent
takes it in only if it hashes to the version's name. Whatever goes wrong on that way, the whole version is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.errors import ExecutorDied
from farm_client.agent.executors.executor import Executor
from farm_client.executor.messages import Difference
from protocol.assignments import Assign
from protocol.compression import CodecName
from protocol.errors import DigestMismatch, FarmError
from protocol.tasks import BlobRef, WeightsDelta

Locks = WeakValueDictionary[str, asyncio.Lock]
"""One for each version that is being made: two executors of a task must map one file, not two equal ones."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way of the weights: as ``data``, else as a file; not at all unless ``must_send``.

    ``links`` are the differences from a version that is in the cache to the wanted one; empty where that comes whole.
    """

    must_send: bool
    data: bytes | None = None
    links: tuple[WeightsDelta, ...] = ()

    @property
    def by_file(self) -> bool:
        """Whether the order names a file of the cache."""
        return self.must_send and self.data is None


def choose_route(
    assign: Assign, held_weights: str | None, is_cached: Callable[[str], bool], *, shun_links: bool = False
) -> Route:
    """Return the cheapest way of an assignment's weights to an executor that holds ``held_weights``."""
    weights = assign.weights
    if weights.digest == held_weights:
        return Route(must_send=False)
    if weights.carried is not None:
        keeps_files = assign.task.weights_codec.name is not CodecName.NONE
        return Route(must_send=True, data=None if keeps_files else weights.carried)
    if shun_links or is_cached(weights.digest):
        return Route(must_send=True)
    return Route(must_send=True, links=_shortest_chain(assign.deltas, weights.digest, is_cached))


def _shortest_chain(
    deltas: tuple[WeightsDelta, ...], digest: str, is_cached: Callable[[str], bool]
) -> tuple[WeightsDelta, ...]:
    """Return the fewest links that lead from a version at hand to ``digest``; none if no chain does."""
    wanted = digest
    for start in reversed(range(len(deltas))):
        if deltas[start].digest != wanted:
            return ()
        wanted = deltas[start].base
        if is_cached(wanted):
            return deltas[start:]
    return ()


class WeightsSupply:
    """The weights of one assignment, over all attempts at it."""

    def __init__(self, assign: Assign, fetcher: Fetcher, locks: Locks, note: Callable[[str], None]) -> None:
        """``note`` gets a sentence on why differences were of no use."""
        self._assign = assign
        self._fetcher = fetcher
        self._locks = locks
        self._note = note
        self.shuns_links = False
        """Differences have failed once; from then on the weights come whole."""

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What may be downloaded."""
        return (self._assign.weights, *(link.blob for link in self._assign.deltas))

    def route(self, held_weights: str | None) -> Route:
        """Choose how the weights go to an executor that holds ``held_weights``."""
        return choose_route(self._assign, held_weights, self._fetcher.cache.__contains__, shun_links=self.shuns_links)

    def pins(self, route: Route) -> tuple[str, ...]:
        """Name what must stay in the cache while the route is taken and its weights are used."""
        bases = tuple(link.base for link in route.links[:1])
        return (self._assign.weights.digest, *bases, *(link.blob.digest for link in route.links))

    async def fetch(self, route: Route) -> None:
        """Bring what the route needs into the cache.

        Raises: what ``Fetcher.fetch`` raises for the whole weights.
        """
        if not route.by_file:
            return
        if not route.links or not await self._fetch_links(route.links):
            await self._fetcher.fetch(self._assign.weights)

    async def file(self, route: Route, executor: Executor) -> Path:
        """Return the weights as a file of the cache, which the executor makes now if only differences came.

        Raises: ExecutorDied if it died of that (the next attempt shuns it); what ``Fetcher.fetch`` raises.
        """
        weights = self._assign.weights
        lock = self._locks.setdefault(weights.digest, asyncio.Lock())
        async with lock:
            if route.links and not self.shuns_links and weights.digest not in self._fetcher.cache:
                await self._rebase(route.links, executor)
            return await self._fetcher.fetch(weights)

    async def _fetch_links(self, links: tuple[WeightsDelta, ...]) -> bool:
        try:
            async with asyncio.TaskGroup() as group:
                for link in links:
                    if link.blob.carried is None:
                        group.create_task(self._fetcher.fetch(link.blob))
        except* (FarmError, OSError) as errors:
            self._give_links_up(errors.exceptions[0])
        return not self.shuns_links

    async def _rebase(self, links: tuple[WeightsDelta, ...], executor: Executor) -> None:
        """Make the version from an older one and take it into the cache; if that fails, leave a note."""
        cache, made = self._fetcher.cache, None
        try:
            if (base := await cache.find(links[0].base)) is None:
                raise DigestMismatch("the older version in the cache is damaged")
            differences = tuple(self._difference(link) for link in links)
            made = await executor.rebase(self._assign.assignment_id, base, differences)
            await cache.adopt_file(self._assign.weights.digest, made)
        except ExecutorDied as died:
            self._give_links_up(died)
            raise
        except (FarmError, OSError) as error:
            self._give_links_up(error)
        finally:
            if made is not None:
                made.unlink(missing_ok=True)

    def _difference(self, link: WeightsDelta) -> Difference:
        if link.blob.carried is not None:
            return Difference(codec=link.codec, data=link.blob.carried)
        return Difference(codec=link.codec, path=str(self._fetcher.cache.path(link.blob.digest)))

    def _give_links_up(self, error: BaseException) -> None:
        self.shuns_links = True
        self._note(f"the weights' difference to an older version could not be used ({error}); fetching them whole")

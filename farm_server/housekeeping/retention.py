"""Drops the checkpoints that a task's recipe does not keep, and their files. Never on the way of a round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from coordinator.records import CheckpointRecord
from coordinator.retention import kept_rounds
from protocol.recipe import Recipe
from storage.ports.blob_store import BlobStore
from storage.ports.ledger import Ledger


class Retention:
    """Looks at the tasks that have a new checkpoint. On the event loop; files are removed in a worker thread.

    A superseded version that is too large for a message stays for a while: clients that were sent to fetch it may not
    have begun. A file goes once nothing refers to it and nobody stored it, or asked for it, for as long: a commit
    that the ledger does not have yet, or a submission that begins with these weights, makes it young again.
    """

    def __init__(
        self, ledger: Ledger, blobs: BlobStore, grace_seconds: float, keep_inputs_seconds: float = 0.0
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._grace_seconds = grace_seconds
        self._keep_inputs_seconds = keep_inputs_seconds
        self._recipes: dict[str, Recipe] = {}
        self._garbage: set[str] = set()

    def note(self, task_id: str, recipe: Recipe) -> None:
        """Look at this task the next time: it has a new checkpoint."""
        self._recipes[task_id] = recipe

    def discard(self, digests: Collection[str]) -> None:
        """Delete these blobs, a while after their last use, unless something else needs them."""
        self._garbage |= set(digests)

    async def drop_superseded(self, now: float) -> None:
        """Drop what is too much of the tasks that were noted. ``now`` is on the server's clock."""
        noted, self._recipes = self._recipes, {}
        for task_id, recipe in noted.items():
            old = superseded(await self._ledger.checkpoints(task_id), recipe)
            ripe = [c for c in old if _rides(c) or c.created_at + self._grace_seconds < now]
            if len(ripe) < len(old):
                self._recipes.setdefault(task_id, recipe)
            if ripe:
                await self._ledger.drop_checkpoints(task_id, [c.round for c in ripe])
                self._garbage |= _digests(ripe)
        if self._garbage:
            referenced = await self._ledger.referenced_digests(now - self._keep_inputs_seconds)
            self._garbage -= referenced
            gone = await asyncio.to_thread(self._delete, referenced, frozenset(self._garbage))
            self._garbage -= gone

    def _delete(self, referenced: Collection[str], garbage: Collection[str]) -> set[str]:
        self._blobs.collect(referenced, self._grace_seconds, time.time(), among=garbage)
        return {digest for digest in garbage if not self._blobs.has(digest)}


def _rides(checkpoint: CheckpointRecord) -> bool:
    """Whether all that clients need of a version can come inside of messages."""
    state = checkpoint.inner_state
    return checkpoint.weights.is_small and (state is None or state.is_small)


def superseded(checkpoints: Collection[CheckpointRecord], recipe: Recipe) -> list[CheckpointRecord]:
    """Return those that the recipe does not keep. The newest, so also a task's last one, is always kept."""
    kept = kept_rounds(list(checkpoints), recipe)
    return [c for c in checkpoints if c.round not in kept]


def _digests(checkpoints: Collection[CheckpointRecord]) -> set[str]:
    return {ref.digest for checkpoint in checkpoints for ref in checkpoint.blobs}

"""The state that an earlier run left in the data folder: opened, checked, and read into memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from coordinator.records import Snapshot
from farm_server.environment.data_folder import DataFolder
from farm_server.environment.settings import ServerSettings
from farm_server.environment.signing_key import SigningKey
from farm_server.environment.tokens import Tokens
from storage.blobs import FolderBlobStore
from storage.engine import ledger_path
from storage.errors import DamagedLedger
from storage.ledger import SqlLedger
from storage.owner import SPARED_SECONDS, check_owner, settle_owner
from storage.ports.ledger import Ledger
from storage.uploads import UPLOADS, UploadFolder

_SKEW_SECONDS: Final = 60.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DurableState:
    """``snapshot``: the facts as the ledger has them. ``spared``: why blobs that nothing needs are kept, or None."""

    folder: DataFolder
    tokens: Tokens
    signing_key: SigningKey
    ledger: Ledger
    blobs: FolderBlobStore
    partials: UploadFolder
    snapshot: Snapshot
    spared: str | None

    def newest_time(self) -> float:
        """Return the latest moment that the ledger knows of: the clock must not start before it."""
        times = [self.snapshot.newest_at]
        times += [c.last_seen for c in self.snapshot.clients]
        times += [c.created_at for c in self.snapshot.checkpoints]
        return max(times, default=0.0)

    def log(self) -> None:
        """Say what was found; only once the server can begin, for where it can't, its error is all to be said."""
        _log.info("recovery: the data folder is ours", data_dir=str(self.folder.root))
        _log.info(
            "recovery: blobs are open", leftovers_removed=self.blobs.leftovers, unfinished_uploads=len(self.partials)
        )
        _log.info("recovery: the ledger is open")
        _log.info(
            "recovery: facts are loaded",
            tasks=len(self.snapshot.tasks),
            open_rounds=len(self.snapshot.rounds),
            held_assignments=len(self.snapshot.assignments),
        )
        if (ahead_seconds := self.newest_time() - time.time()) > _SKEW_SECONDS:
            # it must not run backwards: leases and backoffs would last as long as it was ahead
            _log.warning("the farm's time is ahead of this machine's clock, and stays so", seconds=round(ahead_seconds))
        if self.spared is not None:
            _log.warning("blobs that nothing refers to are kept", reason=self.spared, seconds=SPARED_SECONDS)


async def open_state(settings: ServerSettings, folder: DataFolder, *, new_ledger: bool) -> DurableState:
    """Open the ledger and the blob store of a locked folder, and read the facts. Whoever gets it closes the ledger.

    ``new_ledger``: go on with the ledger that is there, although the blobs may be another one's. Raises: FarmError.
    """
    if not new_ledger:
        check_owner(folder.blobs, ledger_path(settings.ledger_url))
    tokens, signing_key = folder.tokens(settings), folder.signing_key()
    blobs = FolderBlobStore(folder.blobs)
    partials = UploadFolder(folder.blobs / UPLOADS, blobs)
    ledger = await SqlLedger.open(settings.ledger_url)
    try:
        snapshot = await ledger.load()
        spared = settle_owner(folder.blobs, ledger.identity, is_new=new_ledger, now=time.time())
    except BaseException:
        await ledger.close()
        raise
    return DurableState(folder, tokens, signing_key, ledger, blobs, partials, snapshot, spared)


@contextmanager
def contradictions() -> Iterator[None]:
    """Within the block: records of the ledger that can't be put together are damage. Raises: DamagedLedger."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DamagedLedger(
            f"the ledger's records contradict each other ({type(error).__name__}: {error}); restore it from a backup"
        ) from error

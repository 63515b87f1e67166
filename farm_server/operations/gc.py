"""``farm-server gc``: by the server that runs on the folder, else by this process."""

from __future__ import annotations

import asyncio
import time

from farm_server.environment.data_folder import DataFolder, is_locked
from farm_server.environment.settings import ServerSettings
from farm_server.housekeeping.cleaning import Cleaned, Cleaner
from farm_server.operations import running_server
from protocol.errors import NotFound
from protocol.rest import CollectedView
from storage.blobs import FolderBlobStore
from storage.engine import ledger_path
from storage.ledger import SqlLedger
from storage.ledger_file import shrink_ledger
from storage.ledger_identity import is_blank
from storage.owner import check_owner


def collect(settings: ServerSettings, *, dry_run: bool) -> CollectedView:
    """Remove what nothing needs. Where no server runs the ledger's file shrinks too. Raises: FarmError."""
    if is_locked(settings.data_dir):
        return running_server.collect(running_server.running_server(settings.data_dir), dry_run=dry_run)
    path = ledger_path(settings.ledger_url)
    folder = DataFolder(settings.data_dir)
    folder.lock()
    try:
        check_owner(folder.blobs, path)
        if is_blank(path):
            raise NotFound(f"there is no ledger {path}; give the server's folder by --data-dir")
        cleaned = asyncio.run(_clean(settings, folder, dry_run=dry_run))
        if not dry_run:
            shrink_ledger(path)
    finally:
        folder.unlock()
    return CollectedView(dry_run=dry_run, blobs=cleaned.blobs, bytes=cleaned.bytes, rows=cleaned.rows)


async def _clean(settings: ServerSettings, folder: DataFolder, *, dry_run: bool) -> Cleaned:
    ledger = await SqlLedger.open(settings.ledger_url)
    try:
        return await Cleaner(ledger, FolderBlobStore(folder.blobs), settings).clean(time.time(), dry_run=dry_run)
    finally:
        await ledger.close()

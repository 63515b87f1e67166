"""Which ledger a folder of blobs belongs to: what nothing refers to may be what a lost ledger referred to.

    <root>/owner.json   the ledger's name and starts, and until when older blobs than a moment are spared

A ledger that is gone, emptied or another one's must not pass for a new farm, whose first collection would remove every
blob of the old one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from protocol.frozen import Frozen
from storage.errors import LostLedger, disk_errors
from storage.ledger_identity import identity_of, is_blank
from storage.ports.ledger import LedgerIdentity

OWNER: Final = "owner.json"
SPARED_SECONDS: Final = 7 * 24 * 3600.0
"""How long blobs that another or a later ledger may refer to are kept, once a server started without that ledger."""


class Owner(Frozen):
    """The contents of ``owner.json``. Blobs before ``spared_before`` are kept until ``spared_until`` (Unix seconds)."""

    format: str = Field(default="aifarm-owner-1", pattern="^aifarm-owner-1$")
    ledger_id: str = Field(min_length=1, max_length=64)
    starts: int = Field(ge=1)
    spared_before: float = 0.0
    spared_until: float = 0.0

    def spares(self, stored_at: float, now: float) -> bool:
        """Whether a blob that was stored then must stay, whatever refers to it. Unix seconds."""
        return now < self.spared_until and stored_at < self.spared_before


def read_owner(blobs: Path) -> Owner | None:
    """Return what a blob folder says of its ledger; None if it says nothing readable."""
    try:
        return Owner.model_validate_json((blobs / OWNER).read_bytes())
    except (OSError, ValidationError):
        return None


def check_owner(blobs: Path, ledger: Path) -> None:
    """See that the ledger's file is the one that the blobs belong to. Changes nothing.

    A ledger of a version that gave no names is taken for the right one. Raises: LostLedger.
    """
    if not any(blobs.glob("[0-9a-f][0-9a-f]/*")):
        return  # nothing can be lost
    if is_blank(ledger):
        what = "is empty" if ledger.exists() else "is missing"
        raise LostLedger(f"the ledger {ledger} {what}, but {blobs} holds a farm's blobs; {_WAY_ON}")
    owner, identity = read_owner(blobs), identity_of(ledger)
    if owner is not None and identity is not None and owner.ledger_id != identity.ledger_id:
        raise LostLedger(f"the blobs in {blobs} belong to another ledger than {ledger}; {_WAY_ON}")


def settle_owner(blobs: Path, identity: LedgerIdentity, *, is_new: bool, now: float) -> str | None:
    """Write down, durably, whose the blobs are from now on; return why older ones are spared, if they are.

    They are where the ledger ``is_new`` beside blobs, is another one, or is an older copy than the one that wrote them.
    Raises: Unavailable if the disk refuses.
    """
    owner = read_owner(blobs)
    why = None
    if is_new or (owner is not None and owner.ledger_id != identity.ledger_id):
        why = "the ledger is another one than that of the blobs"
    elif owner is not None and owner.starts >= identity.starts:
        why = "the ledger is an older copy of the one that the blobs belong to"
    fields = owner.model_dump() if owner is not None else {}
    if why is not None:
        fields |= {"spared_before": now, "spared_until": now + SPARED_SECONDS}
    _write(blobs, Owner(**fields | {"ledger_id": identity.ledger_id, "starts": identity.starts}))
    return why


_WAY_ON: Final = (
    "put its ledger back, or restore a backup into a new folder (`farm-server restore`); "
    "`farm-server up --new-ledger` goes on without it, and keeps the blobs for a week"
)


def _write(blobs: Path, owner: Owner) -> None:
    """Write it whole or not at all."""
    temporary = blobs / f"{OWNER}.new"
    with disk_errors(blobs):
        with temporary.open("w", encoding="ascii") as file:
            file.write(owner.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(blobs / OWNER)
        folder = os.open(blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

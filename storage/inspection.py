"""What a blob folder holds against what its ledger refers to, looked at while nobody writes either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, create_engine

from storage.file_digest import digest_of_file
from storage.references import NEEDED


@dataclass(frozen=True, slots=True)
class Inspection:
    """``unreadable`` are the digests of needed blobs that are missing or damaged."""

    references: frozenset[str]
    unreadable: tuple[str, ...]
    orphans: int
    half_written: int

    @property
    def needed(self) -> int:
        """Count the blobs that the ledger refers to."""
        return len(self.references)


def referenced_by(ledger: Path) -> frozenset[str]:
    """Return the names of all blobs that a ledger's file refers to, without changing it. Raises: SQLAlchemyError."""
    url = URL.create("sqlite", database=ledger.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return frozenset(str(row.digest) for row in connection.execute(NEEDED))
    finally:
        engine.dispose()


def inspect_blobs(ledger: Path, blobs: Path) -> Inspection:
    """Hash every needed blob and count what nothing needs. Raises: OSError; SQLAlchemyError."""
    needed = referenced_by(ledger)
    here = {path.name: path for path in blobs.glob("[0-9a-f][0-9a-f]/*")}
    return Inspection(
        references=needed,
        unreadable=tuple(d for d in sorted(needed) if d not in here or digest_of_file(here[d]) != d),
        orphans=len(here.keys() - needed),
        half_written=sum(1 for _ in (blobs / "tmp").glob("*")),
    )

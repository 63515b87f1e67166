"""Unfinished work that outlives the agent: an executor's snapshot, and the assignment that it belongs to.

    <home>/snapshots/<digest of farm and client>/<digest of the work>.state     the executor's (executor/step_state.py)
                                                                      .assign    the assignment's frame

The work is named by what its result depends on, and not by the assignment: the same rows of the same version, offered
again, are gone on with. A damaged or half-written pair is removed at the start; another farm's are, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from farm_client.durable_file import write_bytes_durably
from protocol.assignments import Assign
from protocol.codec import decode, encode
from protocol.digests import digest_bytes
from protocol.errors import ProtocolError


class SnapshotStore:
    """One process owns the folder (see ``HomeFolder.held``). A disk that takes nothing is put up with."""

    def __init__(self, root: Path, farm: str, client_id: str, note: Callable[[str], None]) -> None:
        """``farm`` is its address; ``note`` gets a sentence on what was dropped."""
        self._folder = root / digest_bytes(f"{farm} {client_id}".encode())[:16]
        self._note = note
        self._left: list[Assign] = []
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in set(root.iterdir()) - {self._folder}:
                shutil.rmtree(folder, ignore_errors=True)
            self._take_over()

    def left(self) -> tuple[Assign, ...]:
        """Return the assignments that a former process left unfinished, once."""
        left, self._left = tuple(self._left), []
        return left

    def path(self, assign: Assign) -> Path:
        """Return where the snapshot of an assignment is kept."""
        return self._folder / f"{work_of(assign)}.state"

    def keep(self, assign: Assign, snapshot: Path | None) -> None:
        """Keep an executor's snapshot, and the assignment beside it: if this process ends now, the next one goes on.

        ``snapshot`` is moved away; None if the executor left none where it was to be.
        """
        if snapshot is None:
            return
        with suppress(OSError):
            snapshot.replace(self.path(assign))
            write_bytes_durably(self._record(assign), encode(assign))

    def drop(self, assign: Assign) -> None:
        """Forget an assignment that is over, or that somebody else has."""
        for path in (self._record(assign), self.path(assign)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _record(self, assign: Assign) -> Path:
        return self.path(assign).with_suffix(".assign")

    def _take_over(self) -> None:
        for record in sorted(self._folder.glob("*.assign")):
            assign = self._read(record)
            if assign is not None and self.path(assign).exists() and self._record(assign) == record:
                self._left.append(assign)
        self._clear({path for assign in self._left for path in (self.path(assign), self._record(assign))})

    def _read(self, record: Path) -> Assign | None:
        try:
            assign = decode(record.read_bytes())
        except (OSError, ProtocolError) as error:
            self._note(f"dropped the snapshot of an unfinished assignment: {error}")
            return None
        return assign if isinstance(assign, Assign) else None

    def _clear(self, kept: Collection[Path]) -> None:
        for path in set(self._folder.iterdir()) - set(kept):
            path.unlink()


def work_of(assign: Assign) -> str:
    """Return the digest of all that an assignment's result depends on, whoever it is offered to, and when."""
    state = assign.inner_state
    rows = [(part.shard.index, part.start, part.stop) for part in assign.slices]
    work = (
        *(assign.task.task_id, assign.kind.value, assign.round, assign.epoch, assign.samples_before),
        *(assign.round_samples, assign.weights.digest, None if state is None else state.digest, rows),
    )
    return digest_bytes(repr(work).encode())[:32]

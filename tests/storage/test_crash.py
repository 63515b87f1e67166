"""A real process, really killed: whatever it said was saved is there, and nothing is there by half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore
from storage.ledger import SqlLedger

ROOT = Path(__file__).parents[2]


def _save_and_kill(folder: Path, after_acknowledged: int) -> int:
    """Start a saver, SIGKILL it after so many acknowledged saves; return the last number it acknowledged."""
    command = [sys.executable, "-m", "tests.storage.saver", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as saver:
        assert saver.stdout is not None
        last = -1
        try:
            for _ in range(after_acknowledged):
                last = int(saver.stdout.readline())
        finally:
            saver.kill()
        rest = saver.stdout.read().split("\n")[:-1]  # what it still said; a line cut short does not count
    return int(rest[-1]) if rest else last


@pytest.mark.parametrize("after_acknowledged", [1, 40, 150])
async def test_every_acknowledged_save_survives_sigkill(tmp_path: Path, after_acknowledged: int) -> None:
    acknowledged = _save_and_kill(tmp_path, after_acknowledged)
    acknowledged = max(acknowledged, _save_and_kill(tmp_path, 5))  # it starts again on the same folder, and goes on

    ledger = await SqlLedger.open(tmp_path / "ledger.db")
    numbers = [int(n.entry.message) for n in await ledger.events("t1", limit=100_000)]
    assert numbers == list(range(len(numbers)))  # in order, without a gap
    assert len(numbers) > acknowledged
    task = await ledger.task("t1")
    assert task is not None
    assert task.version == numbers[-1]  # written together or not at all

    store = CheckpointStore(FolderBlobStore(tmp_path / "blobs"))
    checkpoints = await ledger.checkpoints("t1")
    assert [c.round for c in checkpoints] == numbers
    for checkpoint in checkpoints:  # a record is never there before its blobs
        files = store.open(checkpoint)
        assert files.weights.read_bytes()[:8] == b"weights "
        assert files.optimizer is not None
        assert files.optimizer.read_bytes() == f"optimizer {checkpoint.round}".encode()
        assert store.manifest(checkpoint).cursor == checkpoint.round
    await ledger.close()

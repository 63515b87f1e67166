"""The end of an epoch: the researcher's ``on_epoch_end`` gets a model and an empty folder, and leaves files there."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn

from farm_client.executor.contract import Contract
from farm_client.executor.failures import CodeError
from farm_client.executor.messages import LeftFile
from farm_client.executor.modes import set_mode
from protocol.artefacts import MAX_FILES, bounds_fault

_FOLDER: Final = "epoch_end"
_DEEPEST: Final = 8
"""Folders in folders; a name has room for more."""


def run_epoch_end(contract: Contract, model: nn.Module, epoch: int, scratch: Path) -> tuple[LeftFile, ...]:
    """Run the function on a model in evaluation mode, without gradients; return what it left, by name.

    The files stay in ``scratch`` until the next call. Raises: CodeError, also for files that are no artefacts.
    """

    def look(out: Path) -> None:
        with torch.no_grad():
            contract.on_epoch_end(model, epoch, out)

    set_mode(model, contract.code_dir, training=False)
    try:
        return files_left(look, scratch)
    finally:
        set_mode(model, contract.code_dir, training=True)


def files_left(look: Callable[[Path], None], scratch: Path) -> tuple[LeftFile, ...]:
    """Call ``look`` with an empty folder and return the files that are in it then. Raises: CodeError as it says."""
    out = scratch / _FOLDER
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    look(out)
    found = _walk(out)
    if (why := bounds_fault((name, size) for name, (_, size) in found.items())) is not None:
        raise CodeError(f"on_epoch_end: {why}")
    return tuple(LeftFile(name=name, path=str(path)) for name, (path, _) in sorted(found.items()))


def _walk(out: Path) -> dict[str, tuple[Path, int]]:
    """Return the files below a folder with their sizes, by their relative names. No link is followed."""
    found: dict[str, tuple[Path, int]] = {}
    for folder, folders, names in os.walk(out):
        depth = len(Path(folder).relative_to(out).parts)
        for name in (*names, *(one for one in folders if (Path(folder) / one).is_symlink() or depth >= _DEEPEST)):
            path = Path(folder) / name
            told = path.relative_to(out).as_posix()
            known = path.lstat()
            if not stat.S_ISREG(known.st_mode):
                raise CodeError(f"on_epoch_end left {told}, which is no plain file")
            found[told] = (path, known.st_size)
            if len(found) > MAX_FILES:
                return found
    return found

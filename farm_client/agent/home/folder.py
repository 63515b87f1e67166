"""The agent's folder: who it is, what it fetched, what it finished, and the lock that keeps a second agent out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from farm_client.agent.errors import BadHome, HomeInUse
from farm_client.sandbox.leftovers import end_leftovers


@dataclass(frozen=True, slots=True)
class HomeFolder:
    """Where an agent keeps its files; only its owner can look inside."""

    root: Path

    @property
    def identity_file(self) -> Path:
        """The client's id and secret."""
        return self.root / "identity.json"

    @property
    def farm_file(self) -> Path:
        """The farm that last welcomed this machine, with its token."""
        return self.root / "farm.json"

    @property
    def self_test_file(self) -> Path:
        """The last self-test that passed."""
        return self.root / "self-test.json"

    @property
    def status_file(self) -> Path:
        """The status file of the running agent."""
        return self.root / "status.json"

    @property
    def policy_file(self) -> Path:
        """What the owner allows."""
        return self.root / "policy.json"

    @property
    def control_socket(self) -> Path:
        """Where the running agent takes its owner's orders."""
        return self.root / "control.sock"

    @property
    def blobs_socket(self) -> Path:
        """Where the running agent lends its blobs to others of this machine."""
        return self.root / "blobs.sock"

    @property
    def known_farms_file(self) -> Path:
        """The addresses that have welcomed this machine."""
        return self.root / "welcomed-by.json"

    @property
    def transfers_file(self) -> Path:
        """What moved today."""
        return self.root / "transfers.json"

    @property
    def power_file(self) -> Path:
        """What the GPUs' power limits were before the owner's."""
        return self.root / "power.json"

    @property
    def cache_dir(self) -> Path:
        """Blobs by digest."""
        return self.root / "cache"

    @property
    def environments_dir(self) -> Path:
        """The packages that tasks' locks name, by the lock's digest."""
        return self.root / "environments"

    @property
    def outbox_dir(self) -> Path:
        """Finished results that the farm has not acknowledged."""
        return self.root / "outbox"

    @property
    def snapshots_dir(self) -> Path:
        """The states of unfinished assignments."""
        return self.root / "snapshots"

    @property
    def controls_dir(self) -> Path:
        """This client's control variates of the tasks that have such."""
        return self.root / "controls"

    @property
    def started_dir(self) -> Path:
        """The tasks that are being worked on."""
        return self.root / "started"

    @property
    def scratch_dir(self) -> Path:
        """One folder for each living executor; empty whenever no agent runs."""
        return self.root / "scratch"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, take its lock, and clear what a killed agent left behind.

        Raises: HomeInUse if another agent runs here; BadHome if the folder cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self.root / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise HomeInUse(
                f"another farm-client already runs in {self.root}; stop it, or give this one a folder with --home"
            ) from None
        except OSError as error:
            raise BadHome(f"cannot write to {self.root} ({error.strerror}); choose a folder with --home") from error
        try:
            self._make_folders()
            yield
        finally:
            lock.release()

    def lack(self) -> str | None:
        """Return what is wrong with a running agent's home; None if nothing is. Folders that were deleted are made."""
        try:
            self.identity_file.stat()
            for folder in (self.scratch_dir, self.cache_dir, self.outbox_dir):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            return f"the agent's folder {self.root} is gone or cannot be used ({error.strerror}): waiting until it can"
        if not os.access(self.cache_dir, os.W_OK):  # to a read-only disk root may not write either
            return f"the agent's folder {self.root} is read-only: waiting until it can be written to"
        return None

    def in_use(self) -> bool:
        """Return whether an agent runs in this home now."""
        if not (self.root / "lock").exists():
            return False
        try:
            with FileLock(self.root / "lock", timeout=0):
                return False
        except Timeout:
            return True

    def _make_folders(self) -> None:
        end_leftovers(self.scratch_dir)
        shutil.rmtree(self.scratch_dir, ignore_errors=True)
        try:
            for folder in (self.scratch_dir, self.cache_dir, self.outbox_dir):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise BadHome(
                f"cannot write to {self.root} ({error.strerror}); make room, or choose with --home"
            ) from error

"""The farm's own key, with which it signs certificates: 32 random bytes in a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from protocol.certificate import public_key_of
from protocol.errors import FarmError

KEY_FILE: Final = "certificate.key"
_SEED_BYTES: Final = 32


class SigningKey:
    """The seed of an Ed25519 key (RFC 8032) in a file, which is read when it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> None:
        """Make the key (mode 0600) unless there is one. Raises: OSError."""
        unfinished = self._path.with_suffix(".new")
        if self._path.exists():
            return
        with suppress(FileNotFoundError):
            unfinished.unlink()
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_bytes(_SEED_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)

    @property
    def seed(self) -> bytes:
        """The private key. Raises: FarmError if the file is gone or holds none: nothing is signed with another one."""
        try:
            seed = bytes.fromhex(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            seed = b""
        if len(seed) != _SEED_BYTES:
            raise FarmError(
                f"{self._path} holds no key: restore it from a backup, or delete it and start the server anew"
            )
        return seed

    def public(self) -> str:
        """Return the public key, as certificates have it. Raises: FarmError."""
        return public_key_of(self.seed)

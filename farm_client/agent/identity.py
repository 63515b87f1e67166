"""Who this client is: an id that outlives connections, and the secret that proves it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import Field, ValidationError

from farm_client.agent.errors import BadHome
from protocol.frozen import Frozen


class Identity(Frozen):
    """The client's lasting name. The secret goes to the farm in hello, and nowhere else."""

    client_id: str = Field(min_length=1, max_length=64)
    client_secret: str = Field(min_length=16, max_length=128, repr=False)


def load_identity(path: Path) -> Identity:
    """Read the identity, or make one at the first start; the file is readable by its owner only.

    Raises: BadHome if the file is damaged.
    """
    if not path.exists():
        return _create_identity(path)
    try:
        return Identity.model_validate_json(path.read_bytes())
    except ValidationError:
        raise BadHome(f"{path} is damaged; delete it, and this machine joins as a new client") from None


def _create_identity(path: Path) -> Identity:
    identity = Identity(client_id=secrets.token_hex(8), client_secret=secrets.token_hex(32))
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(identity.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return identity

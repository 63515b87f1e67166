"""Who this client is: an id that outlives connections, and the secret that proves it."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field, ValidationError

from farm_client.agent.errors import BadHome, DamagedIdentity
from farm_client.durable_file import write_durably
from protocol.frozen import Frozen


class Identity(Frozen):
    """The client's lasting name. The secret goes to the farm in hello, and nowhere else."""

    client_id: str = Field(min_length=1, max_length=64)
    client_secret: str = Field(min_length=16, max_length=128, repr=False)


def load_identity(path: Path, *, anew: bool = False) -> Identity:
    """Read the identity, or make one at the first start, or ``anew``; the file is readable by its owner only.

    Raises: DamagedIdentity if there is a file that holds none; BadHome if it cannot be read or written.
    """
    try:
        if anew or not path.exists():
            return _create_identity(path)
        return Identity.model_validate_json(path.read_bytes())
    except ValidationError:
        what = "is damaged" if path.stat().st_size else "is empty, as a power cut leaves a file"
        raise DamagedIdentity(
            f"{path} {what}: put its copy back if you have one; else delete it, and this machine joins as a new client"
        ) from None
    except OSError as error:
        raise BadHome(
            f"cannot use {path} ({error.strerror}); make room or rights, or choose a folder with --home"
        ) from error


def _create_identity(path: Path) -> Identity:
    identity = Identity(client_id=secrets.token_hex(8), client_secret=secrets.token_hex(32))
    write_durably(path, identity.model_dump_json())
    return identity

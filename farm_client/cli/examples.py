"""Where the examples are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

import farm_client
from protocol.errors import NotFound


def example_folder(name: str) -> Path:
    """Return the folder of an example. Raises: NotFound if this installation carries none."""
    package = Path(farm_client.__file__).parent
    for examples in (package / "_examples", package.parent / "examples"):
        if (examples / name).is_dir():
            return examples / name
    raise NotFound(f"this installation has no example {name!r}: install the aifarm package anew")

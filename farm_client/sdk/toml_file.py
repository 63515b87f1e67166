"""Reads the text of a TOML file that somebody named on a command line: a task's settings, a recipe, a sweep."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import InvalidTask


def toml_text(path: Path) -> str:
    """Return a regular file's text. A device or a pipe would never end, and fill the memory.

    Raises: FileNotFoundError, for each kind of file has its own word for that; InvalidTask for what can't be read;
    UnicodeDecodeError, which is a ValueError as TOML's own are.
    """
    try:
        if path.exists() and not path.is_file():
            raise InvalidTask(f"{path} cannot be read: it is no regular file; give a TOML file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidTask(f"{path} cannot be read: {error.strerror}") from error

"""Standard streams that never break a command: closed ones, ones that are not UTF-8, closed pipes."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Final

_FIRST_FREE_DESCRIPTOR: Final = 3
_PLAIN: Final = str.maketrans("▁▂▃▄▅▆▇█━─╸╺…·•", "_.-=+*#@=---~.*")
"""What bars, curves and punctuation become where the terminal has ASCII only."""
_ERRORS: Final = "aifarm.plain"


def _plainly(error: UnicodeError) -> tuple[str, int]:
    r"""Write what an encoding lacks as a similar sign, or as an escape such as ``\xe9``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return lacking.encode("ascii", "backslashreplace").decode("ascii"), error.end


def prepare_streams() -> None:
    """Make stdout and stderr take any text. Call it first in a command's ``main``."""
    _fill_closed_descriptors()
    codecs.register_error(_ERRORS, _plainly)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Python leaves out what was closed before it began.
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115, PTH123
            setattr(sys, name, stream)
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def flush_streams() -> bool:
    """Write what waits in stdout and stderr; False if stdout's reader has left, or its disk is full."""
    is_written = _flushed(sys.stdout)
    _flushed(sys.stderr)
    return is_written


def _flushed(stream: io.TextIOBase | object) -> bool:
    try:
        stream.flush()  # type: ignore[union-attr]
    except (OSError, ValueError):
        discard(stream)
        return False
    return True


def discard(stream: object) -> None:
    """Lead a stream to nowhere, so that neither a later write nor the interpreter's end complains."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)


def _fill_closed_descriptors() -> None:
    """Take the numbers 0 to 2 where they are free: else the next file or socket would be stdout."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor >= _FIRST_FREE_DESCRIPTOR:
            os.close(descriptor)
            return

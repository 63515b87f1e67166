"""Text from outside as it may be shown on a terminal: nothing in it acts on the terminal, or hides what is there.

Names, log lines, reasons and metrics come from strangers' machines and code. A control sequence in one would set the
title, clear the screen or forge another line; a bidirectional control would show other text than there is.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS and their kin, to their end
    r"|\x1b[ -/]*[0-~]"  # the short ones
)
_JOINERS: Final = frozenset("\u200c\u200d")
"""Formatting characters that scripts and emoji need, and that move nothing."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control and formatting characters, lone surrogates, line and paragraph separators."""
_SUSPECT: Final = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u05ff\u3040-\ud7a3]")
"""All that may have to be escaped, and more: to look each of those up takes longer."""


def one_line(text: str) -> str:
    """Return a text as one line: whole control sequences taken out, line ends as spaces, other controls escaped."""
    return plain_text(text.replace("\r\n", "\n")).replace("\n", " ")


def plain_text(text: str) -> str:
    r"""Return a text of any lines: whole control sequences taken out, other controls as escapes such as ``\x07``."""
    if _SUSPECT.search(text) is None:
        return text
    without = _SEQUENCES.sub("", text)
    return _SUSPECT.sub(lambda found: _shown(found[0]), without)


def _shown(char: str) -> str:
    if char == "\n":
        return char
    if char == "\t":
        return "    "
    if unicodedata.category(char) not in _HIDDEN or char in _JOINERS:
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")

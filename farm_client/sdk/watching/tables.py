"""Tables that fit: where the width is short, the least important columns are left out, and no word is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP_COLUMNS: Final = 2
LAST_COLUMNS: Final = 20
"""The last column may wrap between words, down to this width."""
SHORTEST_COLUMNS: Final = 8
"""The widest other column, such as a long name, is cut down to this width before anything else is."""


class FittingTable:
    """Rows of cells; plain text is taken literally. ``spare`` names the columns to leave out, the first one first.

    A column without any content is not shown.
    """

    def __init__(self, *headers: str, spare: Sequence[str] = ()) -> None:
        self._headers = headers
        self._spare = spare
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row: a cell for each header."""
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table with as many of its columns as fit."""
        widths = {index: width for index, _ in enumerate(self._headers) if (width := self._widest(index))}
        for header in self._spare:
            if _excess(widths, options.max_width) > 0:
                widths = {index: width for index, width in widths.items() if self._headers[index] != header}
        excess = _excess(widths, options.max_width)
        if excess > 0 and len(widths) > 1:
            widest = max(list(widths)[:-1], key=widths.__getitem__)
            widths[widest] = max(SHORTEST_COLUMNS, widths[widest] - excess)
        yield self._drawn(widths)

    def _widest(self, index: int) -> int:
        """Return the width of a column's widest cell, 0 if it has no content."""
        content = max((cell_len(row[index].plain) for row in self._rows), default=0)
        return max(content, cell_len(self._headers[index])) if content else 0

    def _drawn(self, widths: dict[int, int]) -> Table:
        table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, GAP_COLUMNS, 0, 0))
        *fixed, last = widths
        for index in fixed:
            table.add_column(self._headers[index], no_wrap=True, width=widths[index], overflow="ellipsis")
        table.add_column(self._headers[last], overflow="fold")
        for row in self._rows:
            table.add_row(*(row[index] for index in widths))
        return table


def _excess(widths: dict[int, int], columns: int) -> int:
    """Return by how much a table with columns of these widths is too wide."""
    *fixed, last = widths.values()
    return sum(width + GAP_COLUMNS for width in fixed) + min(last, LAST_COLUMNS) - columns

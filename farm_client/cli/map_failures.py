"""What is said of a map's items that failed, and how many of them a run of `farm map` may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from farm_client.cli.exit_codes import BadUsage, ExitCode
from farm_client.cli.output import Output
from farm_client.outputs import ItemError
from protocol.wording import counted

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)(%?)")
_SHOWN: Final = 5

AllowOption = Annotated[
    str | None,
    typer.Option("--allow-failures", metavar="N|P%", help="So many failed items, or percent of all, are no failure."),
]


@dataclass(frozen=True, slots=True)
class AllowedFailures:
    """How many items of a map may fail: a number, or ``percent`` of all."""

    number: float = 0.0
    percent: bool = False

    @classmethod
    def read(cls, text: str | None) -> AllowedFailures:
        """Read what ``--allow-failures`` was given; none without it. Raises: BadUsage."""
        if text is None:
            return cls()
        found = _FORM.fullmatch(text.strip())
        if found is None or (not found[2] and "." in found[1]) or (found[2] and float(found[1]) > 100):
            raise BadUsage(f"--allow-failures takes a number of items, or a share such as 0.5%, not {text!r}")
        return cls(float(found[1]), bool(found[2]))

    def allows(self, failed: int, items: int) -> bool:
        """Whether so many of all items may have failed."""
        return failed <= (self.number * items / 100 if self.percent else self.number)

    def __str__(self) -> str:
        return f"{self.number:g}{'%' if self.percent else ''}"


@dataclass(slots=True)
class FailureTally:
    """The items that failed, of the outputs that pass through: their number, and the first of them."""

    items: int = 0
    failed: int = 0
    first: list[ItemError] = field(default_factory=list)

    def over(self, outputs: Iterator[Any]) -> Iterator[Any]:
        """Yield the outputs, and note which of them are errors."""
        for output in outputs:
            self.items += 1
            if isinstance(output, ItemError):
                self.failed += 1
                self.first += [output] if len(self.first) < _SHOWN else []
            yield output

    def tell(self, out: Output) -> None:
        """Say how many items failed and which; nothing where none did."""
        if not self.failed:
            return
        out.say(f"[bold red]{self.failed:,} of {counted(self.items, 'item')} failed[/]:")
        for one in self.first:
            out.say(f"  item {one.position}: {escape(one.error)}")
        if self.failed > len(self.first):
            out.say(f"  and {self.failed - len(self.first):,} more: each has its error in the place of its output")

    def leave(self, allowed: AllowedFailures, out: Output) -> None:
        """Leave with an error where more items failed than are allowed. Raises: typer.Exit."""
        if allowed.allows(self.failed, self.items):
            return
        out.complain(f"{counted(self.failed, 'item')} failed, and --allow-failures allows {allowed}")
        raise typer.Exit(ExitCode.FAILURE)

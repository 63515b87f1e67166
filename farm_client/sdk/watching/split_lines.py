"""How a task's rows are split among virtual clients, in lines for people."""

from __future__ import annotations

from typing import Final

from protocol.data_split import DataPart
from protocol.tasks import TaskSpec
from protocol.terminal_text import one_line
from protocol.wording import counted

SHOWN_PARTS: Final = 12
SHOWN_LABELS: Final = 10


def split_lines(spec: TaskSpec) -> list[str]:
    """Return a line for the split, and one for each of its first parts: samples, and the labels that it has most of."""
    recipe, parts = spec.recipe, spec.dataset.parts
    how = [str(recipe.split)]
    how += [] if recipe.split_alpha is None else [f"alpha {recipe.split_alpha:g}"]
    how += [] if recipe.split_by is None else [f"by {one_line(recipe.split_by)}"]
    sizes = [part.samples for part in parts]
    lines = [f"{', '.join(how)}: {counted(len(parts), 'virtual client')} of {min(sizes):,} to {max(sizes):,} samples"]
    lines += [_line(number, part) for number, part in enumerate(parts[:SHOWN_PARTS])]
    return lines if len(parts) <= SHOWN_PARTS else [*lines, f"and {len(parts) - SHOWN_PARTS:,} more"]


def _line(number: int, part: DataPart) -> str:
    most = sorted(part.labels.items(), key=lambda item: (-item[1], item[0]))
    labels = "  ".join(f"{one_line(label)}:{count}" for label, count in most[:SHOWN_LABELS])
    named = one_line(part.source) or f"{number}"
    return f"  {named}: {part.samples:,}" + (
        f"  ({labels}{' …' if len(most) > SHOWN_LABELS else ''})" if labels else ""
    )

"""What a task's code relies on that the farm's loop does not do: refused by its name, or noted.

Nothing may be left out silently. What would change the trained weights is refused until the recipe's ``ignore`` names
it (``--ignore NAME``); the rest is a note that stays with the task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from farm_client.executor.failures import CodeError


class TrainsOtherwise(CodeError):
    """On the farm the code would train something else than it says."""


SCHEDULE: Final = "schedule"
"""The name of a learning-rate scheduler in ``Recipe.ignore``."""


@dataclass(frozen=True)
class Omission:
    """One thing that will not run. ``name`` is what ``--ignore`` takes; ``sentence`` says what it is and what to do."""

    name: str
    sentence: str
    changes_training: bool


def refuse_unless_ignored(omissions: Iterable[Omission], ignored: Collection[str]) -> tuple[str, ...]:
    """Return the notes to keep with the task.

    Raises: TrainsOtherwise naming all that would change what is trained and is not in ``ignored``.
    """
    found = list(dict.fromkeys(omissions))
    refused = [omission for omission in found if omission.changes_training and omission.name not in ignored]
    if refused:
        told = "; ".join(omission.sentence for omission in refused)
        options = " ".join(dict.fromkeys(f"--ignore {omission.name}" for omission in refused))
        raise TrainsOtherwise(
            f"the farm would train something else than this code says: {told}; or accept that with {options}"
        )
    needless = sorted(set(ignored) - {omission.name for omission in found})
    return tuple(f"--ignore {name} does nothing: there is nothing of that name here" for name in needless) + tuple(
        f"ignored, as asked: {omission.sentence}" if omission.changes_training else omission.sentence
        for omission in found
    )

"""The options of `farm-client set` that choose which work is done, and how their words are read."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

_ALL: Final = "all"
_NONE: Final = "none"

ForOption = Annotated[
    list[str] | None,
    typer.Option("--for", metavar="NAME", help="A submitter to work for; repeatable, `all` for everybody."),
]
KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="KIND", help="A kind of work to do, like train; repeatable, `all` for any."),
]
TopicOption = Annotated[
    list[str] | None,
    typer.Option("--topic", metavar="WORD", help="Only tasks about this; repeatable, `all` for any."),
]
NotTopicOption = Annotated[
    list[str] | None,
    typer.Option("--not-topic", metavar="WORD", help="No task about this; repeatable, `none` takes all back."),
]


def work_given(
    work_for: list[str] | None, kinds: list[str] | None, topics: list[str] | None, not_topics: list[str] | None
) -> dict[str, Any]:
    """Read what was given of the choice of work, by the fields of ``OwnerPolicy``. Kinds may stand with commas, too."""
    said = {
        "work_for": names_given(work_for, _ALL),
        "kinds": names_given(_apart(kinds), _ALL),
        "topics": names_given(_apart(topics), _ALL),
        "not_topics": names_given(_apart(not_topics), _NONE),
    }
    return {field: names for field, names in said.items() if names is not None}


def names_given(given: list[str] | None, nothing: str) -> tuple[str, ...] | None:
    """Return what an option that may be repeated sets; None where it was not given."""
    if not given:
        return None
    return () if [name.lower() for name in given] == [nothing] else tuple(given)


def _apart(given: list[str] | None) -> list[str] | None:
    return given and [word.strip() for words in given for word in words.split(",")]

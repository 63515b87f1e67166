"""Which work a client's owner wants done: kinds of assignments, and topics of tasks.

The farm is told, so that it offers nothing that would be declined; the client looks as well, for a server may be older,
or may have offered before it heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from protocol.assignments import Kind
from protocol.bounds import Word
from protocol.frozen import Frozen
from protocol.topics import Topics


def _without_repeats(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


Kinds = Annotated[tuple[Word, ...], Field(max_length=64), AfterValidator(_without_repeats)]


class WantedWork(Frozen):
    """What an owner wants done; the default is anything."""

    kinds: Kinds = ()
    """Kinds of assignments, by the words of ``Kind`` or of a newer client's; empty: all."""
    topics: Topics = ()
    """Only tasks with one of these topics; empty: all."""
    not_topics: Topics = ()
    """No task with one of these, whatever else it is about."""

    def why_not(self, kind: Kind, topics: tuple[str, ...]) -> str | None:
        """Return in a clause why an assignment of this kind, of a task with these topics, isn't wanted; None if it is.

        ``why_not(k, t) is None`` whenever nothing is set.
        """
        if self.kinds and kind not in self.kinds:
            return f"its owner wants {_listed(self.kinds)} done, not {kind}"
        if self.not_topics and (unwanted := sorted(set(topics) & set(self.not_topics))):
            return f"its owner wants nothing done about {_listed(unwanted)}"
        if self.topics and not set(topics) & set(self.topics):
            about = f"it is about {_listed(topics)}" if topics else "it names no topic"
            return f"its owner wants work about {_listed(self.topics)}, and {about}"
        return None

    def in_words(self) -> Mapping[str, str]:
        """Return what is narrowed, by name, in words for a person."""
        named = {"kinds of work": self.kinds, "only topics": self.topics, "never topics": self.not_topics}
        return {name: _listed(words) for name, words in named.items() if words}


ANY_WORK: Final = WantedWork()


def _listed(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(words)

"""A rich console on which text from strangers does nothing but stand there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from protocol.terminal_text import plain_text


class SafeConsole(Console):
    """Makes control characters harmless in all that is drawn; rich's own controls and colours pass."""

    def __init__(self, *, ignores_broken_pipe: bool, **options: Any) -> None:
        """Take rich's options. A console that ``ignores_broken_pipe`` falls silent once its reader has left."""
        super().__init__(highlight=False, emoji=False, **options)
        self._ignores_broken_pipe = ignores_broken_pipe

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the text of each segment made plain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain_text(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Fall silent, or raise the BrokenPipeError on. rich's own way would be to end the process."""
        if not self._ignores_broken_pipe:
            raise  # noqa: PLE0704 (rich calls this while it handles the error)
        self.quiet = True

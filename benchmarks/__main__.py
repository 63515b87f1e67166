"""``python -m benchmarks``: choose a measurement."""

from __future__ import annotations

import signal

import typer

from benchmarks.commands import faults, quality, speed, training

app = typer.Typer(help="Measurements of the whole farm on loopback, as JSON lines.", no_args_is_help=True)
for group in (speed, faults, training, quality):
    app.add_typer(group.app)


@app.callback()
def choose() -> None:
    """Measurements of the whole farm on loopback, as JSON lines."""
    # Whoever ends a benchmark ends its farm too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


if __name__ == "__main__":
    app()

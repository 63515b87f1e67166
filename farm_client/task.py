"""What a researcher's code may import of the farm: ``from farm_client.task import log``.

Free of torch and of the network. On a volunteer's machine the executor puts its own sink here; anywhere else
``log`` prints, so that the same file runs on the researcher's laptop.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol, SupportsFloat


class MetricSink(Protocol):
    """What takes logged values: called with the step and plain floats by name."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one call's values."""


def _print(step: int, metrics: Mapping[str, float]) -> None:
    values = "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())
    sys.stdout.write(f"step {step}: {values}\n")


_sink: MetricSink = _print


def log(*, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Stream metrics to ``farm metrics``; a value is a number or a tensor with one element.

    ``step`` is the researcher's own count and only orders the points.
    Raises: TypeError or ValueError if a value is not one number.
    """
    _sink(int(step), {str(name): _number(value) for name, value in metrics.items()})


def _number(value: SupportsFloat) -> float:
    detach = getattr(value, "detach", None)  # a tensor inside a graph warns when it is made a number
    return float(value if detach is None else detach())


def send_metrics_to(sink: MetricSink | None) -> None:
    """Replace where ``log`` sends its values; None prints them again."""
    global _sink  # noqa: PLW0603 - one process has one sink, as it has one stdout
    _sink = _print if sink is None else sink

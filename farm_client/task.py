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

    ``step`` is the researcher's own count, a whole number of 64 bits, and only orders the points.
    Raises: TypeError, ValueError or OverflowError if a value is not one number, the step is too large, or a name cannot
    be written.
    """
    count = int(step)
    if not -(2**63) <= count < 2**63:
        raise ValueError(f"log(step={count}): a step is a whole number of at most 64 bits")
    _sink(count, {metric_name(name): _number(value) for name, value in metrics.items()})


def metric_name(name: object) -> str:
    """Return a metric's name as text. Raises: ValueError if it holds a lone surrogate, which nothing can write."""
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the metric name {text!r} cannot be written: it holds half a surrogate pair") from error
    return text


def _number(value: SupportsFloat) -> float:
    detach = getattr(value, "detach", None)  # a tensor inside a graph warns when it is made a number
    return float(value if detach is None else detach())


def send_metrics_to(sink: MetricSink | None) -> None:
    """Replace where ``log`` sends its values; None prints them again."""
    global _sink  # noqa: PLW0603 - one process has one sink, as it has one stdout
    _sink = _print if sink is None else sink

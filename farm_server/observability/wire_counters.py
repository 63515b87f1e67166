"""How much goes over the WebSockets of all clients together, in each direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from protocol.rest import WireTraffic


@dataclass(slots=True)
class _Direction:
    bytes: int = 0
    frames: int = 0
    solo: int = 0
    batched: int = 0

    def count(self, frame_bytes: int, messages: int) -> None:
        self.bytes += frame_bytes
        self.frames += 1
        if messages > 1:
            self.batched += messages
        else:
            self.solo += messages

    def view(self) -> WireTraffic:
        return WireTraffic(bytes=self.bytes, frames=self.frames, solo_messages=self.solo, batched_messages=self.batched)


class WireCounters(Collector):
    """Counted as frames come and go, not when a connection ends: one lasts for days. Prometheus reads it at will.

    A message is *batched* where it shared its frame with others, and *solo* where it had one to itself.
    """

    def __init__(self) -> None:
        self._in = _Direction()
        self._out = _Direction()

    def received(self, frame_bytes: int, messages: int) -> None:
        """Count a frame from a client and the good messages in it."""
        self._in.count(frame_bytes, messages)

    def sent(self, frame_bytes: int, messages: int) -> None:
        """Count a frame to a client and the messages in it."""
        self._out.count(frame_bytes, messages)

    def views(self) -> tuple[WireTraffic, WireTraffic]:
        """Return what came in and what went out, since the start."""
        return self._in.view(), self._out.view()

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the families that ``/metrics`` shows."""
        size = CounterMetricFamily("farm_wire_bytes", "WebSocket bytes, by direction", labels=["direction"])
        frames = CounterMetricFamily("farm_wire_frames", "WebSocket frames, by direction", labels=["direction"])
        messages = CounterMetricFamily(
            "farm_wire_messages", "Messages, by direction, sharing a frame or not", labels=["direction", "packing"]
        )
        for name, direction in (("in", self._in), ("out", self._out)):
            size.add_metric([name], direction.bytes)
            frames.add_metric([name], direction.frames)
            messages.add_metric([name, "solo"], direction.solo)
            messages.add_metric([name, "batched"], direction.batched)
        return [size, frames, messages]

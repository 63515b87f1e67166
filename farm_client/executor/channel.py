"""The executor's end of the socket to its agent: orders in, reports out, blocking."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from typing import Any, Final

from farm_client.executor.messages import ORDER, Order, Report
from protocol.errors import OutOfOrder
from protocol.framing import FrameDecoder, pack_frame

FD_VARIABLE: Final = "AIFARM_EXECUTOR_FD"
_READ_BYTES: Final = 1 << 18


class Channel:
    """Frames over a connected Unix stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = FrameDecoder()
        self._frames: deque[dict[str, Any]] = deque()
        self._is_over = False
        self._sending = threading.Lock()

    @classmethod
    def from_environment(cls) -> Channel:
        """Take the socket whose descriptor the agent named in ``AIFARM_EXECUTOR_FD``.

        Raises: OutOfOrder if it is not set: a person started the executor by hand.
        """
        descriptor = os.environ.pop(FD_VARIABLE, None)
        if descriptor is None:
            raise OutOfOrder(f"{FD_VARIABLE} is not set: the executor is started by `farm-client join`, not by hand")
        connection = socket.socket(fileno=int(descriptor))
        connection.set_inheritable(False)  # processes of the researcher's code must not speak for the executor
        return cls(connection)

    def receive(self) -> Order | None:
        """Wait for the next order; None when the agent has closed the socket.

        Raises: ProtocolError for a bad frame; pydantic's ValidationError for an order of the wrong form.
        """
        order = self.next_order()
        if order is not None:
            self._frames.popleft()
        return order

    def next_order(self) -> Order | None:
        """Wait for the next order, as ``receive`` does, and leave it there."""
        while not self._frames and not self._is_over:
            self._read()
        return ORDER.validate_python(self._frames[0]) if self._frames else None

    def has_order(self) -> bool:
        """Return at once whether ``receive`` would: an order is here, or the agent has closed the socket."""
        if not self._frames and not self._is_over and select.select([self._connection], [], [], 0)[0]:
            self._read()
        return bool(self._frames) or self._is_over

    def _read(self) -> None:
        data = self._connection.recv(_READ_BYTES)
        self._is_over = not data
        self._frames.extend(self._decoder.feed(data))

    def send(self, report: Report) -> None:
        """Write a report, on any thread; waits while the agent does not read. Raises: OSError if the agent is gone."""
        frame = pack_frame(report.model_dump())
        with self._sending:
            self._connection.sendall(frame)

"""Who may open a WebSocket: with a token, while the farm admits clients, and no faster than it can serve them."""

from __future__ import annotations

import math
from collections.abc import Callable
from http import HTTPStatus

from farm_server.edge.admission import Admission
from farm_server.edge.credentials import Headers, upgrade_refusal
from farm_server.edge.refusal import Refusal
from farm_server.environment.clock import Clock
from farm_server.environment.tokens import Tokens
from protocol.errors import Unavailable


class Entrance:
    """While ``refuses`` gives a reason, nobody new is let in."""

    def __init__(self, tokens: Tokens, refuses: Callable[[], str | None], admission: Admission, clock: Clock) -> None:
        self._tokens = tokens
        self._refuses = refuses
        self._admission = admission
        self._clock = clock

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Return the answer to an upgrade that is turned down; None lets it in. Called once for each upgrade."""
        if (refusal := upgrade_refusal(self._tokens, path, headers)) is not None:
            return refusal
        if (reason := self._refuses()) is not None:
            return _unavailable(f"no client is let in: {reason}")
        if (seconds := self._admission.ask(self._clock.now())) is not None:
            return _unavailable("many clients join at the moment; come again when it is your turn", seconds)
        return None


def _unavailable(message: str, retry_seconds: float = 5.0) -> Refusal:
    code = Unavailable.code
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, code, message, retry_seconds=max(1, math.ceil(retry_seconds)))

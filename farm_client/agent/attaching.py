"""A second `farm-client join` of a home whose agent runs already: it shows that agent, or says why it does not.

Two agents in one home would share an identity, so there is one; to look at it is what its owner most likely wants.
Without a terminal nobody looks: then the second is refused, and what supervises it tries again until the first ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final

from pydantic import ValidationError

from farm_client.agent.connection.address import parse_address
from farm_client.agent.connection.farm_choice import JOIN_URL_VARIABLE
from farm_client.agent.errors import HomeInUse, NoControlSocket
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.owner.control import ask
from farm_client.agent.reporting.screens import ScreenThread, StatusView, given_back_while_stopped, screen_for
from farm_client.agent.reporting.status import Status, read_status
from farm_client.signals import existing, heeded

_STEP_SECONDS: Final = 1.0
_MOST_MISSES: Final = 5
"""So often in a row an agent that holds its home may not answer, before its view is given up."""
_HINT: Final = "Ctrl-C: leave this view; the agent goes on (farm-client finish ends it)"


def asked_farm(url: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address, without its token, that a join was given; None if it takes any. Raises: BadAddress."""
    asked = url or environ.get(JOIN_URL_VARIABLE)
    return parse_address(asked).shown if asked else None


def show_running(home: HomeFolder, farm: str | None, view: StatusView) -> bool:
    """Show the agent that runs in a home, until a signal or its end; return whether it still runs, or ended politely.

    ``farm``: the address without token that was asked for; None stands for any.
    Raises: HomeInUse if that agent works for another farm, or does not answer.
    """
    stop = threading.Event()
    for number in heeded(*existing("SIGINT", "SIGTERM", "SIGHUP")):
        signal.signal(number, lambda _number, _frame: stop.set())
    status = _answered(home, stop)
    if status is None:
        return _ended_politely(home)
    if farm is not None and status.farm != farm:
        raise HomeInUse(
            f"the agent of {home.root} works for {status.farm}; to work for {farm} too, give another one a folder "
            "with --home; to change over, stop that one first (farm-client finish)"
        )
    thread = ScreenThread(screen_for(view, _HINT))
    try:
        with given_back_while_stopped(thread) if view is StatusView.PANEL else nullcontext():
            while status is not None and not stop.is_set():
                thread.offer(status)
                stop.wait(_STEP_SECONDS)
                status = _answered(home, stop)
    finally:
        thread.close()
    return stop.is_set() or _ended_politely(home)


def _answered(home: HomeFolder, stop: threading.Event) -> Status | None:
    """Ask the agent what it does; None once it has ended, or the view is to. One that starts may not listen yet."""
    missed: NoControlSocket | ValidationError | None = None
    for _ in range(_MOST_MISSES):
        try:
            return Status.model_validate(ask(home.control_socket, {"do": "status"}))
        except (NoControlSocket, ValidationError) as error:
            missed = error
        if not home.in_use() or stop.wait(_STEP_SECONDS):
            return None
    raise HomeInUse(f"another farm-client runs in {home.root}, and does not answer ({missed})")


def _ended_politely(home: HomeFolder) -> bool:
    return home.in_use() or read_status(home.status_file).connection == "stopped"

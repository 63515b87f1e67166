"""One run of `farm`: its common options, and the connections and output that follow from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.markup import escape

from farm_client.cli.output import Output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import FarmAddress, config_path, resolve_address
from farm_client.sdk.references import find_task
from farm_client.sdk.retrying import RetryWhileAway
from protocol.rest import TaskView


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run takes from outside its command line; tests give their own."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    transport: httpx.MockTransport | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """What every verb is given: the farm it talks to and where its words go."""

    out: Output
    farm: str | None = None
    debug: bool = False
    surroundings: Surroundings = field(default_factory=Surroundings)

    def api(self, retry_seconds: float = 0.0, *, from_start: bool = False) -> FarmApi:
        """Return the farm's API; nothing is sent yet. ``retry_seconds``: for verbs that wait for something.

        ``from_start``: even for the first answer. Raises: NoFarmAddress, BadFarmAddress.
        """
        address = resolve_address(self.farm, self.surroundings.environ)
        return self.api_at(address, RetryWhileAway(retry_seconds, self._tell_of_farm, from_start=from_start))

    def api_at(self, address: FarmAddress, retry: RetryWhileAway | None = None) -> FarmApi:
        """Return the API of the farm at an address, its texts as they may be shown unless JSON escapes them."""
        return FarmApi(address, self.surroundings.transport, tidy=not self.out.as_json, retry=retry)

    def _tell_of_farm(self, text: str) -> None:
        self.out.say(f"[yellow]{escape(text)}[/]")

    def task(self, api: FarmApi, reference: str) -> TaskView:
        """Return the task that the person means. Raises: NotFound."""
        return find_task(api.each_task(), reference)

    def config_path(self) -> Path:
        """Return the config file of this run."""
        return config_path(self.surroundings.environ)

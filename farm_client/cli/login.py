"""Remembering a farm: `farm login`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.config import parse_address, save_address


def login(
    invocation: Invocation,
    url: Annotated[str, typer.Argument(metavar="URL", help="The address that `farm-server up` printed.")],
) -> None:
    """Check a farm's address and remember it, so that no verb needs --farm."""
    with invocation.api_at(parse_address(url, "farm login")) as api:
        farm = api.farm()
        next(api.each_task(1), None)  # Proves that the token is good for more than the front page.
    path = invocation.config_path()
    address = save_address(url, path)
    data = {"url": address.url, "name": farm.name, "config": str(path)}
    invocation.out.emit(OutputKind.LOGIN, data, lambda: Text(f"{farm.name} at {address.url}, remembered in {path}"))

"""Which farm to talk to, resolved in this one place: --farm, then FARM_URL, then the config file."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import platformdirs

from farm_client.farm_address import split_address
from farm_client.proxies import is_loopback
from farm_client.sdk.errors import BadFarmAddress, NoFarmAddress

FARM_VARIABLE: Final = "FARM_URL"
CONFIG_VARIABLE: Final = "FARM_CONFIG"
"""Names another config file, for people with several farms and for tests."""
EXAMPLE: Final = "http://TOKEN@host:8470"


@dataclass(frozen=True, slots=True)
class FarmAddress:
    """A farm's address, its token kept apart so that messages and logs can show ``url``."""

    url: str
    token: str | None
    source: str
    """Who said so: ``--farm``, ``FARM_URL`` or the config file's path."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that carry the token; they are sent as UTF-8."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def is_loopback(self) -> bool:
        """Return whether the farm runs on this machine."""
        return is_loopback(httpx.URL(self.url).host)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the config file is, whether or not it exists."""
    named = environ.get(CONFIG_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_config_dir("aifarm")) / "config.toml"


def resolve_address(option: str | None, environ: Mapping[str, str] = os.environ) -> FarmAddress:
    """Return the farm to talk to: ``option`` (--farm) before FARM_URL before the config file.

    Raises: NoFarmAddress if none of them names one; BadFarmAddress if what they name is no farm's address.
    """
    if option:
        return parse_address(option, "--farm")
    if from_environment := environ.get(FARM_VARIABLE):
        return parse_address(from_environment, FARM_VARIABLE)
    path = config_path(environ)
    if from_file := _read_farm(path):
        return parse_address(from_file, str(path))
    raise NoFarmAddress


def parse_address(text: str, source: str) -> FarmAddress:
    """Split ``http://TOKEN@host:port`` into the address and its token (see ``farm_client.farm_address``).

    Raises: BadFarmAddress saying what is wrong with it and which setting it came from.
    """
    try:
        parts = split_address(text)
        # What httpx refuses later would come without the setting's name.
        url = str(httpx.URL(parts.url())).rstrip("/")
    except (ValueError, httpx.InvalidURL) as error:
        raise BadFarmAddress(f"{source}: {error}; a farm's address looks like {EXAMPLE}") from None
    if parts.scheme in {"ws", "wss"}:
        raise BadFarmAddress(
            f"{source}: {parts.scheme}:// is the address that volunteers join with; "
            f"the farm CLI needs the {'https' if parts.scheme == 'wss' else 'http'}:// one with the farm token"
        )
    if parts.scheme not in {"http", "https"}:
        raise BadFarmAddress(f"{source}: a farm's address looks like {EXAMPLE}")
    return FarmAddress(url, parts.token, source)


def save_address(text: str, path: Path) -> FarmAddress:
    """Write the farm's address to the config file, readable by its owner only: it holds a token.

    Raises: BadFarmAddress before anything is written.
    """
    address = parse_address(text, "farm login")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    # A JSON string of printable characters is a TOML basic string.
    path.write_text(f"farm = {json.dumps(text.strip(), ensure_ascii=False)}\n", encoding="utf-8")
    return address


def _read_farm(path: Path) -> str | None:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadFarmAddress(f"{path}: {reason}; run `farm login URL` to write it anew, or give --farm URL") from error
    farm = settings.get("farm")
    if farm is not None and not isinstance(farm, str):
        raise BadFarmAddress(f'{path}: write farm = "http://TOKEN@host:8470"')
    return farm

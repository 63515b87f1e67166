"""Recipes in files: those that come with the farm, by name, and a researcher's own.

A file has one table, ``[recipe]``, with the fields of ``protocol.recipe.Recipe``; its first line is a comment that says
when to choose it (``# when: …``).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Final

from farm_client.sdk.toml_file import toml_text
from protocol.errors import InvalidTask, NotFound

SUFFIX: Final = ".toml"
WHEN: Final = "# when: "


@dataclass(frozen=True)
class Preset:
    """A recipe that comes with the farm: its name, when to choose it in a line, and the file as it stands."""

    name: str
    when: str
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        """Return the recipe's fields that the file sets."""
        return _fields_in(self.text, self.name)


def presets() -> list[Preset]:
    """Return all recipes that come with the farm: the default first, the others by name."""
    files = [file for file in resources.files("farm_client.recipes").iterdir() if file.name.endswith(SUFFIX)]
    found = [_preset(file.name.removesuffix(SUFFIX), file.read_text(encoding="utf-8")) for file in files]
    return sorted(found, key=lambda preset: (preset.name != "default", preset.name))


def find_preset(name: str) -> Preset:
    """Return the recipe of this name. Raises: NotFound with the nearest name."""
    known = {preset.name: preset for preset in presets()}
    if (found := known.get(name)) is not None:
        return found
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise NotFound(f"there is no recipe {name!r}: {meant} `farm recipes` says when to choose which")


def read_recipe(source: str | Path) -> dict[str, Any]:
    """Return the fields that a recipe sets: one that comes with the farm, by its name, or a file of one's own.

    ``{**read_recipe("diloco"), "rounds": 5}`` is that recipe with an end. A name is a preset's before it is a file's:
    write ``./diloco`` for a file that is called so. Raises: NotFound with the nearest name; InvalidTask.
    """
    name = str(source)
    if isinstance(source, str) and not (name.endswith(SUFFIX) or Path(name).name != name):
        try:
            return find_preset(name).fields
        except NotFound:
            if not Path(name).is_file():
                raise
    try:
        return _fields_in(toml_text(Path(source)), name)
    except FileNotFoundError:
        raise NotFound(f"there is no {name}: give --recipe a file, or a name that `farm recipes` lists") from None
    except UnicodeDecodeError as error:
        raise InvalidTask(f"{name} is not TOML: {error}") from error


def _preset(name: str, text: str) -> Preset:
    first = text.partition("\n")[0]
    return Preset(name, first.removeprefix(WHEN), text)


def _fields_in(text: str, name: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"{name} is not TOML: {error}") from error
    if other := sorted(tables.keys() - {"recipe"}):
        raise InvalidTask(f"{name} has {other[0]!r}: a recipe's file has one table, [recipe]; --config takes the rest")
    recipe = tables.get("recipe", {})
    if not isinstance(recipe, dict):
        raise InvalidTask(f"{name}: recipe is {recipe!r}: write a table, [recipe]")
    return recipe

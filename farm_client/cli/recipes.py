"""Recipes by name: `farm recipes` says when to choose which, shows one, and saves it to be changed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.recipe_files import Preset, find_preset, presets
from farm_client.sdk.watching.tables import FittingTable
from protocol.errors import Conflict


class RecipesAction(StrEnum):
    """What `farm recipes` may do besides listing."""

    SHOW = "show"
    SAVE = "save"


def recipes(
    invocation: Invocation,
    action: Annotated[
        RecipesAction | None, typer.Argument(metavar="[show|save]", help="Show one, or save it to a file.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which one.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="With `save`: where to; a new file.")] = None,
) -> None:
    """List the recipes that `--recipe` takes by name, with when to choose which.

    `farm recipes show NAME` prints the file, `farm recipes save NAME FILE` writes a copy for `--recipe FILE`.
    """
    if action is None:
        listed = presets()
        told = {"recipes": [{"name": preset.name, "when": preset.when} for preset in listed]}
        invocation.out.emit(OutputKind.RECIPES, told, lambda: _table(listed))
        return
    if name is None:
        raise BadUsage(f"`farm recipes {action}` is about one recipe: say which, as in `farm recipes {action} diloco`")
    if action is RecipesAction.SHOW:
        if file is not None:
            raise BadUsage("`farm recipes show` takes a name; `farm recipes save` writes a file")
        preset = find_preset(name)
        invocation.out.emit(OutputKind.RECIPE, _told(preset), lambda: Text(preset.text.rstrip("\n")))
    elif file is None:
        raise BadUsage(f"`farm recipes save` writes a file: say which, as in `farm recipes save {name} mine.toml`")
    else:
        _save(invocation, find_preset(name), file)


def _save(invocation: Invocation, preset: Preset, file: Path) -> None:
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(preset.text)
    except FileExistsError:
        raise Conflict(f"{file} exists already: give another file, or remove it") from None
    invocation.out.emit(OutputKind.RECIPE, {**_told(preset), "path": str(file)})
    invocation.out.say(f"{escape(str(file))} is the recipe {preset.name}: change it, and submit with")
    invocation.out.say(f"  farm submit train.py --recipe {escape(str(file))}")


def _told(preset: Preset) -> dict[str, Any]:
    return {"name": preset.name, "when": preset.when, "text": preset.text, "recipe": preset.fields}


def _table(listed: list[Preset]) -> FittingTable:
    table = FittingTable("recipe", "choose it when")
    for preset in listed:
        table.add_row(preset.name, preset.when)
    return table

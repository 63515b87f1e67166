"""Command-line options that are settings by another name: their help is the setting's own description."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated

import typer

from farm_server.environment.settings import ServerSettings

Command = Callable[..., None]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Add an option for each of these settings to a command that ends in ``**settings``; what is not given is None."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        shown = [*(p for p in own if p.kind is not Parameter.VAR_KEYWORD), *map(_option, names)]
        # Typer reads the signature and the annotations.
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return command

    return decorate


def _option(name: str) -> Parameter:
    help_text = ServerSettings.model_fields[name].description
    annotation = Annotated[str | None, typer.Option(f"--{name.replace('_', '-')}", help=help_text)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

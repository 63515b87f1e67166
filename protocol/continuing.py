"""What a task that goes on from another's checkpoint takes over, and what it can't: the same rule on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.compression import LOSSLESS
from protocol.privacy import PRIVACY_FIELDS
from protocol.recipe import InnerState, Mode, OuterOptimizer, Recipe
from protocol.tasks import TaskSpec

_SWITCHES: Final = frozenset({"momentum"})
"""Options besides the boolean ones that decide which tensors an optimizer keeps, by being zero or not."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What goes on beside weights, schedules and data order. ``lost`` says of each thing that doesn't, why."""

    optimizer: bool
    inner_state: bool
    lost: tuple[str, ...]


def taken_over(before: TaskSpec, after: TaskSpec) -> TakenOver:
    """Return what of a checkpoint of ``before`` fits ``after``."""
    optimizer, inner_state = _optimizer_differs(before.recipe, after.recipe), _inner_state_differs(before, after)
    lost = (
        f"the server's optimizer begins anew: {optimizer}" if optimizer else "",
        f"the clients' optimizers begin anew: {inner_state}" if inner_state else "",
    )
    return TakenOver(not optimizer, not inner_state, tuple(filter(None, lost)))


def obstacle(before: TaskSpec, after: TaskSpec) -> str | None:
    """Return why ``after`` can't go on where ``before`` was: its samples must be the same, in the same order."""
    if after.dataset != before.dataset:
        return "a task goes on with the data of the one before: submit other data with `farm submit --from`"
    if after.frozen != before.frozen:
        return "a task goes on with the frozen tensors of the one before"
    if after.recipe.order is not before.recipe.order:
        return f"the data was laid out in {before.recipe.order} order: leave --order out"
    if any(getattr(after.recipe, name) != getattr(before.recipe, name) for name in PRIVACY_FIELDS):
        return "what its rounds spent of privacy is counted with the noise that they had: keep the dp_ fields"
    if after.recipe.seed != before.recipe.seed:
        return f"the order of the samples follows from the seed, which was {before.recipe.seed}: leave --seed out"
    return None


def _optimizer_differs(before: Recipe, after: Recipe) -> str:
    if before.mode is not after.mode:
        return f"the mode was {before.mode} and is {after.mode}"
    if before.outer.name != after.outer.name:
        return f"it was {before.outer.name} and is {after.outer.name}"
    if list(_kept(before.outer)) != list(_kept(after.outer)):
        return "what it keeps for each parameter is not what it kept"
    if (before.weights_codec.name in LOSSLESS) != (after.weights_codec.name in LOSSLESS):
        return "weights_codec decides what it works on"
    return ""


def _kept(outer: OuterOptimizer) -> Iterator[tuple[tuple[str, ...], Mapping[str, bool]]]:
    """Yield of each group of parameters what decides which tensors the optimizer keeps for them."""
    if not outer.groups:
        yield (), _switches(outer.options)
    for group in outer.groups:
        yield group.names, _switches({**outer.options, **group.options})


def _switches(options: Mapping[str, Any]) -> dict[str, bool]:
    return {name: bool(value) for name, value in options.items() if isinstance(value, bool) or name in _SWITCHES}


def _inner_state_differs(before: TaskSpec, after: TaskSpec) -> str:
    """Return why the state that clients' optimizers ended with can't be gone on with; nothing where none was kept."""
    kept = before.recipe.inner_state
    if before.recipe.mode is not Mode.WEIGHTS or kept is InnerState.FRESH:
        return ""
    if kept is InnerState.KEPT:
        return 'their states were with the clients (inner_state = "kept")'
    if after.recipe.mode is not Mode.WEIGHTS or after.recipe.inner_state is not InnerState.CARRIED:
        return 'the new recipe is without inner_state = "carried"'
    if before.code != after.code:
        return "the code is another one"
    return "" if before.config == after.config else "the config is another one, and a state keeps the rates that it had"

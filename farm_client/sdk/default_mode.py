"""The mode of a task whose recipe names none: the one that gives the plain loop's model soonest.

In gradients mode with the researcher's own batch as the global one, every step is the plain loop's, whoever computes
parts of it; each step costs an exchange of the whole model with every client. In weights mode with one client a round,
that client runs the plain loop, and an exchange comes once a round. So gradients mode is chosen where the server can
take the steps and the exchanges stay affordable. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocol.recipe import InnerState, Mode, Recipe
from protocol.rest import LinksView
from protocol.task_length import rounds_of_epochs
from protocol.wording import counted, sized

AFFORDABLE_SECONDS: Final = 600.0
"""The exchanges of all steps may take as long as this together, or as long as sharing steps saves, if that is more."""
TRIPS_PER_ROUND: Final = 3
"""Round trips of a round: the order with its answer, the weights, the update."""
SERVER_ROUND_SECONDS: Final = 0.02
"""What a tiny round takes where there is no distance: 46 rounds/s of 1e5 parameters, by ``benchmarks rounds``."""
ROUND_FIELDS: Final = (
    "round_samples",
    "split",
    "outer",
    "inner_state",
    "quorum",
    "over_provision",
    "max_staleness",
    "buffer",
    "quorum_clients",
    "pipeline",
    "aggregate",
    "trim_share",
    "byzantine",
    "norm_bound",
    "dp_clip",
    "dp_noise_multiplier",
    "update_codec",
    "weights_codec",
)
"""Who sets one of these has a way of training in mind that is no plain loop: weights mode, as they describe it."""
CLIENT_FIELDS: Final = ("min_clients", "init_min_clients", "max_clients")


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """What lies between farm and clients: the speed of each direction, and the seconds of a tiny round.

    ``clients`` is how many can take work now, None where nobody knows; ``known_from`` says in words what was measured.
    """

    download_bytes_per_second: float
    upload_bytes_per_second: float
    round_seconds: float
    clients: int | None = None
    known_from: str = "links assumed"

    def exchange_seconds(self, model_bytes: int) -> float:
        """Return how long a client takes to fetch a model, and to send as much."""
        moving = model_bytes / self.download_bytes_per_second + model_bytes / self.upload_bytes_per_second
        return self.round_seconds + moving


LOOPBACK: Final = LinkEstimate(1e8, 1e8, SERVER_ROUND_SECONDS)
"""As ``benchmarks rounds`` measures one client of two: 46 rounds/s of 1e5 parameters, 1.35 of 1e7."""
HOUSEHOLD: Final = LinkEstimate(12.5e6, 12.5e6, 0.1)
"""A link of 100 Mbit/s, some 30 ms away: for a farm that has served nobody yet."""


def estimate(links: LinksView | None, assumed: LinkEstimate) -> LinkEstimate:
    """Return what the farm's clients measured, and what is assumed of the rest; ``links`` is None for an old farm.

    A direction in which nothing large has moved is taken to be as fast as the other one.
    """
    if links is None or not links.clients:
        return assumed
    trip, down, up = links.round_trip_seconds, links.download_bytes_per_second, links.upload_bytes_per_second
    return LinkEstimate(
        download_bytes_per_second=down or up or assumed.download_bytes_per_second,
        upload_bytes_per_second=up or down or assumed.upload_bytes_per_second,
        round_seconds=SERVER_ROUND_SECONDS + TRIPS_PER_ROUND * trip if trip else assumed.round_seconds,
        clients=links.clients,
        known_from=_known_from(links),
    )


def _known_from(links: LinksView) -> str:
    if links.speeds and links.round_trips:
        return f"links measured on {counted(min(links.speeds, links.round_trips), 'client')}"
    if links.speeds:
        return f"speeds measured on {counted(links.speeds, 'client')}, round trips assumed"
    if links.round_trips:
        return f"round trips measured on {counted(links.round_trips, 'client')}, speeds assumed"
    return "links assumed"


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """What the trial found: ``obstacle`` is what the server can't do of the task's steps, empty if it can all.

    ``model_bytes`` travel each way in an exchange; ``batch_seconds`` is what one batch took here, its first time.
    """

    obstacle: str
    model_bytes: int
    batch_seconds: float
    train_samples: int


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """``changes`` are the recipe's fields that it sets; ``sentence`` says what was chosen, why, and what it costs."""

    mode: Mode
    sentence: str
    changes: dict[str, Any] = field(default_factory=dict)


def leaves_the_mode_open(recipe: Recipe) -> bool:
    """Return whether the recipe names no mode and describes no way of training either."""
    return not recipe.model_fields_set & {"mode", *ROUND_FIELDS}


def choose_mode(recipe: Recipe, facts: TrialFacts, link: LinkEstimate) -> ModeChoice:
    """Choose for a recipe that leaves the mode open. The samples trained on are the same in either mode.

    A recipe's ``rounds`` are passes over the training split.
    """
    if facts.obstacle:
        return _weights(recipe, facts.obstacle)
    batch = min(recipe.batch_samples, facts.train_samples)
    a_batch_a_round = recipe.model_copy(update={"round_samples": batch})
    steps = rounds_of_epochs(a_batch_a_round, passes(recipe), facts.train_samples)
    exchange = link.exchange_seconds(facts.model_bytes)
    if steps * exchange > max(AFFORDABLE_SECONDS, steps * _saved_seconds(facts, link)):
        return _weights(
            recipe,
            f"an exchange of {sized(2 * facts.model_bytes)} for each of {counted(steps, 'step')} would take some "
            f"{_duration(steps * exchange)} ({link.known_from})",
        )
    return ModeChoice(
        Mode.GRADIENTS,
        f"mode gradients: every step is the mean over your batch of {batch}, the plain loop's model; "
        f"{sized(2 * facts.model_bytes)} a step and client, some {_duration(steps * exchange)} of exchanges in "
        f"{counted(steps, 'step')} ({link.known_from})",
        {
            "mode": Mode.GRADIENTS,
            "round_samples": batch,
            "rounds": None,
            "epochs": passes(recipe),
        },
    )


def _saved_seconds(facts: TrialFacts, link: LinkEstimate) -> float:
    """Return what clients that share a batch save of its computing; where their number is open, nearly all of it."""
    return facts.batch_seconds * (1.0 if link.clients is None else 1 - 1 / link.clients)


def choose_for_script(recipe: Recipe, *, carries: bool) -> ModeChoice:
    """Choose for a script with a loop of its own: it takes its steps itself."""
    choice = _weights(recipe, "the script takes its steps itself")
    if carries:
        return choice
    changes = {name: value for name, value in choice.changes.items() if name != "inner_state"}
    advice = "; farm.parts(model, optimizer) would hand the optimizer's state on as well"
    sentence = choice.sentence.replace(", and hands its optimizer's state on", "") + advice
    return ModeChoice(choice.mode, sentence, changes)


def _weights(recipe: Recipe, why: str) -> ModeChoice:
    """Return weights mode: the plain loop on one client a round, unless the recipe says how many there are to be."""
    changes: dict[str, Any] = {
        "mode": Mode.WEIGHTS,
        "inner_state": InnerState.CARRIED,
        "rounds": None,
        "epochs": passes(recipe),
    }
    said = next((name for name in CLIENT_FIELDS if name in recipe.model_fields_set), None)
    if said is None:
        cost = (
            "one client trains at a time, as the plain loop does, and hands its optimizer's state on; others stand by"
        )
        changes["max_clients"] = 1
    else:
        cost = f"{said} is set: clients that share a round train apart and are averaged, which is not the plain loop"
    return ModeChoice(Mode.WEIGHTS, f"mode weights: {why}; {cost}", changes)


def notes_on_averaging(recipe: Recipe) -> tuple[str, ...]:
    """Return what a recipe should hear that names weights mode and says nothing of how: at most one sentence.

    The figures are those of ``benchmarks quality`` for six models, five seeds each.
    """
    says_how = recipe.model_fields_set & {*ROUND_FIELDS, *CLIENT_FIELDS, "parts"}
    is_named = recipe.mode is Mode.WEIGHTS and "mode" in recipe.model_fields_set
    if not is_named or says_how:
        return ()
    return (
        "mode weights averages clients that train apart, each from a new optimizer in every round: on two clients that "
        "gave 1.05 to 1.6 times a plain loop's held-out loss, 1.2 to 17 times on eight; leave the mode out for the "
        'plain loop\'s model, or say inner_state = "fresh" in the recipe to mean it',
    )


def with_passes_said(choice: ModeChoice, recipe: Recipe) -> ModeChoice:
    """Say what ``rounds`` are where no mode is named: passes over the data, and not rounds of the mode's size."""
    if recipe.rounds is None:
        return choice
    said = f"{choice.sentence}; {counted(recipe.rounds, 'round')} without a mode: so many passes over the data"
    return replace(choice, sentence=said)


def passes(recipe: Recipe) -> float:
    """Count the passes over the training split of a recipe that leaves the mode open."""
    return min(float(count) for count in (recipe.rounds, recipe.epochs) if count is not None)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

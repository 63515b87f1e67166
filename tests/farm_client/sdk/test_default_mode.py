"""The mode that a recipe leaves open: gradients where that is affordable and the plain loop, else one client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sdk.default_mode import (
    AFFORDABLE_SECONDS,
    HOUSEHOLD,
    LOOPBACK,
    SERVER_ROUND_SECONDS,
    TRIPS_PER_ROUND,
    LinkEstimate,
    ModeChoice,
    TrialFacts,
    choose_for_script,
    choose_mode,
    estimate,
    leaves_the_mode_open,
    notes_on_averaging,
    with_passes_said,
)
from protocol.recipe import InnerState, Mode, Recipe
from protocol.rest import LinksView
from protocol.task_length import global_steps
from protocol.wording import counted


def chosen(
    recipe: dict[str, Any] | None = None,
    obstacle: str = "",
    model_bytes: int = 400_000,
    batch_seconds: float = 0.1,
    train_samples: int = 1000,
    link: LinkEstimate = LOOPBACK,
) -> ModeChoice:
    facts = TrialFacts(obstacle, model_bytes, batch_seconds, train_samples)
    return choose_mode(Recipe.model_validate({"rounds": 20, **(recipe or {})}), facts, link)


def made(choice: ModeChoice) -> Recipe:
    """Return the recipe with the choice in it; its rules are checked anew."""
    return Recipe.model_validate({"rounds": 20, **choice.changes})


def test_the_researchers_batch_is_the_global_one() -> None:
    choice = chosen({"batch_samples": 16})
    assert choice.sentence.startswith("mode gradients: every step is the mean over your batch of 16")
    recipe = made(choice)
    assert (recipe.mode, recipe.round_samples, recipe.rounds, recipe.epochs) == (Mode.GRADIENTS, 16, None, 20)


@pytest.mark.parametrize(
    ("said", "epochs"),
    [
        ({"rounds": 3}, 3),
        ({"rounds": None, "epochs": 2.5}, 2.5),
        ({"rounds": 3, "epochs": 2.5}, 2.5),
        ({"rounds": 2, "epochs": 2.5}, 2),
    ],
)
@pytest.mark.parametrize("obstacle", ["", "there are two optimizers"])
def test_either_mode_makes_as_many_passes_as_the_recipe_says(
    said: dict[str, Any], epochs: float, obstacle: str
) -> None:
    changes = chosen(said, obstacle).changes
    assert (changes["epochs"], changes["rounds"]) == (epochs, None)


@given(st.integers(1, 64), st.integers(1, 300), st.one_of(st.integers(1, 5), st.floats(0.1, 5, allow_nan=False)))
def test_the_steps_that_it_tells_of_are_those_that_the_farm_takes(batch: int, samples: int, epochs: float) -> None:
    choice = chosen({"rounds": None, "epochs": epochs, "batch_samples": batch}, train_samples=samples)
    recipe = Recipe.model_validate({"batch_samples": batch, **choice.changes})
    assert f"of exchanges in {counted(global_steps(recipe, samples), 'step')} (" in choice.sentence


def test_a_batch_is_no_larger_than_the_data() -> None:
    assert chosen({"batch_samples": 512}, train_samples=100).changes["round_samples"] == 100


def test_what_the_server_cannot_do_goes_to_one_client_at_a_time() -> None:
    choice = chosen(obstacle="there is no Adadelta")
    assert choice.sentence.startswith("mode weights: there is no Adadelta; one client trains at a time")
    recipe = made(choice)
    assert (recipe.mode, recipe.inner_state, recipe.max_clients) == (Mode.WEIGHTS, InnerState.CARRIED, 1)
    assert (recipe.rounds, recipe.epochs) == (None, 20)


@pytest.mark.parametrize("field", ["min_clients", "init_min_clients", "max_clients"])
def test_a_recipe_that_counts_clients_keeps_its_number_and_hears_what_it_costs(field: str) -> None:
    choice = chosen({field: 3}, obstacle="there is no Adadelta")
    assert "max_clients" not in choice.changes
    assert f"{field} is set" in choice.sentence


def test_a_large_model_on_a_household_line_exchanges_once_a_round() -> None:
    choice = chosen(model_bytes=50_000_000, link=HOUSEHOLD)
    assert choice.mode is Mode.WEIGHTS
    assert "an exchange of 95.4 MiB for each of 640 steps would take some 86 min" in choice.sentence
    assert chosen(model_bytes=50_000_000).mode is Mode.WEIGHTS, "a second each on loopback, for 640 steps"
    assert chosen(model_bytes=5_000_000).mode is Mode.GRADIENTS


def test_exchanges_may_take_as_long_as_the_computing() -> None:
    exchange = HOUSEHOLD.exchange_seconds(50_000_000)
    assert exchange * 625 > AFFORDABLE_SECONDS
    for batch_seconds, mode in ((0.9 * exchange, Mode.WEIGHTS), (1.1 * exchange, Mode.GRADIENTS)):
        assert chosen(model_bytes=50_000_000, batch_seconds=batch_seconds, link=HOUSEHOLD).mode is mode


def links(
    clients: int = 3, round_trips: int = 3, speeds: int = 3, trip: float = 0.05, down: float = 4e6, up: float = 1e6
) -> LinksView:
    return LinksView(
        clients=clients,
        round_trips=round_trips,
        speeds=speeds,
        round_trip_seconds=trip,
        download_bytes_per_second=down,
        upload_bytes_per_second=up,
    )


def test_measured_links_count_instead_of_assumed_ones() -> None:
    link = estimate(links(), HOUSEHOLD)
    assert (link.download_bytes_per_second, link.upload_bytes_per_second, link.clients) == (4e6, 1e6, 3)
    assert link.round_seconds == SERVER_ROUND_SECONDS + TRIPS_PER_ROUND * 0.05
    assert link.exchange_seconds(8_000_000) == pytest.approx(link.round_seconds + 2 + 8)
    assert link.known_from == "links measured on 3 clients"


@pytest.mark.parametrize("known", [None, links(0, 0, 0, 0, 0, 0)], ids=["an older farm", "nobody online"])
@pytest.mark.parametrize("assumed", [HOUSEHOLD, LOOPBACK])
def test_a_farm_that_knows_no_link_has_the_usual_ones(known: LinksView | None, assumed: LinkEstimate) -> None:
    assert estimate(known, assumed) is assumed
    assert assumed.known_from == "links assumed"


def test_what_was_not_measured_is_assumed_and_said() -> None:
    far = estimate(links(clients=5, round_trips=4, speeds=0, down=0, up=0), HOUSEHOLD)
    assert far.upload_bytes_per_second == HOUSEHOLD.upload_bytes_per_second
    assert far.known_from == "round trips measured on 4 clients, speeds assumed"
    fast = estimate(links(round_trips=0, speeds=1, trip=0), HOUSEHOLD)
    assert fast.round_seconds == HOUSEHOLD.round_seconds
    assert fast.known_from == "speeds measured on 1 client, round trips assumed"
    assert estimate(links(1, 0, 0, 0, 0, 0), LOOPBACK).known_from == "links assumed"


def test_a_direction_in_which_nothing_moved_is_as_fast_as_the_other() -> None:
    assert estimate(links(up=0), HOUSEHOLD).upload_bytes_per_second == 4e6
    assert estimate(links(down=0), HOUSEHOLD).download_bytes_per_second == 1e6


def test_the_line_says_where_the_figures_are_from() -> None:
    near = estimate(links(trip=0.001, down=1e8, up=1e8), HOUSEHOLD)
    thin = estimate(links(down=1e6, up=1e5), HOUSEHOLD)
    for link, mode in ((near, Mode.GRADIENTS), (thin, Mode.WEIGHTS)):
        choice = chosen(model_bytes=5_000_000, link=link)
        assert choice.mode is mode
        assert "(links measured on 3 clients)" in choice.sentence
    assert "(links assumed)" in chosen(link=HOUSEHOLD).sentence


def test_the_fewer_share_a_step_the_less_may_its_exchange_cost() -> None:
    exchange = HOUSEHOLD.exchange_seconds(50_000_000)
    modes = [
        chosen(model_bytes=50_000_000, batch_seconds=1.5 * exchange, link=replace(HOUSEHOLD, clients=count)).mode
        for count in (1, 2, 8, None)
    ]
    assert modes == [Mode.WEIGHTS, Mode.WEIGHTS, Mode.GRADIENTS, Mode.GRADIENTS]
    assert chosen(link=replace(LOOPBACK, clients=1)).mode is Mode.GRADIENTS, "all exchanges together take seconds"


@pytest.mark.parametrize(
    ("said", "is_open"),
    [
        ({}, True),
        ({"batch_samples": 8, "seed": 1, "min_clients": 2}, True),
        ({"mode": "weights"}, False),
        ({"round_samples": 64}, False),
        ({"update_codec": {"name": "int8"}}, False),
    ],
)
def test_who_describes_a_way_of_training_gets_it(said: dict[str, Any], is_open: bool) -> None:
    assert leaves_the_mode_open(Recipe.model_validate({"rounds": 1, **said})) is is_open


@pytest.mark.parametrize(
    "said",
    [
        {},  # the mode is chosen, and says itself what it costs
        {"mode": "gradients"},
        {"mode": "weights", "inner_state": "fresh"},
        {"mode": "weights", "max_clients": 1},
        {"mode": "weights", "parts": "fixed"},
        {"mode": "weights", "outer": {"name": "sgd", "options": {"lr": 0.7, "momentum": 0.9, "nesterov": True}}},
        {"round_samples": 64},
    ],
)
def test_who_says_how_to_average_knows_it(said: dict[str, Any]) -> None:
    assert notes_on_averaging(Recipe.model_validate({"rounds": 1, **said})) == ()


@pytest.mark.parametrize("said", [{}, {"batch_samples": 8, "seed": 3}, {"evaluate_every": 2}])
def test_who_names_weights_mode_alone_hears_what_it_costs(said: dict[str, Any]) -> None:
    (note,) = notes_on_averaging(Recipe.model_validate({"rounds": 1, "mode": "weights", **said}))
    assert "on two clients that gave 1.05 to 1.6 times a plain loop's held-out loss" in note
    assert "leave the mode out" in note


def test_what_the_note_advises_ends_it() -> None:
    """Each of its two ways out is a recipe that hears no note."""
    assert notes_on_averaging(Recipe.model_validate({"rounds": 1})) == ()
    meant = {"rounds": 1, "mode": "weights", "inner_state": "fresh"}
    assert notes_on_averaging(Recipe.model_validate(meant)) == ()
    assert Recipe.model_validate(meant) == Recipe.model_validate({"rounds": 1, "mode": "weights"})


def test_a_script_takes_its_own_steps_on_one_client_and_hands_its_optimizers_state_on() -> None:
    choice = choose_for_script(Recipe(rounds=2), carries=True)
    assert "the script takes its steps itself" in choice.sentence
    assert "hands its optimizer's state on" in choice.sentence
    recipe = made(choice)
    assert (recipe.mode, recipe.max_clients, recipe.inner_state) == (Mode.WEIGHTS, 1, InnerState.CARRIED)


def test_a_script_that_gives_no_optimizer_is_told_what_it_could_give() -> None:
    choice = choose_for_script(Recipe(rounds=2), carries=False)
    assert "farm.parts(model, optimizer) would hand the optimizer's state on" in choice.sentence
    assert "hands its optimizer's state on" not in choice.sentence
    assert made(choice).inner_state is InnerState.FRESH


def test_a_script_with_a_number_of_clients_keeps_it() -> None:
    choice = choose_for_script(Recipe(rounds=2, min_clients=3), carries=True)
    assert "max_clients" not in choice.changes
    assert "min_clients is set" in choice.sentence


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"rounds": 20}, "; 20 rounds without a mode: so many passes over the data"),
        ({"rounds": 1, "epochs": 3}, "; 1 round without a mode: so many passes over the data"),
        ({"epochs": 3}, ""),
    ],
)
def test_what_rounds_are_without_a_mode_is_said(recipe: dict[str, object], said: str) -> None:
    choice = ModeChoice(Mode.WEIGHTS, "mode weights: why", {"max_clients": 1})
    told = with_passes_said(choice, Recipe.model_validate(recipe))
    assert told.sentence == f"mode weights: why{said}"
    assert (told.mode, told.changes) == (choice.mode, choice.changes)
